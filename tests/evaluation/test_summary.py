"""The compact table of a run: values, widths, marks and messages, from made reports."""

import json
from pathlib import Path

import pytest
from answer_samples import (
    assert_refused,
    base_lines,
    meta,
    report_of,
    run_tool,
    write,
    write_pair,
)

from evaluation.summary.layout import WIDTH, drift_text, shared_lines, speedup_text, table_lines
from evaluation.summary.messages import messages_of
from evaluation.summary.rows import Asked, Names, Row, equal_words, shortened, table_rows

TOOL = "evaluation/summarise.py"
BASELINES = ("vanilla", "vanilla-hf", "vanilla-compile")
SIDE = {"target": "mini", "scale_to": None, "bench_name": "mini_bench", "dtype": "float32"}
SIDE |= {"temperature": 0.0, "top_p": 1.0, "device": "EPYC", "num_threads": 2, "batch_size": 1}
SIDE |= {"runtime": "eager", "runtime_ran": "eager", "recompiled_turns": 0, "lossy": False}
STILL = {"state": "measured", "parts": [{"moved": 1.012}, {"moved": 0.99}], "marked": False}


def side(name, **fields):
    return {**SIDE, "label": f"mini-{name}-float32", "file": f"answers/{name}.jsonl", **fields}


def ratio(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def result(name, speedup=(1.2, 1.08, 1.34), price=1.5, base=None, drift=STILL, **fields):
    """One method of a report of speed.py."""
    failed = fields.pop("failed", [])
    return {
        "method": side(name, **fields),
        "baseline": base or side("vanilla"),
        "questions": 24,
        "left_out": {"failed_in_method": failed, "failed_in_baseline": []},
        "tasks": [
            {"mean_accepted": None},
            {
                "mean_accepted": {"over_steps": 2.346},
                "base_tokens_per_s": 198.25,
                "speedup": {"mean_ratio": ratio(*speedup)},
            },
        ],
        "time_identity": {"base_tokens_per_step": 1.0},
        "roofline": {"share": 0.2345, "label": None},
        "profile": {"price": price, "base_verify_ms": 3.0},
        "drift": drift,
    }


def speed(*results, ladder=None):
    return {"tool": "speed", "results": list(results), **({"ladder": ladder} if ladder else {})}


def equal(name, differing=(), kind="tokens", **more):
    """One file of a report of equal.py."""
    differences = [{"question_id": i, "kind": kind} for i in differing]
    return {"file": f"answers/{name}.jsonl", "questions": 24, "differences": differences, **more}


def summary(tmp_path, *documents, rows=None, **more):
    """The finished tool on these reports; rows: lines of --rows."""
    paths, flags = [], []
    for number, document in enumerate(documents):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps(document))
    if rows is not None:
        (tmp_path / "rows.tsv").write_text("".join("\t".join(map(str, r)) + "\n" for r in rows))
        flags += ["--rows", tmp_path / "rows.tsv"]
    return run_tool(TOOL, *paths, *flags, *[f"--{name}={value}" for name, value in more.items()])


def test_the_table_of_two_methods(tmp_path):
    verdicts = {"tool": "equal", "results": [equal("pld"), equal("sps", [3, 7])]}
    cheap = result("sps", (0.5, 0.46, 0.61), price=0.18, failed=[9])
    done = summary(tmp_path, speed(result("pld"), cheap), verdicts, details="details: here")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "mini | mini_bench | 24 questions | float32 | temperature 0 | EPYC | threads 2 | eager |"
        " batch 1 | vanilla 198.2 tokens/s\n"
        "method   accepted  speedup [95 %]     price  of bound  verdict                   drift\n"
        "vanilla      1.00  1.00                1.00    23.4 %  baseline                  -\n"
        "pld          2.35  1.20 [1.08, 1.34]   1.50    23.4 %  equal                     +1.2 %\n"
        "sps          2.35  0.50 [0.46, 0.61]  0.18!    23.4 %  2 of 24 differ, 1 failed  +1.2 %\n"
        "differ: equal.py --model-path TARGET (JUDGE=1 ./eval.sh) tells rounding from a bug\n"
        "! price below 1: many rows cost less than one, so the machine was another\n"
        "\ndetails: here\n"
    )


def test_marks_of_rows():
    """Lossy, compilations, a runtime that could not be had, a machine that moved, launch-bound."""
    moved = {"state": "measured", "parts": [{"moved": 1.01}, {"moved": 0.86}], "marked": True}
    results = [
        result("medusa", lossy=True),
        result("pld", recompiled_turns=2, drift=moved),
        result("sps", runtime="compile", runtime_ran="eager"),
    ]
    results[0]["roofline"] = {"share": 0.047, "label": "launch-bound"}
    rows = table_rows(speed(*results), {}, Names())
    assert [row.lossy for row in rows] == [False, True, False, False]
    lines = table_lines(rows)
    assert "mini-pld-float32: compiling stands inside the times of 2 turns" in lines
    assert "mini-sps-float32: runtime compile could not be had, it ran eager" in lines
    assert lines[2].startswith("mini-m~float32 (lossy)  ") and "4.7 %*" in lines[2]
    assert "moved -14 %!" in lines[3]
    assert any(line.startswith("* launch-bound") for line in lines)
    assert any(line.startswith("! moved: the machine changed by more than 10 %") for line in lines)


