"""Tensor methods, recorded and compiled: drafts, answers and accept lengths are eager's."""

import pytest
from conformance.cases import PROMPTS, Case, case, make_lively
from oracle import facts
from recording import Recording
from replays import with_graphs

from model.common.loop.sampling import Sampler
from model.common.target.model import Target

WARM = ["--state", "warm"]
METHODS = {  # (method, variant of the conformance tests, more flags)
    **{name: (name, "", []) for name in ("medusa", "hydra", "eagle", "eagle2", "eagle3", "peagle")},
    "dflash": ("dflash", "", []),
    "dflash-tree": ("dflash", "tree", []),
    "dflash2": ("dflash", "dflash2", []),
    "dspark": ("dspark", "confidence", []),
    "recycling": ("recycling", "", []),
    "samd-corpus": ("samd", "corpus", []),
    "samd-recycling": ("samd", "recycling", ["--len-threshold", "3"]),
    "samd-recycling-warm": ("samd", "recycling", ["--len-threshold", "3", *WARM]),
    "samd-eagle2": ("samd", "eagle2", ["--len-threshold", "3"]),
}


def drafted(name, target, num_slots, sampler=None):
    """(facts of the answers, drafts) of two runs, which are equal unless the second one knows what
    the first has learned; whether the second of them compiled or recorded anything."""
    method, variant, more = METHODS[name]
    own = Case(method, variant)
    own.target, own.flags = target, [*own.flags, *more]
    recording, runs = Recording(own.build()), []
    for _ in range(2):
        recording.drafts = []
        turns = own.decode(PROMPTS, 16, num_slots, drafter=recording, sampler=sampler)
        runs.append((facts(turns), [one[:4] for one in recording.drafts]))
    assert (runs[0] == runs[1]) is (WARM[-1] not in more)
    return runs, any(turn.recompiled for turn in turns)


def own_case(name):
    return case(*METHODS[name][:2])


def model_of(name):
    """The conformance tests' model for a method: float64, so that near-ties stay in order."""
    return make_lively(num_hidden_layers=len(own_case(name).target.layers))


@pytest.mark.parametrize("num_slots, temperature", [(1, 0), (3, 1)])
@pytest.mark.parametrize("name", METHODS)
def test_recorded_drafts_are_eagers(name, num_slots, temperature):
    """Replays write over what they gave before; slots are filled again in between."""
    sampler = Sampler(temperature)
    expected = drafted(name, own_case(name).target, num_slots, sampler)
    assert max(max(lengths) for _, lengths, *_ in expected[0][0][0]) > 1
    target, capture = with_graphs(model_of(name))
    assert drafted(name, target, num_slots, sampler)[0] == expected[0]
    assert capture.replayed > 5 * capture.captured > 0


@pytest.mark.compiled
@pytest.mark.parametrize("name, num_slots", [*((name, 2) for name in METHODS), ("eagle2", 1)])
def test_compiled_drafts_are_eagers(name, num_slots):
    expected = drafted(name, own_case(name).target, num_slots)
    assert drafted(name, Target(model_of(name), "compile"), num_slots) == expected
