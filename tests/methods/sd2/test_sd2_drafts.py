"""SD2: drafts against a slow reference, lazy catch-up against a full recompute, counts, facts."""

import random

import pytest
import torch
from conftest import make_prompts
from host_reads import count_reads
from oracle import decode, outputs
from recording import Recording
from replays import with_graphs
from sd2_slow import (
    EXITS,
    Slow,
    check_columns,
    draft_model,
    make_chain,
    make_draft,
    make_target,
    make_tree,
)
from steps import path_step, prompt_step

from model.common.contract.sequence import EmptyDrafter
from model.common.loop.sampling import Sampler
from model.common.target.model import Target
from model.sd2.chain import SortedChainDrafter
from model.sd2.exits import CHUNK, SortedDraft
from model.sd2.tree import SortedTreeDrafter

MIXED = [0.6, 0.6, 0.0]  # every exit is taken now and then
LIMIT = 16
PROMPTS = make_prompts(4)


@pytest.fixture(scope="module")
def target():
    return make_target()


def mean_accepted(turns):
    lengths = [length for turn in turns for length in turn.accept_lengths]
    return sum(lengths) / len(lengths)


def test_layers_beyond_the_last_exit_are_dropped():
    draft = make_draft([0.5, 0.0], exits=[2, 4])
    assert len(draft.decoder.layers) == len(draft.layers) == 4


# --- drafts against the definition ---


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize(
    "exits, thresholds, taken",
    [
        (EXITS, MIXED, {0, 1, 2}),
        (EXITS, [0.8, 0.5, 0.0], {0, 1, 2}),
        (EXITS, [0.0, 0.0, 0.0], {0}),
        (EXITS, [1.0, 0.0, 0.0], {1}),
        (EXITS, [1.0, 1.0, 0.0], {2}),
        ([1], [0.0], {0}),
    ],
    ids=str,
)
def test_chains_equal_the_slow_reference(target, exits, thresholds, taken, slots):
    slow, left = Slow(thresholds, exits), set()
    drafter = Recording(make_chain(thresholds, target, exits=exits))
    turns = decode(target, drafter, PROMPTS, LIMIT, num_slots=slots)
    for one in drafter.drafts:
        tokens = [token for token in one.tokens if token >= 0]
        wanted, numbers = slow.chain(one.ids, len(tokens))
        assert tokens == wanted
        left |= set(numbers)
    assert left == taken and slow.near > 1e-4
    assert thresholds != MIXED or 1.3 < mean_accepted(turns) < 4.5


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("thresholds", [[0.9, 0.9, 0.0], [0.95, 0.9, 0.0]], ids=str)
def test_trees_equal_the_slow_reference(target, thresholds, slots):
    slow, left = Slow(thresholds), set()
    drafter = Recording(make_tree(thresholds))
    turns = decode(target, drafter, PROMPTS, LIMIT, num_slots=slots)
    assert 1.3 < mean_accepted(turns) < 4.5
    for one in drafter.drafts:
        wanted, exits = slow.tree(one.ids, 12, 3, 3)
        assert sorted(one.paths) == sorted(wanted)
        left |= set(exits)
    assert left == {0, 1, 2} and slow.near > 1e-4


@pytest.mark.parametrize(
    "total, depth, top_k, rows", [(13, 3, 3, 13), (99, 2, 3, 22), (2, 1, 1, 2), (60, 4, 7, 60)]
)
def test_trees_have_their_size(target, total, depth, top_k, rows):
    """min(total, 1 + k + d k^2) rows, the root included, no path twice."""
    assert rows == min(total, 1 + top_k + depth * top_k**2)
    drafter = Recording(make_tree(MIXED, total - 1, depth, top_k))
    decode(target, drafter, PROMPTS[:2], 4)
    assert drafter.max_nodes == rows - 1 and drafter.max_depth == 1 + depth
    for one in drafter.drafts:
        assert len(set(one.paths)) == rows - 1
        assert max(map(len, one.paths)) <= 1 + depth


