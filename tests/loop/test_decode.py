"""decode.py: what a turn and a step say, and sequences that do not disturb each other.

With as many slots as prompts all begin and leave together; with fewer, waiting prompts enter slots
whose answers have ended.
"""

import pytest
import torch
from conftest import make_prompts
from oracle import (
    DRAFTERS,
    Chain,
    RandomTree,
    Scripted,
    answers,
    decode,
    facts,
    new_drafter,
    new_target,
    outputs,
)
from recording import Around

from model.common.contract.drafter import Draft, Drafter, Needs
from model.common.contract.sequence import EmptyDrafter
from model.common.contract.trees import Tree
from model.common.loop.decode import Loop
from model.common.loop.sampling import Sampler
from model.common.loop.source import Request, Source
from model.common.loop.turns import StopRules
from model.common.target.cache import KVCache

PROMPTS = make_prompts(4)
EPSILON = 1e-3  # s between the clocks of two runs of a loop


@pytest.fixture(scope="module")
def target():
    return new_target()


@pytest.fixture
def known():
    return answers("llama")


class Noting(Around):
    """Notes the drafts, and how many there were when each prompt began."""

    def __init__(self, inner):
        super().__init__(inner)
        self.drafts, self.begun = [], {}

    def start(self, prompt):
        for ids in prompt.host_ids:
            self.begun[tuple(ids[:-1])] = len(self.drafts)
        super().start(prompt)

    def propose(self):
        self.drafts.append(super().propose())
        return self.drafts[-1]


@pytest.mark.parametrize("rows, num_slots", [([1], 1), ([0, 1, 2, 3], 4), ([0, 1, 2, 3], 2)])
@pytest.mark.parametrize("kind", DRAFTERS)
def test_what_a_turn_says(target, known, kind, rows, num_slots):
    own, prompts = [known[row] for row in rows], [PROMPTS[row] for row in rows]
    ends = StopRules(frozenset({known[1][10]}))
    drafter = Noting(new_drafter(kind, own))
    turns = decode(target, drafter, prompts, 25, stop=ends, num_slots=num_slots)
    last = 0
    for prompt, turn in zip(prompts, turns):
        first, steps = drafter.begun[tuple(prompt)], len(turn.accept_lengths)
        last = max(last, first + steps)
        assert len(turn.output_ids) == 1 + sum(turn.accept_lengths) <= 25
        assert steps == len(turn.drafted) == len(turn.depth)
        for length, depth, drafted, draft in zip(
            turn.accept_lengths, turn.depth, turn.drafted, drafter.drafts[first:]
        ):
            assert 1 <= length <= 1 + depth <= 1 + draft.depth
            probe = draft.probe if draft.probe is not None else [False] * draft.tokens.shape[1]
            depths = draft.layout.depths.expand(len(draft.tokens), -1)[turn.slot, 1:].tolist()
            nodes = zip(draft.tokens[turn.slot].tolist(), probe, depths)
            own = [place for token, unseen, place in nodes if token >= 0 and not unseen]
            assert drafted == len(own) and depth == max(own, default=0)
    assert last == len(drafter.drafts)  # a draft was made for every step, and for nothing else
    assert_times(turns)


class OneSided(Scripted):
    """Ten tokens for the first prompt, nothing for the others."""

    max_nodes = 10

    def propose(self):
        first = [answer is self.known[0] for answer in self.answers]
        drafts = [self.ahead(slot, 10) if first[slot] else [-1] * 10 for slot in self.slots()]
        return Draft(self.tensor(drafts))


def test_a_slots_depth_is_that_of_its_own_draft(target, known):
    one, other = decode(target, OneSided(known[:2]), PROMPTS[:2], 24)
    assert set(one.depth) == set(one.drafted) == {10}
    assert other.depth == other.drafted == [0] * 23


