"""Curves of energy that were never metered, and devices that play recorded values."""

from types import SimpleNamespace

from fake_meters import Gpu, install, properties

from model.common.loop.turns import Turn
from model.common.records.energy.curve import Meter, Sampler, Track
from model.common.records.energy.log import EnergyLog
from model.common.records.energy.nvml import nvml_meters

FULL = {
    "millijoules": [0],
    "milliwatts": [100_000],
    "limit_milliwatts": [700_000],
    "rates": [SimpleNamespace(gpu=50, memory=20)],
    "memory": [SimpleNamespace(used=3 << 30, total=80 << 30)],
    "temperature": [61],
    "graphics_mhz": [1980],
    "memory_mhz": [2619],
    "reasons": [0x1],
}


class Played(Meter):
    """A meter that plays (joules, fields); an Exception in their place is raised."""

    kind = "played"

    def __init__(self, *readings, moduli=()):
        super().__init__()
        self.facts, self.moduli = {"device": "played"}, moduli
        self.readings = list(readings)

    def joules(self):
        reading = self.readings[0]
        if isinstance(reading, Exception):
            raise reading
        return reading[0]

    def fields(self):
        return self.readings[0][1]


def played(times, *readings, **more):
    """A Track of readings at `times`."""
    track = Track(Played(*readings, **more))
    for when in times:
        track.take(when)
        track.meter.readings.pop(0)
    return track


def curve(*points, lost=""):
    """A Track that has these (time, joules)."""
    track = Track(Played())
    track.times, track.joules = [list(column) for column in zip(*points)]
    track.lost = lost
    return track


def sampler_of(*tracks, interval_s=0.1):
    """A Sampler that has these tracks, without its thread; its samples change nothing."""
    sampler = Sampler([], interval_s)
    sampler.tracks, sampler.idle_w = list(tracks), [None] * len(tracks)
    sampler.sample = lambda whole=True: None
    return sampler


def log_of(sampler, began=0.0, slots=1):
    log = EnergyLog(sampler, slots)
    log.began = log.last = began
    log.counts = [(began, 0)]
    return log


def turn_of(wall_s, first_s=0.0, ends=(), accepted=()):
    return Turn(
        wall_s=wall_s, first_s=first_s, step_end_s=list(ends), accept_lengths=list(accepted)
    )


def gpu_meter(monkeypatch, **played):
    install(monkeypatch, Gpu(**(FULL | played)))
    (meter,), lines = nvml_meters([(0, properties())])
    assert lines == []
    return meter
