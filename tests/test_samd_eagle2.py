"""SAM-Decoding beside EAGLE-2's head, which has to keep up while the automaton drafts."""

import pytest
import torch
from conftest import make_prompts, save_model
from eagle_checks import Guarded
from eagle_dirs import eagle_dir
from test_hydra import replaying
from tiny_methods import build

from model.common.contract.drafter import EmptyDrafter
from model.common.errors import BadInput
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.loading import load_target
from model.common.target.runtime import Graphs

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


def decode(target, drafter, batch, sampler, limit=60):
    turns = []
    for begin in range(0, len(PROMPTS), batch):
        part = PROMPTS[begin : begin + batch]
        seeds = list(range(begin, begin + len(part)))
        turns += generate(target, drafter, part, sampler, seeds, StopRules(), limit)
    return [turn.output_ids for turn in turns], [turn.accept_lengths for turn in turns]


@pytest.mark.parametrize("temperature", [0, 1])
def test_answers_are_the_baselines(paths, target, temperature):
    sampler = Sampler(temperature)
    base, _ = decode(target, EmptyDrafter(), 1, sampler)
    alone = decode(target, samd(paths, target), 1, sampler)
    together = decode(target, samd(paths, target), 4, sampler)
    assert alone[0] == together[0] == base
    assert alone[1] == together[1]
    assert temperature or max(map(max, alone[1])) > 8  # whole copies were committed


def test_the_heads_cache_is_what_it_would_be_alone(paths, target):
    """Both drafters read every committed token once, whoever drafted it."""
    copied = samd(paths, target)
    decode(target, copied, 1, Sampler())
    head, ids = copied.auxiliary, PROMPTS[-1]
    turn = generate(target, copied, [ids], Sampler(), [0], StopRules(), 40)[0]
    num = head.committed
    assert int(head.head.cache.length) == num >= len(ids)
    found = head.head.cache.storage[0][..., :num, :].clone()
    alone = build("eagle2", paths[0], target, ["--eagle-path", paths[1]])
    committed = ids + turn.output_ids
    generate(target, alone, [committed[: num + 1]], Sampler(), [0], StopRules(), 2)
    fresh = alone.head.cache.storage[0][..., :num, :]
    assert torch.allclose(found, fresh, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 4])
def test_static_shapes_read_what_eager_does(paths, target, batch):
    """Every replay overwrites the hidden states that the head may not have read yet."""
    eager = samd(paths, target)
    expected = decode(target, eager, batch, Sampler())
    replayed = load_target(paths[0], "float32", "cpu", "eager")
    replayed.runtime = Graphs(replayed._rows, replaying)
    drafter = samd(paths, replayed)
    head = drafter.auxiliary.head
    head.runtime = Graphs(head._rows, replaying)
    assert decode(replayed, drafter, batch, Sampler()) == expected
    held, wanted = (part.auxiliary.head.cache for part in (drafter, eager))
    assert torch.equal(held.length, wanted.length)
    for row, length in enumerate(held.length.tolist()):
        found, own = (part.storage[0][:, :, row, :, :length] for part in (held, wanted))
        assert torch.allclose(found, own, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_warm_sees_own_and_copied_steps(paths, batch):
    target = load_target(paths[0], "float32", "cpu", "eager")
    target.runtime = Guarded(target._rows)
    drafter = samd(paths, target)
    head = drafter.auxiliary.head
    head.runtime = Guarded(head._rows)
    decode(target, drafter, batch, Sampler())
    stepped, head.runtime.seen = head.runtime.seen, set()
    kinds = {(before.__name__, then is None) for _, _, before, then in map(read, stepped)}
    alone = {("_given", True)} if batch == 1 else set()  # steps between which nothing is drafted
    assert kinds == {("_given", False)} | alone
    assert len(stepped) == len(set(map(read, stepped)))
    drafter.warm(max(map(len, PROMPTS)) + 60)
    assert stepped <= head.runtime.seen


def read(arguments):
    """The part of a head's arguments that Guarded keeps as they are, without the extras."""
    return arguments[3:7]


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
