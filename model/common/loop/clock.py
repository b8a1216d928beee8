"""Phase times of a decoding loop, without adding a synchronisation to it.

On a GPU a mark is a CUDA event on the stream, read after the answer; on a CPU it is perf_counter.
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
    """Marks the beginning of each phase of each step; seconds() turns the marks into durations."""

    def __init__(self, device):
        self.on_gpu = device.type == "cuda"
        self.stream = torch.cuda.current_stream(device) if self.on_gpu else None
        self.marks: list[tuple[str | None, object]] = []
        self.ends: list[int] = []  # index into marks where each step ends

    def mark(self, phase: str | None) -> None:
        """From here on time belongs to `phase` (None: to none)."""
        if self.on_gpu:
            stamp = torch.cuda.Event(enable_timing=True)
            stamp.record(self.stream)
        else:
            stamp = time.perf_counter()
        self.marks.append((phase, stamp))

    def end_step(self) -> None:
        self.mark(None)
        self.ends.append(len(self.marks))

    def seconds(self) -> dict[str, list[float]]:
        """{phase: [s per step]}; call it when the device's work is finished."""
        times = {phase: [] for phase in PHASES}
        begin = 0
        for end in self.ends:
            step = dict.fromkeys(PHASES, 0.0)
            for (phase, stamp), (_, following) in zip(
                self.marks[begin : end - 1], self.marks[begin + 1 : end]
            ):
                if phase is not None:
                    step[phase] += self._between(stamp, following)
            for phase in PHASES:
                times[phase].append(step[phase])
            begin = end
        return times

    def _between(self, first, second) -> float:
        return first.elapsed_time(second) / 1e3 if self.on_gpu else second - first
