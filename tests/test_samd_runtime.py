"""SAM-Decoding whose auxiliary drafter is called through a static runtime: eager's steps."""

import pytest
from conftest import make_model
from tiny_methods import decode
from test_recycling import LOOPY, loopy_prompts
from test_recycling_runtime import HeldMatrix
from test_runtime import needs_compiler
from test_samd import make

from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.common.target.runtime import Graphs, compilations

FLAGS = ["--auxiliary", "recycling", "--len-bias", "0"]


@pytest.mark.parametrize("state", ["cold", "warm"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kind", ["graphs", pytest.param("compile", marks=needs_compiler)])
def test_steps_are_eagers(kind, batch, state):
    """Copies have widths that warm() does not know of: they are learned without a new graph."""
    target, prompts = Target(make_model(**LOOPY)), loopy_prompts()
    eager = make(target, *FLAGS, "--state", state)
    name = "eager" if kind == "graphs" else kind
    static = make(target, *FLAGS, "--state", state, "--runtime", name)
    recycling = static.auxiliary
    if kind == "graphs":
        recycling.drafting = Graphs(recycling._draft, HeldMatrix(recycling))
        recycling.learning = Graphs(recycling._learn, HeldMatrix(recycling))
    for limit in (3, 60):
        expected = decode(target, eager, prompts, StopRules(), limit, batch)
        assert decode(target, static, prompts, StopRules(), limit, batch) == expected
        assert static.auxiliary.matrix.tolist() == eager.auxiliary.matrix.tolist()
        if limit == 3:
            static.warm(100)
            graphs = compilations()
    assert compilations() == graphs > 0
    assert max(map(max, expected[1])) > 3
