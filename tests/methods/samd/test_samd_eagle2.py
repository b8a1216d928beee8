"""SAM-Decoding beside EAGLE-2's head, which has to keep up while the automaton drafts."""

import pytest
from conftest import make_prompts, save_model
from eagle_dirs import eagle_dir
from head_caches import FreshCaches
from oracle import decode, facts, outputs
from recording import Recording
from tiny_methods import build

from model.common.contract.sequence import EmptyDrafter
from model.common.errors import BadInput
from model.common.loop.sampling import Sampler
from model.common.target.loading import load_target
from model.eagle.head import load_eagle

PROMPTS = [ids * 4 for ids in make_prompts(4)]  # so that there is something to copy


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samd-eagle2")
    target = save_model(folder / "target")
    return target, eagle_dir(folder / "head", target)


@pytest.fixture(scope="module")
def target(paths):
    return load_target(paths[0], "float32", "cpu", "eager")


def samd(paths, target, *flags):
    own = ["--auxiliary", "eagle2", "--eagle-path", paths[1], "--len-threshold", "2", *flags]
    return build("samd", paths[0], target, own)


@pytest.mark.parametrize("temperature", [0, 1])
def test_answers_are_the_baselines(paths, target, temperature):
    sampler = Sampler(temperature)
    expected = outputs(decode(target, EmptyDrafter(), PROMPTS, 60, sampler, num_slots=1))
    drafter = samd(paths, target)
    alone = decode(target, drafter, PROMPTS, 60, sampler, num_slots=1)
    assert outputs(alone) == expected
    for num_slots in (2, 4):
        turns = decode(target, drafter, PROMPTS, 60, sampler, num_slots=num_slots)
        assert facts(turns) == facts(alone)
    # whole copies were committed
    assert temperature or max(max(turn.accept_lengths) for turn in alone) > 8


@pytest.mark.parametrize("num_slots", [1, 3])
def test_the_heads_cache_is_what_it_would_be_alone(paths, target, num_slots):
    """Before every draft, whoever drafts: it holds each committed token but the root, once."""
    drafter = samd(paths, target)
    check = FreshCaches(load_target(paths[0], "float32", "cpu", "eager").model, head_of(paths))
    recording = Recording(drafter, lambda combined, one: check(combined.auxiliary, one))
    turns = decode(target, recording, PROMPTS, 40, num_slots=num_slots)
    lengths = [length for turn in turns for length in turn.accept_lengths]
    assert check.checked == len(lengths)
    copied = [one for one in recording.drafts if one.parents == [*range(-1, len(one.parents) - 1)]]
    assert 4 < len(copied) < len(recording.drafts) and max(lengths) > 8
    assert drafter.auxiliary.head.cache.length.tolist() == [0] * num_slots


def head_of(paths):
    """The head alone, for a target of its own."""
    return load_eagle(paths[1], load_target(paths[0], "float32", "cpu", "eager"))


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--auxiliary", "eagle2"], "needs --eagle-path"),
        (["--auxiliary", "eagle2", "--eagle-path", "x", "--state", "warm"], "keeps no state"),
    ],
)
def test_bad_input(paths, target, flags, words):
    with pytest.raises(BadInput, match=words):
        build("samd", paths[0], target, flags)
