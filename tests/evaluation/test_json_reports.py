"""--json of every tool that reports: a file, stdout alone, or nothing."""

import json
import math

import pytest
from answer_samples import (
    DATA,
    assert_refused,
    line,
    meta,
    report_file,
    run_tool,
    write,
    write_pair,
)

from evaluation import cli


def commands(folder):
    """{tool: (its flags on made files, its exit status, a word of its text)}."""
    method, base = write_pair(folder)
    parts = [
        write(folder / f"{i}.jsonl", [line(i, "qa", [([1], [0.5])], "part")], part_meta(i))
        for i in (1, 2)
    ]
    theirs = ["--file-path", DATA / "spec_bench_eagle.jsonl", "--resamples", 20]
    theirs += ["--base-path", DATA / "spec_bench_vanilla.jsonl"]
    both = ["--file-path", method, "--base-path", base]
    merged = [*parts, "--output", folder / "merged.jsonl", "--overwrite"]
    return {
        "speed": (both, 0, "time identity"),
        "equal": ([base, method], 0, "EQUAL: m:"),
        "audit_answers": (theirs, None, "as published"),
        "merge": (merged, 0, "merged.jsonl: 2 questions of 2 parts"),
    }


def part_meta(number):
    """Of one question of a run of two."""
    found = meta("part", "pld", questions_sha256="a", prompts_sha256="b")
    found["selection"] = {"question_begin": number - 1, "question_end": number}
    return found | {"questions": {str(number): "0 0"}, "num_questions": 1}


@pytest.mark.parametrize("tool", ["speed", "equal", "audit_answers", "merge"])
def test_a_file_or_stdout_alone(tool, tmp_path):
    flags, status, word = commands(tmp_path)[tool]
    script, path = f"evaluation/{tool}.py", report_file()
    done = run_tool(script, *flags, "--json", path)
    assert status in (None, done.returncode), done.stderr
    assert word in done.stdout and '{"' not in done.stdout and word not in done.stderr
    with open(path) as file:
        document = json.load(file)
    assert document["tool"] == tool
    alone = run_tool(script, *flags, "--json", "-")
    assert alone.returncode == done.returncode
    assert json.loads(alone.stdout) == document and word in alone.stderr
    again = run_tool(script, *flags, "--json", path)  # a report is replaced
    assert again.returncode == done.returncode


def test_paths_that_are_refused(tmp_path):
    method, base = write_pair(tmp_path)
    before = base.read_bytes()
    args = ("evaluation/speed.py", "--file-path", method, "--base-path", base, "--json")
    assert_refused(run_tool(*args, tmp_path / "no" / "x.json"), "--json", "no/x.json")
    assert_refused(run_tool(*args, tmp_path), "no file can be written there")
    for path in (base, base.with_name("base.meta.json")):
        assert_refused(run_tool(*args, path), f"{path}: a file that is no report is there")
    assert base.read_bytes() == before
    (tmp_path / "empty").touch()
    assert run_tool(*args, tmp_path / "empty").returncode == 0


def test_what_is_no_number_is_null(tmp_path):
    """JSON has no NaN."""
    path = tmp_path / "x.json"
    cli.write_json(path, {"tool": "x", "a": [math.inf, (1.5, math.nan)], "b": {"c": -math.inf}})
    assert json.loads(path.read_text()) == {"tool": "x", "a": [None, [1.5, None]], "b": {"c": None}}
    assert cli.read_report(path)["a"][1] == [1.5, None]


def test_a_crash_is_no_result(capsys):
    """1 says that files differ; an error that nobody expects has a status of its own."""

    def crash():
        raise KeyError("x")

    with pytest.raises(SystemExit) as end:
        cli.run(crash)
    assert end.value.code == cli.CRASHED == 70
    assert "KeyError: 'x'" in capsys.readouterr().err


def test_progress_is_no_reason():
    """A method that was killed ends with a line of its progress."""

    class Done:
        stderr = "warning: x\n3 of 24 questions, 01:00 left, accepted 1.00, 2.0 tokens/s\n"
        returncode = -9

    assert cli.reason_of(Done) == "warning: x"
    Done.stderr = Done.stderr.splitlines()[1]
    assert cli.reason_of(Done) == "exit status -9"
