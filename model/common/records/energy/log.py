"""The energy of every answer, and a run's summary for the meta (see the package)."""

from __future__ import annotations

import platform
import sys
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

from model.common.errors import BadInput
from model.common.records.energy.curve import Sampler, Track

IDLE_S = 1.5  # of the measurement of idle power
SETTLE_S = 0.5  # before it, for what loading the model has left behind
MOST_SAMPLES = 500  # of a device, in the meta
MEANS = ("utilization", "memory_utilization", "clock_graphics_mhz", "clock_memory_mhz")
HIGHEST = ("memory_used_mib", "temperature_c")
KEPT = ("power_w", *MEANS, *HIGHEST)


def start_sampler(target, interval_s: float, needed: bool) -> Sampler | None:
    """Meters of the devices that a loaded target and its drafter use, started; None without any.

    What cannot be read is a line each on stderr. needed: raises BadInput where nothing can. Waits
    IDLE_S + SETTLE_S.
    """
    from model.common.records.energy.nvml import nvml_meters, used_gpus
    from model.common.records.energy.rapl import rapl_meters

    meters, lines = [], []
    gpus = used_gpus()
    if gpus:
        meters, lines = nvml_meters(gpus)
    if target.device.type == "cpu":
        processors, more = rapl_meters()
        meters, lines = meters + processors, lines + more
    if needed and not meters:
        why = "; ".join(lines) or "no device is metered here"
        raise BadInput(f"--energy: no meter can be read: {why} (--energy if-any goes on without)")
    for line in lines:
        print(f"energy: {line}", file=sys.stderr)
    if not meters:
        print("energy: no meter can be read; this run has no energy", file=sys.stderr)
        return None
    sampler = Sampler(meters, interval_s)
    sampler.unread = lines
    sampler.start()
    time.sleep(SETTLE_S)
    sampler.idle(IDLE_S)
    return sampler


@dataclass
class Share:
    """What of the time belongs to a turn: (begin, end, n), n turns being answered in it."""

    parts: list[tuple[float, float, int]] = field(default_factory=list)


