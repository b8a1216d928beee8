"""evaluation/state.py: what it runs, what it prints, what it refuses."""

import copy
import json
import sys
from pathlib import Path

import pytest
from answer_samples import base_lines, method_lines, report_file, report_of, run_tool, write

from evaluation import state
from evaluation.answers.meta import AnswerError
from evaluation.answers.reader import read_answers

TOOL = "evaluation/state.py"
ORDERS = [
    ("cold", "as given"),
    ("cold", "shuffled"),
    ("warm", "as given"),
    ("warm", "reversed"),
    ("warm", "shuffle 1"),
]


@pytest.mark.slow
def test_report(model_dir):
    """Cold rows agree, a warm one learns; ids never change."""
    flags = ["--question-ids", "41,42,53,54"]
    flags += ["--max-new-tokens", 12, "--dtype", "float32", "--device", "cpu", "--num-threads", 1]
    done = run_tool(TOOL, "recycling", "--orders", 0, "--model-path", model_dir, *flags)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    cells = [line.split() for line in lines[2:6]]
    assert [row[:2] for row in cells] == [["recycling", state] for state, _ in ORDERS[:4]]
    rows = [row[-3:] for row in cells]
    assert rows[0] == rows[1] != rows[2]
    assert lines[6] == (
        "recycling: cold runs agree in every question's ids and accept lengths;"
        " ids as cold: 4 of 4 runs"
    )
    (result,) = report_of(done)["results"]
    assert result["cold_agrees"] and result["same_ids"] == 4
    means = [row["mean_accepted"]["Overall"] for row in result["runs"]]
    assert means[2] > means[0] >= 1


def test_questions_of_any_form(tmp_path, monkeypatch):
    """Ids that are places in the file stay with their questions in every order."""
    path = tmp_path / "question.jsonl"
    texts = ["a\u2028b", "c", "d"]
    lines = [json.dumps({"question": text}, ensure_ascii=False) for text in texts]
    path.write_text("\n".join(lines), encoding="utf-8")
    read = [json.loads(line) for line in state.question_lines(path)]
    assert [(q["question_id"], q["turns"]) for q in read] == [(i, [t]) for i, t in enumerate(texts)]
    path.write_text("{}")
    with pytest.raises(AnswerError, match="question.jsonl:1: a question needs"):
        state.question_lines(path)


def test_questions_that_fail_are_left_out(model_dir, tmp_path, capfd):
    """In every run, with a line; the others are compared."""
    lines = [
        json.dumps({"question_id": i, "turns": [text]}) for i, text in (("b", "ab" * 600), (2, "a"))
    ]
    flags = ["--model-path", model_dir, "--dtype", "float32", "--device", "cpu", "--warmup", "0"]
    flags += ["--max-new-tokens", "6"]
    found = state.run("nasd", "cold", lines, tmp_path / "0", flags)
    assert [question.error is None for question in found.values()] == [False, True]
    err = capfd.readouterr().err
    assert "warning: nasd --state cold: question b: " in err
    runs = {("cold", "as given"): found, ("cold", "shuffled"): found}
    assert state.result_of(runs)["leaks"] == []


@pytest.mark.parametrize(
    "flags, words",
    [
        (["recycling", "--state", "warm"], "--state is set by this tool"),
        (["recycling", "--flags", "recycling=--num-runs=2"], "--num-runs=2 is set by this tool"),
        (["recycling", "--question-end", "5"], "--question-end selects questions by their place"),
        (["recycling", "--flags", "samd=--auxiliary recycling"], "it is not among recycling"),
        (["recycling", "--flags", "recycling"], "'recycling' is not METHOD="),
        (["--orders", "1", "recycling"], "recycling: name the methods before the flags"),
        (["recycling", "--bench-name", "none"], "question.jsonl: no such file"),
        (["pld", "--model-path", "missing"], "unrecognized arguments: --state"),
        (["recycling", "--model-path", "./missing"], "no such model directory"),
        (["nothing", "--model-path", "x"], "nothing: no method of model/"),
    ],
)
def test_bad_input(flags, words):
    done = run_tool(TOOL, *flags)
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


def stand_in(monkeypatch, runs):
    """Put {method: function(state, number of the run) -> questions} in the place of the scripts.

    Returns the list that takes what was asked: (method, state, flags).
    """
    asked = []

    def run(method, state, lines, path, flags):
        asked.append((method, state, flags))
        return runs[method](state, sum(name == method for name, _, _ in asked) - 1)

    monkeypatch.setattr(state, "run", run)
    return asked


