"""A server that a command starts: waited for, watched, and ended with all of its processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from model.common.errors import BadInput

READY = ("/health", "/v1/models")  # the second where the first does not exist
POLL_S = 0.25
END_S = 20.0  # that a server gets to end by itself
SHOWN = 8  # last lines of a server that has died
# a proxy of the environment would be asked for this machine's own addresses, too
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerProcess:
    """The process group of a server's command; its output goes to a file.

    command  for the shell: settings of the environment may stand before it
    """

    def __init__(self, command: str, url: str, log: Path):
        self.command, self.url, self.log, self.shown = command, url.rstrip("/"), log, False
        if _status(f"{self.url}/v1/models") is not None:
            raise BadInput(f"--engine-cmd: {url} answers already: another server is running there")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_ready(self, limit_s: float) -> float:
        """Seconds until it answered. Raises BadInput where it ended, or not in time."""
        begin = time.monotonic()
        while time.monotonic() - begin < limit_s:
            self.check()
            status = _status(self.url + READY[0])
            if status in (404, 405):
                status = _status(self.url + READY[1])
            if status == 200:
                return time.monotonic() - begin
            time.sleep(POLL_S)
        self.show()
        raise BadInput(
            f"--engine-cmd: {self.url} was not ready after {limit_s:g} s; see {self.log}"
        )

    def check(self, patience_s: float = 0.0) -> None:
        """Raise BadInput where the server has ended, after its last lines.

        patience_s: how long one that no longer answers may take to end.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.process.wait(patience_s)
            self.show()
            raise BadInput(f"--engine-cmd: the server ended (status {status}); see {self.log}")

    def show(self) -> None:
        """Its last lines, on stderr; once, however many requests find it gone."""
        if self.shown:
            return
        self.shown = True
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in [line for line in lines if line.strip()][-SHOWN:]:
            print(f"server: {line[:300]}", file=sys.stderr)

    def end(self) -> None:
        """End the whole group: asked first, then killed."""
        group = self.process.pid  # start_new_session made it the leader
        for number, limit_s in ((signal.SIGTERM, END_S), (signal.SIGKILL, END_S)):
            if not _signal(group, number):
                break
            until = time.monotonic() + limit_s
            while time.monotonic() < until and _signal(group, 0):
                self.process.poll()  # a leader that has ended stays in the group until it is read
                time.sleep(0.05)
        self.process.wait()


def _signal(group: int, number: int) -> bool:
    """Whether the group had a process to send it to."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _status(url: str) -> int | None:
    """HTTP's status of a page, None where nobody answers; no proxy is asked, as by client.py."""
    try:
        with DIRECT.open(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def running(command: str | None, url: str, log: Path, limit_s: float):
    """A ready ServerProcess within the block, None without a command.

    It ends with the block, however that ends: SIGTERM is made an interruption.
    """
    if command is None:
        yield None
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt

    server = ServerProcess(command, url, log)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        server.wait_ready(limit_s)
        yield server
    finally:
        kept = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end is not to be interrupted
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        server.end()
        signal.signal(signal.SIGINT, kept)
        signal.signal(signal.SIGTERM, before)
