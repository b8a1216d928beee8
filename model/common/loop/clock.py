"""Times of a decoding loop, without adding a synchronisation to it.

On a GPU a mark is a CUDA event on the stream, on a CPU the host's time. Where the loop waits for
its devices anyway, it reads the marks of the steps since the last time. A GPU's timer and the
host's drift apart by some 20 millionths, 1 ms in 50 s: steps are laid between the host's times of
two such readings, at the places that they have between them by the GPU's timer.
"""

from __future__ import annotations

import time

import torch

from model.common.loop.turns import PHASES


class HostTime:
    """The host's time, of which a loop and the source of its requests share one.

    unix  + now() = Unix time; fixed here, so that a system clock that is set changes no difference
    """

    def __init__(self):
        self.unix = time.time() - self.now()

    def now(self) -> float:
        """Seconds that never go back."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Return about so many seconds later."""
        time.sleep(seconds)


HOST = HostTime()  # where it does not matter that a clock was set since the process began


def now(device, host: HostTime = HOST) -> float:
    """Seconds of a host's time, with the device's queued work finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return host.now()


class Clock:
    """Marks the beginning of each phase of each step, and each step's end; read() makes seconds.

    device  whose work is timed; others: devices whose work is finished, too, where it is read
    """

    def __init__(self, device, host: HostTime = HOST, others=()):
        self.device, self.host, self.others = device, host, others
        self.on_gpu = device.type == "cuda"
        if self.on_gpu:
            self.stream = torch.cuda.current_stream(device)
        self.marks: list[tuple[str, object]] = []  # of the step in progress
        self.steps: list[tuple[list, object]] = []  # (marks, end) of each since the last reading
        self.last = self._finished()

    def _stamp(self):
        if not self.on_gpu:
            return self.host.now()
        stamp = torch.cuda.Event(enable_timing=True)
        stamp.record(self.stream)
        return stamp

    def _finished(self) -> tuple[float, object]:
        """(host's time, a stamp of that moment), with all queued work finished."""
        for device in self.others:
            now(device, self.host)
        stamp = self._stamp()
        return now(self.device, self.host), stamp

    def mark(self, phase: str) -> None:
        """From here on time belongs to `phase`."""
        self.marks.append((phase, self._stamp()))

    def end_step(self) -> None:
        self.steps.append((self.marks, self._stamp()))
        self.marks = []

    def read(self) -> tuple[float, list[tuple[dict[str, float], float]]]:
        """(now, [({phase: s}, end)] of the steps since the last reading, which are forgotten).

        Waits until all queued work is finished. now, end: of `host`'s time.
        """
        (begin_s, first), (end_s, last) = self.last, self._finished()
        steps, self.steps, self.last = self.steps, [], (end_s, last)
        spent = self._between(first, last)
        return end_s, [
            (
                self._phases(marks, end),
                begin_s + (end_s - begin_s) * self._between(first, end) / spent,
            )
            for marks, end in steps
        ]

    def _phases(self, marks, end) -> dict[str, float]:
        found = dict.fromkeys(PHASES, 0.0)
        for (phase, begin), (_, following) in zip(marks, [*marks[1:], (None, end)]):
            found[phase] += self._between(begin, following)
        return found

    def _between(self, first, second) -> float:
        return first.elapsed_time(second) / 1e3 if self.on_gpu else second - first
