"""SPACE's call of a static runtime: eager's drafts, and nothing to compile in a step."""

import pytest
import torch
from conftest import make_model
from replays import Replays
from test_runtime import needs_compiler
from test_space import LOOPY, Recording, decode, loopy_prompts

from model.common import args as arguments
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.compiled import Compiled
from model.common.target.model import Target
from model.common.target.runtime import Graphs, compilations
from model.space import inference_space as script
from model.space.drafter import SpaceDrafter

MASKS = [9, 4, 7]
EARLY = StopRules(frozenset({7}))  # by which some rows of a batch end before others
KINDS = [
    "graphs",
    *(pytest.param(kind, marks=needs_compiler) for kind in ("compile", "frozen")),
]


def of_kind(kind):
    """A drafter under a runtime's name, or graphs."""
    drafter = SpaceDrafter(MASKS, "cpu", "eager" if kind == "graphs" else kind)
    if kind == "graphs":
        drafter.runtime = Graphs(drafter._next_nodes, Replays())
    return drafter


@pytest.fixture(scope="module")
def target():
    return Target(make_model(**LOOPY))


class Copying(Recording):
    """Keeps copies: a graph's next replay overwrites its results."""

    def propose(self):
        draft = super().propose()
        self.drafts[-1] = draft.tokens.tolist()
        return draft


def answered(target, drafter, batch, sampler):
    """(ids, lengths), drafts of four prompts."""
    recording = Copying(drafter)
    return decode(target, recording, loopy_prompts(), 40, batch, EARLY, sampler), recording.drafts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch, sampler", [(1, Sampler(1.0, top_p=0.8)), (4, Sampler())])
def test_steps_are_eagers(target, kind, batch, sampler):
    """Drafts and ids; the call is made by warm() at the latest."""
    drafter = of_kind(kind)
    drafter.warm(100)  # nothing is known yet
    expected = answered(target, of_kind("eager"), batch, sampler)
    for run in range(2):
        assert answered(target, drafter, batch, sampler) == expected
        if run == 0:
            drafter.warm(100)
            graphs = compilations()
    assert compilations() == graphs
    lengths = expected[0][1]
    assert max(map(max, lengths)) > 1 and len(set(map(len, lengths))) > 1


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_the_logits_stay_what_they_were(kind):
    drafter, logits = of_kind(kind), torch.randn(2, 1 + 15, 11)
    kept = logits.clone()
    for count in ([1, 4], [2, 0]):
        nodes = drafter.runtime(logits, torch.tensor(count))
        assert torch.equal(nodes, drafter._next_nodes(kept, torch.tensor(count)))
        assert torch.equal(logits, kept)


@needs_compiler
def test_the_script_passes_the_runtime_on(target):
    parser = arguments.make_parser("space", script.__doc__, script.add_args)
    flags = ["--model-path", "x", "--mask-id", "9", "--runtime", "compile"]
    assert type(script.build(parser.parse_args(flags), target).runtime) is Compiled
