"""Joules a token in speed.py and summarise.py, of files that have them."""

import json

import numpy as np
import pytest
from answer_samples import (
    assert_refused,
    base_lines,
    compared,
    meta,
    method_lines,
    report_of,
    run_tool,
    task,
    write,
    write_pair,
)
from drift_files import Files, steady

from evaluation.speedup.intervals import few_questions
from evaluation.speedup.metrics import energy_ratios, joules_per_token, question_columns
from evaluation.summary.layout import table_lines
from evaluation.summary.rows import Row

METHOD_J, BASE_J = ([20.0], [12.0]), ([50.0], [15.0])  # of 5 and 3 tokens a side


def with_energy(lines, joules):
    """Lines whose only choice has these joules a turn; None: not metered."""
    for record, turns in zip(lines, joules):
        if turns is not None:
            record["choices"][0]["energy_j"] = turns
    return lines


def metered(content, meter="nvml counter", device="NVIDIA H200", idle_w=61.0):
    """A meta with an entry of `energy`."""
    return content | {
        "energy": [{"idle_w": idle_w, "devices": [{"meter": meter, "device": device}]}]
    }


def write_both(folder, method_j=METHOD_J, base_j=BASE_J, **of_method):
    """(method's file, baseline's file) with energies and meters."""
    base = write(
        folder / "base.jsonl", with_energy(base_lines(), base_j), metered(meta("base", "vanilla"))
    )
    own = metered(meta("m"), **of_method)
    return write(folder / "m.jsonl", with_energy(method_lines(), method_j), own), base


def test_joules_a_token_are_of_totals_and_their_ratio_is_bootstrapped(tmp_path):
    result = compared(*write_both(tmp_path))
    energy = task(result, "overall")["energy"]
    assert energy["joules_per_token"] == 32 / 8 and energy["base_joules_per_token"] == 65 / 8
    ratio = energy["ratio"]["total_ratio"]
    assert ratio["value"] == pytest.approx(32 / 65)
    stretch = few_questions(2)
    for end, drawn in (("low", 0.4), ("high", 0.8)):
        wanted = ratio["value"] * (drawn / ratio["value"]) ** stretch
        assert ratio[end] == pytest.approx(wanted)
    translation = task(result, "translation")["energy"]
    assert translation["joules_per_token"] == 4 and translation["base_joules_per_token"] == 10
    alone = translation["ratio"]["total_ratio"]
    assert alone["value"] == 0.4 and alone["low"] is None


def test_a_resample_is_what_its_questions_alone_would_give():
    sides = [
        question_columns_of(with_energy(lines, joules))
        for lines, joules in ((method_lines(), METHOD_J), (base_lines(), BASE_J))
    ]
    weights = np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])
    drawn = energy_ratios(*sides, mean=lambda values: weights @ values)["total_ratio"]
    assert drawn == pytest.approx([32 / 65, 20 / 50, 12 / 15])
    assert joules_per_token(sides[0]) == 4


def question_columns_of(lines):
    from evaluation.answers.reader import parse_question

    return question_columns([parse_question(record, "here", set()) for record in lines])


@pytest.mark.parametrize("method_j, base_j", [((None, [12.0]), BASE_J), (METHOD_J, (None, None))])
def test_where_a_question_has_no_energy_its_side_has_none(tmp_path, method_j, base_j):
    result = compared(*write_both(tmp_path, method_j, base_j))
    energy = task(result, "overall")["energy"]
    assert energy["ratio"] is None
    assert (energy["joules_per_token"] is None) == (method_j[0] is None)
    assert (energy["base_joules_per_token"] is None) == (base_j[0] is None)


def test_the_column_is_there_where_the_files_have_it(tmp_path):
    method, base = write_both(tmp_path)
    both = ["--file-path", method, "--base-path", base]
    done = run_tool("evaluation/speed.py", *both)
    assert done.returncode == 0
    (header,) = [text for text in done.stdout.splitlines() if text.startswith("task ")]
    assert header.split()[-5:] == ["joules/token", "baseline", "energy", "(total", "ratio)"]
    (row,) = [text for text in done.stdout.splitlines() if text.startswith("Overall")]
    assert row.split()[-5:] == ["4.0000", "8.1250", "0.492", "[0.073,", "42.206]"]
    assert "m: NVIDIA H200 (nvml counter), idle 61.0 W (not subtracted)" in done.stdout
    (result,) = report_of(done)["results"]
    assert result["method"]["energy"] == {
        "meters": ["NVIDIA H200 (nvml counter)"],
        "idle_w": 61.0,
    }
    several = run_tool("evaluation/speed.py", "--file-path", method, base, "--base-path", base)
    (header,) = [t for t in several.stdout.splitlines() if t.startswith("speedup (mean ratio)  ")]
    assert header.split()[-4:] == ["joules/token", "energy", "(total", "ratio)"]


