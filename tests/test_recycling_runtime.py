"""Token Recycling's two calls of a static runtime: eager's drafts and matrices, nothing to compile
in a step.
"""

import re

import pytest
import torch
from conftest import make_model
from replays import Held
from test_recycling import (
    LOOPY,
    SMALL,
    Recording,
    decode,
    loopy_prompts,
    observed,
    recycling,
    started,
)
from test_runtime import needs_compiler

from model.common import args as arguments
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.compiled import Compiled
from model.common.target.model import Target
from model.common.target.runtime import Graphs, compilations
from model.recycling import inference_recycling as script

KINDS = [
    "graphs",
    *(pytest.param(kind, marks=needs_compiler) for kind in ("compile", "frozen")),
]


class HeldMatrix(Held):
    """A drafter's tensors stay where they were."""

    def __init__(self, drafter):
        super().__init__()
        self.drafter = drafter

    def places(self):
        return [self.drafter.matrix.data_ptr(), self.drafter.first.data_ptr()]


def of_kind(kind, **settings):
    """A drafter of a small tree under a runtime's name, or graphs."""
    drafter = recycling(nodes=SMALL, runtime="eager" if kind == "graphs" else kind, **settings)
    if kind == "graphs":
        drafter.drafting = Graphs(drafter._draft, HeldMatrix(drafter))
        drafter.learning = Graphs(drafter._learn, HeldMatrix(drafter))
    return drafter


@pytest.fixture(scope="module")
def target():
    return Target(make_model(**LOOPY))


@pytest.fixture(scope="module")
def early(target):
    """A stop rule by which some rows of a batch end before others."""
    ids, _ = decode(target, recycling(), loopy_prompts())
    return StopRules(frozenset({ids[0][1]}))


def answered(target, drafter, stop, batch, sampler):
    """(ids, lengths), drafts of four prompts, and the matrix behind them."""
    recording, prompts = Recording(drafter), loopy_prompts()
    found = [decode(target, recording, prompts, 16, batch, stop, sampler)]
    return *found, recording.drafts, drafter.matrix.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "batch, warm, seeds, sampler",
    [
        (1, False, False, Sampler()),
        (1, True, True, Sampler(1.0, top_p=0.8)),
        (4, False, True, Sampler(1.0, top_p=0.8)),
        (4, True, False, Sampler()),
    ],
)
def test_steps_are_eagers(target, early, kind, batch, warm, seeds, sampler):
    """Drafts, ids, matrices over questions and runs; graphs are made by warm() at the latest."""
    eager, static = (of_kind(name, warm=warm, seeds=seeds) for name in ("eager", kind))
    graphs = None
    for run in range(3):
        expected = answered(target, eager, early, batch, sampler)
        assert answered(target, static, early, batch, sampler) == expected
        if run == 0:
            static.warm(100)
            assert static.matrix.tolist() == eager.matrix.tolist()
            graphs = compilations()
        else:
            eager.forget()
            static.forget()
            assert (static.matrix == -1).all()
    assert compilations() == graphs
    lengths = expected[0][1]
    assert max(map(max, lengths)) > 1 and len(set(map(len, lengths))) > 1


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("warm", [False, True])
def test_another_batch_has_calls_of_its_own(target, kind, warm):
    eager, static = of_kind("eager", warm=warm), of_kind(kind, warm=warm)
    for batch in (1, 4, 1):
        expected = answered(target, eager, None, batch, Sampler())
        assert answered(target, static, None, batch, Sampler()) == expected


@pytest.mark.parametrize("kind", KINDS[:2])
@torch.inference_mode()
def test_steps_of_other_drafts_are_learned_too(target, kind):
    """A warm-up that met only them leaves nothing to compile: SAM-Decoding observes its copies."""
    drafters = [of_kind(name, warm=True) for name in ("eager", kind)]
    logits = torch.randn(1, 4, 17)
    for drafter in drafters:
        drafter.warm(100)  # nothing is known yet
        observed(started(drafter, [3]), [[3, 5, -1, 5]], logits)
        drafter.warm(100)
    assert torch.equal(*(drafter.matrix for drafter in drafters))
    graphs = compilations()
    expected, found = (answered(target, drafter, None, 1, Sampler()) for drafter in drafters)
    assert found == expected and compilations() == graphs


@needs_compiler
def test_compiled_steps_write_the_matrix_in_place():
    """No loop of the code is as long as the matrix: nothing copies it."""
    from torch._inductor import config
    from torch._inductor.utils import run_and_get_code

    drafter = started(recycling(50_000, nodes=SMALL, runtime="compile"), [3])
    rows = torch.tensor([[3, 5, -1, 5, 7, 2, 4]])
    with config.patch(fx_graph_cache=False), torch.inference_mode():  # else there is no code
        _, codes = run_and_get_code(observed, drafter, rows, torch.randn(1, 7, 50_000))
    bounds = [
        int(n) for code in codes for n in re.findall(r"<static_cast<int64_t>\((\d+)L\)", code)
    ]
    assert bounds and max(bounds) < drafter.matrix.numel()


@needs_compiler
def test_compiled_target_and_drafter():
    """In a batch whose rows end early; about twenty seconds, nearly all of it in the compiler."""
    shape, prompts = {**LOOPY, "num_hidden_layers": 1}, loopy_prompts(3)
    eager, target = Target(make_model(**shape)), Target(make_model(**shape), "compile")
    ids, _ = decode(eager, of_kind("eager"), prompts)
    stop, drafter = StopRules(frozenset({ids[0][3]})), of_kind("compile")
    expected = decode(eager, of_kind("eager"), prompts, 24, 3, stop)
    target.reserve(3, 200)
    decode(target, drafter, prompts, 4, 3)
    target.warm(100, drafter.shapes())
    drafter.warm(100)
    graphs = compilations()
    assert decode(target, drafter, prompts, 24, 3, stop) == expected
    assert compilations() == graphs
    assert len(set(map(len, expected[1]))) > 1


@needs_compiler
def test_the_script_passes_the_runtime_on(target):
    parser = arguments.make_parser("recycling", script.__doc__, script.add_args)
    args = parser.parse_args(["--model-path", "x", "--runtime", "compile"])
    drafter = script.build(args, target)
    assert type(drafter.drafting) is type(drafter.learning) is Compiled
