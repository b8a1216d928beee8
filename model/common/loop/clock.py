"""Times of a decoding loop, without adding a synchronisation to it.

On a GPU a mark is a CUDA event on the stream, read when an answer has ended; on a CPU it is
perf_counter.
"""

from __future__ import annotations

import time

import torch

PHASES = ("draft", "verify", "commit")


def now(device) -> float:
    """Seconds, with the device's queued work finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Clock:
    """Marks the beginning of each phase of each step, and each step's end.

    Steps are numbered from 0; seconds() and ends() turn marks into numbers.
    """

    def __init__(self, device):
        self.on_gpu = device.type == "cuda"
        self.origin = now(device)
        self.unix = time.time() - self.origin  # + a perf_counter() = Unix time
        if self.on_gpu:
            self.stream = torch.cuda.current_stream(device)
            self.event = self._stamp()
        self.marks: list[tuple[str, object]] = []  # of the step in progress
        self.steps: list[tuple[list, object]] = []  # (marks, end) of every step

    def _stamp(self):
        if not self.on_gpu:
            return time.perf_counter()
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
        """perf_counter() at the end of every step from `first` on, likewise."""
        if not self.on_gpu:
            return [end for _, end in self.steps[first:]]
        return [self.origin + self._between(self.event, end) for _, end in self.steps[first:]]

    def _between(self, first, second) -> float:
        return first.elapsed_time(second) / 1e3 if self.on_gpu else second - first
