"""What is left out of a run's files or written into their texts, and questions that were picked."""

import json
import re

import pytest
from board_runs import Board, answer, baseline_of, slower, with_meta
from harness_runs import read, read_meta

from evaluation.answers.reader import read_answers
from evaluation.board import page, questions, times
from evaluation.speedup.drift import pairs_path
from model.common.records.meta import question_totals


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: answer file} of a run, its pairs and a baseline."""
    path = answer("pld", tmp_path_factory.mktemp("runs") / "pld.jsonl")
    return {"pld": path, "pairs": pairs_path(path), "vanilla": baseline_of(path)}


@pytest.fixture(scope="module")
def honest(tmp_path_factory, runs):
    """A Board with one row."""
    board = Board(tmp_path_factory.mktemp("honest"))
    assert board.run("add", runs["pld"], runs["vanilla"]) == 0
    return board


@pytest.fixture
def board(honest, tmp_path):
    """A copy of it, to be forged."""
    return honest.copied(tmp_path)


PHASES = ("draft_s", "verify_s", "commit_s")
LOST = {  # fields: how they are named
    ("begin_s",): "begin_s of question 1 (and of 15 more)",
    ("slot",): "slot of question 1",
    ("prefill_s",): "prefill_s of question 1",
    ("step_end_s",): "step_end_s of question 1",
    PHASES: "draft_s, verify_s and commit_s of question 1",
}


@pytest.mark.parametrize("fields", LOST)
def test_a_time_that_is_left_out_is_named(fields, board, capsys):
    """With all others scaled, of which none is then too late."""

    def faster(records, meta):
        slower(records, 0.8)
        for choice in (choice for record in records for choice in record["choices"]):
            for name in fields:
                del choice[name]

    board.forge("pld", "method", faster, careful=True)
    (line,) = board.failures(capsys)
    assert f"times are missing: {LOST[fields]}" in line


@pytest.mark.parametrize("name", ["decode", "harness"])
def test_a_run_says_how_long_it_took(name, board, capsys):
    board.forge("pld", "method", lambda records, meta: meta["run_s"].pop(name), careful=True)
    (line,) = board.failures(capsys)
    assert "times are missing: run_s of its meta" in line


def test_times_of_pairs_are_held_to_the_run_too(board, capsys):
    def timeless(records, meta):
        for choice in (choice for record in records for choice in record["choices"]):
            del choice["begin_s"]

    board.forge("pld", "pairs", timeless, careful=True)
    (line,) = board.failures(capsys)
    assert "pairs: times are missing: begin_s of question 1" in line


def test_a_servers_answers_have_the_ends_of_chunks(runs):
    answers = read_answers(runs["pld"])
    assert list(times.missing(answers)) == []
    answers.meta["method"] = "engine"
    (line,) = times.missing(answers)
    assert line == "times are missing: chunk_end_s of question 1 (and of 15 more)"


GAP_S = 0.1


def in_a_row(answers):
    """Lay an AnswerFile's turns, a second each, GAP_S apart in one process; returns how many."""
    choices = [c for question in answers.questions.values() for c in question.choices]
    number = 0
    for choice in choices:
        for turn in range(len(choice.wall_s)):
            choice.begin_s[turn], choice.wall_s[turn] = 1.5e9 + number * (1 + GAP_S), 1.0
            number += 1
    answers.meta["started"] = "2017-01-01T00:00:00+0000"
    answers.meta["run_s"] = {"decode": number, "harness": number * GAP_S}
    return number


def test_the_last_process_of_a_resumed_run_is_held_to_its_seconds(runs):
    """A command that was repeated with nothing left to do has the run_s of an earlier process."""
    answers = read_answers(runs["vanilla"])
    assert in_a_row(answers) == 24
    assert list(times.run_problems(answers, None)) == []
    answers.meta["started"] = "2999-01-01T00:00:00+0000"
    assert list(times.run_problems(answers, None)) == []
    answers.meta["run_s"] = {"decode": 5, "harness": 5 * GAP_S}
    assert list(times.run_problems(answers, None)) == []
    for decode_s, harness_s in ((5.5, 1), (4.5, 1), (5, 0), (25, 1)):
        answers.meta["run_s"] = {"decode": decode_s, "harness": harness_s}
        (line,) = times.run_problems(answers, None)
        assert line.startswith("times do not fit: its turns take 24.000 s")


