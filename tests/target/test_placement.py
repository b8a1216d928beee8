"""Maps of strategies on 1 to 8 devices, what is refused, and models that are where the map says."""

from argparse import ArgumentTypeError, Namespace

import pytest
import torch
from conftest import SHAPE, make_prompts
from harness_runs import refused

from model.common.argument_types import gpu_strategy, shares_of
from model.common.contract.sequence import EmptyDrafter
from model.common.errors import BadInput
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target import placement
from model.common.target.loading import load_target

FAMILIES = {"llama": False, "qwen3": False, "mistral": False, "gemma2": True, "gemma3_text": True}


def gpus(num):
    return tuple(torch.device("cuda", i) for i in range(num))


def asked(monkeypatch, num_visible, strategy=None, per_model=None, **more):
    """The placement of flags on so many visible devices."""
    monkeypatch.setattr(placement, "visible_devices", lambda name: gpus(num_visible))
    per_model = per_model or (1 if strategy == "same" else sum(shares_of(strategy, None))) or 1
    given = {"device": "auto", "gpu_strategy": strategy, "num_gpus_per_model": per_model, **more}
    return placement.wanted_placement(Namespace(**given))


def test_devices_of_the_strategies(monkeypatch):
    """The checks of seed 001's strategies, of any number of devices."""
    for num, strategy, target, drafter in (
        (8, "multi-gpu-ratio:6:2", (0, 1, 2, 3, 4, 5), (6, 7)),
        (4, "multi-gpu-ratio:3:1", (0, 1, 2), (3,)),
        (8, "multi-gpu-ratio:1:1", (0,), (1,)),
        (2, "separate", (0,), (1,)),
        (8, "same", (0,), (0,)),
        (1, None, (0,), (0,)),
    ):
        found = asked(monkeypatch, num, strategy)
        assert [device.index for device in found.target.devices] == [*target]
        assert [device.index for device in found.drafter.devices] == [*drafter]
        assert found.label == (strategy or "same") and not found.target.automatic
    for strategy in ("auto", None):
        found = asked(monkeypatch, 8, strategy, per_model=4)
        assert found.target == found.drafter == placement.Share(gpus(4), True)
        assert found.label == "auto:4"
    assert asked(monkeypatch, 1, "auto", per_model=1).target == placement.Share(gpus(1), False)
    own = asked(monkeypatch, 2, drafter_device="cpu")
    assert own.drafter.devices == (torch.device("cpu"),) and own.target.devices == gpus(1)
    with pytest.raises(BadInput, match=r"ratio:5:4 takes 9 devices; --device auto are 8"):
        asked(monkeypatch, 8, "multi-gpu-ratio:5:4")
    with pytest.raises(BadInput, match="separate takes 2 devices; --device auto is 1"):
        asked(monkeypatch, 1, "separate")


def test_spellings():
    assert gpu_strategy("multi_gpu_ratio:6:2") == "multi-gpu-ratio:6:2"
    for text in ("shared", "multi-gpu-ratio", "multi-gpu-ratio:0:1", "multi-gpu-ratio:3", "same:1"):
        with pytest.raises(ArgumentTypeError, match=f"{text}: same, separate, auto or"):
            gpu_strategy(text)


