"""Times of a decoding loop, without adding a synchronisation to it.

On a GPU a mark is a CUDA event on the stream, read when an answer has ended; on a CPU it is the
host's time.
"""

from __future__ import annotations

import time

import torch

PHASES = ("draft", "verify", "commit")


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
    """Marks the beginning of each phase of each step, and each step's end.

    Steps are numbered from 0; seconds() and ends() turn marks into numbers of `host`'s time.
    """

    def __init__(self, device, host: HostTime = HOST):
        self.on_gpu, self.host = device.type == "cuda", host
        self.origin = now(device, host)
        if self.on_gpu:
            self.stream = torch.cuda.current_stream(device)
            self.event = self._stamp()
        self.marks: list[tuple[str, object]] = []  # of the step in progress
        self.steps: list[tuple[list, object]] = []  # (marks, end) of every step

    def _stamp(self):
        if not self.on_gpu:
            return self.host.now()
        stamp = torch.cuda.Event(enable_timing=True)
        stamp.record(self.stream)
        return stamp

    def mark(self, phase: str) -> None:
        """From here on time belongs to `phase`."""
        self.marks.append((phase, self._stamp()))

    def end_step(self) -> None:
        self.steps.append((self.marks, self._stamp()))
        self.marks = []

    def seconds(self, first: int) -> dict[str, list[float]]:
        """{phase: [s of every step from `first` on]}; the device's work has to be finished."""
        times = {phase: [] for phase in PHASES}
        for marks, end in self.steps[first:]:
            step = dict.fromkeys(PHASES, 0.0)
            for (phase, begin), (_, following) in zip(marks, [*marks[1:], (None, end)]):
                step[phase] += self._between(begin, following)
            for phase in PHASES:
                times[phase].append(step[phase])
        return times

    def ends(self, first: int) -> list[float]:
        """The time at the end of every step from `first` on, likewise."""
        if not self.on_gpu:
            return [end for _, end in self.steps[first:]]
        return [self.origin + self._between(self.event, end) for _, end in self.steps[first:]]

    def _between(self, first, second) -> float:
        return first.elapsed_time(second) / 1e3 if self.on_gpu else second - first
