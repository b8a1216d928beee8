"""Killed, repeated and failing runs: no answer is lost, doubled, or taken from another run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from harness_runs import (
    COMMON,
    ROOT,
    answer,
    ids_of,
    questions_of,
    read,
    read_meta,
    refusal,
    run,
    timeless,
    write,
)

from model.common.contract.sequence import EmptyDrafter
from model.common.errors import BadInput
from model.common.records import writer as record
from model.common.records.writer import AnswerFile


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_dir, question_file):
    """An uninterrupted run's file."""
    path = tmp_path_factory.mktemp("whole") / "a.jsonl"
    answer("pld", model_dir, question_file, path)
    return path


@pytest.fixture
def copied(whole, tmp_path):
    """The same in a folder of its own."""
    for path in whole.parent.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / "a.jsonl"


def test_killed_run_goes_on(model_dir, tmp_path):
    """kill -9 in the middle of a sampled run, then the same command."""
    questions = [
        {"question_id": i, "category": "qa", "turns": [f"Question {i}?"]} for i in range(8)
    ]
    file = write(tmp_path / "question.jsonl", questions)
    out = tmp_path / "killed.jsonl"
    flags = ["--temperature", 1, "--max-new-tokens", 200]
    paths = ["--model-path", model_dir, "--question-file", file, "--answer-file", out]
    module = "model.pld.inference_pld"
    command = [sys.executable, "-m", module, *map(str, [*paths, *COMMON, *flags])]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not (out.exists() and out.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    lines = out.read_bytes().split(b"\n")[:-1]
    assert 2 <= len(lines) < len(questions)
    after = answer("pld", model_dir, file, out, *flags)
    assert out.read_bytes().startswith(b"\n".join(lines) + b"\n")
    full = answer("pld", model_dir, file, tmp_path / "whole.jsonl", *flags)
    assert timeless(after) == timeless(full)
    metas = [read_meta(tmp_path / f"{name}.jsonl") for name in ("killed", "whole")]
    assert record.identity(metas[0]) == record.identity(metas[1])


def test_half_written_last_line_is_dropped(whole, copied, model_dir, question_file):
    content = copied.read_bytes()
    lines = content.split(b"\n")[:-1]
    for cut in (len(lines[0]) + 1 + 50, len(content) - 1, len(content) - 2, 3):
        copied.write_bytes(content[:cut])
        assert timeless(answer("pld", model_dir, question_file, copied)) == timeless(read(whole))


def test_line_cut_inside_a_character(whole, copied, model_dir, question_file):
    content = copied.read_bytes()
    inside = content.index("\ufffd".encode()) + 1
    copied.write_bytes(content[:inside])
    assert timeless(answer("pld", model_dir, question_file, copied)) == timeless(read(whole))


def test_finished_run_is_left_alone(copied, model_dir, question_file):
    before = copied.read_bytes()
    build = lambda args, target: None  # noqa: E731
    answer("pld", model_dir, question_file, copied, build=build)
    assert copied.read_bytes() == before


def test_lost_line_is_answered_again_in_its_place(whole, copied, model_dir, question_file):
    records = read(copied)
    write(copied, records[:2] + records[3:])
    after = answer("pld", model_dir, question_file, copied)
    assert timeless(after) == timeless(read(whole))
    assert [a["tstamp"] == b["tstamp"] for a, b in zip(after, records)].count(False) == 1


def test_broken_line_in_the_middle_is_refused(copied, model_dir, question_file, capfd):
    lines = copied.read_text(encoding="utf-8").split("\n")
    copied.write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]), encoding="utf-8")
    answer_again(copied, model_dir, question_file)
    assert f"{copied}:2" in refusal(capfd, 2)


def answer_again(path, model, questions, *flags):
    where = ["--model-path", model, "--question-file", questions, "--answer-file", path]
    return run("pld", *where, *COMMON, "--max-new-tokens", 24, *flags)


HASH_FIRST = ()


@pytest.mark.parametrize(
    "flags, field",
    [
        (["--max-new-tokens", 23], "shared.max_new_tokens"),
        (["--temperature", 1], "acceptance"),
        (["--seed", 1], "shared.seed"),
        (["--batch-size", 2], "shared.batch_size"),
        (["--warmup", 1], "shared.warmup"),
        (["--num-choices", 2], "shared.num_choices"),
        (["--dtype", "bfloat16"], "shared.dtype"),
        pytest.param(["--question-end", 3], "shared.question_end", marks=HASH_FIRST),
        (["--num-draft", 4], "method_args.num_draft"),
        (["--short", "clamp"], "method_args.short"),
        pytest.param(["--template", "plain"], "shared.template", marks=HASH_FIRST),
        (["--model-id", "other"], "model_id"),
    ],
)
def test_another_runs_file_is_refused(copied, model_dir, question_file, capfd, flags, field):
    before = copied.read_bytes()
    flags = ["--model-id", read_meta(copied)["model_id"], *flags]
    line = refusal(capfd, answer_again(copied, model_dir, question_file, *flags))
    assert str(copied) in line
    assert field in line
    assert "--overwrite" in line
    assert copied.read_bytes() == before


