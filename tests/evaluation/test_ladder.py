"""Ladders of baselines, where a method's time goes, marked rows: numbers worked out by hand."""

import json

import pytest
from answer_samples import (
    assert_refused,
    base_lines,
    compared,
    line,
    meta,
    method_lines,
    report_of,
    run_tool,
    write,
    write_pair,
)

from evaluation.answers.meta import AnswerError
from evaluation.answers.reader import read_answers

SPEED = "evaluation/speed.py"


def rung(folder, name, lines, **shared):
    """A baseline's file; its lines are given the name."""
    for record in lines:
        record["model_id"] = name
    return write(folder / f"{name}.jsonl", lines, meta(name, "vanilla", **shared))


def quick_lines(step_s=0.1):
    """base_lines() in steps of step_s: 5 tokens and 3 tokens after 0.5 s of prefill."""
    return [
        line(1, "translation", [([1] * 4, [step_s] * 4)]),
        line(2, "qa", [([1] * 2, [step_s] * 2)]),
    ]


def hf_lines():
    """transformers' generate knows no phases."""
    lines = base_lines()
    for record in lines:
        for name in ("draft_s", "verify_s", "commit_s"):
            del record["choices"][0][name]
    return lines


@pytest.fixture
def files(tmp_path):
    """(method, eager baseline, compiled one, transformers' generate)."""
    base = rung(tmp_path, "base", base_lines(), runtime="eager")
    method = write(tmp_path / "m.jsonl", method_lines(), meta("m", runtime="eager"))
    compiled = rung(tmp_path, "compiled", quick_lines(), runtime="compile")
    generate = rung(tmp_path, "hf", hf_lines(), runtime="eager")
    content = json.loads((tmp_path / "hf.meta.json").read_text())
    content["method_args"] = {"engine": "hf"}
    (tmp_path / "hf.meta.json").write_text(json.dumps(content))
    return method, base, compiled, generate


def test_speedup_against_the_best_rung(files):
    """m: 10/3 and 4 tokens/s; base 2 and 2; compiled 5/0.9 and 3/0.7."""
    method, base, compiled, generate = files
    args = ("--file-path", method, "--base-path", base, "--ladder", compiled, generate, base)
    done = run_tool(SPEED, *args)
    assert done.returncode == 0, done.stderr
    document = report_of(done)
    ladder = document["ladder"]
    best = (5 / 0.9 + 3 / 0.7) / 2
    assert [r["label"] for r in ladder["rungs"]] == ["base", "compiled", "hf"]
    assert [r["tokens_per_s"] for r in ladder["rungs"]] == pytest.approx([2, best, 2])
    assert [r["roofline"]["step_ms"] for r in ladder["rungs"]] == pytest.approx([500, 100, 500])
    assert [r["is_tables_baseline"] for r in ladder["rungs"]] == [True, False, False]
    assert (ladder["best"], ladder["tables_against"]) == ("compiled", "base")
    (entry,) = ladder["speedups"]
    assert entry["mean_ratio"]["value"] == pytest.approx((10 / 3 + 4) / 2 / best)
    assert entry["mean_ratio"]["low"] <= entry["mean_ratio"]["value"] <= entry["mean_ratio"]["high"]
    headline = document["results"][0]["tasks"][-1]["speedup"]["mean_ratio"]["value"]
    assert headline == pytest.approx((10 / 3 + 4) / 2 / 2)  # the table stands as it was
    rows = {text.split()[0]: text for text in done.stdout.splitlines() if text}
    assert rows["compiled"].split()[2:5] == ["compile", "4.9", "100.000"]
    assert "base *" in done.stdout and rows["hf"].split()[1] == "hf"
    assert 'm differs in runtime: "eager", baseline "compile"' in done.stdout
    assert "rungs may differ in runtime, by design" in done.stdout


def test_a_runtime_that_could_not_be_had_is_said(files, tmp_path):
    method, base, compiled, _ = files
    content = json.loads((tmp_path / "compiled.meta.json").read_text())
    content["shared"]["runtime"] = "cudagraph"
    (tmp_path / "compiled.meta.json").write_text(json.dumps(content | {"runtime_ran": "eager"}))
    args = ("--file-path", method, "--base-path", base, "--ladder", compiled)
    done = run_tool(SPEED, *args)
    assert "cudagraph (ran eager)" in done.stdout
    assert report_of(done)["ladder"]["rungs"][1]["runtime_ran"] == "eager"
    own = run_tool(SPEED, "--file-path", compiled, "--base-path", compiled)
    assert own.stdout.count("note: compiled: runtime cudagraph (ran eager)") == 2


