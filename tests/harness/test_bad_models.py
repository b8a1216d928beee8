"""Checkpoints that cannot be used: one line names them, their code is not run."""

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


def test_directory_that_is_no_model(capfd, paths):
    assert str(paths["tmp"]) in refused(capfd, paths, "--model-path", paths["tmp"])


def test_file_that_is_no_model(capfd, paths):
    path = write(paths["tmp"] / "model.safetensors", [])
    assert path in refused(capfd, paths, "--model-path", path)


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


def test_config_that_is_no_json(capfd, paths, model):
    (model / "config.json").write_text('{"model_type": ')
    refused_model(capfd, paths, model)


@pytest.mark.parametrize(
    "change", [{"model_type": "no_such_model"}, {"model_type": None}, {"model_type": "t5"}]
)
def test_config_of_no_causal_model(capfd, paths, model, change):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | change))
    refused_model(capfd, paths, model)


def test_tokenizer_missing(capfd, paths, model):
    for path in model.glob("*token*"):
        path.unlink()
    assert "tokenizer" in refused_model(capfd, paths, model)


def test_tokenizer_that_is_no_json(capfd, paths, model):
    (model / "tokenizer.json").write_text('{"version": ')
    assert "tokenizer" in refused_model(capfd, paths, model)


def test_weights_missing(capfd, paths, model):
    (model / "model.safetensors").unlink()
    refused_model(capfd, paths, model)


@pytest.mark.parametrize("size", [0, 5, 100, -100])
def test_truncated_safetensors(capfd, paths, model, size):
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:size])
    refused_model(capfd, paths, model)


def test_truncated_draft_model(capfd, paths, model):
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:-100])
    refused_model(capfd, paths, model, "sps", "--drafter-path")


TENSOR = "model.layers.1.mlp.down_proj.weight"


def edit_weights(model, edit):
    weights = load_file(model / "model.safetensors")
    edit(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def test_tensor_missing(capfd, paths, model):
    edit_weights(model, lambda weights: weights.pop(TENSOR))
    assert TENSOR in refused_model(capfd, paths, model)


def test_tensor_of_another_shape(capfd, paths, model):
    edit_weights(model, lambda weights: weights.update({TENSOR: torch.zeros(64, 95)}))
    assert TENSOR in refused_model(capfd, paths, model)


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
    config = json.loads((model / "config.json").read_text())
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    changes = {"auto_map": names, "model_type": "evil"}
    (model / "config.json").write_text(json.dumps(config | changes))
    (model / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    refused_model(capfd, paths, model)
    assert not mark.exists()


def test_a_chat_template_that_refuses_is_one_line_or_an_error(capfd, paths, model):
    """Some templates raise, for example on a conversation that they do not allow."""
    template = "{{ raise_exception('no such conversation') }}"
    for path in model.glob("chat_template*"):
        path.unlink()
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    code = run("pld", *where(paths), "--model-path", model)
    err = capfd.readouterr().err
    assert code in (1, 2)
    assert "no such conversation" in err and "Traceback" not in err