class EnergyLog:
    """Which turns of one answer file were being answered when; times are perf_counter()s.

    A source of requests calls begun(), then ended() or failed(), for each of its slots, and has its
    records written by when_known(), since a turn's energy is known once a sample stands behind its
    end. Without a sampler nothing has an energy, and all records are written at once.

        log.ready()                                before a request is handed to the loop
        share = log.ended(slot, turn)              a loop.turns.Turn has ended
        log.when_known(write)                      write() may call log.joules(share)
        log.settle()                               nothing is running any more: write all
    """

    def __init__(self, sampler: Sampler | None, num_slots: int = 1):
        self.sampler, self.num_slots = sampler, num_slots
        self.began = time.perf_counter()
        self.running: dict[int, Share] = {}  # by slot
        self.begins: dict[int, float] = {}
        self.last = self.began  # of the events below
        self.waiting: deque = deque()  # (time to be covered, write)
        self.answers = 0  # turns that were answered
        self.spans: list[tuple[float, float]] = []  # of all turns that began
        self.tokens: list[tuple[float, int, bool]] = []  # (time, how many, first of its turn)
        self.counts: list[tuple[float, int]] = [(self.began, 0)]  # (from when on, turns running)
        if sampler:
            sampler.sample()

    def ready(self) -> None:
        """A request is about to be handed over: where nothing is running, its energy begins at a
        sample, not between two."""
        if self.sampler and not self.running:
            self.sampler.sample(whole=False)

    def begun(self, slot: int, begin: float) -> None:
        """A turn's prefill begins in a slot."""
        if self.sampler is None:
            return
        self._advance(begin)
        self.running[slot], self.begins[slot] = Share(), begin
        self.counts.append((begin, len(self.running)))

    def ended(self, slot: int, turn) -> Share:
        """An answer has ended; turn: a loop.turns.Turn."""
        if self.sampler is None:
            return Share()
        begin = self.begins[slot]
        self._advance(begin + turn.wall_s)
        self.answers += 1
        self.spans.append((begin, begin + turn.wall_s))
        self.tokens.append((begin + turn.first_s, 1, True))
        steps = zip(turn.step_end_s, turn.accept_lengths)
        self.tokens += [(begin + end, count, False) for end, count in steps]
        return self._leave(slot)

    def failed(self, slot: int) -> Share:
        """There is no answer; its share is that of the time since it began, if it had."""
        if slot not in self.running:
            return Share()
        self._advance(max(time.perf_counter(), self.last))
        self.spans.append((self.begins[slot], self.last))
        return self._leave(slot)

    def _advance(self, now: float) -> None:
        """The time since the last event belongs to those that were running, in equal parts."""
        if now != self.last:
            for share in self.running.values():
                share.parts.append((self.last, now, len(self.running)))
        self.last = now

    def _leave(self, slot: int) -> Share:
        share = self.running.pop(slot)
        self.counts.append((self.last, len(self.running)))
        if not self.running:
            self.sampler.sample(whole=False)  # untimed: the answer's end has been read
        return share

    def joules(self, *shares: Share) -> float | None:
        """The energy of turns; None where a device was not read all the time."""
        if self.sampler is None:
            return None
        parts = [part for share in shares for part in share.parts]
        joules = [self.sampler.joules(begin, end) for begin, end, _ in parts]
        if None in joules:
            return None
        return sum(all_of / n for all_of, (_, _, n) in zip(joules, parts))

    def when_known(self, write) -> None:
        """Call write() as soon as the energy of all that has ended is known: now, or later."""
        self.waiting.append((self.last, write))
        self._write_known()

    def _write_known(self) -> None:
        while self.waiting and (not self.sampler or self.sampler.covers(self.waiting[0][0])):
            self.waiting.popleft()[1]()

    def settle(self) -> None:
        """Nothing is running: take a sample, and write what waits."""
        if self.sampler:
            self.sampler.sample(whole=False)
        self._write_known()

    def summary(self, load: bool = False) -> list[dict]:
        """This process' entry of the meta's `energy`, [] where it has metered no turn.

        load: of a load run.
        """
        if self.sampler is None or not self.spans:
            return []
        self.sampler.sample()
        sampler, began, ended = self.sampler, self.began, self.last
        timed = union(self.spans)
        pairs = zip(sampler.tracks, sampler.idle_w)
        devices = [_device(track, idle, began, ended, timed) for track, idle in pairs]
        entry = {
            "host": platform.node(),
            "began_s": began + sampler.unix,
            "ended_s": ended + sampler.unix,
            "interval_s": sampler.interval_s,
            "answers": self.answers,
            "timed_s": sum(end - begin for begin, end in timed),
            "timed_j": _total(device.get("timed_j") for device in devices),
            "run_s": ended - began,
            "run_j": _total(device.get("run_j") for device in devices),
            "idle_w": _total(device.get("idle_w") for device in devices),
            "devices": devices,
            "unread": sampler.unread or None,
            "steady": self._steady() if load else None,
        }
        return [rounded(present(entry))]

    def _steady(self) -> dict | None:
        """steady_window() with its energy; None where it has none."""
        window = steady_window(self.tokens, self.num_slots)
        if window is None:
            return None
        begin, end, tokens = window
        joules = self.sampler.joules(begin, end)
        if joules is None:
            return None
        return {
            "slots": self.num_slots,
            "requests": self.answers,
            "begin_s": begin - self.began,
            "end_s": end - self.began,
            "joules": joules,
            "tokens": tokens,
            "joules_per_token": joules / tokens,
            "full": self._full_s(begin, end) / (end - begin),
        }

    def _full_s(self, begin: float, end: float) -> float:
        """Seconds of a window in which every slot had a turn."""
        following = [*(when for when, _ in self.counts[1:]), self.last]
        full = [
            max(min(until, end) - max(since, begin), 0.0)
            for (since, count), until in zip(self.counts, following)
            if count == self.num_slots
        ]
        return sum(full)