def test_rungs_differ_in_the_runtime_alone(files, tmp_path):
    method, base, _, _ = files
    args = ("--file-path", method, "--base-path", base, "--ladder")
    other = rung(tmp_path, "half", quick_lines(), runtime="compile", dtype="float16")
    assert_refused(run_tool(SPEED, *args, other), "dtype", "float16")
    done = run_tool(SPEED, *args, other, "--allow", "dtype")
    assert done.returncode == 0 and report_of(done)["ladder"]["best"] == "half"
    slow = rung(tmp_path, "slow", quick_lines(1.0), runtime="compile", dtype="float16")
    assert_refused(run_tool(SPEED, *args, slow), "slow.jsonl", "dtype")  # the best rung or not
    drafting = rung(tmp_path, "drafting", method_lines(), runtime="eager")
    assert_refused(run_tool(SPEED, *args, drafting), "1.500 tokens a step: no baseline")
    short = rung(tmp_path, "short", quick_lines()[:1], runtime="eager")
    assert_refused(run_tool(SPEED, *args, short), "lacks 1 question")
    for flags in (("--format", "csv"), ("--mean-report",)):
        assert_refused(run_tool(SPEED, *args, base, *flags), flags[0], "--ladder")
    table = run_tool(SPEED, "--file-path", other, "--base-path", base)
    assert_refused(table, "not comparable", "runtime")  # only a ladder may mix them


def test_profile_by_hand(tmp_path):
    """Steps of 0.25, 0.25, 0.5, 0.25 s against 0.5 s; of each 1/10, 6/10, 1/10, 2/10."""
    method, base = write_pair(tmp_path)
    (found, identity) = (compared(method, base)[name] for name in ("profile", "time_identity"))
    assert found["shares"] == pytest.approx(
        {"draft": 0.1, "verify": 0.6, "commit": 0.1, "rest": 0.2}
    )
    assert found["rows"] == 6
    assert (found["verify_ms"], found["base_verify_ms"]) == pytest.approx((187.5, 300))
    assert found["price"] == pytest.approx(0.625) == found["break_even"]
    assert found["break_even"] == pytest.approx(1.25 / 4 / 0.5)
    assert (
        found["accepted"] == pytest.approx(6 / 4) and found["pays"] is None
    )  # at half the price of one row
    speedup = found["accepted"] / found["break_even"]
    assert speedup == pytest.approx(identity["speedup_total_ratio"])  # what break-even means
    slow = [line(1, "translation", [([2, 1, 1], [1.0] * 3)]), line(2, "qa", [([2], [1.0])])]
    content = meta("s") | {"run_s": {"decode": 3.0, "harness": 1.0}}
    slow = write(tmp_path / "s.jsonl", [record | {"model_id": "s"} for record in slow], content)
    done = run_tool(SPEED, "--file-path", method, slow, "--base-path", base, "--profile")
    rows = [text.split() for text in done.stdout.splitlines() if text.startswith(("m ", "s "))]
    shares = ["10.0", "%", "60.0", "%", "10.0", "%", "20.0", "%"]
    assert ["m", *shares, "6.0", "187.500", "0.62", "0.62", "1.50", "-", "-"] in rows
    assert ["s", *shares, "6.0", "600.000", "2.00", "2.00", "1.50", "no", "25.0", "%"] in rows
    assert "break-even" not in run_tool(SPEED, "--file-path", slow, "--base-path", base).stdout


def test_profile_without_phases(files):
    method, _, _, generate = files
    found = compared(method, generate)["profile"]
    assert found["price"] is None and found["base_verify_ms"] is None
    assert found["shares"]["verify"] == pytest.approx(0.6)
    assert found["break_even"] == pytest.approx(0.625)
    other = compared(generate, generate)["profile"]
    assert other["shares"] is None and other["pays"] is False and other["break_even"] == 1


def test_recompiled_turns_mark_the_row(tmp_path):
    base = write(tmp_path / "base.jsonl", base_lines(), meta("base", "vanilla"))
    lines = method_lines()
    for record, counts in zip(lines, ([0], [3])):
        record["choices"][0]["recompiled"] = counts
    method = write(tmp_path / "m.jsonl", lines, meta("m"))
    done = run_tool(SPEED, "--file-path", method, base, "--base-path", base, "--profile")
    assert done.returncode == 0, done.stderr
    assert report_of(done)["results"][0]["method"]["recompiled_turns"] == 1
    assert report_of(done)["results"][1]["method"]["recompiled_turns"] is None
    assert done.stdout.count("m (recompiled in 1 turn)") == 3  # note, summary, profile
    row = run_tool(SPEED, "--file-path", method, "--base-path", base, "--format", "markdown").stdout
    assert "| m (recompiled in 1 turn) |" in row
    for record in lines:
        record["choices"][0]["recompiled"] = [0]
    write(tmp_path / "m.jsonl", lines)
    done = run_tool(SPEED, "--file-path", method, "--base-path", base)
    assert report_of(done)["results"][0]["method"]["recompiled_turns"] == 0
    assert "recompiled in" not in done.stdout.splitlines()[-1]
    lines[0]["choices"][0]["recompiled"] = ["no"]
    write(tmp_path / "m.jsonl", lines)
    with pytest.raises(AnswerError, match="recompiled"):
        read_answers(method)
    lines[0]["choices"][0] |= {"recompiled": [0], "drafted": [[-1, 2, 2]]}
    write(tmp_path / "m.jsonl", lines)
    with pytest.raises(AnswerError, match="drafted"):
        read_answers(method)
