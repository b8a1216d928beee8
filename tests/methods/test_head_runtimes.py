"""Methods with heads, recorded and compiled: drafts, answers and accept lengths are eager's."""

import pytest
from conformance.cases import PROMPTS, Case, case, make_lively
from oracle import facts
from recording import Recording
from replays import with_graphs

from model.common.loop.sampling import Sampler
from model.common.target.model import Target

METHODS = ("medusa", "hydra", "eagle", "eagle2", "eagle3")


def drafted(method, target, num_slots, sampler=None):
    """(facts of the answers, drafts) of two runs that have to be equal; whether the second of them
    compiled or recorded anything."""
    own = Case(method)
    own.target = target
    recording, runs = Recording(own.build()), []
    for _ in range(2):
        recording.drafts = []
        turns = own.decode(PROMPTS, 16, num_slots, drafter=recording, sampler=sampler)
        runs.append((facts(turns), [one[:4] for one in recording.drafts]))
    assert runs[0] == runs[1]
    return *runs[0], any(turn.recompiled for turn in turns)


def model_of(method):
    """The conformance tests' model for a method: float64, so that near-ties stay in order."""
    return make_lively(num_hidden_layers=len(case(method).target.layers))


@pytest.mark.parametrize("num_slots, temperature", [(1, 0), (3, 1)])
@pytest.mark.parametrize("method", METHODS)
def test_recorded_drafts_are_eagers(method, num_slots, temperature):
    """Replays write over what they gave before; slots are filled again in between."""
    sampler = Sampler(temperature)
    expected = drafted(method, case(method).target, num_slots, sampler)
    assert max(max(lengths) for _, lengths, _ in expected[0]) > 1
    target, capture = with_graphs(model_of(method))
    assert drafted(method, target, num_slots, sampler) == expected
    assert capture.replayed > 5 * capture.captured > 0


@pytest.mark.compiled
@pytest.mark.parametrize("method, num_slots", [*((name, 2) for name in METHODS), ("eagle2", 1)])
def test_compiled_drafts_are_eagers(method, num_slots):
    expected = drafted(method, case(method).target, num_slots)
    assert drafted(method, Target(model_of(method), "compile"), num_slots) == expected