def steady_window(tokens: list[tuple[float, int, bool]], slots: int):
    """(begin, end, tokens between) of the time in which a server with B slots is taken to be full.

    ML.ENERGY's benchmark (J.-W. Chung et al., arXiv 2505.06371; github.com/ml-energy/benchmark,
    mlenergy/llm/benchmark.py) counts first tokens: of N requests, from the B-th first token, when
    the first prefills are over, to the (N - B)-th, when the queue begins to empty. None of 2 B
    requests or fewer. It is a window of full slots only where requests were always waiting.

    tokens: (time, how many, whether it is its request's first), in any order.

    >>> steady_window([(1, 1, True), (2, 4, False), (3, 1, True), (4, 1, True), (5, 2, False)], 1)
    (1, 3, 5)
    """
    firsts = sorted(when for when, _, first in tokens if first)
    if len(firsts) <= 2 * slots:
        return None
    begin, end = firsts[slots - 1], firsts[len(firsts) - slots - 1]
    between = sum(count for when, count, _ in tokens if begin < when <= end)
    return (begin, end, between) if between and end > begin else None


def union(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The time that spans (begin, end) cover, as spans in order that do not touch.

    >>> union([(5, 6), (0, 2), (1, 3)])
    [(0, 3), (5, 6)]
    """
    joined: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            begin, end = joined[-1][0], max(joined.pop()[1], end)
        joined.append((begin, end))
    return joined


def _device(track: Track, idle_w, began: float, ended: float, timed) -> dict:
    """A device's part of the summary."""
    timed_s = sum(end - begin for begin, end in timed)
    timed_j = _total(track.between(begin, end) for begin, end in timed)
    samples = [(when, fields) for when, fields in track.samples if began <= when <= ended]
    columns = {
        name: [fields[name] for _, fields in samples if name in fields]
        for name in (*KEPT, "throttle_bits")
    }
    watts = columns["power_w"] or _watts(track, [when for when, _ in samples])
    found = {
        "meter": track.meter.kind,
        **track.meter.facts,
        "timed_j": timed_j,
        "run_j": track.between(began, ended),
        "idle_w": idle_w,
        "mean_w": timed_j / timed_s if timed_j is not None and timed_s else None,
        "peak_w": max(watts, default=None),
        **{name: sum(columns[name]) / len(columns[name]) for name in MEANS if columns[name]},
        **{name: max(columns[name], default=None) for name in HIGHEST},
        "throttled": _throttled(columns["throttle_bits"]),
        "num_samples": len(samples),
        "lost": track.lost or None,
        "samples": _thinned(track, samples, began),
    }
    return present(found)


def _watts(track: Track, times: list[float]) -> list[float]:
    """Mean power between samples, of a meter that has joules alone."""
    pairs = zip(times, times[1:])
    return [track.between(begin, end) / (end - begin) for begin, end in pairs if end > begin]


def _throttled(bits: list[int]) -> dict | None:
    """{reason: share of samples}; None of a device that does not tell."""
    from model.common.records.energy.nvml import REASONS

    if not bits:
        return None
    shares = {name: sum(bool(one & bit) for one in bits) for bit, name in REASONS.items()}
    return {name: count / len(bits) for name, count in shares.items() if count}


def _thinned(track: Track, samples: list[tuple[float, dict]], began: float) -> dict:
    """Every k-th sample, as columns."""
    kept = samples[:: max(-(-len(samples) // MOST_SAMPLES), 1)]
    columns = {
        "t_s": [when - began for when, _ in kept],
        "joules": [track.joules[bisect_left(track.times, when)] for when, _ in kept],
    }
    for name in KEPT:
        if kept and all(name in fields for _, fields in kept):
            columns[name] = [fields[name] for _, fields in kept]
    return columns


def _total(values) -> float | None:
    """Their sum; None of none, or where one is not known."""
    values = list(values)
    return None if None in values or not values else sum(values)


def present(found: dict) -> dict:
    """Without what is not known."""
    return {name: value for name, value in found.items() if value is not None}


def rounded(value):
    """Numbers of a nested document to six digits after the point."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value
