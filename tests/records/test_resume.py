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
    messages,
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


@pytest.fixture
def ask(model_dir, question_file):
    """ask(path, flags): the records of a run of pld into that file."""

    def asked(path, *flags, questions=question_file, **more):
        return answer("pld", model_dir, questions, path, *flags, **more)

    return asked


@pytest.fixture
def refused(model_dir, question_file, capfd):
    """refused(path, flags): the one line on which the same command ends."""

    def run_again(path, *flags, model=model_dir, questions=question_file):
        where = ["--model-path", model, "--question-file", questions, "--answer-file", path]
        return refusal(capfd, run("pld", *where, *COMMON, "--max-new-tokens", 24, *flags))

    return run_again


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


def test_half_written_last_line_is_dropped(whole, copied, ask):
    content = copied.read_bytes()
    lines, inside = content.split(b"\n")[:-1], content.index("\ufffd".encode()) + 1
    for cut in (len(lines[0]) + 1 + 50, len(content) - 1, len(content) - 2, 3, inside):
        copied.write_bytes(content[:cut])
        assert timeless(ask(copied)) == timeless(read(whole))


def test_finished_run_is_left_alone(copied, ask):
    before = copied.read_bytes()
    ask(copied, build=lambda args, target: EmptyDrafter())
    assert copied.read_bytes() == before


def test_lost_line_is_answered_again_in_its_place(whole, copied, ask):
    records = read(copied)
    write(copied, records[:2] + records[3:])
    after = ask(copied)
    assert timeless(after) == timeless(read(whole))
    assert [a["tstamp"] == b["tstamp"] for a, b in zip(after, records)].count(False) == 1


def test_broken_line_in_the_middle_is_refused(copied, refused):
    lines = copied.read_text(encoding="utf-8").split("\n")
    copied.write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]), encoding="utf-8")
    assert f"{copied}:2" in refused(copied)


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
        (["--question-end", 3], "question 14, which has an answer, is not among"),
        (["--categories", "qa,rag"], "question 11, which has an answer, is not among"),
        (["--num-draft", 4], "method_args.num_draft"),
        (["--short", "clamp"], "method_args.short"),
        (["--template", "plain"], "shared.template"),
        (["--model-id", "other"], "model_id"),
    ],
)
def test_another_runs_file_is_refused(copied, refused, flags, field):
    before = copied.read_bytes()
    line = refused(copied, "--model-id", read_meta(copied)["model_id"], *flags)
    assert str(copied) in line and field in line and "--overwrite" in line
    assert copied.read_bytes() == before


def test_other_weights_are_refused(copied, refused, draft_dir):
    name = read_meta(copied)["model_id"]
    assert "shared." in refused(copied, "--model-id", name, model=draft_dir)


def test_other_questions_are_refused(copied, refused, question_file, tmp_path):
    """Other words of a question, or another category or system text, are another question."""
    for number, (name, value) in enumerate([("turns", ["!"]), ("category", "x"), ("system", "s")]):
        questions = questions_of(question_file)
        questions[3][name] = value
        other = write(tmp_path / f"other{number}.jsonl", questions)
        line = refused(copied, questions=other)
        assert "question 14, which has an answer, is another one now" in line


def by_place(question_file, folder):
    """The questions of the file in two categories by turns, under ids of every kind."""
    ids = ["b", 3, "a,x", "HumanEval/0", None, None]
    questions = [
        {**question, "question_id": i, "category": category}
        for question, i, category in zip(questions_of(question_file), ids, ["qa", "rag"] * 3)
    ]
    return write(folder / "question.jsonl", questions)


@pytest.mark.parametrize("paired", [[], ["--paired", 1]])
def test_a_wider_choice_goes_on(ask, question_file, tmp_path, paired):
    """Interrupted or finished: what has an answer keeps it, the file ends as a run at once."""
    questions, out = by_place(question_file, tmp_path), tmp_path / "a.jsonl"
    whole = ask(tmp_path / "whole.jsonl", *paired, questions=questions)
    assert [record["question_id"] for record in whole] == ["b", 3, "a,x", "HumanEval/0", 4, 5]
    ways = (["--limit-per-category", 1], ["--limit-per-category", 2], ["--question-end", 5], [])
    before = []
    for flags, count in zip(ways, (2, 4, 5, 6)):
        records = ask(out, *flags, *paired, questions=questions)
        assert timeless(records) == timeless(whole[:count])
        assert records[: len(before)] == before
        before = records
    for name in ("", "-paired-baseline")[: 2 if paired else 1]:
        metas = [read_meta(tmp_path / f"{stem}{name}.jsonl") for stem in ("a", "whole")]
        for field in ("shared", "selection", "questions", "num_questions"):
            assert metas[0][field] == metas[1][field]
    write(out, before[3:5])  # interrupted: the choice may leave out what has no answer
    if paired:
        beside = tmp_path / "a-paired-baseline.jsonl"
        write(beside, read(beside)[3:5])
    records = ask(out, "--question-ids", "HumanEval/0,4,5", *paired, questions=questions)
    assert timeless(records) == timeless(whole[3:])