def test_turns_of_one_slot_overlap_where_several_workers_decode(runs):
    answers = read_answers(runs["vanilla"])
    in_a_row(answers)
    choices = [c for question in answers.questions.values() for c in question.choices]
    for first, second in zip(choices[::2], choices[1::2]):
        second.begin_s = list(first.begin_s)
    (line,) = times.run_problems(answers, None)
    assert "a turn begins before the last one in its slot has ended" in line
    answers.meta["arguments"]["num_gpus_total"] = 2
    assert list(times.run_problems(answers, None)) == []
    answers.meta["run_s"]["decode"] *= 1.1
    (line,) = times.run_problems(answers, None)
    assert "a worker decoded" in line


FORGED = "NVIDIA A100\n\n| method | speedup |\n| --- | --- |\n| mine | 9.00 |\r\n## <b>[x](y)</b>"


@pytest.mark.parametrize("name", ["device", "name", "method", "dtype", "runtime_ran", "date"])
def test_no_text_of_a_file_is_markup_of_the_page(name, honest):
    row = json.loads(honest.row("pld").read_text())
    plain = page.text([row]).split("\n")
    row["numbers"][name] = FORGED
    lines = page.text([row]).split("\n")
    assert len(lines) == len(plain) and any("mine" in line for line in lines)
    for line, before in zip(lines, plain):
        bars, others = (re.findall(r"(?<!\\)[|<>]", text) for text in (line, before))
        assert bars == others and line.startswith("|") == before.startswith("|")
        assert line.startswith("#") == before.startswith("#")
        assert not re.search(r"(?<!\\)\]\(", line)


def test_texts_of_verdicts_and_categories_are_no_markup_either(honest):
    row = json.loads(honest.row("pld").read_text())
    plain = page.text([row])
    row["verdict"]["verdict"] = FORGED
    ratios = row["numbers"]["speedup"]
    ratios |= {FORGED: ratios.pop("Translation")}
    text = page.text([row])
    assert len(text.split("\n")) == len(plain.split("\n"))
    assert len(re.findall(r"(?<!\\)\|", text)) == len(re.findall(r"(?<!\\)\|", plain))


def test_a_meta_cannot_print_a_table(board, capsys):
    """The row is sound: nothing holds what the runtime came to be to anything else."""

    def run_as(records, meta):
        meta["runtime_ran"] = FORGED

    tables = board.page.read_text().count("\n| ---")
    board.forge("pld", "method", run_as, careful=True)
    assert board.failures(capsys) == []
    assert "mine" in board.page.read_text() and board.page.read_text().count("\n| ---") == tables


def test_a_few_questions_that_were_picked_are_no_row(honest, runs):
    """Of the mini bench 1 to 16 are of mt_bench, 17 to 28 translations."""
    meta = read_meta(runs["pld"])
    whole = questions.read_set(meta, honest.store)["questions"]

    def found(begin, end, kept=whole):
        asked = {"question_begin": begin, "question_end": end}
        meta["selection"] = dict.fromkeys(meta["selection"]) | asked
        meta["questions"] = dict.fromkeys(list(kept)[begin:end])
        return questions.selection_problems(meta, kept)

    few = "too few questions (below 8 of a category): "
    assert found(20, 22) == [f"{few}2 of 12 translation"]
    assert found(9, 18) == [f"{few}7 of 16 mt_bench, 2 of 12 translation"]
    assert found(8, 24) == found(16, 24) == found(0, 76) == []
    three = dict(list(whole.items())[16:19])
    assert found(0, 3, three) == [] and found(0, 2, three) == [f"{few}2 of 3 translation"]


def test_add_refuses_a_few_questions(runs, board, tmp_path, capsys):
    """Files of two questions that fit in all else."""
    sides = []
    for name in ("pld", "pairs", "vanilla"):
        records, meta = read(runs[name])[-2:], read_meta(runs[name])
        kept = [str(record["question_id"]) for record in records]
        meta["questions"] = {i: both for i, both in meta["questions"].items() if i in kept}
        first = int(kept[0]) - 1
        picked = {"question_begin": first, "question_end": first + 2}
        meta["selection"] = dict.fromkeys(meta["selection"]) | picked
        sides.append(with_meta(tmp_path / runs[name].name, records, meta))
    method, _, base = sides
    assert board.run("add", "--replace", method, base) == 1
    refusal = capsys.readouterr().err
    assert "is not that of its questions" in refusal
    for path in sides:
        meta = read_meta(path)
        meta["shared"] |= question_totals(meta["questions"])
        with_meta(path, read(path), meta)
    assert board.run("add", "--replace", method, base) == 1
    assert "too few questions (below 8 of a category): 2 of 12" in capsys.readouterr().err
