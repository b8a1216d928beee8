"""What cannot be used ends with code 2 and one line that names it; nothing is overwritten."""

import shutil
from pathlib import Path

import pytest
import torch
from harness_runs import answer, read, refusal, refused, run, where, write

from model.common import args as arguments


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--temperature", -1], ["--temperature", "-1"]),
        (["--temperature", "warm"], ["--temperature", "warm"]),
        (["--temperature", "nan"], ["--temperature", "nan"]),
        (["--temperature", "inf"], ["--temperature", "inf"]),
        (["--temperature", 1, "--top-p", 0], ["--top-p", "0"]),
        (["--temperature", 1, "--top-p", 1.5], ["--top-p", "1.5"]),
        (["--top-p", 0.9], ["--top-p", "--temperature"]),
        (["--top-k", 5], ["--top-k", "--temperature"]),
        (["--temperature", 1, "--top-k", -1], ["--top-k", "-1"]),
        (["--min-p", 0.1], ["--min-p", "--temperature"]),
        (["--temperature", 1, "--min-p", 1.5], ["--min-p", "1.5"]),
        (["--repetition-penalty", 0], ["--repetition-penalty", "0"]),
        (["--presence-penalty", 3], ["--presence-penalty", "3"]),
        (["--frequency-penalty", "much"], ["--frequency-penalty", "much"]),
        (["--stop", ""], ["--stop", "empty"]),
        (["--stop-token-ids", "3,x"], ["--stop-token-ids", "3,x"]),
        (["--stop-token-ids", "3,99999"], ["--stop-token-ids 99999", "vocabulary"]),
        (["--template-args", "{"], ["--template-args", "JSON"]),
        (["--template-args", "[1]"], ["--template-args", "JSON"]),
        (["--template-args", '{"no_such": 1}'], ["--template-args", "no_such"]),
        (["--template", "plain", "--template-args", "{}"], ["--template-args", "plain"]),
        (["--template", "yuan", "--system-prompt", "Hm."], ["--system-prompt", "yuan"]),
        (["--max-new-tokens", 0], ["--max-new-tokens", "0"]),
        (["--batch-size", 0], ["--batch-size", "0"]),
        (["--num-choices", 0], ["--num-choices", "0"]),
        (["--num-runs", 2], ["--num-runs", "--answer-file"]),
        (["--num-threads", 0], ["--num-threads", "0"]),
        (["--warmup", -1], ["--warmup", "-1"]),
        (["--seed", -1], ["--seed", "-1"]),
        (["--seed", 1.5], ["--seed", "1.5"]),
        (["--question-begin", -1], ["--question-begin", "-1"]),
        (["--question-ids", "11,x"], ["--question-ids", "x"]),
        (["--question-ids", "99"], ["--question-ids", "99"]),
        (["--categories", "nope"], ["--categories", "nope"]),
        (["--question-begin", 3, "--question-end", 2], ["--question-begin"]),
        (["--limit-per-category", 0], ["--limit-per-category"]),
        (["--dtype", "int8"], ["--dtype", "int8"]),
        (["--runtime", "fast"], ["--runtime", "fast"]),
        (["--device", "abacus"], ["--device abacus"]),
        (["--template", "no_such"], ["--template no_such"]),
        (["--num-draft", 0], ["--num-draft", "0"]),
        (["--max-ngram", 0], ["--max-ngram", "0"]),
        (["--match", "middle"], ["--match", "middle"]),
        (["--engine", "hf"], ["--engine"]),
        (["--no-such-flag"], ["--no-such-flag"]),
        (["--history", "nowhere.jsonl"], ["--history nowhere.jsonl"]),
    ],
)
def test_flags(capfd, paths, flags, words):
    line = refused(capfd, paths, *flags)
    assert line.startswith("inference_pld: ")
    for word in words:
        assert word in line
    assert not (paths["tmp"] / "a.jsonl").exists()


def test_temperature_too_small_for_float32(capfd, paths):
    code = run("pld", *where(paths), "--temperature", "1e-42")
    assert code == 0 or "--temperature" in refusal(capfd, code)


@pytest.mark.parametrize(
    "flags, word",
    [
        (["--batch-size", 2], "--batch-size"),
        (["--runtime", "compile"], "--runtime"),
        (["--paired", 1], "--paired"),
    ],
)
def test_engine_hf_refuses(capfd, paths, flags, word):
    line = refused(capfd, paths, "--engine", "hf", *flags, method="vanilla")
    assert "--engine hf" in line and word in line