def assert_times(turns):
    """Phases and ends of steps lie inside an answer, answers of a slot behind each other."""
    for turn in turns:
        steps = len(turn.accept_lengths)
        assert {len(times) for times in turn.phase_s.values()} == {steps}
        assert all(time >= 0 for times in turn.phase_s.values() for time in times)
        spent = sum(sum(times) for times in turn.phase_s.values())
        assert 0 < spent <= turn.wall_s - turn.prefill_s and turn.prefill_s > 0
        ends = turn.step_end_s
        assert len(ends) == steps and turn.prefill_s < ends[0] and ends[-1] <= turn.wall_s
        assert all(end < following for end, following in zip(ends, ends[1:]))
    for slot in {turn.slot for turn in turns}:
        own = sorted((turn for turn in turns if turn.slot == slot), key=lambda turn: turn.begin_s)
        for turn, following in zip(own, own[1:]):
            assert turn.begin_s + turn.wall_s <= following.begin_s + EPSILON


def test_sequences_that_end_early_have_their_own_wall_time(target, known):
    ends = StopRules(frozenset({known[1][10]}))
    turns = decode(target, Chain(known), PROMPTS, 25, stop=ends)
    by_steps = sorted(turns, key=lambda turn: len(turn.accept_lengths))
    assert len(by_steps[0].accept_lengths) < len(by_steps[-1].accept_lengths)
    for first, second in zip(by_steps, by_steps[1:]):
        if len(first.accept_lengths) < len(second.accept_lengths):
            assert first.wall_s < second.wall_s
        else:
            assert first.wall_s == second.wall_s
    assert len({turn.prefill_s for turn in turns}) == len({turn.begin_s for turn in turns}) == 1


def test_a_waiting_prompt_enters_the_first_slot_that_is_free(target, known):
    """Prompts 0 and 1 begin; 1 ends first, so that 2 follows it, and 3 whichever ends next."""
    ends = StopRules(frozenset({known[1][10]}))
    turns = decode(target, EmptyDrafter(), PROMPTS, 25, stop=ends, num_slots=2)
    assert [turn.slot for turn in turns[:3]] == [0, 1, 1]
    assert turns[0].begin_s == turns[1].begin_s
    begun = [turn.begin_s for turn in turns]
    assert begun == sorted(begun) and begun[2] < begun[0] + turns[0].wall_s
    # the steps of 0 that were taken beside 1 and beside 2 stand in both turns
    shared = [begun[0] + end for end in turns[0].step_end_s if begun[0] + end > begun[2]]
    own = [begun[2] + end for end in turns[2].step_end_s]
    assert shared and all(abs(a - b) < 1e-6 for a, b in zip(shared, own))


