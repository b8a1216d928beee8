"""Offloaded layers: logits and ids of resident ones, bytes counted, bad folders refused."""

from argparse import Namespace

import pytest
import torch
from conftest import make_prompts
from harness_runs import answer, ids_of, read_meta, refused
from tiny_families import random_model, small_config
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from model.common.contract.drafter import Draft
from model.common.contract.sequence import EmptyDrafter
from model.common.contract.trees import Tree
from model.common.errors import BadInput
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target import attention
from model.common.target.loading import load_target
from model.common.target.offload import LayerStream, Offload, pinned_bytes, wanted_offload

LAYERS = 3


def streamed(model_dir, place, tmp_path, num_buffers=2, dtype="float32", device="cpu"):
    folder = str(tmp_path) if place == "disk" else None
    offload = Offload(place, folder, num_buffers)
    return load_target(model_dir, dtype, device, "eager", offload=offload)


@torch.inference_mode()
def logits_of(target, batch):
    """Of a draft tree behind prompts, several passes."""
    generate(target, EmptyDrafter(), make_prompts(batch), Sampler(), [0] * batch, StopRules(), 4)
    tokens = torch.arange(7).expand(batch, -1) + 20
    draft = Draft(tokens, Tree(torch.tensor([-1, -1, 0, 0, 1, 2, 5]), 4))
    root = torch.full((batch,), 9)
    target.cache.rewind(torch.full((batch,), 3))
    return target.forward(root, draft, 4)[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("num_buffers", [1, 2, 3, 9])
@pytest.mark.parametrize("place", ["ram", "disk"])
def test_logits_equal_resident_ones(model_dir, tmp_path, place, num_buffers, dtype):
    resident = load_target(model_dir, dtype, "cpu", "eager")
    offloaded = streamed(model_dir, place, tmp_path, num_buffers, dtype)
    for batch in (1, 3):
        assert torch.equal(logits_of(resident, batch), logits_of(offloaded, batch))


def test_every_layer_is_copied_once_a_pass(model_dir, tmp_path):
    target = streamed(model_dir, "ram", tmp_path, 1)
    layers = target.model.model.layers
    size = sum(p.numel() * p.element_size() for p in layers[0].parameters())
    assert target.facts()["offload_passes"] > 5  # of what load_target reads
    target.forget()
    held = target.facts()
    assert held["offload_passes"] == held["offload_copies"] == held["offload_copy_s"] == 0
    assert held["offload_host_bytes"] >= LAYERS * size
    assert held["offload_device_bytes"] < 2 * size
    prompts = make_prompts(1)
    turn = generate(target, EmptyDrafter(), prompts, Sampler(), [0], StopRules(), 11)[0]
    facts = target.facts()
    assert facts["offload_passes"] == 1 + len(turn.accept_lengths) == 11
    assert facts["offload_copies"] == 11 * LAYERS  # a pass begins the next one
    assert facts["offload_bytes_per_pass"] == facts["offload_host_bytes"]
    assert facts["offload_copy_s"] > 0 and facts["offload_wait_s"] > 0


def test_layers_that_fit_are_copied_once(model_dir, tmp_path):
    target = streamed(model_dir, "ram", tmp_path, LAYERS)
    generate(target, EmptyDrafter(), make_prompts(1), Sampler(), [0], StopRules(), 11)
    assert target.facts()["offload_copies"] == LAYERS


def test_what_is_refused_resident_is_refused_offloaded(model_dir, tmp_path, monkeypatch):
    """A bias by column, which is right for chains and wrong for trees; an attention of its own."""
    inside = attention.additive

    def biased(allowed, dtype):
        mask = inside(allowed, dtype)
        return mask + 0.3 * torch.arange(mask.shape[-1], dtype=dtype)

    monkeypatch.setattr("model.common.target.model.additive", biased)
    assert not load_target(model_dir, "float32", "cpu", "eager").reads_trees
    with pytest.raises(BadInput, match=f"{model_dir}: --offload: .* those of the model itself"):
        streamed(model_dir, "ram", tmp_path)
    monkeypatch.undo()
    config = small_config(CONFIG_MAPPING["mpt"])
    random_model(config, AutoModelForCausalLM, 0).save_pretrained(tmp_path / "mpt")
    with pytest.raises(BadInput, match="mpt: --offload: "):
        streamed(str(tmp_path / "mpt"), "ram", tmp_path)


def test_a_pass_that_breaks_off_does_not_spoil_the_next(model_dir, tmp_path):
    resident = load_target(model_dir, "float32", "cpu", "eager")
    target = streamed(model_dir, "ram", tmp_path)
    layer = target.model.model.layers[1].mlp
    forward, layer.forward = layer.forward, None
    with pytest.raises(TypeError):
        logits_of(target, 1)
    layer.forward = forward
    assert torch.equal(logits_of(resident, 1), logits_of(target, 1))


def test_files_are_removed(model_dir, tmp_path):
    target = streamed(model_dir, "disk", tmp_path)
    (folder,) = tmp_path.iterdir()
    assert [path.name for path in sorted(folder.iterdir())] == [f"{i:04d}.bin" for i in range(3)]
    stream = target.facts.__self__
    assert isinstance(stream, LayerStream) and stream.folder.name == str(folder)
    stream.folder.cleanup()
    assert not list(tmp_path.iterdir())


def test_what_a_command_asks_for():
    def wanted(**more):
        given = {"runtime": "eager", "offload_buffers": None, **more}
        return wanted_offload(Namespace(**given))

    assert wanted() is None and wanted(offload=None, offload_folder=None) is None
    assert wanted(offload="ram") == Offload("ram", None, 2)
    assert wanted(offload="disk", offload_folder="x", offload_buffers=4) == Offload("disk", "x", 4)
    for bad, words in (
        ({"offload": "disk"}, "--offload-folder"),
        ({"offload": "ram", "offload_folder": "x"}, "--offload-folder"),
        ({"offload_folder": "x"}, "--offload disk"),
        ({"offload_buffers": 2}, "--offload-buffers needs --offload"),
        ({"offload": "ram", "runtime": "compile"}, "--runtime eager"),
    ):
        with pytest.raises(BadInput, match=words):
            wanted(**bad)


def test_ids_of_the_command_equal_the_resident_runs(paths):
    found = {}
    for place in ([], ["ram"], ["disk", "--offload-folder", paths["tmp"]]):
        flags = ["--drafter-path", paths["draft"], *(["--offload", *place] if place else [])]
        out = paths["tmp"] / f"{place[:1]}.jsonl"
        found[str(place)] = ids_of(
            answer("specexec", paths["model"], paths["questions"], out, *flags)
        )
        meta = read_meta(out)
        assert ("offload_bytes_per_pass" in meta.get("method_facts", {})) == bool(place)
        assert meta["method_args"]["offload"] == (place[0] if place else None)
    first, *others = found.values()
    assert others == [first] * 2


def test_a_folder_that_cannot_be_written(capfd, paths):
    (paths["tmp"] / "file").write_text("")
    for folder in (paths["tmp"] / "file", paths["tmp"] / "missing"):
        flags = ["--drafter-path", paths["draft"], "--offload", "disk", "--offload-folder", folder]
        line = refused(capfd, paths, *flags, method="specexec")
        assert f"--offload-folder {folder}: cannot be written" in line


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["ram", "disk"])
def test_logits_equal_resident_ones_on_a_gpu(model_dir, tmp_path, place):
    resident = load_target(model_dir, "float32", "cuda", "eager")
    offloaded = streamed(model_dir, place, tmp_path, device="cuda")
    sizes = offloaded.facts.__self__.sizes
    held = sum(map(pinned_bytes, sizes)) if place == "ram" else sum(sizes)
    assert offloaded.facts()["offload_host_bytes"] == held
    prompts = make_prompts(3)
    turns = [
        generate(target, EmptyDrafter(), prompts, Sampler(), [0] * 3, StopRules(), 30)
        for target in (resident, offloaded)
    ]
    assert [t.output_ids for t in turns[0]] == [t.output_ids for t in turns[1]]
