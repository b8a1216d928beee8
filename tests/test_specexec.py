"""SpecExec: the tree against its definition, answers against the baseline's, the draft's cache."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_prompts
from specexec_slow import Recording, best_paths, every_path, next_logits, paths_of, plain
from test_runtime import needs_compiler

from model.common.contract import trees as tree
from model.common.contract.drafter import EmptyDrafter, Needs
from model.common.errors import BadInput
from model.common.loop import verify
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler, seed_of
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.common.target.runtime import Eager, compilations
from model.specexec.drafter import SpecExecDrafter
from model.specexec.flags import Shape
from model.specexec.reader import TreeReader
from model.specexec.specinfer import SpecInferDrafter

LIMIT = 30
FAULTS = {"branch_width": 1, "budget": 30, "beam_len": 1}


class Table:
    """A reader whose laws depend on level and token: [levels, V, V], and [V] after the root."""

    static_shapes = False
    device = torch.device("cpu")

    def __init__(self, after_root, after, room=50):
        self.first, self.after = after_root.log(), after.log()
        self.room, self.num_columns = [room], 0
        self.draft = SimpleNamespace(device=self.device)

    def rooms(self):
        return torch.tensor(self.room)

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


def noisy_copy(scale=0.02, **shape):
    """The target's weights with noise: it is right often, not always."""
    model = make_model(**shape)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def contrary():
    """The target's least likely tokens first."""
    model = make_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    return model