@pytest.mark.parametrize("num", range(1, 9))
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_of_families(family, num):
    """Every tensor in one part; layers in order; the ends where they belong; no device too full."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = SHAPE | {"num_hidden_layers": 12, "layer_types": None, "vocab_size": 1000}
    config = AutoConfig.for_model(family, **shape)
    found = placement.device_map("x", config, AutoModelForCausalLM, gpus(num))
    if num == 1:
        assert found == {"": gpus(1)[0]}
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = [found[f"model.layers.{i}"].index for i in range(12)]
    assert layers == sorted(layers) and {*layers} == {*range(num)}
    tied = FAMILIES[family]
    assert placement.is_tied(model) is tied
    assert found["model.embed_tokens"].index == found["model.rotary_emb"].index == 0
    ends = 0 if tied else num - 1
    assert found["model.norm"].index == found["lm_head"].index == ends
    sizes = placement.part_bytes(model, found)
    full = [sum(size for name, size in sizes.items() if found[name].index == i) for i in range(num)]
    total = sum(part.nbytes for part in [*model.parameters(), *model.buffers()])
    assert sum(full) == total
    layer, fixed = sizes["model.layers.0"], sizes["model.embed_tokens"] + sizes["lm_head"]
    assert max(full) < max(total / num + layer, fixed + 2 * layer)


def test_layers_are_spread_by_their_bytes():
    assert placement.spread([1] * 8, [0, 0]) == [0] * 4 + [1] * 4
    stages = placement.spread([1] * 8, [3, 3, 0])
    assert max(stages.count(i) + extra for i, extra in enumerate([3, 3, 0])) == 5  # of 14 in all
    assert placement.spread([9, 1, 1, 1], [0, 0]) == [0, 1, 1, 1]
    assert placement.spread([1, 1, 1], [9, 0, 9]) == [0, 1, 2]


def test_models_that_cannot_be_spread():
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.for_model("llama", **SHAPE)
    with pytest.raises(BadInput, match="m: 3 layers cannot be spread over 4"):
        placement.device_map("m", config, AutoModelForCausalLM, gpus(4))
    config = AutoConfig.for_model("t5", num_layers=2)
    with pytest.raises(BadInput, match="only --gpu-strategy auto"):
        placement.device_map("m", config, AutoModelForSeq2SeqLM, gpus(2))


def test_a_tensor_elsewhere_is_refused_by_name():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    cpu, meta = torch.device("cpu"), torch.device("meta")
    placement.check_placed("m", model, {"": cpu})
    model[1].to(meta)
    placement.check_placed("m", model, {"0": cpu, "1": meta})
    with pytest.raises(BadInput, match="m: tensor 1.weight is on meta, cpu was asked for"):
        placement.check_placed("m", model, {"": cpu})
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    model[0].running_mean = model[0].running_mean.to(meta)
    with pytest.raises(BadInput, match="tensor 0.running_mean is on meta"):
        placement.check_placed("m", model, {"0": cpu})
    with pytest.raises(BadInput, match="tensor 0.weight is in no part"):
        placement.check_placed("m", model, {"1": cpu})


def test_accelerates_map_may_not_leave_the_devices():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    for elsewhere in ("disk", "cpu", 5):
        model.hf_device_map = {"0": 0, "1": elsewhere}
        with pytest.raises(BadInput, match="do not fit the free memory of 2 devices"):
            placement.settle("m", model, placement.Share(gpus(2), True), "auto")


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--gpu-strategy", "separate"], "separate takes 2 devices; --device cpu is 1"),
        (["--gpu-strategy", "multi-gpu-ratio:5:4"], "takes 9 devices"),
        (["--gpu-strategy", "shared"], "shared: same, separate, auto or multi-gpu-ratio:A:B"),
        (["--gpu-strategy", "separate", "--num-gpus-per-model", 3], "--num-gpus-per-model is 2"),
        (["--gpu-strategy", "auto", "--num-gpus-total", 4], "need --num-gpus-per-model"),
        (["--num-gpus-per-model", 2], "--num-gpus-per-model 2 takes 2 devices"),
        (["--gpu-strategy", "same", "--drafter-device", "cpu"], "--drafter-device both say"),
        (["--gpu-strategy", "multi-gpu-ratio:2:1", "--runtime", "cudagraph"], "a model on 2"),
        (["--num-gpus-per-model", 2, "--scale-to", "7b"], "--scale-to and --num-gpus-per-model 2"),
        (["--gpu-strategy", "multi-gpu-ratio:1:2", "--scale-to", "7b"], "exclude each other"),
        (["--drafter-device", "nowhere"], "--drafter-device nowhere"),
    ],
)
def test_flags_are_refused_in_one_line(flags, words, paths, capfd):
    draft = ["--drafter-path", paths["draft"]]
    assert words in refused(capfd, paths, *draft, *flags, method="sps")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
@pytest.mark.parametrize("automatic", [False, True])
def test_ids_of_two_gpus_are_those_of_one(model_dir, automatic):
    found = []
    for share in ("cuda:0", placement.Share(gpus(2), automatic)):
        target = load_target(model_dir, "float32", share, "eager")
        prompts = make_prompts(4)
        rules = [0] * 4, StopRules(), 30
        turns = generate(target, EmptyDrafter(), prompts, Sampler(), *rules, num_slots=2)
        found.append([turn.output_ids for turn in turns])
    assert found[0] == found[1]
