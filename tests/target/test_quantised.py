"""Quantised checkpoints: one line without their package, the quantised model's own ids with it."""

import importlib.util
import json
import shutil

import pytest
import torch
from conftest import save_model
from gguf_models import generated
from harness_runs import answer, ids_of, read_meta, refused
from safetensors.torch import load_file, save_file

from model.common.errors import BadInput
from model.common.prompts.prompter import Prompter, load_tokenizer
from model.common.records.bandwidth import step_reads
from model.common.target.loading import load_model, load_target

# {method: (its config, the package or the reason that the line names, the module of the package)}
METHODS = {
    "gptq": ({"bits": 4, "group_size": 32}, "pip install optimum", "optimum"),
    "awq": ({"bits": 4, "group_size": 32}, "pip install gptqmodel", "gptqmodel"),
    "bitsandbytes": ({"load_in_4bit": True}, "pip install -U bitsandbytes", "bitsandbytes"),
    "compressed-tensors": (
        {"format": "pack-quantized", "config_groups": {}},
        "pip install compressed-tensors",
        "compressed_tensors",
    ),
    "hqq": (
        {"quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
        "github.com/mobiusml/hqq",
        "hqq",
    ),
    "quanto": ({"weights": "int8"}, "pip install optimum-quanto", "optimum"),
    "torchao": (
        {"quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}, "_version": 2}}},
        "torchao",
        "torchao",
    ),
    "aqlm": ({"in_group_size": 8}, "pip install aqlm", "aqlm"),
    "vptq": ({}, "pip install -U vptq", "vptq"),
    "auto-round": ({"bits": 4, "group_size": 32}, "auto-round", "auto_round"),
    "modelopt": ({"quant_algo": "FP8"}, "does not know", None),
    None: ({"bits": 4}, "quant_method", None),
}


def quantised(model_dir, folder, method, config):
    """A copy of a model directory whose config says that it is quantised."""
    shutil.copytree(model_dir, folder)
    whole = json.loads((folder / "config.json").read_text())
    found = {"quant_method": method, **config} if method else config
    (folder / "config.json").write_text(json.dumps(whole | {"quantization_config": found}))
    return folder


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("flag", ["--model-path", "--drafter-path"])
def test_without_the_package_one_line_names_it(capfd, paths, method, flag):
    config, named, module = METHODS[method]
    if module and importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    folder = quantised(paths["model"], paths["tmp"] / "quantised", method, config)
    line = refused(capfd, paths, flag, folder, method="sps" if "draft" in flag else "pld")
    assert str(folder) in line and named in line
    assert method is None or f"quantised with {method}" in line


def fp8(model_dir, folder):
    """A checkpoint of fp8 blocks of 32 x 32, and {name: the matrix that it says}."""
    config = {"weight_block_size": [32, 32], "activation_scheme": "dynamic"}
    quantised(model_dir, folder, "fp8", config)
    stored, said = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        stored[name] = tensor
        if name.endswith("proj.weight"):
            rows, columns = tensor.shape
            blocks = tensor.reshape(rows // 32, 32, columns // 32, 32)
            scale = blocks.abs().amax((1, 3)) / 448
            numbers = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            stored[name] = numbers.reshape(rows, columns)
            stored[name + "_scale_inv"] = scale
            said[name] = (numbers.float() * scale[:, None, :, None]).reshape(rows, columns)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return said


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may keep fp8")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_fp8_without_a_gpu_is_dequantised_to_the_dtype_and_said(model_dir, tmp_path, capfd, dtype):
    """Its matrices came out in their scales' dtype beside norms of another one."""
    said = fp8(model_dir, tmp_path / "fp8")
    target = load_target(str(tmp_path / "fp8"), dtype, "cpu", "eager")
    assert f"dequantised to {dtype}" in capfd.readouterr().err
    found = dict(target.model.named_parameters())
    assert {p.dtype for p in found.values()} == {getattr(torch, dtype)}
    for name, matrix in said.items():
        assert torch.equal(found[name], matrix.to(found[name].dtype)), name


@pytest.fixture(scope="module")
def torchao_dir(tmp_path_factory):
    """A tiny Llama with int8 weights, as torchao and transformers write it."""
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    plain, folder = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("torchao")
    save_model(plain, scale=0.5)
    settings = TorchAoConfig(Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.float32, quantization_config=settings
    )
    model.save_pretrained(folder)
    load_tokenizer(str(plain)).save_pretrained(folder)
    return plain, folder


def test_torchao_answers_as_the_quantised_model_does(torchao_dir, paths):
    plain, folder = map(str, torchao_dir)
    model = load_model(folder, "float32", "cpu")
    assert model.is_quantized
    prompter = Prompter(load_tokenizer(folder))
    questions = [json.loads(line) for line in open(paths["questions"], encoding="utf-8")][1:]
    right = {
        q["question_id"]: generated(model, prompter.render(q["turns"], []), 24) for q in questions
    }
    other = load_model(plain, "float32", "cpu")
    assert any(
        generated(other, prompter.render(q["turns"], []), 24) != right[q["question_id"]]
        for q in questions
    )
    for method in ("vanilla", "pld", "sps"):
        out = paths["tmp"] / f"{method}.jsonl"
        flags = ["--drafter-path", folder] if method == "sps" else []
        found = ids_of(answer(method, folder, paths["questions"], out, *flags))
        assert {i: found[i][0][0] for i in right} == right, method
    reads = read_meta(out)["step_reads"]["weight_bytes"]
    assert reads["int8"] > 0 and reads["float32"] > 0


def test_bytes_of_torchao_weights_are_the_stored_ones(torchao_dir):
    """Per matrix an int8 a number, and a scale and a zero point a row."""
    target = load_target(str(torchao_dir[1]), "float32", "cpu", "eager")
    shapes = [(64, 64), (32, 64), (32, 64), (64, 64), (96, 64), (96, 64), (64, 96)]
    stored = 3 * sum(rows * columns + rows for rows, columns in shapes)
    scales = 4 * 3 * sum(rows for rows, _ in shapes)
    whole = 4 * (target.vocab_size * 64 + 7 * 64)
    found = step_reads(target)["weight_bytes"]
    assert found == {"int8": stored, "float32": scales + whole}


def test_twins_of_quantised_models_are_refused(torchao_dir, capfd, paths):
    folder = str(torchao_dir[1])
    with pytest.raises(BadInput, match="not quantised"):
        load_target(folder, "float32", "cpu", "eager", scale_to="128x3x192")


def test_quanto_checkpoint_loads(model_dir, tmp_path):
    """It has no scales of activations, which quanto's modules hold as 1."""
    if importlib.util.find_spec("optimum") is None:
        pytest.skip("no optimum-quanto")
    folder = quantised(model_dir, tmp_path / "quanto", "quanto", {"weights": "int8"})
    target = load_target(str(folder), "float32", "cpu", "eager")
    assert target.model.is_quantized
