"""Answer files, metas and hashes by themselves."""

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import save_model

from model.common import args as arguments
from model.common.errors import BadInput
from model.common.loop.turns import Turn
from model.common.records import writer as record
from model.common.records.meta import acceptance_name, is_lossy, make_meta
from model.common.records.writer import AnswerFile

META = {
    "schema": 1,
    "method": "pld",
    "model_id": "m",
    "acceptance": "greedy",
    "lossy": False,
    "shared": {"dtype": "float32", "seed": 0, "a": {"b": 1}},
    "method_args": {"num_draft": 10},
    "num_questions": 3,
    "arguments": {"num_threads": 1},
    "environment": {"host": "here"},
    "started": "then",
}


def line(question_id, **more):
    return {"question_id": question_id, "choices": [], **more}


def lines(path):
    return [json.loads(text) for text in path.read_text(encoding="utf-8").split("\n") if text]


@pytest.mark.parametrize(
    "old, new, name",
    [
        ({}, {}, ""),
        ({"a": 1, "b": {"c": [1, 2]}}, {"b": {"c": [1, 2]}, "a": 1}, ""),
        ({"a": 1}, {"a": 2}, "a: 1 / 2"),
        ({"a": "x"}, {}, "a: 'x' / None"),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, "a.b.c: 1 / 2"),
        ({"a": {"b": 1}}, {"a": 1}, "a: {'b': 1} / 1"),
        ({"b": 1, "a": 1}, {"b": 2, "a": 2}, "a: 1 / 2"),
        ({"a": 0}, {"a": False}, ""),
    ],
)
def test_first_difference(old, new, name):
    assert record.first_difference(old, new) == name


def changed(path, value):
    """META with one field replaced."""
    meta = copy.deepcopy(META)
    *parents, last = path.split(".")
    inner = meta
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return meta


@pytest.mark.parametrize(
    "path, value, same",
    [
        ("started", "now", True),
        ("environment.host", "there", True),
        ("arguments.num_threads", 2, True),
        ("schema", 2, False),
        ("method", "sps", False),
        ("model_id", "n", False),
        ("lossy", True, False),
        ("acceptance", "typical (lossy)", False),
        ("shared.dtype", "float16", False),
        ("shared.a.b", 2, False),
        ("method_args.num_draft", 9, False),
    ],
)
def test_what_makes_a_run_the_same(tmp_path, path, value, same):
    file = AnswerFile(tmp_path / "a.jsonl", META)
    file.add(line(1))
    other = changed(path, value)
    if same:
        assert AnswerFile(tmp_path / "a.jsonl", other).is_done(1)
        assert json.loads((tmp_path / "a.meta.json").read_text()) == other
    else:
        with pytest.raises(BadInput, match=path.replace(".", r"\.")):
            AnswerFile(tmp_path / "a.jsonl", other)
        assert json.loads((tmp_path / "a.meta.json").read_text()) == META
        assert lines(tmp_path / "a.jsonl") == [line(1)]


def test_lines_are_put_in_order(tmp_path):
    path = tmp_path / "deep" / "folder" / "a.jsonl"
    file = AnswerFile(path, META)
    for question_id in (3, 1, 2):
        file.add(line(question_id))
    assert [r["question_id"] for r in lines(path)] == [3, 1, 2]
    file.finish([1, 2, 3])
    assert [r["question_id"] for r in lines(path)] == [1, 2, 3]
    assert {p.name for p in path.parent.iterdir()} == {"a.jsonl", "a.meta.json"}


def test_the_disk_is_waited_for_now_and_then(tmp_path, monkeypatch):
    """Not at every line, but after a second, and at the end."""
    path, now, synced = tmp_path / "a.jsonl", [100.0], []
    monkeypatch.setattr(record.time, "monotonic", lambda: now[0])
    file = AnswerFile(path, META)
    monkeypatch.setattr("os.fsync", lambda _: synced.append(len(lines(path))))
    for question_id, moment in enumerate((100.1, 100.9, 101.0, 101.9, 102.0, 102.5)):
        now[0] = moment
        file.add(line(question_id))
        assert len(lines(path)) == question_id + 1
    assert synced == [3, 5]
    file.finish(list(range(6)))
    assert synced == [3, 5, 6]


