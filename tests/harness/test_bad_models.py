"""Checkpoints that cannot be used: one line names them, their code is not run."""

import importlib.util
import json
import os
import shutil

import pytest
import torch
from conftest import save_model
from harness_runs import refused, run, where, write
from safetensors.torch import load_file, save_file


@pytest.mark.parametrize("name", ["missing", "missing/deeper/still", "./missing"])
def test_missing_model(capfd, paths, name):
    path = f"{paths['tmp']}/{name}"
    assert path in refused(capfd, paths, "--model-path", path)
    if not name.startswith("."):
        assert name in refused(capfd, paths, "--model-path", name)


def test_what_is_no_model(capfd, paths):
    """A directory without a config, and a file."""
    for path in (paths["tmp"], write(paths["tmp"] / "model.safetensors", [])):
        assert str(path) in refused(capfd, paths, "--model-path", path)


def test_missing_draft_model(capfd, paths):
    draft = paths["tmp"] / "none"
    assert str(draft) in refused(capfd, paths, "--drafter-path", draft, method="sps")


def test_draft_model_of_another_tokenizer(capfd, paths):
    other = save_model(paths["tmp"] / "other", words=("zzz",))
    line = refused(capfd, paths, "--drafter-path", other, method="sps")
    assert other in line and paths["model"] in line and "zzz" in line


@pytest.fixture
def model(paths):
    """A copy of the model, to be damaged."""
    folder = paths["tmp"] / "damaged"
    shutil.copytree(paths["model"], folder)
    return folder


def refused_model(capfd, paths, model, method="pld", flag="--model-path"):
    """The line about a damaged model, which names its directory."""
    line = refused(capfd, paths, flag, model, method=method)
    assert str(model) in line
    return line


def text(name, content):
    return lambda model: (model / name).write_text(content)


def config(**change):
    def edit(model):
        known = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(known | change))

    return edit


def truncated(size):
    def edit(model):
        file = model / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])

    return edit


def weights(**change):
    """Tensors of another shape; None = not there."""

    def edit(model):
        found = load_file(model / "model.safetensors")
        for name, shape in change.items():
            if found.pop(name) is not None and shape:
                found[name] = torch.zeros(shape)
        save_file(found, model / "model.safetensors", metadata={"format": "pt"})

    return edit


def without(pattern):
    return lambda model: [path.unlink() for path in model.glob(pattern)]


def index(content):
    """An index of shards in place of the weights."""

    def edit(model):
        (model / "model.safetensors").unlink()
        (model / "model.safetensors.index.json").write_text(json.dumps(content))

    return edit


def directory(name):
    def edit(model):
        (model / name).unlink()
        (model / name).mkdir()

    return edit


def tensor_type(old, new):
    """Another type in the header of the weights."""

    def edit(model):
        file = model / "model.safetensors"
        file.write_bytes(file.read_bytes().replace(f'"{old}"'.encode(), f'"{new}"'.encode()))

    return edit


TENSOR = "model.layers.1.mlp.down_proj.weight"
DAMAGES = {  # (damage, a word of the line)
    "config that is no JSON": (text("config.json", '{"model_type": '), ""),
    "unknown model type": (config(model_type="no_such_model"), ""),
    "no model type": (config(model_type=None), ""),
    "no causal model": (config(model_type="t5"), ""),
    "no tokenizer": (without("*token*"), "tokenizer"),
    "tokenizer that is no JSON": (text("tokenizer.json", '{"version": '), "tokenizer"),
    "no weights": (without("model.safetensors"), ""),
    **{f"weights cut at {size}": (truncated(size), "") for size in (0, 5, 100, -100)},
    "config that is a list": (text("config.json", "[]"), ""),
    "empty config": (text("config.json", "{}"), ""),
    "config that is no text": (lambda m: (m / "config.json").write_bytes(b"\xff\xfe\x00"), ""),
    "config with a text for a number": (config(hidden_size="wide"), ""),
    "no heads": (config(num_attention_heads=0), ""),
    "layers below zero": (config(num_hidden_layers=-1), ""),
    "rope that is a list": (config(rope_parameters=[1]), ""),
    "unknown rope": (config(rope_parameters={"rope_type": "none_such"}), ""),
    "unknown activation": (config(hidden_act="none_such"), ""),
    "unknown dtype": (config(dtype="none_such"), ""),
    "wrong number of layer types": (config(layer_types=["full_attention"]), ""),
    "quantisation that is a text": (config(quantization_config="int8"), ""),
    "generation config that is no JSON": (text("generation_config.json", '{"eos'), ""),
    "tokenizer config that is no JSON": (text("tokenizer_config.json", "{"), "tokenizer"),
    "tokenizer that is a number": (text("tokenizer.json", "1"), "tokenizer"),
    "index without its shards": (index({"weight_map": {"a": "model-1.safetensors"}}), ""),
    "index that is a list": (index([]), ""),
    "weights that are a directory": (directory("model.safetensors"), ""),
    "tensor of an unknown type": (tensor_type("F32", "X99"), ""),
    "no such tensor": (weights(**{TENSOR: None}), TENSOR),
    "tensor of another shape": (weights(**{TENSOR: (64, 95)}), TENSOR),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_model(capfd, paths, model, name):
    damage, word = DAMAGES[name]
    damage(model)
    assert word in refused_model(capfd, paths, model)


@pytest.mark.parametrize(
    "error",
    [
        ImportError("no module of that name"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        NotImplementedError(),
        AssertionError("odd"),
        AttributeError("no such attribute"),
        EOFError("end"),
        OSError(28, "No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("loader", ["AutoModelForCausalLM", "AutoConfig", "AutoTokenizer"])
def test_whatever_a_loader_raises_is_one_line(capfd, paths, monkeypatch, error, loader):
    import transformers

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(getattr(transformers, loader), "from_pretrained", fail)
    line = refused(capfd, paths)
    assert paths["model"] in line
    assert (str(error).split("\n")[0] or type(error).__name__) in line


def test_gguf_without_its_package(capfd, paths, monkeypatch):
    real = importlib.util.find_spec
    absent = {"gguf": None}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: absent.get(name, real(name, *rest))
    )
    path = paths["tmp"] / "model.gguf"
    path.write_bytes(b"GGUF")
    line = refused(capfd, paths, "--model-path", path)
    assert str(path) in line and "pip install gguf" in line


def test_truncated_draft_model(capfd, paths, model):
    truncated(-100)(model)
    refused_model(capfd, paths, model, "sps", "--drafter-path")


class Malicious:
    """Makes a directory when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickle_with_code_is_not_run(capfd, paths, model):
    mark = paths["tmp"] / "code-was-run"
    (model / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Malicious(mark)}, model / "pytorch_model.bin")
    refused_model(capfd, paths, model)
    assert not mark.exists()


def test_code_of_a_model_is_not_run(capfd, paths, model):
    mark = paths["tmp"] / "code-was-run"
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config(auto_map=names, model_type="evil")(model)
    (model / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    refused_model(capfd, paths, model)
    assert not mark.exists()


def test_a_chat_template_that_refuses_is_one_line_or_an_error(capfd, paths, model):
    """Some templates raise, for example on a conversation that they do not allow."""
    template = "{{ raise_exception('no such conversation') }}"
    for path in model.glob("chat_template*"):
        path.unlink()
    known = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(known | {"chat_template": template}))
    code = run("pld", *where(paths), "--model-path", model)
    err = capfd.readouterr().err
    assert code in (1, 2)
    assert "no such conversation" in err and "Traceback" not in err
