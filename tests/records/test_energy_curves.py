"""Curves of meters that play recorded values, and the thread that samples them."""

import time

import pytest
from energy_curves import Played, played

from model.common.records.energy import curve as curve_module
from model.common.records.energy.curve import MeterLost, Sampler


def test_power_is_integrated_by_trapezoids():
    """The fact sheet's check: 650 J; 1300 tokens are 2 tokens a joule."""
    track = played(
        [0, 1, 3],
        (None, {"power_w": 100.0}),
        (None, {"power_w": 200.0}),
        (None, {"power_w": 300.0}),
    )
    assert track.between(0, 3) == 650 and 1300 / track.between(0, 3) == 2
    assert track.between(0, 1) == 150 and track.between(1, 3) == 500


def test_one_sample_has_no_energy():
    track = played([0], (None, {"power_w": 100.0}))
    assert track.between(0, 1) is None and track.between(-1, 0) is None
    assert track.between(0, 0) == 0


def test_joules_are_interpolated():
    track = played([10, 12, 14], (5.0, {}), (25.0, {}), (125.0, {}))
    assert track.joules == [0, 20, 120]
    assert track.between(11, 13) == 60
    assert track.between(12, 12.5) == 25
    assert track.between(9.9, 12) is None and track.between(12, 14.1) is None


def test_a_counter_that_begins_anew_goes_on():
    track = played([0, 1, 2, 3], (90.0, {}), (10.0, {}), (60.0, {}), (5.0, {}), moduli=(100.0,))
    assert track.joules == [0, 20, 70, 115]


def test_the_smallest_modulus_that_makes_sense_is_taken():
    top = 2**32 / 1e3
    track = played([0, 1], (top - 30, {}), (70.0, {}), moduli=(top, 2**64 / 1e3))
    assert track.joules[1] == pytest.approx(100)
    top = 2**64 / 1e3
    track = played([0, 1], (top - 4096, {}), (0.0, {}), moduli=(2**32 / 1e3, top))
    assert track.joules[1] == pytest.approx(4096) and not track.lost


def test_a_counter_that_was_reset_is_no_energy(capfd):
    """A driver that was loaded anew: what was used before that is not known."""
    track = played([0, 1, 2], (5e6, {}), (10.0, {}), (20.0, {}), moduli=(2**64 / 1e3,))
    assert track.lost == "its energy counter fell from 5e+06 to 10 J"
    assert track.times == [0] and track.between(0, 2) is None
    assert capfd.readouterr().err.count("\n") == 1


def test_a_device_that_dies_is_named_once_and_keeps_what_it_said(capfd):
    gone = MeterLost("GPU is lost")
    track = played([0, 1, 2, 3], (0.0, {"power_w": 1.0}), (50.0, {"power_w": 2.0}), gone, gone)
    assert (track.between(0, 1), track.between(0, 1.5), track.lost) == (50, None, "GPU is lost")
    assert len(track.samples) == 2
    line = "energy: played: GPU is lost; what follows has no energy of it\n"
    assert capfd.readouterr().err == line


def test_idle_power_is_what_was_used_while_nothing_ran(monkeypatch):
    """Waiting is played: 3 s at 20 W, of a device that died none."""
    now = [10.0]
    monkeypatch.setattr(curve_module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(curve_module.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    steady = Played()
    steady.joules = lambda: 20 * now[0]
    sampler = Sampler([steady, Played(MeterLost("gone"))], 0.1)
    sampler.idle(3.0)
    assert sampler.idle_w == [20, None] and sampler.joules(10, 13) is None
    assert sampler.tracks[0].samples == []


def test_the_thread_samples_at_its_interval_and_stops():
    meter = Played((5.0, {"power_w": 1.0}))
    closed = []
    meter.close = lambda: closed.append(True)
    sampler = Sampler([meter], 0.01)
    sampler.start()
    time.sleep(0.3)
    sampler.stop()
    count = len(sampler.tracks[0].times)
    assert 5 <= count <= 33 and closed == [True] and not sampler.thread.is_alive()
    assert sampler.covers(sampler.tracks[0].times[-1])
    assert not sampler.covers(sampler.tracks[0].times[-1] + 1)
    unix = sampler.unix + sampler.tracks[0].times[-1]
    assert abs(unix - time.time()) < 5
