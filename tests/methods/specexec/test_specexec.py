"""SpecExec: the tree against its definition, what it is accepted for, what runtimes make of it."""

import math

import pytest
import torch
from conftest import make_model, make_prompts
from draft_models import DRAFTS, next_logits, noisy_copy, plain
from host_reads import count_reads
from oracle import decode, facts, outputs
from recording import Recording
from replays import Replays
from specexec_slow import best_paths, every_path, live_paths, paths_of

from model.common.contract.sequence import EmptyDrafter
from model.common.loop import verify
from model.common.target.model import Target
from model.common.target.runtime import CudaGraphs, compilations
from model.specexec.drafter import SpecExecDrafter
from model.specexec.flags import Shape
from model.specexec.reader import TreeReader
from model.specexec.specinfer import SpecInferDrafter

LIMIT = 30
FAULTS = {"branch_width": 1, "budget": 30, "beam_len": 1}


class Table:
    """A reader whose laws depend on level and token: [levels, V, V], and [V] after the root."""

    device = draft_device = torch.device("cpu")

    def __init__(self, after_root, after, room=50):
        self.first, self.after = after_root.log(), after.log()
        self.room, self.num_columns = [room], 0

    def catch_up(self):
        self.num_columns = 0
        return self.first.unsqueeze(0)

    def read(self, tokens, parents, levels):
        self.num_columns += tokens.shape[1]
        return self.after[levels.clamp(max=len(self.after) - 1), tokens]

    def laws(self, path):
        level = min(len(path), len(self.after)) - 1
        return self.after[level, path[-1]] if path else self.first


WORKED = Table(
    torch.tensor([0.5, 0.25, 0.15, 0.1]),
    torch.tensor(
        [[[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0.25] * 4, [0.9, 0.05, 0.03, 0.02]]]
    ),
)


MODELS = DRAFTS | {
    "short context": lambda: noisy_copy(max_position_embeddings=24),
    "wider": lambda: make_model(seed=1, vocab_size=110),
    "narrower": lambda: make_model(seed=1, vocab_size=50),
    "sliding": lambda: make_model("mistral", sliding_window=512),
}


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


@pytest.fixture(scope="module")
def drafts():
    return {name: Target(make()) for name, make in MODELS.items()}


def specexec(draft, target, num_beams=8, beam_len=6, budget=24, branch_width=5, **more):
    shape = Shape(num_beams, beam_len, budget, branch_width, **more)
    return SpecExecDrafter(TreeReader(draft, target), shape)


def scores_of(drafter):
    return drafter.pool.scores[0][drafter.pool.filled[0]].tolist()


# --- the tree ---


FOUR = {(0,): -0.7444, (0, 0): -1.1524, (1,): -1.4376, (0, 0, 0): -1.5604}
EIGHT = FOUR | {(2,): -1.9484, (0,) * 4: -1.9683, (3,): -2.3539, (0,) * 5: -2.3763}


@pytest.mark.parametrize("budget, wanted", [(4, FOUR), (8, EIGHT)])
@pytest.mark.parametrize("beams", [1, 2, 4])
def test_worked_example(budget, wanted, beams):
    drafter = SpecExecDrafter(WORKED, Shape(beams, 32, budget, 4))
    draft = drafter.propose()
    paths = paths_of(draft)
    assert dict(zip(paths, [round(score, 4) for score in scores_of(drafter)])) == wanted
    assert draft.depth == max(map(len, wanted)) and draft.probs is None


def test_tokens_per_pass_of_the_worked_example():
    """2.345 where the target is the draft: 1 + the probability of every path, and as sampled."""
    drafter = SpecExecDrafter(WORKED, Shape(4, 32, 4, 4, decay=1.0))
    draft = drafter.propose()
    assert sorted(paths_of(draft)) == [(0,), (0, 0), (0, 0, 0), (1,)]
    assert 1 + sum(map(math.exp, scores_of(drafter))) == pytest.approx(2.345)
    rows = torch.cat([WORKED.first.view(1, 1, -1), WORKED.after[0, draft.tokens]], 1)
    num = 40000
    uniforms = torch.rand(num, 1 + draft.depth, generator=torch.Generator().manual_seed(0))
    draft.tokens = draft.tokens.expand(num, -1)
    accepted = verify.token_matching(
        rows.expand(num, -1, -1), draft, lambda logits: logits.softmax(-1), uniforms.double()
    )
    count = accepted.count.double()
    assert abs(count.mean() - 2.345) < 4 * count.std() / num**0.5


def random_table(seed, num_ids=4, spread=1.5):
    """Levels differ: where they do not, paths of the same steps tie."""
    generator = torch.Generator().manual_seed(seed)
    laws = (spread * torch.randn(9, num_ids, num_ids, generator=generator)).softmax(-1)
    return Table(laws[0, 0], laws[1:])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [1, 7, 40])