def test_facts_go_into_the_meta_and_do_not_forbid_resuming(tmp_path):
    path, facts = tmp_path / "a.jsonl", {"datastore_bytes": 5}
    AnswerFile(path, copy.deepcopy(META)).finish([], facts)
    assert record.read_meta(path)["method_facts"] == facts
    AnswerFile(path, META)


def test_answers_are_kept_and_failed_questions_dropped_at_reopening(tmp_path):
    kept = line("a", text="a\u2028b\u0085c\x1c\r\n\ufffd\U0001f600")
    file = AnswerFile(tmp_path / "a.jsonl", META)
    file.add(kept)
    file.add(line(2, error="out of memory"))
    assert file.is_done(2)
    again = AnswerFile(tmp_path / "a.jsonl", META)
    assert (again.is_done("a"), again.is_done(2)) == (True, False)
    assert lines(tmp_path / "a.jsonl") == [kept]


def test_warm_runs_are_not_resumed(tmp_path):
    warm = changed("method_args.state", "warm")
    file = AnswerFile(tmp_path / "a.jsonl", warm)
    file.add(line(1))
    with pytest.raises(BadInput, match="warm"):
        AnswerFile(tmp_path / "a.jsonl", warm)
    assert not AnswerFile(tmp_path / "a.jsonl", warm, overwrite=True).lines
    whole = AnswerFile(tmp_path / "a.jsonl", warm)
    for question_id in (1, 2, 3):
        whole.add(line(question_id))
    assert AnswerFile(tmp_path / "a.jsonl", warm).is_done(3)


def test_choice_record():
    turns = [
        Turn(
            [5, 6, 7, 8],
            "stop",
            0.5,
            1.5,
            [2, 1],
            [3, 0],
            [3, 0],
            {"draft": [0.1, 0.2]},
            first_s=0.375,
        ),
        Turn([9], "length", 0.25, 0.25, [], [], [], {"draft": []}, recompiled=2),
    ]
    for turn in turns:
        turn.phase_s |= {"verify": turn.phase_s["draft"], "commit": turn.phase_s["draft"]}
    turns[0].begin_s, turns[0].slot, turns[0].step_end_s = 1000.25, 3, [0.75, 1.5]
    choice = record.choice_record(1, ["a", "b"], turns, [10, 20])
    assert choice == {
        "index": 1,
        "turns": ["a", "b"],
        "decoding_steps": [2, 0],
        "new_tokens": [4, 1],
        "wall_time": [1.5, 0.25],
        "accept_lengths": [2, 1],
        "output_ids": [[5, 6, 7, 8], [9]],
        "prompt_tokens": [10, 20],
        "finish_reason": ["stop", "length"],
        "first_s": [0.375, 0.0],
        "prefill_s": [0.5, 0.25],
        "begin_s": [1000.25, 0.0],
        "slot": [3, 0],
        "recompiled": [0, 2],
        "drafted": [[3, 0], []],
        "depth": [[3, 0], []],
        "step_end_s": [[0.75, 1.5], []],
        "draft_s": [[0.1, 0.2], []],
        "verify_s": [[0.1, 0.2], []],
        "commit_s": [[0.1, 0.2], []],
    }
    json.dumps(choice, allow_nan=False)


def test_answer_ids_are_stable_and_distinct():
    questions = [{"question_id": i, "category": "qa"} for i in (1, 2)]
    ids = [record.answer_record(q, m, [], None)["answer_id"] for q in questions for m in "ab"]
    assert len(set(ids)) == 4
    again = record.answer_record(questions[0], "a", [], "broken")
    assert again["answer_id"] == ids[0]
    assert again["error"] == "broken"


def test_hash_of_a_file_is_of_its_content(tmp_path):
    """But of a hub's blob its name, which is the hash already."""
    file, blob = tmp_path / "file", tmp_path / "blobs" / ("0" * 64)
    blob.parent.mkdir()
    for content, digits in ((b"abc", "ba7816bf8f01cfea"), (b"abd", "a52d159f262b2c6d")):
        file.write_bytes(content)
        blob.write_bytes(content)
        assert record.sha256_file(file) == record.sha256_text(content.decode())
        assert record.sha256_file(file).startswith(digits)
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert record.sha256_file(tmp_path / "model.safetensors") == "0" * 64


def weights_hash(path):
    record.sha256_weights.cache_clear()
    return record.sha256_weights(Path(path))