@pytest.mark.parametrize(
    "drift, text",
    [
        ({"state": "none", "parts": [], "marked": False}, "-"),
        ({"state": "unknown", "parts": [], "marked": False}, "unknown"),
        ({"state": "unknown", "parts": [{"moved": 1.03}], "marked": False}, "unknown"),
        ({"state": "measured", "parts": [{"moved": 0.97}], "marked": False}, "-3.0 %"),
        ({"state": "unknown", "parts": [{"moved": 1.4}], "marked": True}, "moved +40 %!"),
        (None, "-"),
    ],
)
def test_drift_in_a_cell(drift, text):
    assert drift_text(drift) == text


def test_the_ladder_has_its_rows_and_a_column():
    rungs = [
        {**side(name), "is_tables_baseline": name == "vanilla", "speedup": ratio(value, 0.9, 1.4)}
        for name, value in zip(BASELINES, (1.0, 0.8, 1.25))
    ]
    for rung in rungs:
        rung |= {"roofline": {"share": 0.5, "label": None}, "drift": STILL}
    best = [{"mean_ratio": ratio(0.96, 0.9, 1.0)}]
    report = speed(result("pld"), ladder={"rungs": rungs, "speedups": best})
    asked = [Asked(n, 0, Path(f"answers/{n}.jsonl"), Path("no")) for n in ("vanilla", "pld")]
    asked += [Asked(n, 0, Path(f"answers/{n}.jsonl"), Path("no")) for n in BASELINES[1:]]
    lines = table_lines(table_rows(report, {}, Names(asked)))
    assert [line.split()[0] for line in lines[1:5]] == [*BASELINES, "pld"]
    assert lines[0].split()[:5] == ["method", "accepted", "speedup", "[95", "%]"]
    assert lines[4].split()[:6] == ["pld", "2.35", "1.20", "[1.08,", "1.34]", "0.96"]
    assert "1.25 [0.90, 1.40]" in lines[3] and "baseline" in lines[3] and "50.0 %" in lines[3]
    assert lines[5] == "vs best: against vanilla-compile, the fastest baseline"


def test_every_table_fits(tmp_path):
    """The longest names, verdicts and marks, with a ladder."""
    moved = {"state": "measured", "parts": [{"moved": 3.86}], "marked": True}
    longest = Row(
        "specexec-specinfer-with-a-very-long-name",
        123.456,
        ratio(12.34, 10.11, 14.56),
        12.34,
        0.1234,
        True,
        "CANNOT JUDGE, 12 failed",
        moved,
        12.34,
        lossy=True,
    )
    base = Row("vanilla", 1.0, ratio(1.0), 1.0, 0.5, verdict="baseline", baseline=True)
    lines = table_lines([base, longest])
    assert max(map(len, lines)) <= WIDTH
    assert lines[2].startswith("specex~ng-name (lossy)  ")
    usual = [Row("specexec-specinfer", 9.3, ratio(0.66, 0.61, 0.71), 3.2, 0.05, True, "TIES ONLY")]
    assert max(map(len, table_lines([base, *usual])[:3])) <= 90
    device = "AMD EPYC 9654 96-Core Processor with a long name and a longer one behind it, rev. 2"
    wide = result("pld", base=side("vanilla", device=device), device=device, target="t" * 40)
    assert all(len(line) <= WIDTH for line in shared_lines([wide], Names()))


def test_what_differs_is_not_said_to_be_shared():
    (line, *_) = shared_lines([result("pld", dtype="float16", top_p=0.9)], Names())
    assert "float" not in line and "top-p" not in line and "temperature 0" in line


def test_verdicts_in_a_cell():
    assert equal_words(equal("m", [1, 1, 2])) == "2 of 24 differ"  # two turns of question 1
    assert equal_words(equal("m", [1], kind="error")) == "equal"  # counted as failed
    assert equal_words(equal("m", [1], judgement={"verdict": "TIES ONLY"})) == "TIES ONLY"


def test_sampled_answers_have_the_audits_verdict(tmp_path):
    """Their ids differ rightly."""
    reports = [
        {
            "tool": "audit_sampling",
            "results": [{"file": "answers/pld.jsonl", "verdict": "REJECTED"}],
        },
        {"tool": "equal", "results": [equal("pld", [1, 2, 3])]},
        speed(result("pld")),
    ]
    done = summary(tmp_path, *reports)
    assert "REJECTED" in done.stdout and "differ" not in done.stdout  # their ids do, rightly


