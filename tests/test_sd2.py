"""SD2: drafts against a slow reference, lazy catch-up against a full recompute, counts, facts."""

import random
from types import SimpleNamespace

import pytest
import torch
from conftest import make_prompts
from sd2_slow import (
    EXITS,
    Recording,
    Slow,
    check_columns,
    draft_model,
    make_chain,
    make_draft,
    make_target,
    make_tree,
    plain,
)
from specexec_slow import paths_of
from test_sps import decode

from model.common.contract import trees as tree
from model.common.contract.drafter import Draft, EmptyDrafter
from model.common.loop.sampling import Sampler
from model.common.target.model import Target
from model.sd2.exits import CHUNK, SortedDraft
from model.sps.drafter import SpSDrafter

MIXED = [0.6, 0.6, 0.0]  # every exit is taken now and then
LIMIT = 16
PROMPTS = make_prompts(4)


@pytest.fixture(scope="module")
def target():
    return make_target()


@pytest.fixture(scope="module")
def baseline(target):
    return [decode(target, EmptyDrafter(), [ids], LIMIT)[0].output_ids for ids in PROMPTS]


def answers(turns):
    return [turn.output_ids for turn in turns]


def mean_accepted(turns):
    lengths = [length for turn in turns for length in turn.accept_lengths]
    return sum(lengths) / len(lengths)


# --- exits ---


def test_an_exit_is_the_truncated_model():
    """Logits of every exit are those of the same weights loaded with fewer layers."""
    full = draft_model()
    for number, layers in enumerate(EXITS):
        small = plain(draft_model(num_hidden_layers=layers))
        small.load_state_dict(full.state_dict(), strict=False)
        thresholds = [1.0] * number + [0.0] * (3 - number)
        draft = make_draft(thresholds)
        ids = torch.tensor([PROMPTS[1]])
        draft.prefill(ids[:, :-2], [ids.shape[1] - 2], 64)
        logits, left = draft.read(ids[:, -2:], [True])
        wanted = small(ids, use_cache=False).logits[:, -1:]
        assert left == [number]
        torch.testing.assert_close(logits, wanted, atol=1e-3, rtol=1e-4)


def test_layers_beyond_the_last_exit_are_dropped():
    draft = make_draft([0.5, 0.0], exits=[2, 4])
    assert len(draft.decoder.layers) == 4 and len(draft.layer_devices) == 4


@pytest.mark.parametrize(
    "thresholds, layers", [([0.0, 0.0, 0.0], 2), ([1.0, 0.0, 0.0], 4), ([1.0, 1.0, 0.0], 6)]
)
def test_extreme_thresholds_are_fixed_drafts(target, thresholds, layers):
    """0 leaves at once and 1 never: token for token SpS's drafts with the truncated model."""
    drafter = Recording(make_chain(thresholds, target))
    small = draft_model(num_hidden_layers=layers)
    small.load_state_dict(draft_model().state_dict(), strict=False)
    fixed = Recording(SpSDrafter(Target(small), target, "heuristic", 5, 0.0))
    for each in (drafter, fixed):
        decode(target, each, PROMPTS, LIMIT)
    assert len(drafter.drafts) == len(fixed.drafts) > 10
    for (*where, draft), (*there, other) in zip(drafter.drafts, fixed.drafts):
        assert where == there and torch.equal(draft.tokens, other.tokens)
    assert drafter.inner.draft.reads_per_row == 0
    counts = dict(zip(EXITS, drafter.inner.counts))
    assert counts.pop(layers) > 0 and set(counts.values()) == {0}


# --- drafts against the definition ---


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("thresholds", [MIXED, [0.8, 0.5, 0.0]], ids=str)
def test_chains_equal_the_slow_reference(target, baseline, thresholds, batch):
    slow, left = Slow(thresholds), set()
    drafter, turns = Recording(make_chain(thresholds, target, "constant", 4)), []
    for begin in range(0, 4, batch):
        turns += decode(target, drafter, PROMPTS[begin : begin + batch], LIMIT)
    assert answers(turns) == baseline
    assert 1.3 < mean_accepted(turns) < 4.5
    for row, ids, draft in drafter.drafts:
        tokens = [token for token in draft.tokens[row].tolist() if token >= 0]
        wanted, exits = slow.chain(ids, len(tokens))
        assert tokens == wanted
        left |= set(exits)
    assert left == {0, 1, 2} and slow.near > 1e-4


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("thresholds", [[0.9, 0.9, 0.0], [0.95, 0.9, 0.0]], ids=str)
def test_trees_equal_the_slow_reference(target, baseline, thresholds, batch):
    slow, left = Slow(thresholds), set()
    drafter, turns = Recording(make_tree(thresholds)), []
    for begin in range(0, 4, batch):
        turns += decode(target, drafter, PROMPTS[begin : begin + batch], LIMIT)
    assert answers(turns) == baseline
    assert 1.3 < mean_accepted(turns) < 4.5
    for row, ids, draft in drafter.drafts:
        wanted, exits = slow.tree(ids, 12, 3, 3)
        assert set(paths_of(draft, row)) == set(wanted)
        left |= set(exits)
    assert left == {0, 1, 2} and slow.near > 1e-4