def test_hash_of_weights_sees_every_weight_file(tmp_path):
    seen = []
    for name, content in (
        ("model-1.safetensors", b"abc"),
        ("model-2.safetensors", b"def"),
        ("model-2.safetensors", b"deg"),
        ("model-3.safetensors", b"deg"),
        ("heads.pt", b"abc"),
        ("pytorch_model.bin", b"abc"),
    ):
        (tmp_path / name).write_bytes(content)
        seen.append(weights_hash(tmp_path))
        (tmp_path / "README.md").write_text(name)
        assert weights_hash(tmp_path) == seen[-1]
    (tmp_path / "model-3.safetensors").rename(tmp_path / "model-4.safetensors")
    assert len({*seen, weights_hash(tmp_path)}) == 7


def namespace(model, **flags):
    """Arguments as the PLD script would parse them."""
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    parser = arguments.make_parser("pld", "", lambda group: group.add_argument("--drafter-path"))
    args = parser.parse_args(["--model-path", str(model), "--device", "cpu", *argv])
    args.model_id = args.model_id or arguments.default_model_id("pld", args)
    return args


def test_meta_changes_with_the_weights_and_the_config(tmp_path):
    model = Path(save_model(tmp_path / "m"))

    def shared(drafter=None):
        record.sha256_weights.cache_clear()
        args = namespace(model, drafter_path=drafter or model)
        meta = make_meta("pld", args, {"prompts_sha256": "p"}, model, "plain")
        return meta["shared"], meta["method_args"]

    before, own = shared()
    assert before["prompts_sha256"] == "p"
    assert own["drafter_path_sha256"] == before["weights_sha256"]
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "model.safetensors").write_bytes(content)
    after, own_after = shared()
    assert before["weights_sha256"] != after["weights_sha256"]
    assert own["drafter_path_sha256"] != own_after["drafter_path_sha256"]
    assert record.first_difference(before, after).startswith("weights_sha256")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    assert record.first_difference(after, shared()[0]).startswith("config_sha256")


def test_the_code_that_decodes_is_hashed(tmp_path, monkeypatch):
    """Contract, loop, target and heads with their subfolders: a typo in a trainer is no matter."""
    before = record.harness_sha256()
    assert len(before) == 64
    common = tmp_path / "model" / "common"
    shutil.copytree(arguments.ROOT / "model" / "common", common)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    assert record.harness_sha256() == before
    seen = {before}
    for name in ("contract/trees.py", "loop/decode.py", "target/twin/corner.py", "heads/head.py"):
        (common / name).write_text((common / name).read_text() + "# changed\n")
        seen.add(record.harness_sha256())
    assert len(seen) == 5
    for name in ("training/trainer.py", "args.py", "records/meta.py"):
        (common / name).write_text("# changed\n")
    assert record.harness_sha256() in seen


@pytest.mark.parametrize(
    "flags, name, lossy",
    [
        ({"temperature": 0.0}, "greedy", False),
        ({"temperature": 0.5}, "exact sampling", False),
        ({"temperature": 0.0, "acceptance": "typical"}, "typical (lossy)", True),
        ({"temperature": 0.5, "acceptance": "exact"}, "exact sampling", False),
    ],
)
def test_acceptance_is_said(flags, name, lossy):
    args = SimpleNamespace(**flags)
    assert (acceptance_name(args), is_lossy(args)) == (name, lossy)


@pytest.mark.parametrize(
    "flags, name",
    [
        ({}, "vicuna-7b-v1.3-pld-float16-temperature-0.0"),
        ({"temperature": 0}, "vicuna-7b-v1.3-pld-float16-temperature-0.0"),
        ({"temperature": 1, "dtype": "float32"}, "vicuna-7b-v1.3-pld-float32-temperature-1.0"),
    ],
)
def test_file_names(flags, name):
    args = namespace("lmsys/vicuna-7b-v1.3/", bench_name="spec_bench", **flags)
    folder = arguments.ROOT / "data" / "spec_bench"
    assert arguments.answer_path(args) == folder / "model_answer" / f"{name}.jsonl"
    assert arguments.answer_path(args, 3) == folder / "model_answer" / "run_3" / f"{name}.jsonl"
    assert arguments.question_path(args) == folder / "question.jsonl"