def test_a_target_of_its_own_has_a_table_of_its_own(tmp_path):
    other = side("vanilla-space", target="space", label="mini-vanilla-space-float32")
    reports = [speed(result("pld")), speed(result("space", base=other, target="space"))]
    rows = [("hydra", 2, "answers/hydra.jsonl", tmp_path / "hydra.log")]
    done = summary(tmp_path, *reports, rows=rows)
    first, second = done.stdout.split("\n\n")[-2:]
    assert "hydra" in first and "not run" in first and "hydra" not in second
    assert second.startswith("space | mini_bench") and "vanilla-space" in second


def test_paired_rows_have_a_baseline_each(tmp_path):
    """PAIRED=1: none of them is a row."""
    results = [result(name, base=side(f"{name}-paired-baseline")) for name in ("pld", "sps")]
    done = summary(tmp_path, speed(*results))
    assert "paired-baseline" not in done.stdout and "tokens/s" not in done.stdout
    assert done.stdout.count("1.20 [1.08, 1.34]") == 2


def test_messages_are_grouped(tmp_path):
    logs = {
        "pld": "warning: A\n1 of 24 questions, 01:00 left, accepted 1.20, 3.0 tokens/s\n",
        "sps": "warning: A\nquestion 7: out of memory\n" + "".join(f"note {i}\n" for i in range(9)),
        "hydra": "",
    }
    rows = []
    for name, text in logs.items():
        (tmp_path / f"{name}.log").write_text(text)
        rows.append((name, 70 if name == "hydra" else 0, f"{name}.jsonl", tmp_path / f"{name}.log"))
    rows.append(("rest", 2, "rest.jsonl", tmp_path / "none.log"))
    lines = summary(tmp_path, speed(result("pld")), rows=rows).stdout.split("\n\n")[0].splitlines()
    assert lines == [
        "messages:",
        "  pld, sps: warning: A",
        "  sps: question 7: out of memory",
        "  sps: note 0",
        "  sps: note 1",
        "  sps: note 2",
        f"  sps: 6 more in {tmp_path / 'sps.log'}",
        "  hydra: not run: it crashed (exit status 70)",
        "  rest: not run: left out",
    ]


def test_messages_of_a_log():
    log = (
        "\r 10%|#  | 1/10 [00:01]\r\n"
        "/a/b/c.py:12: UserWarning: slow\n  warnings.warn('slow')\n"
        "warning: x\nwarning: x\n"
        'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\n'
        "ValueError: bad\n"
        "24 of 24 questions, in 01:00, accepted 1.20, 3.0 tokens/s\n"
    )
    assert messages_of(log) == ["UserWarning: slow", "warning: x", "ValueError: bad"]


def test_labels_are_shortened():
    names = ("vanilla", "vanilla-hf", "pld")
    labels = {name: f"mini-quick-{name}-float32-temperature-0" for name in names}
    assert shortened(set(labels.values())) == {label: name for name, label in labels.items()}
    assert shortened({"base", "m (lossy)"}) == {"base": "base", "m (lossy)": "m"}
    assert shortened({"a-b", "a-b-c"}) == {"a-b": "a-b", "a-b-c": "a-b-c"}
    assert shortened({"a-b"}) == {"a-b": "a-b"}


def test_a_speedup_without_an_interval():
    assert speedup_text(ratio(1.5)) == "1.50" and speedup_text(ratio(None)) == "-"


def test_real_reports_of_the_tools(tmp_path):
    """What speed.py and equal.py write is what is read here."""
    method, base = write_pair(tmp_path / "a")
    lines = [{**line, "model_id": "c"} for line in base_lines()]
    other = write(tmp_path / "a" / "c.jsonl", lines, meta("c", "vanilla", runtime="compile"))
    args = ("--file-path", method, "--base-path", base, "--ladder", other)
    ran = run_tool("evaluation/speed.py", *args), run_tool("evaluation/equal.py", base, method)
    assert [one.stderr for one in ran] == ["", ""]
    done = summary(tmp_path, *map(report_of, ran))
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert rows["base"][:3] == ["base", "1.00", "1.00"]
    assert rows["c"][:3] == ["c", "1.00", "1.00"] and "baseline" in rows["c"]
    assert rows["m"][:5] == ["m", "1.50", "1.83", "[0.77,", "4.07]"] and "equal" in rows["m"]


def test_refusals(tmp_path):
    assert_refused(run_tool(TOOL, "--details", "x"), "name reports")
    (tmp_path / "x.json").write_text('{"tool": "merge", "results": []}')
    assert_refused(run_tool(TOOL, tmp_path / "x.json"), "x.json: no report of speed.py")
    assert_refused(run_tool(TOOL, tmp_path / "none.json"), "none.json: no report")
    assert_refused(run_tool(TOOL, "--rows", tmp_path / "none"), "--rows", "No such file")
    (tmp_path / "rows").write_text("pld 0 file log\n")
    assert_refused(run_tool(TOOL, "--rows", tmp_path / "rows"), "rows:1: not a name")
    verdicts = {"tool": "equal", "results": [equal("pld")]}
    done = summary(tmp_path, verdicts)
    assert done.returncode == 2 and "no table: no report of speed.py" in done.stdout
