"""EAGLE-2: the dynamic tree against its definition, drafts against a slow reference, answers."""

import itertools
import math
import shutil

import pytest
import torch
from conftest import make_prompts
from eagle_checks import (
    FreshCaches,
    assert_nothing_is_left_to_compile,
    assert_warm_sees_every_shape,
    config_dir,
    decode,
    loopy_prompts,
    parsed,
    tiny_model,
    with_graphs,
)
from eagle_dirs import eagle_dir
from eagle_slow import (
    Recording,
    ScriptedHead,
    SlowHead,
    differing,
    dynamic_paths,
    teller,
    token_paths,
    whole_pool,
)
from oracle import answers, new_target, outputs
from oracle import decode as oracle_decode

from model.common.contract import trees as tree
from model.common.contract.drafter import Draft, EmptyDrafter, Needs, Step
from model.common.errors import BadInput
from model.common.heads import head as heads
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.common.target.runtime import compilations
from model.eagle.head import load_eagle
from model.eagle2 import inference_eagle2 as script
from model.eagle2.drafter import DynamicEagleDrafter, check_size

SIZE = (14, 3, 4)  # nodes, depth, top k
FAULTS = ("order", "norm", "features", "shift", "position")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random head for the loopy targets."""
    return eagle_dir(tmp_path_factory.mktemp("eagle"), config_dir(tmp_path_factory.mktemp("t")))


@pytest.fixture(scope="module")
def target():
    return Target(tiny_model())


def started(drafter, batch=1):
    """The drafter behind prompts of two tokens, for a scripted head."""
    drafter.start(
        Step(
            tokens=torch.ones(batch, 2, dtype=torch.long),
            logits=None,
            hidden={"last": torch.zeros(batch, 2, 4)},
            path=torch.tensor([[0, 1]] * batch),
            count=torch.full((batch,), 2),
            next_token=torch.ones(batch, dtype=torch.long),
            new_tokens=torch.ones(batch, 2, dtype=torch.long),
            host_ids=[[1, 1, 1]] * batch,
            max_committed=3,
        ),
        [100] * batch,
        Sampler(),
    )
    return drafter


def random_guess(vocab_size, seed, spread=2.0):
    """Logits that depend on row and path alone."""

    def guess(row, place, path):
        generator = torch.Generator().manual_seed(hash((seed, row, path)) % 2**31)
        return (spread * torch.randn(vocab_size, generator=generator)).tolist()

    return guess


def best_of(guess, row):
    """best() of the slow builders, for a guess."""

    def best(path, num):
        logp = torch.tensor(guess(row, 1, path)).log_softmax(-1)
        ids = logp.argsort(descending=True)[:num].tolist()
        return [(i, logp[i].item()) for i in ids]

    return best


# --- the tree ---


def worked_example(row, place, path):
    if path in ((), (0,), (1,)):
        chances = {(): (0.6, 0.3, 0.1), (0,): (0.1, 0.7, 0.2), (1,): (0.5, 0.3, 0.2)}[path]
    else:
        chances = (0.5, 0.3, 0.2)
    return torch.tensor(chances).log().tolist()


def test_worked_example():
    drafter = started(DynamicEagleDrafter(ScriptedHead(worked_example, 3), 5, 2, 2))
    draft = drafter.propose()
    assert draft.tokens.tolist() == [[0, 1, 1, 0, 0]]
    assert draft.parents.tolist() == [[-1, -1, 0, 1, 2]]  # rows 0 0 1 2 3, the root being row 0
    assert token_paths(draft, 0) == [(0,), (1,), (0, 1), (1, 0), (0, 1, 0)]
    _, known, depths = tree.layout(draft)
    assert depths.tolist() == [[0, 1, 1, 2, 2, 3]] and draft.depth == 3
    inner = set(draft.parents[0].tolist()) - {-1}
    assert [node + 1 for node in range(5) if node not in inner] == [4, 5]  # leaf rows
    for leaf, line in ((4, [0, 2, 4]), (5, [0, 1, 3, 5])):
        assert known[0, leaf].nonzero().flatten().tolist() == line
    scores = [
        round(math.exp(score), 3) for _, score in whole_pool(best_of(worked_example, 0), 2, 2)
    ]
    assert scores == [0.6, 0.3, 0.42, 0.12, 0.15, 0.09, 0.21, 0.126, 0.075, 0.045]


@pytest.mark.parametrize(
    "num_nodes, depth, top_k",
    [(5, 2, 2), (59, 5, 10), (12, 3, 3), (1, 1, 1), (6, 5, 1), (30, 3, 3)],
)
def test_random_trees(num_nodes, depth, top_k):
    vocab, batch = 23, 4
    for seed in range(3):
        guess = random_guess(vocab, seed)
        drafter = started(
            DynamicEagleDrafter(ScriptedHead(guess, vocab), num_nodes, depth, top_k), batch
        )
        draft = drafter.propose()
        assert draft.tokens.shape == draft.parents.shape == (batch, num_nodes)
        assert draft.depth == depth + 1 and draft.probs is None and draft.probe is None
        found = tree.layout(draft)
        assert found is draft.layout[1]  # the head's last pass has made it
        plain = tree.layout(Draft(draft.tokens, draft.parents, draft.depth))
        assert all(map(torch.equal, found, plain))
        assert [part.stride() for part in found] == [part.stride() for part in plain]
        _, known, depths = found
        assert depths.max() <= depth + 1
        assert torch.equal(known.sum(-1), depths + 1)
        for row in range(batch):
            parents = draft.parents[row].tolist()
            assert all(-1 <= parent < node for node, parent in enumerate(parents))
            paths = token_paths(draft, row)
            assert len(set(paths)) == num_nodes
            assert paths == dynamic_paths(best_of(guess, row), num_nodes, depth, top_k)
            inner = set(parents) - {-1}
            leaves = [path for path in paths if not any(p[:-1] == path for p in paths)]
            assert len(leaves) == num_nodes - len(inner)


def test_kept_nodes_are_the_best_parent_closed_set():
    """Against every set of five of the ten nodes of a pool."""
    for seed in range(12):
        guess = random_guess(9, seed, 0.5)
        drafter = started(DynamicEagleDrafter(ScriptedHead(guess, 9), 5, 2, 2))
        scores = dict(whole_pool(best_of(guess, 0), 2, 2))
        assert len(scores) == 10
        closed = [
            sum(scores[path] for path in chosen)
            for chosen in itertools.combinations(scores, 5)
            if all(len(path) == 1 or path[:-1] in chosen for path in chosen)
        ]
        kept = token_paths(drafter.propose(), 0)
        assert abs(sum(scores[path] for path in kept) - max(closed)) < 1e-5


class Tied(DynamicEagleDrafter):
    """All log probabilities are 0, as in half precision where the head is certain."""

    def _best(self, logits):
        ids, logp = super()._best(logits)
        return ids, torch.zeros_like(logp)


@pytest.mark.parametrize("num_nodes", [3, 7, 12, 20, 21])
def test_ties_go_to_the_earlier_node(num_nodes):
    """Parents are in the pool before their children, so they are always kept with them."""
    guess = random_guess(11, 0)
    drafter = started(Tied(ScriptedHead(guess, 11), num_nodes, 2, 3), 2)
    draft = drafter.propose()
    for row in range(2):
        parents = draft.parents[row].tolist()
        assert parents[:3] == [-1, -1, -1]
        assert parents[3:12] == [node // 3 for node in range(9)][: num_nodes - 3]
        assert all(-1 <= parent < node for node, parent in enumerate(parents))
        assert len(set(token_paths(draft, row))) == num_nodes
    again = started(Tied(ScriptedHead(guess, 11), num_nodes, 2, 3), 2).propose()
    assert torch.equal(draft.tokens, again.tokens) and torch.equal(draft.parents, again.parents)


def test_scores_are_sums_of_log_probabilities_at_temperature_one():
    """A likely child of an unlikely node stays behind; sampling settings change no draft."""
    chances = {(): (0.9, 0.08, 0.02), (0,): (0.5, 0.4, 0.1), (1,): (0.98, 0.01, 0.01)}

    def guess(row, place, path):
        return torch.tensor(chances.get(path, (0.4, 0.3, 0.3))).log().tolist()

    drafter = started(DynamicEagleDrafter(ScriptedHead(guess, 3), 3, 1, 2))
    drafter.sampler = Sampler(0.2, top_p=0.5)
    assert token_paths(drafter.propose(), 0) == [(0,), (0, 0), (0, 1)]


@pytest.mark.parametrize(
    "size, words",
    [
        ((60, 1, 3, 97), "--total-token 60: --draft-top-k 3 and --depth 1 allow 2 to 13"),
        ((14, 1, 3, 97), "allow 2 to 13"),
        ((1, 5, 10, 97), "allow 2 to 511"),
        ((60, 5, 10, 9), "--draft-top-k 10: the head drafts 9 tokens"),
    ],
)
def test_impossible_sizes_are_one_line(size, words):
    with pytest.raises(BadInput, match=words) as error:
        check_size(*size)
    assert "\n" not in str(error.value)


def test_possible_sizes(target, folder):
    assert check_size(13, 1, 3, 97) == 12 and check_size(2, 1, 1, 1) == 1
    assert check_size(511, 5, 10, 10) == 510
    args = parsed(script, "eagle2", "--eagle-path", folder)
    assert (args.total_token, args.depth, args.draft_top_k) == (60, 5, 10)
    drafter = script.build(args, target)
    assert (drafter.num_nodes, drafter.depth, drafter.top_k) == (59, 5, 10)
    assert drafter.needs == Needs(hidden=("last",))
    args = parsed(script, "eagle2", "--eagle-path", folder, "--draft-top-k", 18)
    with pytest.raises(BadInput, match="17 tokens"):
        script.build(args, target)


# --- drafts ---


@pytest.fixture(scope="module")
def exact():
    """A float64 target, in which near-ties do not reorder candidates."""
    return Target(tiny_model(dtype=torch.float64))


def recorded(target, folder, prompts, limit=16, stop=None, size=SIZE):
    recording = Recording(DynamicEagleDrafter(load_eagle(folder, target, "eager"), *size), target)
    return recording, *decode(target, recording, prompts, limit, stop)


def slow_steps(recording, folder, fault=None, size=SIZE):
    slow = SlowHead(folder, recording.target.model, 1, fault)
    return differing(recording, slow, lambda best: dynamic_paths(best, *size))


@pytest.mark.parametrize("batch", [1, 4])
def test_drafts_equal_a_slow_reference(exact, folder, batch):
    """Every node of every step, with rows of other lengths and one that ends early."""
    prompts = loopy_prompts(batch)
    plain, _ = decode(exact, EmptyDrafter(), prompts)
    stop = StopRules(frozenset({plain[0][4]})) if batch > 1 else None
    recording, ids, accepted = recorded(exact, folder, prompts, stop=stop)
    if batch > 1:
        assert len(set(map(len, ids))) > 1
    assert max(map(max, accepted)) > 1
    assert len(recording.steps) == sum(map(len, accepted))
    assert slow_steps(recording, folder) == (0, len(recording.steps))
    shapes = {tuple(map(len, paths)) for _, _, paths in recording.steps}
    assert len(shapes) > 3  # the tree's shape follows the head


@pytest.mark.parametrize("size", [(59, 5, 10), (6, 5, 1), (4, 1, 2)])
def test_other_sizes_against_a_slow_reference(exact, folder, size):
    recording, _, _ = recorded(exact, folder, loopy_prompts(2), 6, size=size)
    assert slow_steps(recording, folder, size=size)[0] == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(exact, folder, fault):
    """As for EAGLE: order of concatenation, an input norm, the feature, the shift, positions."""
    recording, _, _ = recorded(exact, folder, loopy_prompts(2))
    wrong, steps = slow_steps(recording, folder, fault)
    assert wrong > (0 if fault == "position" else steps // 2)


@pytest.mark.parametrize("batch", [1, 4])
def test_the_cache_equals_a_fresh_prefill(target, folder, batch):
    drafter = DynamicEagleDrafter(load_eagle(folder, target, "eager"), *SIZE)
    check = FreshCaches(tiny_model(), drafter, load_eagle(folder, target, "eager"))
    plain, _ = decode(target, EmptyDrafter(), loopy_prompts(batch))
    stop = StopRules(frozenset({plain[0][5]})) if batch > 1 else None
    recording = Recording(drafter, target, check)
    _, accepted = decode(target, recording, loopy_prompts(batch), stop=stop)
    assert check.checked == sum(map(len, accepted)) > batch
    assert batch == 1 or drafter.head.cache.length[0] == 0  # it ended first


# --- answers ---


@pytest.mark.parametrize("size", [SIZE, (59, 5, 10), (6, 5, 1)])
def test_greedy_ids_are_vanillas(target, folder, size):
    prompts = loopy_prompts()
    expected, _ = decode(target, EmptyDrafter(), prompts, 24)
    drafter = DynamicEagleDrafter(load_eagle(folder, target, "eager"), *size)
    for batch in (1, 4):
        ids, accepted = decode(target, drafter, prompts, 24, batch=batch)
        assert ids == expected
        assert all(1 <= length <= 2 + size[1] for lengths in accepted for length in lengths)
        assert [1 + sum(lengths) for lengths in accepted] == [24] * 4


@pytest.mark.parametrize("settings", [(1.0, 0, 1.0), (0.6, 0, 0.8)])
@pytest.mark.parametrize("batch", [1, 4])
def test_sampled_ids_are_vanillas(target, folder, settings, batch):
    prompts, sampler = loopy_prompts(), Sampler(*settings)
    expected, _ = decode(target, EmptyDrafter(), prompts, 40, sampler=sampler, batch=batch)
    drafter = DynamicEagleDrafter(load_eagle(folder, target, "eager"), *SIZE)
    ids, accepted = decode(target, drafter, prompts, 40, sampler=sampler, batch=batch)
    assert ids == expected
    assert sum(map(len, accepted)) < 0.9 * 4 * 39


@pytest.mark.parametrize("size, full", [((59, 5, 10), 7), ((20, 3, 4), 5), ((6, 5, 1), 7)])
@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3]], ids=str)
def test_oracle_heads_commit_everything_and_adversaries_one(rows, size, full):
    known = [answers("llama")[row] for row in rows]
    prompts = [make_prompts(4)[row] for row in rows]
    whole, rest = divmod(30, full)
    wanted = {True: [full] * whole + [rest] * (rest > 0), False: [1] * 30}
    for right, lengths in wanted.items():
        drafter = DynamicEagleDrafter(ScriptedHead(teller(known, 97, right), 97), *size)
        turns = oracle_decode(new_target(), drafter, prompts, 31)
        assert outputs(turns) == [ids[:31] for ids in known]
        assert [turn.accept_lengths for turn in turns] == [lengths] * len(rows)


def test_long_prompts_in_chunks(folder, monkeypatch):
    target = Target(tiny_model())
    prompts = [*loopy_prompts(4), (loopy_prompts(4)[2] * 4)[:120]]
    runs = []
    for chunk in (heads.PROMPT_CHUNK, 7):
        monkeypatch.setattr(heads, "PROMPT_CHUNK", chunk)
        recording, *found = recorded(target, folder, prompts)
        runs.append((found, recording.steps))
    assert runs[0] == runs[1]


# --- runtimes ---


@pytest.mark.parametrize("batch", [1, 4])
def test_replayed_passes_draft_the_same(target, folder, batch):
    """Every replay overwrites the tensors of the last one of its shape."""
    plain, *expected = recorded(target, folder, loopy_prompts(batch))
    drafter = DynamicEagleDrafter(load_eagle(folder, target, "eager"), *SIZE)
    capture = with_graphs(drafter)
    for _ in range(2):
        replayed = Recording(drafter, target)
        assert list(decode(target, replayed, loopy_prompts(batch))) == expected
        assert replayed.steps == plain.steps
    calls = 2 * max(map(len, expected[1]))  # one a step
    assert capture.captured == 1 and capture.replayed == calls - 1


def test_warm_leaves_nothing_to_capture(target, folder):
    drafter = DynamicEagleDrafter(load_eagle(folder, target, "eager"), *SIZE)
    capture = with_graphs(drafter)
    ids = assert_nothing_is_left_to_compile(target, drafter, loopy_prompts(2), 250, capture)
    assert ids == decode(target, EmptyDrafter(), loopy_prompts(2), 250)[0]


@pytest.mark.parametrize("batch", [1, 3])
def test_warm_sees_every_shape(folder, batch):
    target = Target(tiny_model())
    drafter = DynamicEagleDrafter(load_eagle(folder, target, "eager"), *SIZE)
    assert_warm_sees_every_shape(target, drafter, loopy_prompts(batch), 250)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a C compiler")
def test_compiled_passes_give_the_eager_ids(tmp_path):
    """Of three rows that end one after another."""
    model = tiny_model(num_hidden_layers=1)
    target, eager = Target(model, "compile"), Target(model)
    path = eagle_dir(tmp_path / "head", config_dir(tmp_path))
    prompts, size = loopy_prompts(3), (5, 1, 3)
    plain, *expected = recorded(eager, path, prompts, size=size)
    drafter = DynamicEagleDrafter(load_eagle(path, target, "compile"), *size)
    ids = assert_nothing_is_left_to_compile(target, drafter, prompts, 16)
    assert ids == expected[0]
    before, compiled = compilations(), Recording(drafter, target)
    assert list(decode(target, compiled, prompts)) == expected
    assert compiled.steps == plain.steps and compilations() == before