def test_files_that_differ_in_their_suffix(ask, refused, tmp_path):
    """Each has a meta and a baseline of its own."""
    for name, seed in (("a.jsonl", 1), ("a.json", 2)):
        ask(tmp_path / name, "--paired", 1, "--seed", seed)
    metas = ("a.meta.json", "a.json.meta.json", "a-paired-baseline.meta.json")
    metas += ("a.json-paired-baseline.meta.json",)
    seeds = [json.loads((tmp_path / name).read_text())["shared"]["seed"] for name in metas]
    assert seeds == [1, 2, 1, 2]
    assert len(list(tmp_path.iterdir())) == 8
    for name, other in (("a", "a.jsonl"), ("b.jsonl", "b")):
        (tmp_path / other).touch()
        path = tmp_path / name
        assert f"{path}: its meta file is that of {other}" in refused(path)


def test_a_directory_is_no_answer_file(refused, tmp_path):
    for more in ([], ["--overwrite"]):
        line = refused(tmp_path, *more)
        assert f"{tmp_path}: a directory; name one .jsonl answer file" in line


def test_overwrite_replaces(copied, ask):
    records = ask(copied, "--max-new-tokens", 3, "--overwrite")
    assert [record["choices"][0]["new_tokens"][0] for record in records] == [3] * 6
    assert read_meta(copied)["shared"]["max_new_tokens"] == 3


@pytest.mark.parametrize("content", [None, "{", "", "\x00", "null", "[1]", "3"])
def test_broken_or_missing_meta_is_refused(copied, refused, content):
    beside = copied.with_suffix(".meta.json")
    beside.unlink() if content is None else beside.write_text(content)
    line = refused(copied)
    assert str(copied.parent) in line and beside.name in line


@pytest.mark.parametrize("name", ["environment", "energy"])
def test_a_part_of_another_kind_is_refused(copied, refused, name):
    beside = copied.with_suffix(".meta.json")
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {name: 3}))
    assert f"{beside.name}: {name} is no" in refused(copied)


def test_refused_run_does_not_block_the_next(model_dir, draft_dir, question_file, tmp_path):
    """A slip in a flag is found after the file was opened; the corrected command must run."""
    out = tmp_path / "a.jsonl"
    where = ["--model-path", model_dir, "--question-file", question_file, "--answer-file", out]
    where += [*COMMON, "--max-new-tokens", 2]
    assert run("sps", *where, "--drafter-path", tmp_path) == 2
    assert run("sps", *where, "--drafter-path", draft_dir) == 0


@pytest.mark.parametrize("step", range(4))
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
        assert not AnswerFile(copied, new).lines
    except BadInput:
        pass


def test_paired_files_never_double_a_line(ask, tmp_path):
    """Killed between the two files' lines, the question is missing in one of them only."""
    out, beside = tmp_path / "a.jsonl", tmp_path / "a-paired-baseline.jsonl"
    ask(out, "--paired", 1)
    full = read(out), read(beside)
    for short, lost in ((beside, -1), (out, 2)):
        records, before = read(short), [read(path) for path in (out, beside)]
        again = records.pop(lost)["question_id"]
        write(short, records)
        ask(out, "--paired", 1)
        for path, old in zip((out, beside), before):  # a pair is decoded beside its answer
            assert [r["question_id"] for r in read(path) if r not in old] == [again]
        assert timeless(read(out)) == timeless(full[0])
        assert timeless(read(beside)) == timeless(full[1])


def test_interrupt_keeps_the_answers(whole, ask, tmp_path, capfd):
    out = tmp_path / "a.jsonl"

    class Interrupted(EmptyDrafter):
        def start(self, *arguments):
            if len(read(out)) == 3:
                raise KeyboardInterrupt
            super().start(*arguments)

    ask(out, build=lambda args, target: Interrupted(), code=130)
    assert len(messages(capfd)) == 1
    assert len(read(out)) == 3
    assert ids_of(ask(out)) == ids_of(read(whole))


def test_each_line_is_on_disk_before_the_next_question(ask, tmp_path):
    out, seen = tmp_path / "a.jsonl", []

    class Watching(EmptyDrafter):
        def start(self, *arguments):
            seen.append([json.loads(line)["question_id"] for line in out.read_text().splitlines()])
            super().start(*arguments)

    ask(out, "--question-begin", 1, build=lambda args, target: Watching())
    assert seen == [[], [12], [12, 13], [12, 13, 14], [12, 13, 14, 15]]