def test_cuda_without_cuda(capfd, paths, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        assert f"--device {device}" in refused(capfd, paths, "--device", device)


def test_missing_flags(capfd):
    assert "--model-path" in refusal(capfd, run("pld"))
    assert "--drafter-path" in refusal(capfd, run("sps", "--model-path", "x"))


GOOD = b'{"question_id": 11, "category": "qa", "turns": ["?"]}\n'


@pytest.mark.parametrize(
    "content, words",
    [
        (GOOD + b"{", [":2", "not JSON"]),
        (GOOD + b"[1]", [":2", "question_id"]),
        (GOOD + GOOD, [":2", "11 occurs twice"]),
        (GOOD + b'{"question_id": 1, "category": "qa", "turns": []}', [":2", "turns"]),
        (GOOD + b'{"question_id": 1, "category": "qa"}', [":2", "turns"]),
        (GOOD.replace(b"?", b"caf\xe9"), []),  # Latin-1
        (GOOD.replace(b"?", b"\\ud800"), []),  # half a surrogate pair
        (b"", []),
        (None, []),  # no file
    ],
)
def test_question_files(capfd, paths, content, words):
    path = paths["tmp"] / "q.jsonl"
    if content is not None:
        path.write_bytes(content)
    line = refused(capfd, paths, "--question-file", path)
    assert all(word in line for word in [str(path), *words])


def test_unknown_bench(capfd, paths, monkeypatch):
    monkeypatch.setattr(arguments, "ROOT", paths["tmp"])
    code = run("pld", "--model-path", paths["model"], "--bench-name", "no_bench")
    assert "no_bench" in refusal(capfd, code)
    code = run("pld", "--model-path", paths["model"], "--bench-name", "spec_bench")
    assert "data/download.py spec_bench" in refusal(capfd, code)


def test_answer_file_of_another_run(capfd, paths):
    out = paths["tmp"] / "a.jsonl"
    answer("pld", paths["model"], paths["questions"], out)
    before = out.read_bytes()
    line = refused(capfd, paths)
    assert str(out) in line and "max_new_tokens" in line
    assert out.read_bytes() == before


def test_a_file_that_is_no_answer_file_is_not_replaced(capfd, paths):
    out = paths["tmp"] / "notes.txt"
    out.write_text("precious")
    assert str(out) in refused(capfd, paths, "--answer-file", out)
    assert out.read_text() == "precious"


def test_unwritable_answer_folder(capfd, paths):
    out = f"{paths['questions']}/folder/a.jsonl"
    assert out in refused(capfd, paths, "--answer-file", out)


def test_answer_file_that_is_a_folder(capfd, paths):
    (paths["tmp"] / "folder.jsonl").mkdir()
    for flags in ([], ["--overwrite"]):
        out = paths["tmp"] / "folder.jsonl"
        assert str(out) in refused(capfd, paths, "--answer-file", out, *flags)


@pytest.fixture(scope="module")
def other_run(tmp_path_factory, model_dir, question_file):
    out = tmp_path_factory.mktemp("other") / "history.jsonl"
    answer("vanilla", model_dir, question_file, out)
    return out


@pytest.fixture
def history(paths, other_run):
    """Another run's records, and a file to put edited ones into."""
    return read(other_run), Path(shutil.copy(other_run, paths["tmp"]))


@pytest.mark.parametrize(
    "change, word",
    [
        (None, "question 11"),
        ({"choices": [], "error": "out of memory"}, "question 11"),
        *[({"choices": [{"turns": turns}]}, "") for turns in (3, "text", [None], [1])],
        ({"choices": [{"turns": []}]}, "question 11"),
    ],
)
def test_history_without_the_needed_answer(capfd, paths, history, change, word):
    """No line, a failed one, turns that are no texts, no turn."""
    records, path = history
    records[:1] = [] if change is None else [records[0] | change]
    write(path, records)
    line = refused(capfd, paths, "--history", path)
    assert str(path) in line and word in line


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"question_id": 1}', '{"choices": [1]}'])
def test_history_with_a_broken_line(capfd, paths, history, line):
    _, path = history
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    assert f"{path}:7" in refused(capfd, paths, "--history", path)


def test_nothing_is_left_behind_by_a_refusal(capfd, paths):
    for flags in (["--template", "no_such"], ["--question-ids", "99"], ["--model-path", "/none"]):
        refused(capfd, paths, *flags)
    assert [path.name for path in paths["tmp"].iterdir()] == []


def test_answers_are_complete_after_all_this(paths):
    """The same flags without a mistake."""
    assert run("pld", *where(paths)) == 0
    assert len(read(paths["tmp"] / "a.jsonl")) == 6


def test_answers_outlive_a_run_that_cannot_begin(capfd, paths):
    """--overwrite with weights that cannot be loaded: the old answers are still there."""
    out = paths["tmp"] / "a.jsonl"
    before = answer("pld", paths["model"], paths["questions"], out)
    broken = paths["tmp"] / "head"
    broken.mkdir()
    (broken / "config.json").write_text("{}", encoding="utf-8")
    line = refused(capfd, paths, "--overwrite", "--eagle-path", broken, method="eagle2")
    assert str(broken) in line
    assert read(out) == before


@pytest.mark.parametrize("flag", ["--question-file", "--history"])
def test_answers_do_not_replace_what_is_read(capfd, paths, flag):
    mine = shutil.copy(paths["questions"], paths["tmp"] / "mine.jsonl")
    content = Path(mine).read_bytes()
    flags = [flag, mine, "--answer-file", mine, "--overwrite"]
    assert flag in refused(capfd, paths, *flags)
    assert Path(mine).read_bytes() == content


def test_a_meta_that_is_no_text_is_refused(capfd, paths):
    out = paths["tmp"] / "a.jsonl"
    answer("pld", paths["model"], paths["questions"], out)
    out.with_suffix(".meta.json").write_bytes(b"\xff\xfe{")
    assert "a.meta.json" in refused(capfd, paths)