DRAFTS = {
    "target": make_model,
    "random": lambda: make_model(seed=1, num_hidden_layers=1),
    "noisy": noisy_copy,
    "contrary": contrary,
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
    return {name: Target(make()) for name, make in DRAFTS.items()}


@pytest.fixture(scope="module")
def baseline(target):
    return [decode(target, EmptyDrafter(), [prompt])[0].output_ids for prompt in make_prompts(4)]


def specexec(draft, target, num_beams=8, beam_len=6, budget=24, branch_width=5, **more):
    shape = Shape(num_beams, beam_len, budget, branch_width, **more)
    return SpecExecDrafter(TreeReader(draft, target), shape)


def decode(target, drafter, prompts, limit=LIMIT, stop=None, sampler=None, seeds=None):
    seeds = seeds or [1000 + len(prompt) for prompt in prompts]
    stop = stop or StopRules()
    return generate(target, drafter, prompts, sampler or Sampler(), seeds, stop, limit)


def scores_of(drafter):
    return [score for score in drafter.pool.scores[0].tolist() if score > -math.inf]


# --- the tree ---


@pytest.mark.parametrize(
    "budget, wanted",
    [
        (4, {(0,): -0.7444, (0, 0): -1.1524, (1,): -1.4376, (0, 0, 0): -1.5604}),
        (
            8,
            {
                **{(0,): -0.7444, (0, 0): -1.1524, (1,): -1.4376, (0, 0, 0): -1.5604},
                **{(2,): -1.9484, (0,) * 4: -1.9683, (3,): -2.3539, (0,) * 5: -2.3763},
            },
        ),
    ],
)
@pytest.mark.parametrize("beams", [1, 2, 4])
def test_worked_example(budget, wanted, beams):
    drafter = SpecExecDrafter(WORKED, Shape(beams, 32, budget, 4))
    draft = drafter.propose()
    paths = paths_of(draft, 0)
    assert dict(zip(paths, [round(score, 4) for score in scores_of(drafter)])) == wanted
    assert draft.depth == max(map(len, wanted)) and draft.probs is None


def test_tokens_per_pass_of_the_worked_example():
    """2.345 where the target is the draft: 1 + the probability of every path, and as sampled."""
    drafter = SpecExecDrafter(WORKED, Shape(4, 32, 4, 4, decay=1.0))
    draft = drafter.propose()
    assert sorted(paths_of(draft, 0)) == [(0,), (0, 0), (0, 0, 0), (1,)]
    assert 1 + sum(map(math.exp, scores_of(drafter))) == pytest.approx(2.345)
    rows = torch.cat([WORKED.first.view(1, 1, -1), WORKED.after[0, draft.tokens]], 1)
    num = 40000
    uniforms = torch.rand(num, 1 + draft.depth, generator=torch.Generator().manual_seed(0))
    draft.tokens, draft.parents = draft.tokens.expand(num, -1), draft.parents.expand(num, -1)
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
    found = dict(zip(paths_of(drafter.propose(), 0), scores_of(drafter)))
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
        assert set(paths_of(draft, 0)) == set(best_paths(table.laws, shape, 50))


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
        paths = paths_of(draft, 0)
        assert len(paths) == len(set(paths)) == draft.tokens.shape[1] == wanted
        assert (draft.parents[0] < torch.arange(wanted)).all()
        assert all(table.laws(path[:-1])[path[-1]] > -math.inf for path in paths)
        assert draft.depth == max(map(len, paths))
        assert tree.layout(draft)[2].max() == draft.depth


def test_least_score_and_room():
    table = random_table(2)
    shape = Shape(8, 6, 40, 4, min_log_prob=-2.0)
    drafter = SpecExecDrafter(table, shape)
    paths = paths_of(drafter.propose(), 0)
    assert set(paths) == set(best_paths(table.laws, shape, 50)) and 0 < len(paths) < 40
    assert min(scores_of(drafter)) > -2.0
    table.room = [2]
    assert max(map(len, paths_of(drafter.propose(), 0))) == 2
    nothing = SpecExecDrafter(table, Shape(8, 6, 40, 4, min_log_prob=-0.01)).propose()
    assert nothing.tokens.shape == (1, 0) and nothing.depth == 0


@pytest.mark.parametrize("batch, size", [(1, (2, 9, 24, 4)), (3, (4, 5, 12, 3))])
def test_drafts_equal_the_slow_search(target, drafts, batch, size):
    """In the first size some of the root's children are read after others."""
    drafter = specexec(drafts["noisy"], target, *size)
    recording = Recording(drafter)
    decode(target, recording, make_prompts(batch), limit=14)
    model, compared, seen = plain(drafts["noisy"].model), 0, set()
    for row, committed, room, draft in recording.drafts:
        if room:
            wanted, known = slow(model, committed, drafter.shape, room)
            found = paths_of(draft, row)
            assert len(found) == len(wanted) and same(found, wanted)
            assert max(map(len, found)) <= min(room, draft.depth)
            compared += 1
            seen.add(len(found))
            for fault, value in FAULTS.items() if compared == 1 else ():
                shape = Shape(**{**vars(drafter.shape), fault: value})
                assert not same(found, slow(model, committed, shape, room, known)[0]), fault
    assert compared >= 4 * batch and drafter.shape.budget in seen


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


SIZES = {
    1: {"num_beams": 1, "branch_width": 1},
    16: {"num_beams": 4, "branch_width": 4},
    256: {"num_beams": 64, "branch_width": 32},
}


@pytest.mark.parametrize(
    "name, budget",
    [
        *(("noisy", budget) for budget in SIZES),
        *((name, 16) for name in ("random", "wider", "narrower", "short context")),
    ],
)
def test_greedy_ids_equal_vanilla(target, drafts, baseline, name, budget):
    limit = LIMIT if budget < 256 else 12
    drafter = specexec(drafts[name], target, budget=budget, **SIZES[budget])
    alone = [decode(target, drafter, [prompt], limit)[0] for prompt in make_prompts(4)]
    assert [turn.output_ids for turn in alone] == [ids[:limit] for ids in baseline]
    together = decode(target, drafter, make_prompts(4), limit)
    assert [turn.output_ids for turn in together] == [ids[:limit] for ids in baseline]
    assert [t.accept_lengths for t in together] == [t.accept_lengths for t in alone]
    assert [t.drafted for t in together] == [t.drafted for t in alone]
    if name == "noisy":
        assert max(n for turn in alone for n in turn.accept_lengths) >= min(3, 1 + budget)
        assert max(n for turn in alone for n in turn.drafted) == budget


def test_a_thousand_nodes(target, drafts, baseline):
    drafter = specexec(drafts["noisy"], target, 128, 12, 1024, 16)
    turn = decode(target, drafter, make_prompts(1), 12)[0]
    assert turn.output_ids == baseline[0][:12]
    assert turn.drafted[0] == 1024


def test_an_oracle_is_accepted_whole_and_its_contrary_never(target, drafts, baseline):
    prompts = make_prompts(4)
    turns = decode(target, specexec(drafts["target"], target, 1, 4, 4, 1), prompts, 31)
    assert [turn.accept_lengths for turn in turns] == [[5] * 6] * 4
    turns = decode(target, specexec(drafts["contrary"], target, 1, 4, 4, 1), prompts)
    assert [turn.accept_lengths for turn in turns] == [[1] * (LIMIT - 1)] * 4
    assert [turn.output_ids for turn in turns] == baseline


@pytest.mark.parametrize("settings", [(1.0, 0, 1.0), (0.6, 0, 0.9), (0.8, 20, 0.95)])
def test_sampled_ids_are_vanillas(target, drafts, settings):
    seeds = [seed_of(3, row, 0, 0) for row in range(4)]
    prompts, accepted = make_prompts(4), set()
    options = {"limit": 12, "sampler": Sampler(*settings)}
    wanted = [
        decode(target, EmptyDrafter(), [prompt], seeds=[seed], **options)[0].output_ids
        for prompt, seed in zip(prompts, seeds)
    ]
    for name in ("noisy", "contrary"):
        drafter = specexec(drafts[name], target, 16, 6, 64, 12)
        for batch in (1, 4):
            for at in range(0, 4, batch):
                rows = slice(at, at + batch)
                turns = decode(target, drafter, prompts[rows], seeds=seeds[rows], **options)
                assert [turn.output_ids for turn in turns] == wanted[rows]
                accepted |= {n for turn in turns for n in turn.accept_lengths}
    assert max(accepted) >= 2


def test_rows_that_end_early_do_not_disturb_the_others(target, drafts, baseline):
    eos = frozenset({baseline[0][3], baseline[2][11]})
    drafter = specexec(drafts["noisy"], target)
    together = decode(target, drafter, make_prompts(4), stop=StopRules(eos))
    for prompt, turn, full in zip(make_prompts(4), together, baseline):
        first = next((i for i, token in enumerate(full) if token in eos), LIMIT - 1)
        assert turn.output_ids == full[: first + 1]
        alone = decode(target, drafter, [prompt], stop=StopRules(eos))[0]
        assert turn.accept_lengths == alone.accept_lengths
    assert len({len(turn.output_ids) for turn in together}) > 1


def test_prompts_near_the_end_of_the_context(drafts):
    target = Target(make_model(max_position_embeddings=48))
    base = decode(target, EmptyDrafter(), make_prompts(4))
    turns = decode(target, specexec(drafts["noisy"], target), make_prompts(4))
    assert [turn.output_ids for turn in turns] == [turn.output_ids for turn in base]
    assert len(turns[2].output_ids) == 15


def test_sliding_attention_longer_than_the_answer_is_none(target, drafts, baseline):
    turns = decode(target, specexec(drafts["sliding"], target, 1, 4, 4, 1), make_prompts(4), 31)
    assert [turn.accept_lengths for turn in turns] == [[5] * 6] * 4
    short = Target(make_model("mistral"))
    with pytest.raises(BadInput, match="sliding attention of 12 tokens"):
        decode(target, specexec(short, target), make_prompts(1))


# --- the draft model's cache ---


def cached(target, row, num):
    """Keys and values of a row's first columns."""
    return torch.cat([storage[:, :, row, :, :num] for storage in target.cache.storage])


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("size", [{}, {"num_beams": 1, "budget": 3}], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", ["noisy", "target"])
def test_caches_equal_a_fresh_prefill(target, drafts, name, size, batch):
    """Behind every step, whether or not the last accepted node was ever read."""
    fresh = {"draft": Target(DRAFTS[name]()), "target": Target(make_model())}
    checked = []

    def check(kind, held, row, ids):
        fresh[kind].prefill(torch.tensor([ids]), [len(ids)], 256, Needs())
        expected = cached(fresh[kind], 0, len(ids))
        assert torch.allclose(cached(held, row, len(ids)), expected, atol=1e-4)
        checked.append(kind)

    def after_step(drafter, committed):
        reader = drafter.reader
        for row, ids in enumerate(committed):
            if reader.tails.length[row] > 0 and reader.committed > 0:
                assert reader.tails.length[row] == len(ids) - 2
                check("draft", reader.draft, row, ids[:-2])
                check("target", target, row, ids[:-1])

    recording = Recording(specexec(drafts[name], target, **size))
    recording.after_step = after_step
    decode(target, recording, make_prompts(batch), limit=20)
    assert checked.count("draft") >= 3 * batch


class Guarded(Eager):
    """A static runtime that notes the shapes it would have to compile."""

    static_shapes = True

    def __init__(self, forward):
        super().__init__(forward)
        self.seen = set()

    def __call__(self, *arguments):
        key = tuple(a.shape if isinstance(a, torch.Tensor) else repr(a) for a in arguments)
        self.firsts.setdefault(key, arguments)
        self.seen.add(key)
        return self.forward(*arguments)


@pytest.mark.parametrize("num_beams, widths", [(4, [4]), (20, [8, 20])])
@pytest.mark.parametrize("batch", [1, 4])
def test_static_shapes_are_known_before_long_answers(target, baseline, batch, num_beams, widths):
    draft = Target(noisy_copy())
    draft.runtime = Guarded(draft._rows)
    drafter = specexec(draft, target, num_beams=num_beams)
    assert drafter.widths == widths
    decode(target, drafter, make_prompts(batch), 3)
    draft.runtime.seen = set()
    drafter.warm(33 + LIMIT)
    warmed, draft.runtime.seen = draft.runtime.seen, set()
    turns = decode(target, drafter, make_prompts(batch))
    assert [turn.output_ids for turn in turns] == baseline[:batch]
    stepped = {seen for seen in draft.runtime.seen if "'all'" in seen}  # no prefills
    assert len(stepped) == 1 + len(drafter.widths) and stepped <= warmed  # the tail, passes


def test_static_shapes_draft_the_same_trees(target):
    """Passes have one of few widths, and the pool all its places from the start."""
    found = []
    for is_static in (False, True):
        draft = Target(noisy_copy())
        if is_static:
            draft.runtime = Guarded(draft._rows)
        recording = Recording(specexec(draft, target, num_beams=20, budget=40))
        decode(target, recording, make_prompts(1), 12)
        drafts = [sorted(paths_of(draft, 0)) for *_, draft in recording.drafts]
        found.append(drafts)
    assert found[0] == found[1] and len(found[0]) >= 3


@needs_compiler
@pytest.mark.parametrize("kind", [SpecExecDrafter, SpecInferDrafter])
def test_one_graph_serves_all_passes_of_as_many_rows(target, baseline, kind):
    """Compiled: the baseline's answers, the tail and one kind of passes to compile."""
    draft = Target(noisy_copy(), "compile")
    drafter = kind(TreeReader(draft, target), Shape(4, 6, 24, 3))
    compiled = compilations()
    decode(target, drafter, make_prompts(1), 3)
    drafter.warm(33 + LIMIT)
    assert compilations() - compiled == 2
    turns = decode(target, drafter, make_prompts(1))
    assert [turn.output_ids for turn in turns] == baseline[:1]
    assert len(turns[0].accept_lengths) < LIMIT - 5
    assert compilations() - compiled == 2


def test_host_reads_are_counted(target, drafts, monkeypatch):
    """One a pass, at most as many as declared."""
    drafter = specexec(drafts["noisy"], target, beam_len=3)
    reads, copy_out = [], torch.Tensor.tolist
    propose = drafter.propose

    def counted():
        before = len(reads)
        draft = propose()
        assert len(reads) - before <= drafter.reads_per_step == 3
        return draft

    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(1) or copy_out(self))
    monkeypatch.setattr(drafter, "propose", counted)
    decode(target, drafter, make_prompts(2), 10)
    assert reads