def test_wide_passes_find_the_best_nodes_of_all(seed, budget):
    table = random_table(seed)
    drafter = SpecExecDrafter(table, Shape(budget, 6, budget, 4))
    found = dict(zip(paths_of(drafter.propose()), scores_of(drafter)))
    ranked = every_path(table.laws, 4, 6)
    best = sorted(ranked, key=lambda path: -ranked[path])[:budget]
    assert set(found) == set(best)
    assert all(path[:-1] in found or len(path) == 1 for path in found)
    assert all(score == pytest.approx(ranked[path], abs=1e-5) for path, score in found.items())


@pytest.mark.parametrize("shape", [Shape(1, 9, 12, 2), Shape(3, 4, 30, 4), Shape(2, 50, 64, 3)])
def test_narrow_passes_against_the_slow_search(shape):
    for seed in range(6):
        table = random_table(seed)
        draft = SpecExecDrafter(table, shape).propose()
        assert set(paths_of(draft)) == set(best_paths(table.laws, shape, 50))


def test_passes_end_when_nothing_better_can_come():
    table = random_table(0)
    drafter = SpecExecDrafter(table, Shape(8, 500, 8, 4))
    assert drafter.propose().tokens.shape[1] == 8
    assert drafter.passes < 10 and drafter.facts()["draft_passes_per_step"] == drafter.passes


def test_ties_keep_parents():
    """Flat laws and no decay: scores tie between levels and branches, certain tokens even more."""
    flat = Table(torch.full((4,), 0.25), torch.full((1, 4, 4), 0.25))
    sure = Table(torch.eye(4)[0], torch.eye(4)[[1, 2, 3, 0]].unsqueeze(0))
    twins = Table(torch.tensor([0.5, 0.5, 0, 0]), sure.after.exp())
    for table, budget, wanted in ((flat, 30, 30), (sure, 30, 8), (twins, 5, 5)):
        draft = SpecExecDrafter(table, Shape(5, 8, budget, 4, decay=1.0)).propose()
        paths = paths_of(draft)
        assert len(paths) == len(set(paths)) == draft.tokens.shape[1] == wanted
        assert (draft.tree.parents[0] < torch.arange(wanted)).all()
        assert all(table.laws(path[:-1])[path[-1]] > -math.inf for path in paths)
        assert draft.depth == max(map(len, paths))
        assert draft.tree.depths.max() == draft.depth


def test_least_score_and_room():
    table = random_table(2)
    shape = Shape(8, 6, 40, 4, min_log_prob=-2.0)
    drafter = SpecExecDrafter(table, shape)
    paths = paths_of(drafter.propose())
    assert set(paths) == set(best_paths(table.laws, shape, 50)) and 0 < len(paths) < 40
    assert min(scores_of(drafter)) > -2.0
    table.room = [2]
    assert max(map(len, paths_of(drafter.propose()))) == 2
    nothing = SpecExecDrafter(table, Shape(8, 6, 40, 4, min_log_prob=-0.01)).propose()
    assert nothing.tokens.shape == (1, 0) and nothing.depth == 0


@pytest.mark.parametrize("num_prompts, num_slots", [(1, 1), (3, 3), (3, 2)])
@pytest.mark.parametrize(
    "name, size",
    [("noisy", (2, 9, 24, 4)), ("noisy", (4, 5, 12, 3)), ("target", (1, 3, 3, 1))],
    ids=str,
)
def test_drafts_equal_the_slow_search(target, drafts, num_prompts, num_slots, name, size):
    """What was accepted before is read right: in the first size some of the root's children are
    read after others, in the last one a whole path is accepted whose leaf was never read."""
    drafter = specexec(drafts[name], target, *size)
    rooms = []
    recording = Recording(drafter, lambda own, one: rooms.append(own.reader.room[one.slot]))
    turns = decode(target, recording, make_prompts(num_prompts), 14, num_slots=num_slots)
    assert name == "noisy" or max(turns[0].accept_lengths) == 4
    model, compared, seen = plain(drafts[name].model), 0, set()
    for one, room in zip(recording.drafts, rooms):
        if room == 0:
            continue
        wanted, known = slow(model, one.ids, drafter.shape, room)
        found = live_paths(one.tokens, one.parents)
        assert len(found) == len(wanted) and same(found, wanted)
        assert max(map(len, found)) <= room
        compared += 1
        seen.add(len(found))
        for fault, value in FAULTS.items() if compared == 1 and name == "noisy" else ():
            shape = Shape(**{**vars(drafter.shape), fault: value})
            assert not same(found, slow(model, one.ids, shape, room, known)[0]), fault
    assert compared >= 3 * num_prompts and drafter.shape.budget in seen


def slow(model, committed, shape, room, known=None):
    """(the slow search's nodes, laws it asked for)."""
    known = {} if known is None else known

    def laws(path):
        if path not in known:
            known[path] = next_logits(model, committed + list(path)).log_softmax(-1)
        return known[path]

    return best_paths(laws, shape, room), known


