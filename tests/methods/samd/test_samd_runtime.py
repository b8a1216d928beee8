"""SAM-Decoding recorded and compiled: drafts, answers and accept lengths are eager's."""

import pytest
from conformance.cases import PROMPTS, make_lively, model_dir, world_of
from eagle_dirs import eagle_dir
from oracle import decode, facts
from recording import Recording
from replays import with_graphs
from samd_checks import make, static
from tiny_methods import random_eagle

from model.common.loop.sampling import Sampler
from model.common.target.model import Target

RECYCLING = ["--auxiliary", "recycling", "--len-threshold", "3", "--len-bias", "0"]
MODES = {  # flags
    "alone": [],
    "recycling": RECYCLING,
    "warm": [*RECYCLING, "--state", "warm"],
    "eagle2": ["--auxiliary", "eagle2", "--len-threshold", "3", "--len-bias", "0"],
}


def drafted(mode, target, num_slots, temperature=0):
    """(facts of the answers, drafts) of two runs of a drafter, the second with what it learned."""
    flags = MODES[mode]
    if mode == "eagle2":
        flags = [*flags, "--eagle-path", random_eagle(eagle_dir, model_dir(3))]
    documents = [world_of().answer(prompt) for prompt in PROMPTS[:2]]
    corpus = static([ids[:20] for ids in documents], separator=15)
    recording, runs = Recording(make(target, *flags, corpus=corpus)), []
    for _ in range(2):
        recording.drafts = []
        sampler = Sampler(temperature)
        turns = decode(target, recording, PROMPTS, 24, sampler, num_slots=num_slots)
        runs.append((facts(turns), [one[:4] for one in recording.drafts]))
    assert (runs[0] == runs[1]) is (mode != "warm")
    return runs


def eagers(mode, num_slots, temperature=0):
    """The same in eager; copies and guesses of several lengths are accepted."""
    runs = drafted(mode, Target(make_lively()), num_slots, temperature)
    lengths = {length for _, accepted, _ in runs[0][0] for length in accepted}
    assert len(lengths) > 3 and max(lengths) > 3
    return runs


@pytest.mark.parametrize("num_slots, temperature", [(1, 0), (3, 0), (3, 1)])
@pytest.mark.parametrize("mode", MODES)
def test_recorded_drafts_are_eagers(mode, num_slots, temperature):
    """Replays write over hidden states and logits that the auxiliary may not have read yet."""
    expected = eagers(mode, num_slots, temperature)
    target, capture = with_graphs(make_lively())
    assert drafted(mode, target, num_slots, temperature) == expected
    assert capture.replayed > 3 * capture.captured > 0


@pytest.mark.compiled
@pytest.mark.parametrize("mode", MODES)
def test_compiled_drafts_are_eagers(mode):
    expected = eagers(mode, 2)
    assert drafted(mode, Target(make_lively(), "compile"), 2) == expected