# --- lazy catch-up ---


class Arbitrary(SortedDraft):
    """Leaves at random."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.random = random.Random(3)

    def _goes_on(self, logits, threshold, going):
        return [goes and self.random.random() < 0.4 for goes in going]


def prefill_step(prompts, firsts):
    """What the loop tells a drafter first."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids in prompts])
    return SimpleNamespace(
        tokens=tokens,
        count=torch.tensor([len(ids) for ids in prompts]),
        host_ids=[ids + [first] for ids, first in zip(prompts, firsts)],
        next_token=torch.tensor(firsts),
        max_committed=longest + 1,
    )


def forced_step(committed, draft, kept, generator):
    """A step that accepts a random path of kept[b] nodes, as far as there is one, and a bonus."""
    _, known, depths = tree.layout(draft)
    rows, width = len(committed), 1 + draft.depth
    known, depths = known.expand(rows, *known.shape[-2:]), depths.expand(rows, -1)
    path, new = torch.full((rows, width), -1), torch.full((rows, width), -1)
    host_ids = []
    for row, want in enumerate(kept):
        want = min(want, int(depths[row].max()))
        ends = (depths[row] == want).nonzero().flatten().tolist()
        end = generator.choice(ends)
        line = known[row, end].nonzero().flatten().tolist()
        ids = [int(draft.tokens[row, node - 1]) for node in line[1:]] + [generator.randrange(97)]
        path[row, : len(line)], new[row, : len(ids)] = torch.tensor(line), torch.tensor(ids)
        host_ids.append(ids)
        committed[row] += ids
    count = torch.tensor([len(ids) for ids in host_ids])
    return SimpleNamespace(
        path=path,
        new_tokens=new,
        count=count,
        host_ids=host_ids,
        next_token=new.gather(1, count.unsqueeze(1) - 1).squeeze(1),
        max_committed=max(map(len, committed)),
    )


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("shape", ["chain", "tree"])
@torch.inference_mode()
def test_random_exits_leave_what_a_full_recompute_finds(target, shape, batch):
    """Keys, values and parked states after every step, refused at every position in turn."""
    thresholds, generator = [0.5, 0.5, 0.0], random.Random(8)
    slow = Slow(thresholds)
    if shape == "chain":
        drafter = make_chain(thresholds, target, "constant", 4, kind=Arbitrary)
    else:
        drafter = make_tree(thresholds, kind=Arbitrary)
    committed = [ids[:] for ids in PROMPTS[:batch]]
    step = prefill_step(committed, [7] * batch)
    committed = [ids + [7] for ids in committed]
    drafter.start(step, [200] * batch, Sampler())
    backlogs, deepest = set(), 0
    for number in range(15):
        draft = drafter.propose()
        kept = [(number + row) % 5 for row in range(batch)]
        step = forced_step(committed, draft, kept, generator)
        deepest = max(deepest, int(step.count.max()))
        drafter.observe(step)
        done = drafter.draft.done
        backlogs |= {done[0][row] - done[2][row] for row in range(batch)}
        for row, ids in enumerate(committed):
            check_columns(drafter.draft, row, ids, slow)
    assert deepest >= 4 and len(backlogs) > 3


def test_a_long_backlog_is_caught_up_in_chunks(target):
    """A sequence that left early for longer than a chunk, beside one that never did."""
    draft = make_draft([0.5, 0.0], exits=[2, 6])
    slow = Slow([0.5, 0.0], [2, 6])
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 97, (2, 3 * CHUNK), generator=generator)
    draft.prefill(ids[:, :4], [4, 4], 8)
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