def same(found, wanted):
    """Equal but for nodes whose scores tie with the last one kept."""
    bar = min(wanted.values())
    sure = {path for path, score in wanted.items() if score > bar + 1e-4}
    return len(found) == len(wanted) and sure <= set(found)


# --- answers ---


@pytest.mark.parametrize(
    "name, size",
    [
        *((name, (4, 6, 16, 4)) for name in ("wider", "narrower", "short context")),
        ("noisy", (128, 12, 1024, 16)),
    ],
    ids=str,
)
def test_odd_drafts_and_large_trees_keep_the_ids(target, drafts, name, size):
    prompts = make_prompts(2)
    turns = decode(target, specexec(drafts[name], target, *size), prompts, 20, num_slots=2)
    assert outputs(turns) == outputs(decode(target, EmptyDrafter(), prompts, 20))
    assert name != "noisy" or turns[0].drafted[0] == 1024


@pytest.mark.parametrize("name", ["target", "sliding"])
def test_an_oracle_is_accepted_whole(target, drafts, name):
    """Sliding attention that is longer than the answer is none."""
    turns = decode(target, specexec(drafts[name], target, 1, 4, 4, 1), make_prompts(4), 31)
    assert [turn.accept_lengths for turn in turns] == [[5] * 6] * 4


@pytest.mark.parametrize("kind", [SpecExecDrafter, SpecInferDrafter])
@pytest.mark.parametrize(
    "make",
    [lambda: make_model("mistral"), lambda: noisy_copy(max_position_embeddings=12)],
    ids=["window", "context"],
)
def test_nothing_is_drafted_beyond_what_the_draft_model_can_read(target, make, kind, capsys):
    """Of a question as far as its 12 tokens go, beside another that is longer from the start."""
    prompts = make_prompts(2)
    drafter = kind(TreeReader(Target(make()), target), Shape(4, 5, 20, 3))
    turns = decode(target, drafter, prompts, 20, num_slots=2)
    assert outputs(turns) == outputs(decode(target, EmptyDrafter(), prompts, 20))
    for turn, prompt in zip(turns, prompts):
        length = len(prompt) + 1
        for committed, drafted in zip(turn.accept_lengths, turn.drafted):
            assert (drafted > 0) == (12 - length - 1 > 0)
            length += committed
    assert turns[0].drafted[0] > 0 and not any(turns[1].drafted)
    said = capsys.readouterr().err.splitlines()
    wanted = "--drafter-path: its sliding attention is 12 tokens; nothing is drafted beyond them"
    assert said == ([wanted] if drafter.reader.draft.model.config.model_type == "mistral" else [])


@pytest.mark.parametrize("kind", [SpecExecDrafter, SpecInferDrafter])
def test_padded_drafts_are_accepted_alike(drafts, kind):
    """A static runtime pads a draft's nodes and paths; what a drafter makes of them is the same."""
    found = []
    for static in (False, True):
        target = Target(make_model())
        if static:
            target.runtime = CudaGraphs(target.device, Replays())
        drafter = kind(TreeReader(drafts["noisy"], target), Shape(4, 5, 20, 3))
        found.append(facts(decode(target, drafter, make_prompts(3), LIMIT, num_slots=2)))
    assert found[0] == found[1]


@pytest.mark.compiled
def test_compiled_drafts_meet_no_new_shapes(target, drafts):
    """One graph for passes of one row, one for more; others of offsets and lengths serve too."""
    first, later = ([[5, *range(1, 65), *ids] for ids in make_prompts(n, n)] for n in (2, 4))
    draft = Target(noisy_copy(), "compile")
    drafter, eager = specexec(draft, target), specexec(drafts["noisy"], target)
    before = compilations()
    decode(target, drafter, first, LIMIT)
    compiled = compilations()
    assert 1 <= compiled - before <= 3
    turns = decode(target, drafter, later, LIMIT, num_slots=2)
    assert compilations() == compiled
    assert facts(turns) == facts(decode(target, eager, later, LIMIT))


def test_host_reads_are_counted(target, drafts, monkeypatch):
    """One a pass, at most as many as declared."""
    drafter = specexec(drafts["noisy"], target, beam_len=3)
    counts = count_reads(monkeypatch, drafter)
    decode(target, drafter, make_prompts(2), 10)
    assert max(counts) == drafter.reads_per_step == 3


def test_facts_are_of_running_slots_alone(target, drafts):
    """Passes a step and the mean lowest score; an idle slot has neither nodes nor a score."""
    drafter = specexec(drafts["noisy"], target)
    decode(target, drafter, make_prompts(1), 12)
    alone = drafter.facts()
    assert alone["draft_passes_per_step"] > 1 and alone["mean_lowest_score"] < 0
    drafter.forget()
    decode(target, drafter, make_prompts(1), 12, num_slots=3)
    assert drafter.facts() == alone
    drafter.forget()
    assert drafter.facts() == {"draft_passes_per_step": 0, "mean_lowest_score": 0}