def main_of(monkeypatch, capsys, *argv):
    """(exit status, lines of stdout, stderr, report) of the tool with one shuffled order."""
    path = report_file()
    monkeypatch.setattr(sys, "argv", ["state.py", *argv, "--orders", "1", "--json", path])
    status = state.main()
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err, json.loads(Path(path).read_text())


@pytest.fixture
def questions(tmp_path):
    return (
        read_answers(write(tmp_path / "base.jsonl", base_lines())).questions,
        read_answers(write(tmp_path / "m.jsonl", method_lines())).questions,
    )


def test_several_methods_in_one_table(monkeypatch, capsys, questions):
    slow, fast = questions
    learner = {"cold": slow, "warm": fast}
    asked = stand_in(monkeypatch, dict.fromkeys(("nasd", "samd"), lambda s, _: learner[s]))
    argv = ["nasd", "samd", "--flags", "samd=--auxiliary recycling", "--dtype", "float32"]
    status, lines, err, document = main_of(monkeypatch, capsys, *argv)
    assert status == 0 and err == ""
    shared = ["--dtype", "float32"]
    flags = {"nasd": shared, "samd": [*shared, "--auxiliary", "recycling"]}
    assert asked == [(m, state, flags[m]) for m in flags for state, _ in ORDERS]
    assert lines[1].split() == ["method", "state", "order", "Translation", "QA", "Overall"]
    expected = [
        [method, state, *order.split(), *means]
        for method in flags
        for state, order in ORDERS
        for means in [["1.000"] * 3 if state == "cold" else ["1.333", "2.000", "1.500"]]
    ]
    assert [line.split() for line in lines[2:12]] == expected
    verdict = "cold runs agree in every question's ids and accept lengths; ids as cold: 5 of 5 runs"
    assert lines[12:14] == [f"nasd: {verdict}", f"samd: {verdict}"]
    assert [result["method"] for result in document["results"]] == ["nasd", "samd"]
    assert document["not_run"] == {}


def test_a_leak_is_named(monkeypatch, capsys, questions):
    slow, fast = questions
    leaking = {1: slow[1], 2: fast[2]}  # question 2 has other accept lengths, the same ids
    other = copy.deepcopy(slow)
    other[1].choices[0].output_ids[0][-1] = 99
    runs = {
        "nasd": lambda state, number: leaking if number == 1 else slow,
        "samd": lambda state, number: other if number == 3 else slow,
    }
    stand_in(monkeypatch, runs)
    status, lines, _, document = main_of(monkeypatch, capsys, "nasd", "samd")
    assert status == 1
    assert lines[-2] == ("nasd: LEAK: cold runs DIFFER in 1 question: 2; ids as cold: 5 of 5 runs")
    assert lines[-1].endswith("ids as cold: 4 of 5 runs (not warm reversed)")
    results = document["results"]
    assert [result["leaks"] for result in results] == [[2], []]
    assert results[1]["runs"][3]["ids_differ_in"] == [1]


def test_a_method_that_does_not_run_costs_the_others_nothing(monkeypatch, capsys, questions):
    slow, _ = questions

    def refuse(state, number):
        raise AnswerError("samd --state warm: needs an --auxiliary")

    stand_in(monkeypatch, {"nasd": lambda *_: slow, "samd": refuse})
    status, _, err, document = main_of(monkeypatch, capsys, "samd", "nasd")
    assert status == 2 and err == "state.py: error: samd --state warm: needs an --auxiliary\n"
    assert [result["method"] for result in document["results"]] == ["nasd"]
    assert document["not_run"] == {"samd": "samd --state warm: needs an --auxiliary"}


def test_answers_without_steps_have_no_mean(monkeypatch, capsys, questions):
    slow, _ = copy.deepcopy(questions)
    for question in slow.values():
        question.choices[0].accept_lengths = []
    stand_in(monkeypatch, {"nasd": lambda *_: slow})
    status, lines, _, document = main_of(monkeypatch, capsys, "nasd")
    assert status == 0 and lines[2].split() == ["nasd", "cold", "as", "given", "-", "-", "-"]
    assert document["results"][0]["runs"][0]["mean_accepted"]["Overall"] is None


def test_stateful_methods_are_found(monkeypatch):
    found = state.stateful_methods()
    assert {"recycling", "nasd", "samd"} <= set(found) and "pld" not in found
    monkeypatch.setattr(state, "stateful_methods", lambda: found)
    for argv in ([], ["all"], ["--dtype", "float32"]):
        assert state.parse_args(argv)[0].methods == found