def test_a_sequence_does_not_see_its_batch(target):
    """Sampled answers, drawn tokens included, are those of a batch of one."""
    settings = {"temperature": 0.6, "top_p": 0.9}
    seeds = [11, 12, 13, 14]
    for drafter in (make_chain(MIXED, target), make_tree([0.9, 0.9, 0.0])):
        alone = [
            answers(decode(target, drafter, [ids], 16, sampler=Sampler(**settings), seeds=[seed]))
            for ids, seed in zip(PROMPTS, seeds)
        ]
        turns = decode(target, drafter, PROMPTS, 16, sampler=Sampler(**settings), seeds=seeds)
        assert answers(turns) == [found for (found,) in alone]


# --- exactness ---


@pytest.mark.parametrize(
    "exits, thresholds, seed",
    [([1], [0.0], 0), ([1, 2, 3, 4, 5, 6], [0.5] * 6, 0), ([2, 5], [0.2, 1.0], 7)],
    ids=str,
)
def test_greedy_answers_are_the_targets(target, baseline, exits, thresholds, seed):
    chain = make_chain(thresholds, target, exits=exits, seed=seed)
    narrow = make_tree(thresholds, 5, 4, 1, exits=exits, seed=seed)
    wide = make_tree(thresholds, 30, 2, 7, exits=exits, seed=seed)
    for drafter in (chain, narrow, wide):
        assert answers(decode(target, drafter, PROMPTS, LIMIT)) == baseline


def test_argmax_guesses_sample_the_baselines_ids(target):
    sampler = Sampler(temperature=0.6, top_p=0.9)
    wanted = answers(decode(target, EmptyDrafter(), PROMPTS, 16, sampler=sampler))
    drafter = make_chain(MIXED, target, guess="argmax")
    assert answers(decode(target, drafter, PROMPTS, 16, sampler=sampler)) == wanted


# --- trees ---


@pytest.mark.parametrize(
    "total, depth, top_k, rows", [(13, 3, 3, 13), (99, 2, 3, 22), (2, 1, 1, 2), (60, 4, 7, 60)]
)
def test_tree_layout(target, total, depth, top_k, rows):
    """min(total, 1 + k + d k^2) rows, ancestors among them, mask rows of depth + 1 ancestors."""
    drafter = Recording(make_tree(MIXED, total - 1, depth, top_k))
    decode(target, drafter, PROMPTS[:2], 4)
    for row, _, draft in drafter.drafts:
        assert 1 + draft.tokens.shape[1] == rows == min(total, 1 + top_k + depth * top_k**2)
        parents = draft.parents[row].tolist()
        assert all(parent < node for node, parent in enumerate(parents))
        _, known, depths = tree.layout(draft)
        own = []
        for parent in parents:
            own.append(1 if parent < 0 else own[parent] + 1)
        assert depths[row].tolist() == [0, *own]
        assert known[row].sum(1).tolist() == [1, *(level + 1 for level in own)]
        assert max(own) <= draft.depth == 1 + depth
        assert len(set(paths_of(draft, row))) == rows - 1


# --- counts ---


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("shape", ["chain", "tree"])
def test_exits_add_up_to_the_drafted_tokens(target, shape, batch):
    drafter = make_chain(MIXED, target) if shape == "chain" else make_tree([0.9, 0.9, 0.0])
    drafted = 0
    for begin in range(0, 4, batch):
        turns = decode(target, drafter, PROMPTS[begin : begin + batch], LIMIT)
        drafted += sum(sum(turn.drafted) for turn in turns)
    facts = drafter.facts()
    counts = [facts[f"drafted_at_exit_{layer}"] for layer in EXITS]
    assert sum(counts) == drafted and min(counts) > 0
    drafter.forget()
    assert set(drafter.facts().values()) == {0}


@pytest.mark.parametrize("shape", ["chain", "tree"])
def test_layer_forwards_are_what_the_layers_see(target, shape):
    """Rows that reach a layer, counted there; saved: what is missing to all rows in all layers."""
    drafter = make_chain(MIXED, target) if shape == "chain" else make_tree([0.9, 0.9, 0.0])
    rows = [0] * 6
    counting = Recording(drafter)

    def counter(number):
        def count(module, arguments, output):
            rows[number] += arguments[0].shape[1]

        return count

    for number, layer in enumerate(drafter.draft.decoder.layers):
        layer.register_forward_hook(counter(number))
    start = drafter.start

    def started(*arguments):
        start(*arguments)
        rows[:] = [0] * 6  # the prompt does not count

    drafter.start = started
    decode(target, counting, PROMPTS[:1], LIMIT)
    facts = drafter.facts()
    assert facts["draft_layer_forwards"] == sum(rows)
    assert facts["draft_layer_forwards_saved"] == 6 * rows[0] - sum(rows) > 0