def test_argmax_guesses_sample_the_baselines_ids(target):
    sampler = Sampler(temperature=0.6, top_p=0.9)
    wanted = outputs(decode(target, EmptyDrafter(), PROMPTS, 16, sampler))
    drafter = make_chain(MIXED, target, guess="argmax")
    assert outputs(decode(target, drafter, PROMPTS, 16, sampler, num_slots=3)) == wanted


# --- lazy catch-up ---


class Arbitrary(SortedDraft):
    """Leaves at random."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.random = random.Random(3)

    def _goes_on(self, logits, threshold, going):
        return [goes and self.random.random() < 0.4 for goes in going]


def forced_step(committed, draft, kept, generator):
    """A step that accepts a random path of kept[b] nodes, as far as there is one, and a bonus.

    kept[b] None: the slot is idle.
    """
    shape, num_slots = draft.layout, len(committed)
    ancestors = shape.ancestors.expand(num_slots, *shape.ancestors.shape[1:])
    depths = shape.depths.expand(num_slots, -1)
    paths, host_ids = [], []
    for slot, want in enumerate(kept):
        if want is None:
            paths.append([])
            host_ids.append([])
            continue
        want = min(want, int(depths[slot].max()))
        end = generator.choice((depths[slot] == want).nonzero().flatten().tolist())
        path = ancestors[slot, end].nonzero().flatten().tolist()
        ids = [int(draft.tokens[slot, node - 1]) for node in path[1:]] + [generator.randrange(97)]
        paths.append(path)
        host_ids.append(ids)
        committed[slot] += ids
    return path_step(paths, host_ids, max(map(len, committed)), 1 + draft.depth)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("shape", ["chain", "tree"])
@torch.inference_mode()
def test_random_exits_leave_what_a_full_recompute_finds(target, shape, batch):
    """Keys, values and parked states after every step, refused at every position in turn.

    In a batch, a slot ends now and then, and a prompt begins in it while the others go on.
    """
    thresholds, generator = [0.5, 0.5, 0.0], random.Random(8)
    slow = Slow(thresholds)
    if shape == "chain":
        drafter = make_chain(thresholds, target, "constant", 4, kind=Arbitrary)
    else:
        drafter = make_tree(thresholds, kind=Arbitrary)
    drafter.reserve(batch, 200, Sampler())
    committed = [[*ids, 7] for ids in PROMPTS[:batch]]
    drafter.start(prompt_step([list(ids) for ids in committed]))
    backlogs, deepest, idle = set(), 0, None
    for number in range(15):
        draft = drafter.propose()
        kept = [None if slot == idle else (number + slot) % 5 for slot in range(batch)]
        step = forced_step(committed, draft, kept, generator)
        deepest = max(deepest, int(step.count.max()))
        drafter.observe(step)
        done = drafter.model.done
        if number % 4 == 1 and batch > 1:
            idle = number // 4
            drafter.end([idle])
            assert all(own[idle] == 0 for own in done)
            committed[idle] = []
        if number % 4 == 3 and batch > 1:
            committed[idle] = [*PROMPTS[(idle + 1) % 4], 9]
            drafter.start(prompt_step([list(committed[idle])], slots=[idle]))
            idle = None
        backlogs |= {done[0][slot] - done[2][slot] for slot in range(batch)}
        for slot, ids in enumerate(committed):
            if ids:
                check_columns(drafter.model, slot, ids, slow)
    assert deepest >= 4 and len(backlogs) > 3


def test_a_long_backlog_is_caught_up_in_chunks(target):
    """A sequence that left early for longer than a chunk, beside one that never did."""
    draft = make_draft([0.5, 0.0], exits=[2, 6])
    slow = Slow([0.5, 0.0], [2, 6])
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 97, (2, 3 * CHUNK), generator=generator)
    draft.reserve(2, 8)
    draft.prefill([0, 1], ids[:, :4], [4, 4])
    for begin in range(4, ids.shape[1], 2):
        last = begin + 2 == ids.shape[1]
        draft._goes_on = lambda logits, threshold, going, last=last: [last, True]
        logits, left = draft.read(ids[:, begin : begin + 2], [True, True])
        assert left == [last, 1]
    assert draft.done == [[3 * CHUNK] * 2] * 2
    for row in range(2):
        wanted = slow.all_logits(ids[row].tolist())[1]
        torch.testing.assert_close(logits[row, 0], wanted, atol=1e-3, rtol=1e-4)
        check_columns(draft, row, [*ids[row].tolist(), 1, 1], slow)
    assert draft.rows_read == [2 * (3 * CHUNK - 4)] * 2


# --- counts ---


def make(shape, target, thresholds):
    return make_chain(thresholds, target) if shape == "chain" else make_tree(thresholds)


every_shape = pytest.mark.parametrize("shape", ["chain", "tree"])


@every_shape
def test_exits_add_up_to_the_drafted_tokens(target, shape):
    """In a batch too: no slot goes deeper because another one does."""
    drafter, found = make(shape, target, [0.7, 0.7, 0.0]), []
    for slots in (1, 2, 4):
        drafter.forget()
        known = drafter.facts()
        assert known.pop("draft_exits") == EXITS
        assert known.pop("draft_thresholds") == [0.7, 0.7, 0.0]
        assert set(known.values()) == {0}
        turns = decode(target, drafter, PROMPTS, LIMIT, num_slots=slots)
        found.append(drafter.facts())
        counts = [found[-1][f"drafted_at_exit_{layer}"] for layer in EXITS]
        assert sum(counts) == sum(sum(turn.drafted) for turn in turns) and min(counts) > 0
    assert found[0] == found[1] == found[2] and found[0]["draft_layer_forwards_saved"] > 0


@every_shape
def test_layer_forwards_are_what_the_layers_see(target, shape):
    """Rows that reach a layer, counted there; saved: what is missing to all rows in all layers."""
    drafter, rows = make(shape, target, [0.7, 0.7, 0.0]), [0] * 6

    def counter(number):
        def count(module, arguments, output):
            rows[number] += arguments[0].shape[1]

        return count

    for number, layer in enumerate(drafter.model.decoder.layers):
        layer.register_forward_hook(counter(number))
    start = drafter.start

    def started(*arguments):
        start(*arguments)
        rows[:] = [0] * 6  # the prompt does not count

    drafter.start = started
    decode(target, drafter, PROMPTS[:1], LIMIT)
    facts = drafter.facts()
    assert facts["draft_layer_forwards"] == sum(rows)
    assert facts["draft_layer_forwards_saved"] == 6 * rows[0] - sum(rows) > 0


@pytest.mark.parametrize("thresholds, reads", [(MIXED, 2), ([1.0, 0.5, 0.0], 1), ([0, 0.5, 0], 0)])
@every_shape
def test_host_reads_are_counted(target, shape, thresholds, reads, monkeypatch):
    """As many as there are exits with something to decide, for every token or pass."""
    drafter = make(shape, target, thresholds)
    assert drafter.reads_per_step == reads * (drafter.max_nodes if shape == "chain" else 4)
    counts = count_reads(monkeypatch, drafter)
    decode(target, drafter, PROMPTS[:2], 10)
    assert max(counts) <= drafter.reads_per_step and (max(counts) > 0) == (reads > 0)


@every_shape
def test_recorded_blocks_draft_what_eager_ones_do(target, shape):
    """A replay overwrites what the last one of its shape gave, and knows its cache's addresses."""
    found = []
    for recorded in (False, True):
        model = draft_model()
        model, capture = with_graphs(model) if recorded else (Target(model), None)
        draft = SortedDraft(model, EXITS, MIXED)
        if recorded:
            capture.target = draft
        if shape == "chain":
            inner = SortedChainDrafter(draft, target, "heuristic", 5, "sample")
        else:
            inner = SortedTreeDrafter(draft, 97, 12, 3, 3)
        drafter = Recording(inner)
        turns = decode(target, drafter, PROMPTS, LIMIT, num_slots=3)
        found.append((drafter.drafts, [turn.accept_lengths for turn in turns]))
    assert found[0] == found[1] and capture.replayed > capture.captured > 0