@pytest.mark.parametrize("sampler", [None, Sampler(0.9, 0, 0.95)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", DRAFTERS)
def test_sequences_do_not_disturb_each_other(target, known, kind, sampler):
    """One after the other ends, one of them with its prefill; each is as if it were alone."""
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
    padded, found = [ids + [7] * 20 for ids in alone], []
    for num_slots in (4, 3, 2, 1):
        drafter = new_drafter(kind, padded)
        rules = StopRules(ends)
        turns = decode(target, drafter, PROMPTS, 22, sampler, rules, num_slots=num_slots)
        assert outputs(turns) == wanted
        found.append(facts(turns))
    assert all(each == found[0] for each in found)


class Observer(Around):
    """Checks each Step against what it drafted; needs hidden states and the prompt's best ids."""

    def __init__(self, inner, prompts, num_slots):
        super().__init__(inner)
        self.needs = Needs(hidden=("last", 1), prompt_topk=3)
        self.prompts, self.num_slots = [list(ids) for ids in prompts], num_slots
        self.total, self.num_ended, self.said = {}, 0, None  # {running slot: its length}
        self.root = [None] * num_slots

    def start(self, step):
        self.check_longest()
        assert step.logits is None and step.continues == [False] * len(step.slots)
        width, size = step.tokens.shape[1], len(step.slots)
        for row, (slot, most) in enumerate(zip(step.slots, step.max_lengths)):
            ids = self.prompts.pop(0)
            assert slot not in self.total and most == len(ids) + 20
            pad = [-1] * (width - len(ids))
            assert step.tokens[row].tolist() == ids + pad
            assert step.path[row].tolist() == list(range(len(ids))) + pad
            assert step.new_tokens[row].tolist() == ids[1:] + [int(step.next_token[row])] + pad
            assert step.host_ids[row] == ids + [int(step.next_token[row])]
            assert int(step.count[row]) == len(ids)
            assert torch.equal(step.last("last")[row], step.hidden["last"][row, len(ids) - 1])
            self.root[slot], self.total[slot] = int(step.next_token[row]), len(ids) + 1
        assert step.max_committed == max(self.total.values())
        assert step.hidden["last"].shape == step.hidden[1].shape == (size, width, 64)
        assert step.topk.shape == (size, width, 3)
        super().start(step)

    def propose(self):
        self.check_longest()
        self.draft = super().propose()
        return self.draft

    def check_longest(self):
        """max_committed is that of the longest sequence which went on."""
        if self.said is not None:
            assert self.said == max(self.total.values(), default=0)
        self.said = None

    def observe(self, step):
        num_rows = 1 + self.draft.tokens.shape[1]
        assert step.slots == list(range(self.num_slots))
        assert torch.equal(step.tokens[:, 1:], self.draft.tokens)
        assert step.logits.shape == (self.num_slots, num_rows, 97)
        assert step.hidden["last"].shape == (self.num_slots, num_rows, 64)
        committed, last = step.committed(1), step.last(1)
        for slot, count in enumerate(step.count.tolist()):
            path, new = step.path[slot].tolist(), step.new_tokens[slot].tolist()
            assert path[count:] == new[count:] == [-1] * (1 + self.draft.depth - count)
            if slot not in self.total:
                assert count == 0 and step.host_ids[slot] == []
                continue
            assert int(step.tokens[slot, 0]) == self.root[slot] and path[0] == 0
            assert step.host_ids[slot] == new[: len(step.host_ids[slot])]
            self.root[slot] = int(step.next_token[slot])
            assert self.root[slot] == new[count - 1]
            for at, following in zip(path[1:count], new):
                assert step.tokens[slot, at] == following
            for at, following in zip(path[:count], new):
                assert step.logits[slot, at].argmax() == following
            for place, at in enumerate(path[:count]):
                assert torch.equal(committed[slot, place], step.hidden[1][slot, at])
            assert torch.equal(last[slot], step.hidden[1][slot, path[count - 1]])
            self.total[slot] += count
        self.said = step.max_committed
        super().observe(step)

    def end(self, slots):
        for slot in slots:
            del self.total[slot]
        self.num_ended += len(slots)
        super().end(slots)


@pytest.mark.parametrize("num_slots", [4, 2])
@pytest.mark.parametrize("kind", DRAFTERS)
def test_steps_say_what_happened(target, known, kind, num_slots):
    drafter = Observer(new_drafter(kind, known), PROMPTS, num_slots)
    ends = StopRules(frozenset({known[1][10]}))
    turns = decode(target, drafter, PROMPTS, 20, stop=ends, num_slots=num_slots)
    drafter.check_longest()
    assert turns[1].output_ids == known[1][:11]
    assert drafter.num_ended == 4 and not drafter.total and not drafter.prompts


class Conversations(Source):
    """Turns of a conversation each for two slots; the second one's prompts come late."""

    def __init__(self):
        self.left = {0: [PROMPTS[0], PROMPTS[1]], 1: [PROMPTS[2]]}
        self.asked, self.turns = 0, []

    def take(self, slot):
        self.asked += 1
        if not self.left[slot] or (slot == 1 and self.asked < 5):
            return None
        ids = self.left[slot].pop(0)
        return Request(ids, 12, continues=slot == 0 and not self.left[0], owner=slot)

    def done(self, request, turn):
        self.turns.append((request.owner, turn))


class Hearing(Around):
    """Notes what start() and end() are told."""

    heard = ()

    def start(self, prompt):
        self.heard += (("start", prompt.slots, prompt.continues),)
        super().start(prompt)

    def end(self, slots):
        self.heard += (("end", slots),)
        super().end(slots)


def test_a_source_decides_who_enters_a_slot(target, known):
    """A further turn of the same question, and a slot that stays free while another goes on."""
    drafter = Hearing(RandomTree(known))
    drafter.inner.prompts = PROMPTS
    source = Conversations()
    Loop(target, drafter, Sampler(), StopRules(), 2, 100).run(source)
    turns = sorted(source.turns, key=lambda pair: pair[0])  # of each slot in their order
    assert [(slot, turn.slot) for slot, turn in turns] == [(0, 0), (0, 0), (1, 1)]
    assert [turn.output_ids for _, turn in turns] == [known[row][:12] for row in (0, 1, 2)]
    of_slot = [[each for each in drafter.heard if each[1] == [slot]] for slot in (0, 1)]
    again = [("start", [0], [True]), ("end", [0])]
    assert of_slot[0] == [("start", [0], [False]), ("end", [0]), *again]
    assert of_slot[1] == [("start", [1], [False]), ("end", [1])]
    assert turns[0][1].begin_s < turns[2][1].begin_s < turns[0][1].begin_s + turns[0][1].wall_s


def test_a_slot_is_emptied_once(known, monkeypatch):
    """When its answer has ended; not again while the next prompt is timed."""
    emptied, clear = [], KVCache.clear

    def noted(cache, slots):
        emptied.extend(slots)
        clear(cache, slots)

    monkeypatch.setattr(KVCache, "clear", noted)
    turns = decode(new_target(), Chain(known), PROMPTS, num_slots=2)
    assert outputs(turns) == [ids[:24] for ids in known]
    assert sorted(emptied) == sorted(turn.slot for turn in turns)


class Zeros(Scripted):
    """Drafts token 0, which padding and clamped inert rows carry too."""

    max_nodes, max_depth = 3, 2
    parents = [-1, 0, -1]

    def propose(self):
        return Draft(self.tensor([[0] * 3] * len(self.answers)), self.tree)


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


class Foreign(Scripted):
    """Drafts an id that the target lacks, as a corpus with added tokens may have it."""

    max_nodes = 4

    def propose(self):
        drafts = [self.ahead(slot, 4, right=4) for slot in self.slots()]
        return Draft(self.tensor([[a, 97, c, 10**6] for a, _, c, _ in drafts]))


@pytest.mark.parametrize("sampler", [None, Sampler(0.9, 0, 0.95)], ids=["greedy", "sampled"])
def test_ids_that_the_target_lacks_are_inert(target, sampler):
    plain = outputs(decode(target, EmptyDrafter(), PROMPTS, 22, sampler))
    known = [ids + [7] * 20 for ids in plain]
    turns = decode(target, Foreign(known), PROMPTS, 22, sampler)
    assert outputs(turns) == plain
    assert {length for turn in turns for length in turn.accept_lengths[:-1]} == {2}
    assert {number for turn in turns for number in turn.drafted} == {2}


class Wild(Drafter):
    """Idle slots draft tokens that would be right somewhere: nobody may hear of them."""

    max_nodes, max_depth = 3, 3

    def reserve(self, num_slots, capacity, sampler):
        self.num_slots = num_slots

    def start(self, prompt):
        self.device = prompt.tokens.device

    def propose(self):
        tokens = torch.tensor([[96, 3, 5]] * self.num_slots, device=self.device)
        parents = torch.tensor([[-1, 0, 1]] * self.num_slots, device=self.device)
        return Draft(tokens, Tree(parents, 3))

    def observe(self, step):
        for slot, ids in enumerate(step.host_ids):
            assert bool(ids) == bool(step.count[slot] > 0)


def test_idle_slots_may_draft_anything(target, known):
    """Three prompts in two slots: while the last one is decoded, a slot is idle to the end."""
    turns = decode(target, Wild(), PROMPTS[:3], 20, num_slots=2)
    assert outputs(turns) == [ids[:20] for ids in known[:3]]
    assert target.cache.length.tolist() == [0, 0]  # an idle slot's rows come to nothing
