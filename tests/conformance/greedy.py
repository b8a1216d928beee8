"""Checks of greedy decoding: token for token what transformers' own class says, however drafted.

Every check takes a Case and raises AssertionError where the method, or what it runs on, is wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses

import torch
from oracle import facts, outputs
from recording import Around

from conformance.cases import CONTEXT, LENGTH, PROMPTS, VOCAB, Case, make_prompts
from model.common.loop.penalties import Penalties
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules

PENALTIES = Penalties(1.1, 0.1, 0.05)  # answers still repeat themselves, so that drafts are taken
SURE = 1e-5  # logits differ by less, whatever the order of sums: norms round to float32


def drafts_of(case: Case) -> bool:
    """Whether the method drafts at all: only the baseline never does."""
    return case.method != "vanilla"


def check_counts(turns, limit: int) -> None:
    """A step commits 1 to depth + 1 tokens, and the counts add up to the answer."""
    for turn in turns:
        assert len(turn.output_ids) == 1 + sum(turn.accept_lengths) <= limit
        assert len(turn.accept_lengths) == len(turn.drafted) == len(turn.depth)
        for length, depth, drafted in zip(turn.accept_lengths, turn.depth, turn.drafted):
            assert 1 <= length <= 1 + depth and length <= 1 + drafted


def check_exact(case: Case, least: int = 3) -> None:
    """Alone and in a batch; steps of `least` tokens and more are really committed."""
    known = [case.world.answer(prompt) for prompt in PROMPTS]
    for turns in (case.alone, case.together):
        assert outputs(turns) == known
        assert {turn.finish_reason for turn in turns} == {"length"}
        check_counts(turns, LENGTH)
        longest = max(length for turn in turns for length in turn.accept_lengths)
        assert longest >= least if drafts_of(case) else longest == 1


def check_penalties(case: Case) -> None:
    """Penalised by each place's own prefix: alone, and in slots of which one is filled again."""
    known = [case.world.answer(prompt, penalties=PENALTIES) for prompt in PROMPTS]
    assert known != [case.world.answer(prompt) for prompt in PROMPTS]
    for batch in (1, 3):
        turns = case.decode(PROMPTS, batch=batch, sampler=Sampler(penalties=PENALTIES))
        assert outputs(turns) == known
        longest = max(length for turn in turns for length in turn.accept_lengths)
        assert longest >= 2 if drafts_of(case) else longest == 1


def check_memory(case: Case) -> None:
    """A question is answered, and drafted for, as if it were the first."""
    seeds = list(range(len(PROMPTS)))  # some methods draw at temperature 0 too
    assert facts(case.decode(PROMPTS[::-1], batch=1, seeds=seeds[::-1]))[::-1] == facts(case.alone)
    assert facts(case.decode(PROMPTS, batch=1, drafter=case.build())) == facts(case.alone)


def places_inside(turns):
    """(row, place) of answer tokens that a step committed before its last one."""
    for row, turn in enumerate(turns):
        place = 1
        for length in turn.accept_lengths:
            yield from ((row, place + inner) for inner in range(length - 1))
            place += length


