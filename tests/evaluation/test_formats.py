"""speed.py --format, show.py and plot.py: rows, the answer viewer of a terminal, figures."""

import csv
import io
import json
import os
import pty
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from answer_samples import ROOT, assert_refused, report_of, run_tool, write, write_pair
from conftest import make_tokenizer
from page_files import lines, make_run, own_meta, record

from evaluation.pictures.pieces import Pieces
from evaluation.speedup.report import markdown_lines
from model.common.visible import visible

SPEED, SHOW, PLOT = "evaluation/speed.py", "evaluation/show.py", "evaluation/plot.py"
STAGES = {"draft_s": 0.2, "verify_s": 0.6, "commit_s": 0.1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


def test_rows_of_every_format_are_the_report(tmp_path):
    method, base = write_pair(tmp_path)
    args = SPEED, "--file-path", method, base, "--base-path", base
    results = report_of(run_tool(*args))["results"]
    rows = [json.loads(line) for line in run_tool(*args, "--format", "jsonl").stdout.splitlines()]
    wanted = [(result["method"]["label"], task) for result in results for task in result["tasks"]]
    assert [(row["method"], row["task"]) for row in rows] == [
        (label, task["task"]) for label, task in wanted
    ]
    for row, (_, task) in zip(rows, wanted):
        assert row["speedup"] == task["speedup"]["mean_ratio"]["value"]
        assert row["decode_speedup_low"] == task["decode_speedup"]["mean_ratio"]["low"]
        assert row["accepted_over_steps"] == task["mean_accepted"]["over_steps"]
        assert (row["price"] is not None) == (task["task"] == "overall")
    text = run_tool(*args, "--format", "csv").stdout
    parsed = list(csv.DictReader(io.StringIO(text)))
    assert [list(row) for row in parsed] == [list(row) for row in rows]
    for row, cells in zip(rows, parsed):
        assert {name: "" if value is None else str(value) for name, value in row.items()} == cells
    markdown = run_tool(*args, "--format", "markdown").stdout.splitlines()
    assert markdown == markdown_lines(results)
    assert run_tool(*args).stdout == run_tool(*args, "--format", "table").stdout


def test_an_unknown_format_is_refused(tmp_path):
    method, base = write_pair(tmp_path)
    done = run_tool(SPEED, "--file-path", method, "--base-path", base, "--format", "yaml")
    assert_refused(done, "--format", "yaml")


@pytest.fixture
def answers(tmp_path):
    """(file, another that parts from it at token 6, the tokenizer's folder); a byte is a token."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "target")
    paths = []
    for name, text in (("one", "H\u00e9\x1b[31m ok\nend"), ("two", "H\u00e9\x1b[32m ok\nend")):
        ids = tokenizer.encode(text)
        lengths = [4, 1, 2, len(ids) - 8]
        line = record(7, name, ids, lengths, 0.02, Steady(), stages=STAGES, drafted=6, text=text)
        paths.append(write(tmp_path / f"{name}.jsonl", [line], own_meta(name, "pld")))
    return *paths, tmp_path / "target"


class Steady:
    """A random number that is none."""

    def uniform(self, low, high):
        return (low + high) / 2


def test_an_answer_is_shown_step_by_step_without_control_characters(answers):
    one, two, target = answers
    asked = SHOW, one, "--question-id", 7, "--tokenizer-path", target
    done = run_tool(*asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "one: question 7 (rag)",
        "turn 0: 15 tokens, 4 steps, 3.50 a step, 10 of 24 drafted accepted, ended by stop",
        "H|4\u00e9\\x1b[|13|21m|7 ok",
        "end",
        "",
    ]
    assert "\x1b" not in done.stdout
    coloured = run_tool(*asked, "--colour", "always").stdout
    assert "\x1b[97;48;5;31m\u00e9\\x1b[\x1b[0m" in coloured and "\x1b[31m" not in coloured
    steps = run_tool(*asked, "--steps").stdout.splitlines()
    assert steps[2].split() == ["prefill:", "1", "token", "H"]
    assert steps[3].split() == ["1:", "4", "tokens,", "3", "of", "6", "drafted", "\u00e9\\x1b["]
    ids = run_tool(SHOW, one, "--question-id", 7).stdout
    assert "H\u00e9\\x1b[31m ok" in ids and "|4 " in ids


def test_two_answers_part_at_the_same_mark(answers):
    one, two, target = answers
    done = run_tool(SHOW, one, "--question-id", 7, "--tokenizer-path", target, "--against", two)
    assert done.returncode == 1
    assert "|2>>1<<m" in done.stdout and "|2>>2<<m" in done.stdout
    assert done.stdout.endswith("turn 0: they differ at 6\nthe two differ\n")
    same = run_tool(SHOW, one, "--question-id", 7, "--against", one)
    assert same.returncode == 0 and same.stdout.endswith("the two are equal\n")


def test_colours_are_for_terminals(answers):
    command = [sys.executable, str(ROOT / SHOW), str(answers[0]), "--question-id", "7"]
    for no_color, wanted in (("", True), ("1", False)):
        main, terminal = pty.openpty()
        environment = {**os.environ, "NO_COLOR": no_color}
        subprocess.run(command, stdout=terminal, env=environment, check=True, timeout=120)
        os.close(terminal)
        shown = os.read(main, 100_000).decode()
        os.close(main)
        assert ("\x1b[" in shown) == wanted


def test_show_refuses_in_one_line(answers):
    one = answers[0]
    assert_refused(run_tool(SHOW, one, "--question-id", "8"), "no question 8", one)
    assert_refused(run_tool(SHOW, "none.jsonl", "--question-id", "8"), "none.jsonl")
    bad = run_tool(SHOW, one, "--question-id", "7", "--tokenizer-path", one.parent / "none")
    assert_refused(bad, "--tokenizer-path")
    (one.parent / "empty").mkdir()
    bad = run_tool(SHOW, one, "--question-id", "7", "--tokenizer-path", one.parent / "empty")
    assert_refused(bad, "no tokenizer loads: ")
    assert not bad.stderr.rstrip().endswith(":")


def test_pieces_make_the_text():
    tokenizer = make_tokenizer(words=["hello", "\u0120world"])
    pieces = Pieces(tokenizer)
    for text in ("hello world", "na\u00efve \U0001f600 \u6f22\u5b57!", "\u00e9" * 20, ""):
        ids = tokenizer.encode(text)
        found = pieces.of(ids)
        assert len(found) == len(ids) and "".join(found) == text
    ids = tokenizer.encode("\u00e9")[:1]  # half a character
    assert pieces.of([*ids, tokenizer.eos_token_id]) == ["", "\ufffd</s>"]


def test_visible_text_has_no_control_characters():
    assert visible("a\tb\nc") == "a\tb\nc"
    assert visible("\x00\x1b\x7f\x9b\u202e\u200b\ue000\ud800") == (
        "\\x00\\x1b\\x7f\\x9b\\u202e\\u200b\\ue000\\ud800"
    )
    assert visible("\u6f22\u5b57 \u00e9 \U0001f600") == "\u6f22\u5b57 \u00e9 \U0001f600"


COLD = ("vanilla", "vanilla-compile", "fast", "near", "slow", "typical")
DRAWN = ("speedup", "price", "bound", "phases", "position", "output", "drift")


def test_figures_are_written_with_text_as_text_and_the_same_again(run, tmp_path):
    pytest.importorskip("matplotlib")
    files = [run[name] for name in COLD]
    args = "--base-path", run["vanilla"], "--resamples", 200
    done = run_tool(PLOT, *files, *args, "--output", tmp_path / "first")
    assert done.returncode == 0, done.stderr
    names = {f"{name}.{ending}" for name in DRAWN for ending in ("png", "svg")}
    assert {path.name for path in (tmp_path / "first").iterdir()} == names
    assert "no energy: the files hold nothing for it" in done.stdout
    root = ElementTree.parse(tmp_path / "first" / "speedup.svg").getroot()
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"fast", "near", "typical (lossy)"} <= set(texts)
    assert root.get("width").startswith("237.6")  # 3.3 inches in points
    again = "--figures", "speedup", "price", "--output", tmp_path / "again"
    assert run_tool(PLOT, *files, *args, *again).returncode == 0
    for name in ("speedup.svg", "speedup.png", "price.svg"):
        both = [(tmp_path / folder / name).read_bytes() for folder in ("first", "again")]
        assert both[0] == both[1]


def test_names_are_drawn_as_text_without_control_characters(run, tmp_path):
    pytest.importorskip("matplotlib")
    name = "\x1b[31mred\n $x^"
    odd = write(tmp_path / "odd.jsonl", lines(name, 3, 0.02, 1), own_meta(name, "pld"))
    args = "--base-path", run["vanilla"], "--resamples", 10, "--formats", "svg", "png"
    done = run_tool(PLOT, odd, run["vanilla"], *args, "--output", tmp_path / "out")
    assert done.returncode == 0 and done.stderr == ""
    root = ElementTree.parse(tmp_path / "out" / "speedup.svg").getroot()
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "\\x1b[31mred\\n $x^" in texts


def test_plot_refuses_in_one_line(run, tmp_path):
    pytest.importorskip("matplotlib")
    out = "--output", tmp_path / "out", "--resamples", 10
    assert_refused(run_tool(PLOT, *run.values(), *out), "several settings (temperature)")
    assert_refused(run_tool(PLOT, run["fast"], *out), "no baseline")
    both = run["fast"], run["vanilla"]
    assert_refused(run_tool(PLOT, *both, "--category", "math", *out), "qa, rag, overall")
    assert_refused(run_tool(PLOT, *both, "--width", 0, *out), "--width")
    assert_refused(run_tool(PLOT, *both, "--output", run["fast"]), "--output")
