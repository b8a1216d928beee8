"""Progress of a run: a bar in a terminal, a line a minute elsewhere; how a crash ends."""

import io
import sys

import pytest
from harness_runs import COMMON, run

from evaluation.cli import PROGRESS as IN_LOGS
from model.common import progress
from model.common.errors import CRASHED, ends_in_one_line
from model.common.progress import Progress

RECORD = {"choices": [{"new_tokens": [6], "wall_time": [2.0], "accept_lengths": [2, 3]}]}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def clock(*seconds):
    """A clock that shows these times, one a reading."""
    return iter(seconds).__next__


def test_a_line_a_minute_and_one_at_the_end(capsys):
    times = clock(0.0, 30.0, 60.0, 90.0, 125.0, 200.0, 300.0)
    with Progress(10, times) as shown:
        for _ in range(4):
            shown.add(RECORD)
        assert capsys.readouterr().err.splitlines() == [
            "2 of 10 questions, 04:00 left, accepted 2.50, 3.0 tokens/s",
            "4 of 10 questions, 03:08 left, accepted 2.50, 3.0 tokens/s",
        ]
        shown.add({"choices": [], "error": "x"})  # a question that failed is done
        capsys.readouterr()
    assert capsys.readouterr().err == "5 of 10 questions, in 05:00, accepted 2.50, 3.0 tokens/s\n"


def test_what_a_server_does_not_say_is_not_zero(capsys):
    with Progress(1, clock(0.0, 1.0, 2.0)) as shown:
        shown.add({"choices": [{"new_tokens": [6], "wall_time": [2.0]}]})
    assert "accepted -, 3.0 tokens/s" in capsys.readouterr().err


def test_a_short_run_has_one_line_and_an_empty_one_none(capsys):
    with Progress(1, clock(0.0, 61.0, 61.2)) as shown:
        shown.add(RECORD)
    printed = capsys.readouterr()
    assert printed.err == "1 of 1 questions, in 01:01, accepted 2.50, 3.0 tokens/s\n"
    assert printed.out == "" and IN_LOGS.match(printed.err)
    with Progress(0):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name, other", [("stderr", "stdout"), ("stdout", "stderr")])
def test_a_bar_in_the_terminal(monkeypatch, name, other):
    """On stdout where stderr goes into a file, which then holds the messages alone."""
    terminal, file = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, name, terminal)
    monkeypatch.setattr(sys, other, file)
    with Progress(2) as shown:
        shown.add(RECORD)
        shown.say("question 7: bad")
        shown.add(RECORD)
    assert "2/2" in terminal.getvalue() and "accepted 2.50" in terminal.getvalue()
    messages = terminal if name == "stderr" else file
    assert "question 7: bad\n" in messages.getvalue()
    assert file.getvalue() in ("", "question 7: bad\n")


def test_messages_and_progress_of_a_command(model_dir, question_file, tmp_path, capfd, monkeypatch):
    """Each question is followed by a line where a minute has passed."""
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    flags = ["--model-path", model_dir, "--question-file", question_file, "--max-new-tokens", 4]
    assert run("pld", *flags, "--answer-file", tmp_path / "a.jsonl", *COMMON) == 0
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 6 and all(IN_LOGS.match(line) for line in lines)
    assert lines[-1].startswith("6 of 6 questions, in 00:0")


def test_a_crash_has_an_exit_code_of_its_own(model_dir, question_file, tmp_path, capsys):
    """1 says that questions failed."""

    def broken(args, target):
        raise NameError("a drafter that cannot be built")

    flags = ["--model-path", model_dir, "--question-file", question_file, *COMMON]
    assert run("pld", *flags, "--answer-file", tmp_path / "a.jsonl", build=broken) == CRASHED
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("NameError: a drafter that cannot be built\n")
    with pytest.raises(SystemExit) as end, ends_in_one_line("x"):
        raise ZeroDivisionError("no")
    assert end.value.code == CRASHED == 70
    assert capsys.readouterr().err.endswith("ZeroDivisionError: no\n")
