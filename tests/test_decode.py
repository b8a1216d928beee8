"""decode.py: what a turn and a step say, and rows of a batch that do not disturb each other."""

import pytest
import torch
from conftest import make_prompts
from oracle import (
    DRAFTERS,
    Chain,
    Scripted,
    answers,
    decode,
    new_drafter,
    new_target,
    outputs,
)

from model.common.contract.drafter import Draft, EmptyDrafter, Needs
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules

PROMPTS = make_prompts(4)


@pytest.fixture(scope="module")
def target():
    return new_target()


@pytest.fixture
def known():
    return answers("llama")


def counted_forwards(target, monkeypatch):
    calls = []
    original = target.forward

    def forward(*args, **kwargs):
        calls.append(args[1])
        return original(*args, **kwargs)

    monkeypatch.setattr(target, "forward", forward)
    return calls


@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("kind", DRAFTERS)
def test_what_a_turn_says(target, known, monkeypatch, kind, rows):
    calls = counted_forwards(target, monkeypatch)
    own = [known[row] for row in rows]
    ends = StopRules(frozenset({known[1][10]}))
    turns = decode(target, new_drafter(kind, own), [PROMPTS[row] for row in rows], 25, stop=ends)
    assert max(len(turn.accept_lengths) for turn in turns) == len(calls)
    for row, turn in enumerate(turns):
        steps = len(turn.accept_lengths)
        assert len(turn.output_ids) == 1 + sum(turn.accept_lengths) <= 25
        assert steps == len(turn.drafted) == len(turn.depth)
        for length, depth, drafted, draft in zip(
            turn.accept_lengths, turn.depth, turn.drafted, calls
        ):
            assert 1 <= length <= 1 + depth and depth == draft.depth
            probe = draft.probe if draft.probe is not None else [False] * draft.tokens.shape[1]
            candidates = zip(draft.tokens[row].tolist(), probe)
            assert drafted == sum(token >= 0 and not unseen for token, unseen in candidates)
        assert {len(times) for times in turn.phase_s.values()} == {steps}
        assert all(time >= 0 for times in turn.phase_s.values() for time in times)
        spent = sum(sum(times) for times in turn.phase_s.values())
        assert 0 < spent <= turn.wall_s - turn.prefill_s
        assert turn.prefill_s > 0


def test_rows_that_end_early_have_their_own_wall_time(target, known):
    ends = StopRules(frozenset({known[1][10]}))
    turns = decode(target, Chain(known), PROMPTS, 25, stop=ends)
    by_steps = sorted(turns, key=lambda turn: len(turn.accept_lengths))
    assert len(by_steps[0].accept_lengths) < len(by_steps[-1].accept_lengths)
    for first, second in zip(by_steps, by_steps[1:]):
        if len(first.accept_lengths) < len(second.accept_lengths):
            assert first.wall_s < second.wall_s
        else:
            assert first.wall_s == second.wall_s
    assert len({turn.prefill_s for turn in turns}) == 1


