"""Cumulative joules of devices over time, sampled in a thread."""

from __future__ import annotations

import sys
import threading
import time
from bisect import bisect_right

from model.common.errors import one_line

MOST_W = 20_000.0  # of one device: a counter that fell is taken for one that wrapped below this


class MeterLost(Exception):
    """A device can no longer be read; the message says why."""


class Meter:
    """One device. Its subclasses read it.

    kind      as the meta has it
    facts     what never changes: {name: value}
    moduli    joules after which its counter may begin anew
    """

    kind = ""
    moduli: tuple[float, ...] = ()

    def __init__(self):
        self.facts: dict = {}

    def joules(self) -> float | None:
        """The counter; None where there is none and power_w is integrated. Raises MeterLost."""
        raise NotImplementedError

    def fields(self) -> dict:
        """{name: number} of what else it tells. Raises MeterLost."""
        return {}

    def close(self) -> None:
        """It is not read any more."""


class Track:
    """What one meter has told: a curve, and samples of its other fields.

    times, joules  of the curve: perf_counter() and joules since the first sample, [n] each
    samples        [(time, fields)]: those of the thread alone
    lost           why it is not read any more, "" while it is
    """

    def __init__(self, meter: Meter):
        self.meter, self.lost = meter, ""
        self.times: list[float] = []
        self.joules: list[float] = []
        self.samples: list[tuple[float, dict]] = []
        self.last: float | None = None  # counter, or watts where there is none

    def take(self, now: float, whole: bool = True) -> None:
        """A sample at `now`; whole: with the fields beside the energy."""
        if self.lost:
            return
        try:
            counter = self.meter.joules()
            fields = self.meter.fields() if whole or counter is None else {}
            self._add(now, counter, fields)
        except (MeterLost, OSError, ValueError) as error:
            self.lost = str(error) if isinstance(error, MeterLost) else one_line(error)
            said = "what follows has no energy of it"
            print(f"energy: {self.meter.facts['device']}: {self.lost}; {said}", file=sys.stderr)
            return
        if whole:
            self.samples.append((now, fields))

    def _add(self, now: float, counter: float | None, fields: dict) -> None:
        """The curve's next point."""
        value = fields.get("power_w") if counter is None else counter
        if value is None:
            raise MeterLost("its power cannot be read any more")
        total = 0.0
        if self.times:
            elapsed = now - self.times[-1]
            mean_w = None if counter is not None else (self.last + value) / 2
            gained = self._counted(value, elapsed) if mean_w is None else mean_w * elapsed
            total = self.joules[-1] + gained
        self.last = value
        self.joules.append(total)  # first: whoever reads by `times` finds it
        self.times.append(now)

    def _counted(self, counter: float, elapsed: float) -> float:
        """Joules since the last sample, also where the counter has begun anew."""
        gained = counter - self.last
        if gained >= 0:
            return gained
        for modulus in self.meter.moduli:
            if 0 <= gained + modulus <= MOST_W * max(elapsed, 1.0):
                return gained + modulus
        raise MeterLost(f"its energy counter fell from {self.last:g} to {counter:g} J")

    def at(self, when: float) -> float | None:
        """Joules at a perf_counter(), by interpolation; None outside what was sampled."""
        count = len(self.times)
        if not count or not self.times[0] <= when <= self.times[count - 1]:
            return None
        right = bisect_right(self.times, when, 0, count)
        if right == count:
            return self.joules[count - 1]
        begin, end = self.times[right - 1], self.times[right]
        low, high = self.joules[right - 1], self.joules[right]
        return low + (high - low) * (when - begin) / (end - begin)

    def between(self, begin: float, end: float) -> float | None:
        """Joules from one perf_counter() to another."""
        low, high = self.at(begin), self.at(end)
        return None if low is None or high is None else high - low


class Sampler:
    """Samples tracks in a thread, every interval_s, until it is stopped.

    unix    + a perf_counter() = Unix time
    idle_w  of every track, as measured by idle()
    unread  lines about devices that the run uses and nothing meters
    """

    def __init__(self, meters: list[Meter], interval_s: float):
        self.tracks = [Track(meter) for meter in meters]
        self.interval_s = interval_s
        self.unix = time.time() - time.perf_counter()
        self.idle_w: list[float | None] = [None] * len(meters)
        self.unread: list[str] = []
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._run, name="energy", daemon=True)

    def start(self) -> None:
        """Take the first sample and start the thread."""
        self.sample()
        self.thread.start()

    def stop(self) -> None:
        """Take the last sample, end the thread and close the meters."""
        self.stopping.set()
        self.thread.join()
        self.sample()
        for track in self.tracks:
            track.meter.close()

    def idle(self, seconds: float) -> None:
        """Wait, and note the power meanwhile: nothing may be running."""
        self.sample(whole=False)
        begin = time.perf_counter()
        time.sleep(seconds)
        self.sample(whole=False)
        for place, track in enumerate(self.tracks):
            end = track.times[-1] if track.times else begin
            joules = track.between(begin, end)
            if joules is not None and end > begin:
                self.idle_w[place] = joules / (end - begin)

    def sample(self, whole: bool = True) -> None:
        """A sample of every device now; whole: with the fields beside the energy."""
        with self.lock:
            for track in self.tracks:
                track.take(time.perf_counter(), whole)

    def covers(self, when: float) -> bool:
        """Whether the energy up to a perf_counter() is known, or will never be."""
        return all(track.lost or track.times[-1] >= when for track in self.tracks)

    def joules(self, begin: float, end: float) -> float | None:
        """Of all devices; None where one could not be read all the time."""
        parts = [track.between(begin, end) for track in self.tracks]
        return None if None in parts else sum(parts)

    def _run(self) -> None:
        following = time.perf_counter() + self.interval_s
        while not self.stopping.wait(max(following - time.perf_counter(), 0)):
            self.sample()
            following = max(following + self.interval_s, time.perf_counter())