def cut_at(ids: list[int], ends) -> list[int]:
    """Up to the first of the ends, which is kept."""
    place = next((place for place, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: place + 1]


def check_limits(case: Case) -> None:
    """Every --max-new-tokens from 1 on; some of them fall inside a path."""
    inside = {place for _, place in places_inside(case.together)}
    assert inside & set(range(1, 12)) or not drafts_of(case)
    for limit in range(1, 13):
        turns = case.decode(PROMPTS, limit)
        assert outputs(turns) == [case.world.answer(prompt, limit) for prompt in PROMPTS]
        check_counts(turns, limit)


def ends_inside(case: Case, prompts) -> list[tuple[int, int]]:
    """(row, place) of tokens that a step committed before its last one, and no place before."""
    known = [case.world.answer(prompt) for prompt in prompts]
    places = places_inside(case.decode(prompts, batch=1))
    return [(row, at) for row, at in places if known[row].index(known[row][at]) == at]


def check_eos(case: Case) -> None:
    """An end inside an accepted path: it is kept, nothing behind it is."""
    prompts = PROMPTS
    first = ends_inside(case, prompts)
    if not first:  # what copies can foresee an end if its prompt holds the answer's beginning
        prompts = [prompt + case.world.answer(prompt)[: LENGTH // 2] for prompt in PROMPTS]
        first = ends_inside(case, prompts)
    assert first or not drafts_of(case)
    known = [case.world.answer(prompt) for prompt in prompts]
    for row, place in first[:4]:
        ends = frozenset({known[row][place]})
        (turn,) = case.decode([prompts[row]], stop=StopRules(ends))
        assert turn.output_ids == known[row][: place + 1] and turn.finish_reason == "stop"
        check_counts([turn], LENGTH)
    for token in {known[row][place] for row, place in first}:
        ended = case.decode(prompts, stop=StopRules(frozenset({token})))
        assert outputs(ended) == [cut_at(ids, {token}) for ids in known]


def check_refilled(case: Case) -> None:
    """More questions than slots: who stood in a slot before, and beside it, changes nothing."""
    prompts = make_prompts(9)
    known = [case.world.answer(prompt) for prompt in prompts]
    ends = early_ends(known)
    stop = StopRules(ends)
    alone = case.decode(prompts, batch=1, stop=stop)
    assert outputs(alone) == [cut_at(ids, ends) for ids in known]
    for batch in (2, 4, 8):
        turns = case.decode(prompts, batch=batch, stop=stop)
        assert facts(turns) == facts(alone)
        assert {turn.slot for turn in turns} == set(range(batch))


def as_text(ids) -> str:
    return "".join(f"<{token}>" for token in ids)


def check_stop_strings(case: Case) -> None:
    """A string across the border of two tokens: of one step, and of two."""
    for row, prompt in enumerate(PROMPTS[1:], 1):
        known = case.world.answer(prompt)
        firsts = {tuple(known[at : at + 2]): at for at in reversed(range(LENGTH - 1))}
        inside = {place for one, place in places_inside(case.alone) if one == row}
        within = [at for at in firsts.values() if at in inside]
        across = [at for at in firsts.values() if at not in inside]
        assert within or across
        for at in (*within[:1], *across[:1]):
            text = f"{known[at]}><{known[at + 1]}"
            ends = (n for n in range(LENGTH + 1) if text in as_text(known[:n]))
            stop = StopRules(strings=(text,), decode=as_text)
            turn = case.decode([PROMPTS[0], prompt], stop=stop)[-1]
            assert turn.output_ids == known[: next(ends)] and turn.finish_reason == "stop"


class Muted(Around):
    """Every second draft of a sequence with nothing in it that could be committed."""

    def __init__(self, inner):
        super().__init__(inner)
        self.steps: dict[int, int] = {}  # drafts of each slot's sequence so far

    def start(self, prompt):
        self.steps |= dict.fromkeys(prompt.slots, 0)
        self.inner.start(prompt)

    def propose(self):
        draft = self.inner.propose()
        tokens = draft.tokens.clone()
        candidate = torch.ones_like(tokens[0], dtype=torch.bool)
        if draft.probe is not None:
            candidate = ~draft.probe
        for slot, steps in self.steps.items():
            if steps % 2 == 0:
                tokens[slot, candidate] = -1
            self.steps[slot] = steps + 1
        return dataclasses.replace(draft, tokens=tokens)


def check_empty(case: Case) -> None:
    """Drafts without a candidate, and prompts of one token, which leave nothing to copy."""
    for prompts in (PROMPTS, [[0], [5], [15]]):
        for batch in (1, len(prompts)):
            turns = case.decode(prompts, 16, batch, drafter=Muted(case.drafter))
            assert outputs(turns) == [case.world.answer(prompt, 16) for prompt in prompts]
            for turn in turns:
                assert set(turn.drafted[::2]) <= {0} and set(turn.accept_lengths[::2]) <= {1}
    turns = case.decode([[0], [5], [15]], 16)
    assert outputs(turns) == [case.world.answer([token], 16) for token in (0, 5, 15)]


def check_full_context(case: Case) -> None:
    """Prompt and answer fill the context to its last row, alone and beside a shorter prompt."""
    generator = torch.Generator().manual_seed(3)
    prompts = [
        torch.randint(0, VOCAB, (CONTEXT - room,), generator=generator).tolist()
        for room in (24, 9, 1)
    ]
    for batch in (1, 3):
        turns = case.decode(prompts, CONTEXT, batch)
        assert outputs(turns) == [case.world.answer(prompt, CONTEXT) for prompt in prompts]
        assert [len(turn.output_ids) for turn in turns] == [24, 9, 1]
        assert {turn.finish_reason for turn in turns} == {"length"}
        check_counts(turns, CONTEXT)


def early_ends(known) -> frozenset[int]:
    """Ends with which most answers have lengths of their own, the shortest below 12."""

    def spread(token):
        lengths = {len(cut_at(ids, {token})) for ids in known}
        return min(lengths) < 12, len(lengths), max(lengths)

    return frozenset({max(range(VOCAB), key=spread)})


def check_ragged(case: Case) -> None:
    """Rows that end early leave the others as they would be alone, drafts and counts included."""
    known = [case.world.answer(prompt) for prompt in PROMPTS]
    ends = early_ends(known)
    wanted = [cut_at(ids, ends) for ids in known]
    lengths = sorted(map(len, wanted))
    assert lengths[0] < 12 and lengths[0] < lengths[1] and lengths[-1] > 20
    stop = StopRules(ends)
    alone = case.decode(PROMPTS, batch=1, stop=stop)
    assert outputs(alone) == wanted
    assert facts(case.decode(PROMPTS, stop=stop)) == facts(alone)


@contextlib.contextmanager
def changed_logits(world, change):
    """Logits are change(logits), in the target and in what it is compared with."""
    hooks = [
        model.get_output_embeddings().register_forward_hook(lambda module, given, out: change(out))
        for model in (world.target.model, world.plain)
    ]
    world.forget()
    try:
        yield
    finally:
        world.forget()
        for hook in hooks:
            hook.remove()


def rounded(world):
    """Logits are integers: exact ties."""
    return changed_logits(world, torch.round)


def check_ties(case: Case) -> None:
    """Of equally good tokens the first, in drafts and behind them."""
    world = case.world
    with rounded(world):
        known = [world.answer(prompt) for prompt in PROMPTS]
        shared = 0
        for prompt, ids in zip(PROMPTS, known):
            scores = world.logits([prompt + ids[:length] for length in range(LENGTH)])
            best = scores == scores.max(1, keepdim=True).values
            shared += int((best.sum(1) > 1).sum())
        assert shared >= 10
        for batch in (1, len(PROMPTS)):
            assert outputs(case.decode(PROMPTS, batch=batch)) == known


class Watched(Around):
    """Notes what the target said of every row that the method drafted."""

    def __init__(self, inner):
        super().__init__(inner)
        self.texts: dict[int, list[int]] = {}  # by slot
        self.notes = []  # (text of a row, logits [V])

    def start(self, prompt):
        self.texts |= {slot: list(ids) for slot, ids in zip(prompt.slots, prompt.host_ids)}
        self.inner.start(prompt)

    def propose(self):
        self.draft = self.inner.propose()
        return self.draft

    def observe(self, step):
        tokens, parents = self.draft.tokens.tolist(), self.draft.layout.parents
        parents = parents.expand(len(tokens), -1).tolist()
        for row, ids in enumerate(step.host_ids):
            if not ids:
                continue
            texts = [self.texts[row]]
            for node, parent in zip(tokens[row], parents[row]):
                above = texts[parent + 1]
                texts.append(None if above is None or node < 0 else [*above, node])
            self.notes += [
                (text, step.logits[row, at].clone()) for at, text in enumerate(texts) if text
            ]
            self.texts[row] = self.texts[row] + ids
        self.inner.observe(step)


def check_logits(case: Case) -> None:
    """Every drafted row reads the committed text and its own path, and nothing else."""
    for rows in ([1], [1, 3]):
        watched = Watched(case.drafter)
        case.decode([PROMPTS[row] for row in rows], 12, drafter=watched)
        wanted = {tuple(text): None for text, _ in watched.notes}
        found = case.world.logits([list(text) for text in wanted])
        wanted = dict(zip(wanted, found))
        assert len(watched.notes) >= 6
        for text, logits in watched.notes:
            assert (logits - wanted[tuple(text)]).abs().max() < SURE, text


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_") and name != "check_counts"
}