@pytest.mark.parametrize("sampler", [None, Sampler(0.9, 0, 0.95)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", DRAFTERS)
def test_a_finished_row_does_not_disturb_the_others(target, known, kind, sampler):
    """One after the other ends, the first of them with the prefill; each is as if it were alone."""
    alone = [
        outputs(decode(target, EmptyDrafter(), [prompt], 22, sampler, seeds=[row]))[0]
        for row, prompt in enumerate(PROMPTS)
    ]
    ends = frozenset({alone[2][0], alone[1][9]})
    wanted = []
    for ids in alone:
        at = next((place for place, token in enumerate(ids) if token in ends), 21)
        wanted.append(ids[: at + 1])
    assert len(wanted[2]) == 1 and len({len(ids) for ids in wanted}) >= 3
    padded = [ids + [7] * 20 for ids in alone]
    turns = decode(target, new_drafter(kind, padded), PROMPTS, 22, sampler, StopRules(ends))
    assert outputs(turns) == wanted


class Observer(Scripted):
    """Checks each Step against what it drafted; needs hidden states and the prompt's best ids."""

    needs = Needs(hidden=("last", 1), prompt_topk=3)

    def __init__(self, inner, prompts):
        self.inner, self.prompts = inner, prompts

    def start(self, step, max_lengths, sampler):
        assert step.logits is None and max_lengths == [len(ids) + 20 for ids in self.prompts]
        width = step.tokens.shape[1]
        for row, ids in enumerate(self.prompts):
            pad = [-1] * (width - len(ids))
            assert step.tokens[row].tolist() == ids + pad
            assert step.path[row].tolist() == list(range(len(ids))) + pad
            assert step.new_tokens[row].tolist() == ids[1:] + [int(step.next_token[row])] + pad
            assert step.host_ids[row] == ids + [int(step.next_token[row])]
            assert int(step.count[row]) == len(ids)
        assert step.max_committed == 1 + max(map(len, self.prompts))
        assert step.hidden["last"].shape == step.hidden[1].shape == (len(self.prompts), width, 64)
        assert step.prompt_topk.shape == (len(self.prompts), width, 3)
        self.root, self.total = step.next_token.clone(), [len(ids) + 1 for ids in self.prompts]
        self.finished = set()
        self.inner.start(step, max_lengths, sampler)

    def propose(self):
        self.draft = self.inner.propose()
        return self.draft

    def observe(self, step):
        num_rows = 1 + self.draft.tokens.shape[1]
        assert torch.equal(step.tokens, torch.cat([self.root[:, None], self.draft.tokens], 1))
        assert step.logits.shape == (len(self.prompts), num_rows, 97)
        assert step.hidden["last"].shape == (len(self.prompts), num_rows, 64)
        for row, count in enumerate(step.count.tolist()):
            path, new = step.path[row].tolist(), step.new_tokens[row].tolist()
            assert path[count:] == new[count:] == [-1] * (1 + self.draft.depth - count)
            assert step.host_ids[row] == new[:count]
            if count == 0:
                assert step.next_token[row] == self.root[row]
                self.finished.add(row)
                continue
            assert row not in self.finished and path[0] == 0
            assert int(step.next_token[row]) == new[count - 1]
            for at, following in zip(path[1:count], new):
                assert step.tokens[row, at] == following
            for at, following in zip(path[:count], new):
                assert step.logits[row, at].argmax() == following
            self.total[row] += count
        self.root = step.next_token.clone()
        assert step.max_committed in [0, *self.total]  # 0: nobody goes on
        self.inner.observe(step)


@pytest.mark.parametrize("kind", DRAFTERS)
def test_steps_say_what_happened(target, known, kind):
    drafter = Observer(new_drafter(kind, known), PROMPTS)
    turns = decode(target, drafter, PROMPTS, 20, stop=StopRules(frozenset({known[1][10]})))
    assert turns[1].output_ids == known[1][:11] and drafter.finished


class Zeros(Scripted):
    """Drafts token 0, which padding and clamped inert rows carry too."""

    def propose(self):
        num = len(self.known)
        return Draft(torch.zeros(num, 3, dtype=torch.long), torch.tensor([-1, 0, -1]), 2)


def test_token_0_in_an_answer():
    """A model that likes 0, the id of padding and of clamped inert rows: drafts of it are taken."""
    target = new_target()
    bias = torch.eye(97)[0] * 5
    hook = target.model.lm_head.register_forward_hook(lambda module, given, out: out + bias)
    try:
        plain = outputs(decode(target, EmptyDrafter(), PROMPTS))
        assert all(0.2 < ids.count(0) / len(ids) < 0.8 for ids in plain)
        turns = decode(target, Zeros(plain), PROMPTS)
        assert outputs(turns) == plain
        assert {length for turn in turns for length in turn.accept_lengths} == {1, 2, 3}
        padded = [ids + [0] * 20 for ids in plain]
        for kind in DRAFTERS[1:]:
            assert outputs(decode(target, kind(padded), PROMPTS)) == plain
    finally:
        hook.remove()