def test_without_energy_everything_is_as_before(tmp_path):
    method, base = write_pair(tmp_path)
    done = run_tool("evaluation/speed.py", "--file-path", method, base, "--base-path", base)
    assert done.returncode == 0 and "joules" not in done.stdout and "energy" not in done.stdout
    result = report_of(done)["results"][0]
    assert {row["energy"] for row in result["tasks"]} == {None}
    assert result["method"]["energy"] is None


def test_energy_of_other_meters_has_no_ratio(tmp_path):
    """A package with its memory is not held to a package alone."""
    result = compared(*write_both(tmp_path, meter="rapl", device="package-0"))
    energy = task(result, "overall")["energy"]
    assert energy["ratio"] is None and energy["joules_per_token"] == 4
    assert any("other meters" in note for note in result["notes"])


def test_the_interval_is_widened_by_the_drift(tmp_path):
    files = Files(tmp_path, steady(1.05))
    for path in (files.method, files.base):
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        for number, record in enumerate(lines):
            record["choices"][0]["energy_j"] = [10.0 + number % 5]
        path.write_text("".join(json.dumps(record) + "\n" for record in lines))
    result = files.result()
    assert result["drift"]["state"] == "measured"
    entry = task(result, "overall")["energy"]["ratio"]["total_ratio"]
    assert entry["low"] < entry["bootstrap_low"] <= entry["value"]
    assert entry["high"] > entry["bootstrap_high"] >= entry["value"]


@pytest.mark.parametrize("joules", [[-1.0], ["1"], [1.0, 2.0], 3.0, [True], [1e999]])
def test_bad_energies_are_refused_or_failed(tmp_path, joules):
    method, base = write_both(tmp_path, ([20.0], joules))
    done = run_tool("evaluation/speed.py", "--file-path", method, "--base-path", base)
    if joules == [1e999]:  # no number of JSON: a question that failed
        assert "question" in done.stdout + done.stderr and done.returncode in (0, 2)
    else:
        assert_refused(done, "m.jsonl: line 2", "energy_j")


def test_runs_are_averaged(tmp_path):
    for number, factor in ((1, 1.0), (2, 3.0)):
        folder = tmp_path / f"run_{number}"
        write_both(folder, tuple([joules * factor for joules in turns] for turns in METHOD_J))
    one = tmp_path / "run_1"
    flags = ["--file-path", one / "m.jsonl", "--base-path", one / "base.jsonl", "--mean-report"]
    done = run_tool("evaluation/speed.py", *flags)
    assert done.returncode == 0, done.stderr
    (averaged,) = report_of(done)["mean_report"]
    overall = averaged["tasks"][-1]
    assert overall["joules_per_token"] == {"mean": 8.0, "std": pytest.approx(32**0.5)}
    assert "8.000 +- 5.657" in done.stdout


def test_the_compact_table_has_a_column(tmp_path):
    rows = [
        Row("vanilla", 1.0, {"value": 1.0, "low": None, "high": None}, joules=8.125, baseline=True),
        Row("pld", 2.0, {"value": 1.8, "low": 1.7, "high": 1.9}, joules=0.01234),
        Row("sps"),
    ]
    header, *lines = table_lines(rows)
    assert header.split()[-3:] == ["J/token", "verdict", "drift"]
    assert "8.12" in lines[0] and "0.0123" in lines[1] and " - " in lines[2]
    assert "J/token" not in table_lines([Row("pld", 2.0)])[0]
    method, base = write_both(tmp_path)
    report = tmp_path / "speed.json"
    flags = ["--file-path", method, "--base-path", base, "--json", report]
    assert run_tool("evaluation/speed.py", *flags).returncode == 0
    done = run_tool("evaluation/summarise.py", report)
    table = [text.split() for text in done.stdout.splitlines()]
    assert ["base", "1.00", "1.00", "1.00", "-", "8.12", "baseline", "-"] in table
    assert any(cells[:1] == ["m"] and "4" in cells for cells in table)