def test_a_batch_reads_what_its_sequences_read_alone(target):
    """No sequence goes deeper because another one does."""
    drafter, found = make_chain(MIXED, target, "constant", 4), []
    for batch in (1, 4):
        drafter.forget()
        for begin in range(0, 4, batch):
            decode(target, drafter, PROMPTS[begin : begin + batch], LIMIT)
        found.append(drafter.facts())
    assert found[0] == found[1] and found[0]["draft_layer_forwards_saved"] > 0


@pytest.mark.parametrize("thresholds, reads", [(MIXED, 2), ([1.0, 0.5, 0.0], 1), ([0, 0.5, 0], 0)])
@pytest.mark.parametrize("shape", ["chain", "tree"])
def test_host_reads_are_counted(target, shape, thresholds, reads, monkeypatch):
    """As many as there are exits with something to decide, for every token or pass."""
    drafter = (
        make_chain(thresholds, target, "constant", 4) if shape == "chain" else make_tree(thresholds)
    )
    assert drafter.draft.reads_per_row == reads and drafter.reads_per_step == 4 * reads
    seen, copy_out, propose = [], torch.Tensor.tolist, drafter.propose

    def counted():
        before = len(seen)
        draft = propose()
        assert len(seen) - before <= drafter.reads_per_step
        return draft

    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: seen.append(1) or copy_out(self))
    monkeypatch.setattr(drafter, "propose", counted)
    decode(target, drafter, PROMPTS[:2], 10)


@torch.inference_mode()
def test_a_growing_chain_declares_its_reads(target):
    drafter = make_chain(MIXED, target)
    step = prefill_step([PROMPTS[0]], [7])
    drafter.start(step, [200], Sampler())
    committed, generator = [PROMPTS[0] + [7]], random.Random(0)
    for expected in (7, 9, 8):
        draft = drafter.propose()
        kept = draft.depth if expected != 8 else 0
        drafter.observe(forced_step(committed, draft, [kept], generator))
        assert drafter.reads_per_step == 2 * expected


class Guarded:
    """An eager runtime that behaves as a static one and keeps the shapes it has seen."""

    static_shapes = True

    def __init__(self, forward):
        self.forward, self.seen = forward, set()

    def forget(self):
        pass

    def __call__(self, *arguments):
        self.seen.add(tuple(a.shape if isinstance(a, torch.Tensor) else repr(a) for a in arguments))
        return self.forward(*arguments)


@pytest.mark.parametrize("shape", ["chain", "tree"])
def test_static_shapes_are_known_ahead(target, baseline, shape):
    drafter = make_chain(MIXED, target, "constant", 4) if shape == "chain" else make_tree(MIXED)
    drafter.draft.runtime = guard = Guarded(drafter.draft._rows)
    decode(target, drafter, PROMPTS, 3)
    guard.seen = set()
    drafter.warm(64 + LIMIT)
    warmed, guard.seen = guard.seen, set()
    assert answers(decode(target, drafter, PROMPTS, LIMIT)) == baseline
    assert len(guard.seen) >= 4 and guard.seen <= warmed


def test_one_draft_object_serves_new_questions(target, baseline):
    """Shorter, longer, other batch sizes, one after another."""
    for drafter in (make_chain(MIXED, target), make_tree([0.9, 0.9, 0.0])):
        for chosen in ([0], [0, 1, 2, 3], [3], [2, 1]):
            turns = decode(target, drafter, [PROMPTS[i] for i in chosen], LIMIT)
            assert answers(turns) == [baseline[i] for i in chosen]


def test_drafts_are_made_of_the_contracts_parts(target):
    """A chain carries what its tokens were drawn from; point guesses carry nothing."""
    sampled = Recording(make_chain(MIXED, target, "constant", 3))
    matched = Recording(make_chain(MIXED, target, "constant", 3, guess="argmax"))
    trees = Recording(make_tree(MIXED))
    for drafter in (sampled, matched, trees):
        decode(target, drafter, PROMPTS[:1], 8, sampler=Sampler(temperature=0.6, top_p=0.9))
    for _, _, draft in sampled.drafts[:-1]:
        assert draft.is_chain and draft.probs is not None
        known = draft.probs.gather(2, draft.tokens.unsqueeze(2))
        assert (known > 0).all()
        torch.testing.assert_close(draft.probs.sum(-1), torch.ones_like(draft.probs[..., 0]))
    assert all(draft.probs is None for *_, draft in matched.drafts + trees.drafts)
    assert isinstance(trees.drafts[0][2], Draft) and not trees.drafts[0][2].is_chain
