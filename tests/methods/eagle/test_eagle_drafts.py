"""Drafts of EAGLE, EAGLE-2 and EAGLE-3: a slow reference and its faults, the cache, oracles."""

import pytest
import torch
from conftest import make_prompts
from eagle_checks import (
    KINDS,
    PUBLISHED_SIZE,
    PUBLISHED_TREE,
    loopy_prompts,
    target_of,
    tiny_model,
)
from eagle_slow import ScriptedHead, teller
from head_caches import FreshCaches
from oracle import answers, decode, facts, new_target, outputs
from recording import Recording

from model.common.contract import trees
from model.common.contract.drafter import Draft
from model.common.contract.sequence import EmptyDrafter
from model.common.contract.static_tree import StaticTree
from model.common.heads import head as heads
from model.common.loop.turns import StopRules
from model.common.target.model import Target

every_kind = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A random head of each kind."""
    return {name: kind.new_head(tmp_path_factory.mktemp(name)) for name, kind in KINDS.items()}


def early_stop(target, prompts):
    """Ends the first answer after at most five tokens."""
    return StopRules(frozenset({outputs(decode(target, EmptyDrafter(), prompts))[0][4]}))


# --- EAGLE's static tree ---


def test_published_tree():
    built = StaticTree(PUBLISHED_TREE, "cpu")
    assert len(built) == 25 and built.is_sibling_closed
    assert [level.stop - level.start for level in built.levels] == [4, 8, 8, 3, 2]
    known = trees.ancestors(built.parents)
    assert known.shape == (26, 26) and known.sum() == 92
    assert (known.sum(-1) - 1).tolist() == [0, *built.depths]
    leaves = [node for node in range(25) if not built.num_children[1 + node]]
    assert len(leaves) == 15 and built.depth == 5  # rows of 1 + depth
    assert [len(inner) for inner in built.inner] == [1, 4, 4, 1, 1]  # 11 groups of candidates
    fed = [[built.paths[node] for node in inner] for inner in built.inner[1:]]
    assert fed == [
        [(0,), (1,), (2,), (3,)],
        [(0, 0), (0, 1), (0, 2), (1, 0)],
        [(0, 0, 0)],
        [(0, 0, 0, 0)],
    ]


def test_passes(folders, monkeypatch):
    """Widths, positions and what each row may read, for the published tree."""
    head = KINDS["eagle"].load(folders["eagle"], target_of("eagle"))
    reads, read = [], head.read

    def heard(inputs, longest, offset=0, ancestors=None, depths=None):
        if ancestors is not None:
            reads.append((ancestors[0].int(), depths.tolist(), offset))
        return read(inputs, longest, offset, ancestors, depths)

    monkeypatch.setattr(head, "read", heard)
    decode(target_of("eagle"), KINDS["eagle"].drafter(head, PUBLISHED_TREE), loopy_prompts(1), 4)
    shapes = [(tuple(known.shape), depths, offset) for known, depths, offset in reads[:4]]
    assert shapes == [
        ((4, 4), [[0] * 4], 0),
        ((4, 8), [[1] * 4], 4),
        ((1, 9), [[2]], 8),
        ((1, 10), [[3]], 9),
    ]
    sums = [known.sum(-1).tolist() for known, *_ in reads[:4]]
    assert sums == [[1] * 4, [2] * 4, [3], [4]]
    assert reads[1][0].tolist() == [
        [1, 0, 0, 0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 0, 0, 0, 1],
    ]


# --- against a slow reference ---


@pytest.mark.parametrize("num_slots", [1, 3])
@every_kind
def test_drafts_equal_a_slow_reference(folders, name, num_slots):
    """Every node of every step, with slots of other lengths and one that ends early."""
    kind, target, prompts = KINDS[name], target_of(name), loopy_prompts()
    stop = early_stop(target, prompts)
    recording = Recording(kind.drafter(kind.load(folders[name], target)))
    turns = decode(target, recording, prompts, 16, stop=stop, num_slots=num_slots)
    assert outputs(turns) == outputs(decode(target, EmptyDrafter(), prompts, 16, stop=stop))
    assert len({len(turn.output_ids) for turn in turns}) > 1
    accepted = [turn.accept_lengths for turn in turns]
    assert max(map(max, accepted)) > 1 + (kind.version == 1)
    assert len(recording.drafts) == sum(map(len, accepted))
    found = kind.slow_steps(recording, target.model, folders[name])
    assert found == (0, len(recording.drafts))
    if kind.version > 1:  # the tree's shape follows the head
        assert len({tuple(one.parents) for one in recording.drafts}) > 3


@pytest.mark.parametrize(
    "name, layout, full",
    [
        ("eagle", PUBLISHED_TREE, 6),
        ("eagle", [(0,)], 2),
        ("eagle", [(0,), (0, 0), (0, 0, 0)], 4),
        ("eagle2", PUBLISHED_SIZE, 7),
        ("eagle2", (6, 5, 1), 7),
        ("eagle2", (4, 1, 2), 3),
        ("eagle3", PUBLISHED_SIZE, 7),
        ("eagle3", (6, 5, 1), 7),
    ],
)
def test_other_trees_against_a_slow_reference(folders, name, layout, full):
    """full: most tokens that a step can commit."""
    kind, target, prompts = KINDS[name], target_of(name), loopy_prompts()
    drafter = kind.drafter(kind.load(folders[name], target), layout)
    recording = Recording(drafter)
    turns = decode(target, recording, prompts[:2], 10, num_slots=1)
    found = kind.slow_steps(recording, target.model, folders[name], layout=layout)
    assert found == (0, sum(len(turn.accept_lengths) for turn in turns))
    turns = decode(target, drafter, prompts, 24, num_slots=3)
    assert outputs(turns) == outputs(decode(target, EmptyDrafter(), prompts, 24))
    lengths = [length for turn in turns for length in turn.accept_lengths]
    assert max(lengths) <= 1 + drafter.max_depth == full


@pytest.mark.slow
@pytest.mark.parametrize("name, fault", [(n, f) for n, kind in KINDS.items() for f in kind.faults])
def test_faults_are_seen(folders, name, fault):
    """A reference that makes one of eagle_slow's mistakes drafts other trees."""
    kind, target = KINDS[name], target_of(name)
    recording = Recording(kind.drafter(kind.load(folders[name], target)))
    decode(target, recording, loopy_prompts(2), 16)
    wrong, steps = kind.slow_steps(recording, target.model, folders[name], fault)
    assert wrong > (0 if fault == "position" else steps // 2)


# --- the cache ---


@pytest.mark.parametrize("num_slots", [1, 3])
@every_kind
def test_the_cache_equals_a_fresh_prefill(folders, name, num_slots):
    """One row per committed token but the root, with real features, whatever was drafted; none
    where nobody is."""
    kind, prompts = KINDS[name], loopy_prompts()
    target = Target(tiny_model(**kind.shape))
    head, fresh = (kind.load(folders[name], target) for _ in range(2))
    check = FreshCaches(tiny_model(**kind.shape), fresh)
    recording = Recording(kind.drafter(head), check)
    stop = early_stop(target, prompts)
    turns = decode(target, recording, prompts, 16, stop=stop, num_slots=num_slots)
    assert check.checked == sum(len(turn.accept_lengths) for turn in turns) > 4
    assert head.cache.length.tolist() == [0] * num_slots


class Between(Recording):
    """Every second draft is another drafter's: a chain of nine right tokens."""

    known: list[int]

    def propose(self):
        draft = super().propose()
        if len(self.drafts) % 2:
            return draft
        begin = len(self.texts[0])
        return Draft(torch.tensor([self.known[begin : begin + 9]]))


@every_kind
def test_steps_of_another_drafter_are_read_as_well(folders, name):
    kind, prompt = KINDS[name], loopy_prompts()[1]
    target = Target(tiny_model(**kind.shape))
    head, fresh = (kind.load(folders[name], target) for _ in range(2))
    check = FreshCaches(tiny_model(**kind.shape), fresh)
    drafter = Between(kind.drafter(head), check)
    (known,) = outputs(decode(target, EmptyDrafter(), [prompt], 60))
    drafter.known = prompt + known
    (turn,) = decode(target, drafter, [prompt], 40)
    assert turn.output_ids == known[:40] and turn.accept_lengths.count(10) >= 3
    assert check.checked == len(turn.accept_lengths)


@every_kind
def test_long_prompts_in_chunks(folders, name, monkeypatch):
    """Ragged prompts read seven rows at a time are drafted for as if read at once."""
    kind, prompts = KINDS[name], [*loopy_prompts(4), (loopy_prompts(4)[2] * 4)[:120]]
    target, runs = Target(tiny_model(**kind.shape)), []
    for chunk in (heads.PROMPT_CHUNK, 7):
        monkeypatch.setattr(heads, "PROMPT_CHUNK", chunk)
        recording = Recording(kind.drafter(kind.load(folders[name], target)))
        runs.append((facts(decode(target, recording, prompts, 16)), recording.drafts))
        alone = decode(target, recording.inner, prompts, 16, num_slots=1)
        assert facts(alone) == runs[-1][0]
    assert runs[0] == runs[1]


def test_a_longer_prompt_than_was_reserved_for(folders):
    """Caches grow with a prompt that nobody announced, and keep what the other slots hold."""
    kind, target = KINDS["eagle2"], target_of("eagle2")
    prompts = [loopy_prompts(4)[3], loopy_prompts(4)[2] * 9]
    drafter = kind.drafter(kind.load(folders["eagle2"], target))
    drafter.reserve = lambda slots, capacity, sampler: type(drafter).reserve(
        drafter, slots, 40, sampler
    )
    short = facts(decode(target, drafter, prompts, 16))
    assert drafter.head.cache.capacity > 256 and len(prompts[1]) > 256
    del drafter.reserve
    assert facts(decode(target, drafter, prompts, 16)) == short


# --- heads that know the answers ---


@pytest.mark.parametrize(
    "name, layout, full",
    [
        ("eagle", PUBLISHED_TREE, 6),
        ("eagle2", PUBLISHED_SIZE, 7),
        ("eagle2", (20, 3, 4), 5),
        ("eagle2", (6, 5, 1), 7),
    ],
)
@pytest.mark.parametrize("numbers", [[1], [0, 1, 2, 3]], ids=str)
def test_oracle_heads_commit_everything_and_adversaries_one(numbers, name, layout, full):
    known = [answers("llama")[number] for number in numbers]
    prompts = [make_prompts(4)[number] for number in numbers]
    whole, rest = divmod(30, full)
    wanted = {True: [full] * whole + [rest] * (rest > 0), False: [1] * 30}
    for right, lengths in wanted.items():
        drafter = KINDS[name].drafter(ScriptedHead(teller(known, 97, right), 97), layout)
        turns = decode(new_target(), drafter, prompts, 31)
        assert outputs(turns) == [ids[:31] for ids in known]
        assert [turn.accept_lengths for turn in turns] == [lengths] * len(numbers)
