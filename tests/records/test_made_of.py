"""What a drafter was made of: another automaton, config, tree or snapshot is another run."""

import json
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
from conftest import save_model
from eagle_dirs import eagle_dir
from harness_runs import COMMON, answer, read_meta, refusal, run

from model.common import args as arguments
from model.common.errors import BadInput
from model.common.records import writer as record
from model.common.records.meta import make_meta
from model.common.target.loading import model_folder
from model.samd.build_sam import main as build_sam

OTHER = {"note": 1}  # of a config


def edited(path, **fields):
    """A function that changes fields of a JSON object."""
    return lambda: path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def spoilt(path):
    """A function that changes the last byte of a file."""
    return lambda: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


def automaton(folder, model_dir):
    corpus = folder / "corpus.jsonl"
    corpus.write_text(json.dumps({"text": "abcab abcabd"}) + "\n")
    flags = ["--model-path", model_dir, "--input", str(corpus), "--output", str(folder / "sam")]
    build_sam(flags)
    return "samd", ["--static-path", folder / "sam"], spoilt(folder / "sam" / "count.npy")


def draft(folder, model_dir):
    path = Path(save_model(folder / "draft", seed=1, num_hidden_layers=1))
    return "sps", ["--drafter-path", path], edited(path / "config.json", **OTHER)


def draft_weights(folder, model_dir):
    path = Path(save_model(folder / "draft", seed=1, num_hidden_layers=1))
    return "sps", ["--drafter-path", path], spoilt(path / "model.safetensors")


def exits(folder, model_dir):
    known = {"sd2_exits": [1, 3], "sd2_thresholds": [0.5, 0.0]}
    path = Path(save_model(folder / "draft", seed=5, **known))
    changed = edited(path / "config.json", sd2_thresholds=[0.9, 0.0])
    return "sd2", ["--drafter-path", path, "--depth", 2], changed


def head(folder, model_dir):
    path = Path(eagle_dir(folder / "head", model_dir))
    return "eagle", ["--eagle-path", path], edited(path / "config.json", **OTHER)


def tree(folder, model_dir):
    path = folder / "tree.json"
    path.write_text("[[0], [1], [0, 0]]")
    return "recycling", ["--tree", path], lambda: path.write_text("[[0], [1]]")


@pytest.mark.parametrize(
    "make, field",
    [
        (automaton, "static_path_sha256"),
        (draft, "drafter_path_config_sha256"),
        (draft_weights, "drafter_path_sha256"),
        (exits, "drafter_path_config_sha256"),
        (head, "eagle_path_config_sha256"),
        (tree, "tree_sha256"),
    ],
)
def test_another_one_is_another_run(make, field, model_dir, question_file, tmp_path, capfd):
    method, flags, change = make(tmp_path, model_dir)
    out = tmp_path / "a.jsonl"
    before = answer(method, model_dir, question_file, out, *flags)
    assert answer(method, model_dir, question_file, out, *flags) == before
    meta = read_meta(out)
    assert len(meta["method_args"][field]) == 64
    if make is exits:
        facts = meta["method_facts"]
        assert (facts["draft_exits"], facts["draft_thresholds"]) == ([1, 3], [0.5, 0.0])
    change()
    record.sha256_weights.cache_clear()  # of this process
    capfd.readouterr()
    where = ["--model-path", model_dir, "--question-file", question_file, "--answer-file", out]
    line = refusal(capfd, run(method, *where, *COMMON, "--max-new-tokens", 24, *flags))
    assert f"method_args.{field}: " in line


def test_a_tree_by_name_has_no_hash(model_dir, question_file, tmp_path):
    out = tmp_path / "a.jsonl"
    answer("recycling", model_dir, question_file, out, "--question-end", 1)
    assert "tree_sha256" not in read_meta(out)["method_args"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of one repository, {name: content}, whose snapshot lies in .folder."""

    class Hub(dict):
        folder = tmp_path / "snapshot"

    there = Hub()

    def download(repo, allow_patterns, ignore_patterns):
        assert repo == "someone/draft"
        for name, content in there.items():
            wanted = any(fnmatch(name, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch(name, pattern) for pattern in ignore_patterns):
                there.folder.mkdir(exist_ok=True)
                (there.folder / name).write_bytes(content)
        return str(there.folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return there


def hashes_of(model_dir):
    """A meta's method_args of a draft model on the hub."""
    record.sha256_weights.cache_clear()
    parser = arguments.make_parser("pld", "", lambda group: group.add_argument("--drafter-path"))
    flags = ["--model-path", model_dir, "--drafter-path", "someone/draft", "--device", "cpu"]
    args = parser.parse_args(flags)
    return make_meta("pld", args, {}, Path(model_dir), "plain")["method_args"]


@pytest.mark.parametrize("kept", ["model.safetensors", "pytorch_model.bin", "heads.pt"])
def test_a_drafter_on_the_hub_is_hashed_with_its_weights(hub, kept, model_dir):
    """They are fetched first, as loaders choose them: without what other programs want."""
    names = ["model.safetensors", "pytorch_model.bin", "heads.pt"]
    hub |= {name: name.encode() for name in names[names.index(kept) :]}
    hub |= {"config.json": b"{}", "consolidated.safetensors": b"x", "onnx/model.bin": b"x"}
    own = hashes_of(model_dir)
    assert model_folder("someone/draft") == hub.folder
    found = {path.name for path in hub.folder.iterdir()} - {"config.json"}
    assert found == ({kept} if kept != "pytorch_model.bin" else {kept, "heads.pt"})
    assert own["drafter_path"] == "someone/draft"
    hub[kept] = b"other"
    changed = hashes_of(model_dir)
    assert own["drafter_path_sha256"] != changed["drafter_path_sha256"]
    assert own["drafter_path_config_sha256"] == changed["drafter_path_config_sha256"]
    hub["config.json"] = b'{"a": 1}'
    again = hashes_of(model_dir)
    assert again["drafter_path_sha256"] == changed["drafter_path_sha256"]
    assert again["drafter_path_config_sha256"] != changed["drafter_path_config_sha256"]


def test_a_repository_without_weights_is_bad_input(hub):
    hub["config.json"] = b"{}"
    with pytest.raises(BadInput, match="someone/draft: no weights in its repository"):
        model_folder("someone/draft")
