"""What a run loses to its disk, and to a second process: nothing but the answers in flight."""

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import eval_sh
import pytest
from harness_runs import COMMON, ROOT, answer, read, refusal, run, timeless, write

from model.common.contract.sequence import EmptyDrafter
from model.common.errors import CRASHED, BadInput, ends_in_one_line
from model.common.records.lock import lock_path, written_alone
from model.common.records.writer import whole_lines


@pytest.fixture
def ask(model_dir, question_file):
    """ask(path, ...): the records of a run of pld into that file."""

    def asked(path, *flags, **more):
        return answer("pld", model_dir, question_file, path, *flags, **more)

    return asked


@pytest.fixture
def refused(model_dir, question_file, capfd):
    """refused(path, ...): the one line that the same command ends with."""

    def run_again(path, *flags, build=None):
        where = ["--model-path", model_dir, "--question-file", question_file, "--answer-file", path]
        code = run("pld", *where, *COMMON, "--max-new-tokens", 24, *flags, build=build)
        return refusal(capfd, code)

    return run_again


def empty(args, target):
    """A drafter that does nothing else."""
    return EmptyDrafter()


class Meddling(EmptyDrafter):
    """Calls `meddle` when `path` holds as many answers as are given."""

    def __init__(self, path, answers, meddle):
        super().__init__()
        self.path, self.answers, self.meddle = path, answers, meddle

    def start(self, *arguments):
        if self.path.exists() and len(read(self.path)) == self.answers:
            self.meddle()
            self.answers = None
        super().start(*arguments)


@pytest.mark.parametrize("paired", [[], ["--paired", 1]])
def test_a_full_disk_ends_the_run_in_one_line(ask, refused, tmp_path, paired):
    """A file may grow no further: the line is half there, and the same command goes on."""
    whole = ask(tmp_path / "whole.jsonl", *paired, build=empty)
    out = tmp_path / "a.jsonl"
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (out.stat().st_size + 100, usual[1]))

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        line = refused(out, *paired, build=lambda args, target: Meddling(out, 3, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        signal.signal(signal.SIGXFSZ, handler)
    assert f"{out}: cannot be written: File too large" in line
    assert len(out.read_bytes().split(b"\n")[-1]) == 100  # of the fourth
    assert timeless(whole_lines(out).values()) == timeless(whole[:3])
    assert timeless(ask(out, *paired, build=empty)) == timeless(whole)


def test_a_file_removed_under_the_run_is_written_anew(ask, tmp_path):
    """With the answers that it held, be it at once or with the last of them."""
    whole = ask(tmp_path / "whole.jsonl", build=empty)
    for answers in (1, 5):
        out = tmp_path / f"{answers}.jsonl"
        build = Meddling(out, answers, out.unlink)
        assert timeless(ask(out, build=lambda args, target, made=build: made)) == timeless(whole)


def test_a_folder_that_takes_no_files(refused, tmp_path):
    """A file in its place, which root cannot pass either."""
    (tmp_path / "folder").write_text("a file")
    path = tmp_path / "folder" / "a.jsonl"
    assert f"{path}: cannot be written" in refused(path)


def test_a_line_torn_anywhere(ask, tmp_path):
    """At every byte of the last two lines: whole lines before it stay, nothing else is read."""
    out = tmp_path / "a.jsonl"
    records, content = ask(out), out.read_bytes()
    lines = content.split(b"\n")[:-1]
    begin = len(content) - len(lines[-1]) - len(lines[-2]) - 2
    for cut in range(begin, len(content) + 1):
        out.write_bytes(content[:cut])
        kept = list(whole_lines(out).values())
        count = content[: cut + 1].count(b"\n")  # a line that lacks its end alone is whole
        assert kept == records[:count], cut
    for zeros in (1, 4096):  # blocks that were never written
        out.write_bytes(content[:begin] + bytes(zeros))
        assert list(whole_lines(out).values()) == records[:-2]


HOLD = """
import sys, time
from pathlib import Path
from model.common.records.lock import written_alone
with written_alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_processes_do_not_answer_into_one_file(ask, refused, tmp_path):
    """The second is refused; when the first is killed, its lock is gone with it."""
    out = tmp_path / "a.jsonl"
    before = ask(out, "--question-end", 2)
    command = [sys.executable, "-c", HOLD, str(out)]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        for flags in ([], ["--overwrite"]):
            assert f"{out}: another process is writing it" in refused(out, *flags)
        assert read(out) == before
        ask(tmp_path / "b.jsonl", "--question-end", 1)  # another file of the folder
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert len(ask(out)) == 6


def test_the_lock_of_a_folder(tmp_path, monkeypatch):
    """Under any of its names; a block that has ended, in an error too, holds it no longer."""
    monkeypatch.chdir(tmp_path)
    for one, other in ((tmp_path / "a", "a/"), (tmp_path, ".")):
        with written_alone(one):
            with pytest.raises(BadInput, match="another process"), written_alone(other):
                pass
        with pytest.raises(KeyError), written_alone(one):
            raise KeyError
        with written_alone(other):
            assert lock_path(one).exists()
        assert not lock_path(one).exists()


def test_a_lock_that_is_waited_for(tmp_path):
    """It is had when the holder goes, and by one of those who wait at a time."""
    told, inside = [], []

    def work(number):
        with written_alone(tmp_path / "a", wait_s=60):
            inside.append(number)
            told.append(list(inside))
            time.sleep(0.01)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == [[number] for number in range(8)]
    assert not list(tmp_path.iterdir())


BUILDERS = {"rest.build_datastore": "input", "samd.build_sam": "input", "medusa.train": "data"}


@pytest.mark.parametrize("module, flag", BUILDERS.items())
def test_trainers_and_builders_hold_their_folders(model_dir, tmp_path, module, flag):
    corpus = write(tmp_path / "corpus.jsonl", [{"text": "one"}])
    out = str(tmp_path / "out")
    command = [sys.executable, "-m", f"model.{module}", "--model-path", model_dir]
    command += ["--output", out, f"--{flag}", corpus]
    with written_alone(out):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and f"{out}: another process is writing it" in done.stderr


def test_two_runs_of_eval_sh_do_not_write_one_report(tmp_path):
    """The second is refused before it touches the first's report."""
    folder = eval_sh.make(tmp_path / "project")
    assert eval_sh.run(folder, "pld").returncode == 0
    answers = folder / "data" / "mini_bench" / "model_answer"
    (report,) = answers.glob("*-report")
    before = sorted(path.name for path in report.iterdir())
    with (answers / f".{report.name}.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = eval_sh.run(folder, "pld")
        assert done.returncode == 2 and "another eval.sh is writing it" in done.stderr
        assert sorted(path.name for path in report.iterdir()) == before
    assert eval_sh.run(folder, "pld").returncode == 0


@pytest.mark.parametrize("name, said", [("x.bin", "x.bin: No space left"), (None, "t: No space")])
def test_what_the_disk_refuses_is_a_line_in_every_command(capfd, name, said):
    """Of a command of model/ and of a tool; another error of the system is a crash."""
    from evaluation import cli

    def fails(code):
        raise OSError(code, os.strerror(code), name)

    for code, status in ((errno.ENOSPC, 2), (errno.ENOTTY, CRASHED)):
        with pytest.raises(SystemExit) as end, ends_in_one_line("t"):
            fails(code)
        with pytest.raises(SystemExit) as tool:
            cli.run(lambda code=code: fails(code))
        lines = capfd.readouterr().err.splitlines()
        assert end.value.code == tool.value.code == status
        if status == 2:
            assert len(lines) == 2 and said in lines[0] and "No space left" in lines[1]
