"""A call in a process of its own, bounded in time and memory, and what is wrong with its end."""

import os
import re
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

STATUSES = (0, 1, 2, 3)
NOTICES = r"warning|it/s\]|fields that nothing here reads|no place for tensor|INFO worker"
NOTICE = re.compile(NOTICES, re.I)
CRASHED = 99
SPACE_BYTES = 6 << 30  # of addresses beyond the parent's: a request for more is a MemoryError


class Ended(NamedTuple):
    """How a call ended.

    status      exit status, negative: the signal that ended it
    stderr      what it said there, and stdout
    seconds     None where it was killed because its time was over
    more_bytes  resident at most, beyond what its parent has
    """

    status: int
    stderr: str
    stdout: str
    seconds: float | None
    more_bytes: int

    def wrong(self, most_bytes: int) -> str | None:
        """What no input may lead to; None: nothing of it."""
        if self.seconds is None:
            return "hangs"
        if "Traceback (most recent call last)" in self.stderr:
            lines = self.stderr.strip().splitlines()
            frames = [line.strip() for line in lines if line.lstrip().startswith("File ")]
            own = [frame for frame in frames if "site-packages" not in frame] or frames
            place = own[-1].replace(os.getcwd(), "") if own else ""
            return f"traceback: {lines[-1][:150]} | {place}"
        if self.status not in STATUSES:
            return f"exit status {self.status}"
        if self.more_bytes > most_bytes:
            return f"memory: {self.more_bytes >> 20} MB"
        if self.status == 2 and not self.said():
            return "exit status 2 without a line"
        if self.status == 2 and len(self.said()) > 1:
            return f"{len(self.said())} lines: {' / '.join(self.said())[:200]}"
        return None

    def said(self) -> list[str]:
        """Lines on stderr that are neither progress nor notices."""
        return said(self.stderr)


def said(stderr: str) -> list[str]:
    """Lines of a command that are neither progress nor notices."""
    from evaluation.cli import PROGRESS

    lines = [line for line in re.split(r"[\r\n]+", stderr) if line.strip()]
    return [s for s in lines if not PROGRESS.match(s) and not NOTICE.search(s)]


def wanted(flag: str, text: str | None, known: dict) -> list[str]:
    """Names of a comma list, or all; ends the script where one is not known."""
    names = text.split(",") if text else list(known)
    if other := [name for name in names if name not in known]:
        sys.exit(f"{Path(sys.argv[0]).name}: {flag}: no {other[0]}; there are: {', '.join(known)}")
    return names


def ended(call, folder: Path, most_s: float = 10.0) -> Ended:
    """Fork, call() in `folder`, and wait; torch must have one thread."""
    names = [folder / "stdout", folder / "stderr"]
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    begin = time.monotonic()
    child = os.fork()
    if not child:
        _run(call, folder, names, own + SPACE_BYTES)
    seconds: float | None = None
    while time.monotonic() - begin < most_s:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            seconds = time.monotonic() - begin
            break
        time.sleep(0.002)
    else:
        os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    out, err = (name.read_text(encoding="utf-8", errors="replace") for name in names)
    more = (usage.ru_maxrss << 10) - before
    return Ended(os.waitstatus_to_exitcode(status), err, out, seconds, more)


def _run(call, folder: Path, names, space: int) -> None:
    """In the child; never returns."""
    status = CRASHED
    try:
        os.chdir(folder)
        for place, name in zip((1, 2), names):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), place)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, errors="backslashreplace")
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        call()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status & 255)