def test_other_weights_are_refused(copied, draft_dir, question_file, capfd, model_dir):
    name = read_meta(copied)["model_id"]
    code = answer_again(copied, draft_dir, question_file, "--model-id", name)
    assert "shared." in refusal(capfd, code)


def test_other_questions_are_refused(copied, model_dir, question_file, tmp_path, capfd):
    questions = questions_of(question_file)
    questions[3]["turns"][0] += "!"
    other = write(tmp_path / "other.jsonl", questions)
    assert "sha256" in refusal(capfd, answer_again(copied, model_dir, other))


def test_overwrite_replaces(copied, model_dir, question_file):
    flags = ["--max-new-tokens", 3, "--overwrite"]
    records = answer("pld", model_dir, question_file, copied, *flags)
    assert [record["choices"][0]["new_tokens"][0] for record in records] == [3] * 6
    assert read_meta(copied)["shared"]["max_new_tokens"] == 3


def test_file_without_meta_is_refused(copied, model_dir, question_file, capfd):
    copied.with_suffix(".meta.json").unlink()
    line = refusal(capfd, answer_again(copied, model_dir, question_file))
    assert str(copied) in line and "meta.json" in line


NO_OBJECT = ("[1]", "3")


@pytest.mark.parametrize("content", ["{", "", "\x00", "null", *NO_OBJECT])
def test_broken_meta_is_refused(copied, model_dir, question_file, capfd, content):
    copied.with_suffix(".meta.json").write_text(content)
    assert str(copied.parent) in refusal(capfd, answer_again(copied, model_dir, question_file))


def test_refused_run_does_not_block_the_next(model_dir, draft_dir, question_file, tmp_path):
    """A slip in a flag is found after the file was opened; the corrected command must run."""
    out = tmp_path / "a.jsonl"
    where = ["--model-path", model_dir, "--question-file", question_file, "--answer-file", out]
    where += [*COMMON, "--max-new-tokens", 2]
    assert run("sps", *where, "--drafter-path", tmp_path) == 2
    assert run("sps", *where, "--drafter-path", draft_dir) == 0


META_FIRST = ()


@pytest.mark.parametrize("step", [0, pytest.param(1, marks=META_FIRST), 2, 3])
def test_crash_while_overwriting_mixes_no_runs(whole, copied, monkeypatch, step):
    """Whatever write a crash comes before, old answers never stand beside the new meta."""
    new = read_meta(copied)
    new["shared"]["seed"] = 77
    writes = []

    def crash_before(kind):
        function = getattr(os, kind)

        def call(*arguments, **options):
            if len(writes) == step:
                raise KeyboardInterrupt
            writes.append(kind)
            return function(*arguments, **options)

        return call

    for kind in ("replace", "unlink", "truncate"):
        monkeypatch.setattr(os, kind, crash_before(kind))
    try:
        AnswerFile(copied, new, overwrite=True)
    except KeyboardInterrupt:
        pass
    monkeypatch.undo()
    try:
        assert not AnswerFile(copied, new).records
    except BadInput:
        pass


def test_paired_files_never_double_a_line(model_dir, question_file, tmp_path):
    """Killed between the two files' lines, the question is missing in one of them only."""
    out, beside = tmp_path / "a.jsonl", tmp_path / "a-paired-baseline.jsonl"
    answer("pld", model_dir, question_file, out, "--paired")
    full = read(out), read(beside)
    for short, lost in ((beside, -1), (out, 2)):
        records = read(short)
        del records[lost]
        write(short, records)
        answer("pld", model_dir, question_file, out, "--paired")
        assert timeless(read(out)) == timeless(full[0])
        assert timeless(read(beside)) == timeless(full[1])


def test_interrupt_keeps_the_answers(whole, model_dir, question_file, tmp_path, capfd):
    out = tmp_path / "a.jsonl"

    class Interrupted(EmptyDrafter):
        def start(self, *arguments):
            if len(read(out)) == 3:
                raise KeyboardInterrupt
            super().start(*arguments)

    build = lambda args, target: Interrupted()  # noqa: E731
    answer("pld", model_dir, question_file, out, build=build, code=130)
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert len(read(out)) == 3
    assert ids_of(answer("pld", model_dir, question_file, out)) == ids_of(read(whole))


def test_each_line_is_on_disk_before_the_next_question(model_dir, question_file, tmp_path):
    out, seen = tmp_path / "a.jsonl", []

    class Watching(EmptyDrafter):
        def start(self, *arguments):
            seen.append([json.loads(line)["question_id"] for line in out.read_text().splitlines()])
            super().start(*arguments)

    build = lambda args, target: Watching()  # noqa: E731
    answer("pld", model_dir, question_file, out, "--question-begin", 1, build=build)
    assert seen == [[], [12], [12, 13], [12, 13, 14], [12, 13, 14, 15]]
