"""Meters, their curves, and the share of every answer, on devices that play recorded values."""

import json
import os
import re
import time
from types import SimpleNamespace

import pytest
from fake_meters import LOST, FakeNvml, Gpu, NVMLError, Powercap, install, properties

from model.common.loop.turns import Turn
from model.common.records.energy import curve as curve_module
from model.common.records.energy import log as energy
from model.common.records.energy import nvml as nvml_module
from model.common.records.energy import rapl
from model.common.records.energy.curve import Meter, MeterLost, Sampler, Track
from model.common.records.energy.log import EnergyLog, steady_window, union
from model.common.records.energy.nvml import NvmlMeter, nvml_meters

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


def turn_of(wall_s, prefill_s=0.0, ends=(), accepted=()):
    return Turn(
        wall_s=wall_s, prefill_s=prefill_s, step_end_s=list(ends), accept_lengths=list(accepted)
    )


# curves


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


# NVML


def gpu_meter(monkeypatch, **played):
    install(monkeypatch, Gpu(**(FULL | played)))
    (meter,), lines = nvml_meters([(0, properties())])
    assert lines == []
    return meter


def test_a_gpu_tells_all_it_has(monkeypatch):
    meter = gpu_meter(monkeypatch)
    assert meter.kind == "nvml counter" and meter.joules() == 0
    assert meter.facts == {
        "device": "Fake GPU",
        "gpu": 0,
        "uuid": "GPU-1",
        "pci_bus_id": "00000000:17:00.0",
        "power_limit_w": 700,
        "memory_total_mib": 81920,
    }
    assert meter.fields() == {
        "power_w": 100,
        "utilization": 50,
        "memory_utilization": 20,
        "memory_used_mib": 3072,
        "temperature_c": 61,
        "clock_graphics_mhz": 1980,
        "clock_memory_mhz": 2619,
        "throttle_bits": 1,
    }


@pytest.mark.parametrize(
    "lacking, fields",
    [
        ("temperature", ["temperature_c"]),
        ("rates", ["utilization", "memory_utilization"]),
        ("memory", ["memory_used_mib"]),
        ("graphics_mhz", ["clock_graphics_mhz"]),
        ("reasons", ["throttle_bits"]),
        ("milliwatts", ["power_w"]),
        ("limit_milliwatts", []),
    ],
)
def test_what_a_gpu_lacks_is_absent(monkeypatch, lacking, fields):
    meter = gpu_meter(monkeypatch, **{lacking: [NVMLError(3)]})
    found = meter.fields()
    assert len(found) == 8 - len(fields) and not found.keys() & fields
    assert ("power_limit_w" in meter.facts) == (lacking != "limit_milliwatts")
    assert ("memory_total_mib" in meter.facts) == (lacking != "memory")


def test_without_a_counter_power_is_integrated(monkeypatch):
    watts = [9e9, 100_000, 200_000, 300_000]  # the first is read when the meter is made
    meter = gpu_meter(monkeypatch, millijoules=[NVMLError(3)], milliwatts=watts)
    assert meter.kind == "nvml power" and meter.joules() is None
    track = Track(meter)
    for when in (0, 1, 3):
        track.take(when, whole=when != 1)
    assert track.between(0, 3) == 650 and len(track.samples) == 2


def test_a_counter_in_millijoules_rolls_over(monkeypatch):
    top = 2**32
    counts = [0, top - 30_000, 70_000, 170_000]
    track = Track(gpu_meter(monkeypatch, millijoules=counts))
    for when in range(3):
        track.take(when)
    assert track.joules == pytest.approx([0, 100, 200]) and not track.lost


@pytest.mark.parametrize("what", ["millijoules", "temperature"])
def test_a_gpu_that_falls_off_the_bus(monkeypatch, capfd, what):
    values = FULL[what] * 3 + [NVMLError(LOST)]
    track = Track(gpu_meter(monkeypatch, **{what: values}))
    for when in range(5):
        track.take(when)
    assert track.lost == "GPU is lost" and len(track.times) == 2
    assert capfd.readouterr().err.startswith("energy: Fake GPU: GPU is lost;")


def test_a_field_that_fails_later_is_left_out_from_then_on(monkeypatch):
    meter = gpu_meter(monkeypatch, temperature=[61, 62, NVMLError(999)])
    assert meter.fields()["temperature_c"] == 62
    assert "temperature_c" not in meter.fields() and len(meter.fields()) == 7


def test_a_gpu_without_energy_and_power_is_no_meter(monkeypatch):
    module = install(monkeypatch, Gpu(temperature=[50]))
    meters, lines = nvml_meters([(0, properties())])
    line = "GPU 0 (Fake GPU): neither energy nor power can be read"
    assert meters == [] and lines == [line] and module.users == 0


def test_devices_are_found_by_what_they_are_not_by_number(monkeypatch):
    """PyTorch's device 0 is NVML's second one where CUDA_VISIBLE_DEVICES says so."""
    first = Gpu("GPU-aa", "00000000:17:00.0", **FULL)
    second = Gpu("GPU-bb", "00000001:B3:00.0", **FULL)
    third = Gpu("GPU-cc", "00000000:CA:00.0", **FULL, mig=[[1, 1]])
    install(monkeypatch, first, second, third, migs={"MIG-dd": "GPU-cc"})
    asked = [properties(uuid="xx", pci=(1, 0xB3, 0)), properties(uuid="aa"), properties(uuid="dd")]
    meters, lines = nvml_meters(list(enumerate(asked)))
    assert [meter.facts["uuid"] for meter in meters] == ["GPU-bb", "GPU-aa", "GPU-cc"]
    assert [meter.facts["gpu"] for meter in meters] == [0, 1, 2]
    assert [meter.facts.get("mig") for meter in meters] == [None, None, True] and not lines


def test_a_gpu_that_nvml_does_not_know(monkeypatch):
    install(monkeypatch, Gpu(**FULL))
    _, lines = nvml_meters([(3, properties(uuid="ff"))])
    assert lines == ["GPU 3 (Fake GPU): NVML does not know it by its PCI bus id or UUID"]


def test_every_meter_gives_nvml_back(monkeypatch):
    module = install(monkeypatch, Gpu(**FULL))
    meters, _ = nvml_meters([(0, properties())])
    assert module.users == 1
    meters[0].close()
    assert module.users == 0


def test_without_the_package_one_line_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert nvml_meters([(0, properties())]) == ([], ["no energy of GPUs: pip install nvidia-ml-py"])


def test_the_package_has_all_that_is_asked_of_it():
    """The stand-in is no fiction: names, numbers of arguments, codes and bits are the package's."""
    import inspect

    import pynvml

    fake, source = FakeNvml(), inspect.getsource(nvml_module)
    asked = set(re.findall(r"nvml\.(\w+)", source)) - {"NVMLError"}
    assert len(asked) > 15
    for name in sorted(asked):
        real, ours = getattr(pynvml, name), getattr(fake, name)
        if callable(real):
            needed = [
                p for p in inspect.signature(real).parameters.values() if p.default is p.empty
            ]
            given = inspect.signature(ours).parameters.values()
            assert len(needed) == len([p for p in given if p.default is p.empty]), name
        else:
            assert real == ours, name
    bits = {
        getattr(pynvml, f"nvmlClocksEventReason{name}")
        for name in ("ApplicationsClocksSetting", "SwPowerCap", "HwSlowdown", "SyncBoost")
    }
    assert bits | {pynvml.nvmlClocksEventReasonHwThermalSlowdown} <= set(nvml_module.REASONS)
    assert pynvml.nvmlClocksEventReasonGpuIdle not in nvml_module.REASONS
    assert pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST).value == LOST


def test_without_a_driver_one_line_says_so():
    """The package itself, on a machine without a GPU."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    meters, (line,) = nvml_meters([(0, properties())])
    assert meters == [] and line.startswith("GPU 0 (Fake GPU): ") and "NVML" in line


@pytest.mark.gpu
def test_a_real_gpu():
    """Its counter, or its power, agrees with itself while it works."""
    import torch

    from model.common.records.energy.nvml import used_gpus

    matrix = torch.randn(4096, 4096, device="cuda")
    meters, lines = nvml_meters(used_gpus())
    assert meters and lines == [] and isinstance(meters[0], NvmlMeter)
    sampler = Sampler(meters, 0.05)
    sampler.start()
    sampler.idle(1.0)
    begin = time.perf_counter()
    while time.perf_counter() - begin < 3:
        matrix = torch.nn.functional.normalize(matrix @ matrix)
        torch.cuda.synchronize()
    end = time.perf_counter()
    sampler.stop()
    joules = sampler.joules(begin, end)
    watts, idle_w = joules / (end - begin), sampler.idle_w[0]
    assert 5 < idle_w < watts < 2000
    seen = [fields["power_w"] for when, fields in sampler.tracks[0].samples if when > begin + 1]
    assert watts == pytest.approx(sum(seen) / len(seen), rel=0.4)


# RAPL

NESTED = {
    "intel-rapl:0": "package-0",
    "intel-rapl:0:0": "core",
    "intel-rapl:0:1": "uncore",
    "intel-rapl:0:2": "dram",
    "intel-rapl:1": "package-1",
    "intel-rapl:1:0": "dram",
    "intel-rapl:2": "psys",
    "intel-rapl-mmio:0": "package-0",
}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """tree(domains) makes a powercap tree that the meters read."""

    def made(domains=NESTED, **more):
        monkeypatch.setattr(rapl, "POWERCAP", tmp_path)
        return Powercap(tmp_path, domains, **more)

    return made


def test_no_energy_is_counted_twice(tree):
    tree()
    meters, lines = rapl.rapl_meters()
    names = ["package-0", "package-0/dram", "package-1", "package-1/dram"]
    assert [meter.facts["device"] for meter in meters] == names and lines == []
    assert {meter.kind for meter in meters} == {"rapl"}


def test_a_processors_counter_rolls_over(tree):
    powercap = tree({"intel-rapl:0": "package-0"}, top_uj=50_000_000)
    (meter,), _ = rapl.rapl_meters()
    track = Track(meter)
    for when, microjoules in enumerate((40_000_000, 45_000_000, 62_000_000)):
        powercap.set("intel-rapl:0", microjoules)
        track.take(when)
    assert track.joules == [0, 5, 22]


def test_a_limit_is_taken_where_there_is_one(tree):
    folder = tree({"intel-rapl:0": "package-0", "intel-rapl:1": "package-1"}).folder
    (folder / "intel-rapl:0" / "constraint_0_power_limit_uw").write_text("150000000\n")
    meters, _ = rapl.rapl_meters()
    assert [meter.facts.get("power_limit_w") for meter in meters] == [150, None]


def test_a_counter_that_may_not_be_read_is_named(tree, monkeypatch):
    """Root reads all files, so the kernel's refusal is played."""
    folder = tree({"intel-rapl:0": "package-0", "intel-rapl:0:0": "dram"}).folder
    locked, number = folder / "intel-rapl:0" / "energy_uj", rapl._number

    def refusing(path):
        if path == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return number(path)

    monkeypatch.setattr(rapl, "_number", refusing)
    meters, lines = rapl.rapl_meters()
    assert [meter.facts["device"] for meter in meters] == ["package-0/dram"]
    assert lines == [f"{locked}: permission denied (it is root's; chmod a+r)"]


def test_a_file_that_is_no_number_or_not_there_is_named(tree):
    folder = tree({"intel-rapl:0": "package-0", "intel-rapl:1": "package-1"}).folder
    (folder / "intel-rapl:0" / "energy_uj").write_text("")
    (folder / "intel-rapl:1" / "max_energy_range_uj").unlink()
    meters, lines = rapl.rapl_meters()
    assert meters == [] and len(lines) == 2
    assert lines[0].startswith(f"{folder / 'intel-rapl:0' / 'energy_uj'}: invalid literal")
    missing = folder / "intel-rapl:1" / "max_energy_range_uj"
    assert lines[1] == f"{missing}: No such file or directory"


def test_a_counter_that_vanishes_is_a_device_that_died(tree, capfd):
    folder = tree({"intel-rapl:0": "package-0"}).folder
    track = Track(rapl.rapl_meters()[0][0])
    track.take(0)
    os.unlink(folder / "intel-rapl:0" / "energy_uj")
    track.take(1)
    assert "No such file" in track.lost
    assert capfd.readouterr().err.startswith("energy: package-0: ")


def test_a_machine_without_counters(tree):
    folder = tree({}).folder
    assert rapl.rapl_meters() == ([], [f"{folder}: no counters of this processor (intel-rapl)"])


# shares

LINE = curve((0, 0.0), (100, 1000.0))  # 10 W


def test_a_turn_alone_has_the_energy_of_its_time():
    log = log_of(sampler_of(LINE))
    log.begun(0, 2.0)
    assert log.joules(log.ended(0, turn_of(3.0))) == 30


def test_turns_share_equally_at_every_moment():
    """0 .. 6 in slot 0, 2 .. 4 in slot 1, 3 .. 8 in slot 2."""
    log = log_of(sampler_of(LINE), slots=3)
    log.begun(0, 0.0)
    log.begun(1, 2.0)
    log.begun(2, 3.0)
    second = log.ended(1, turn_of(2.0))
    first = log.ended(0, turn_of(6.0))
    third = log.ended(2, turn_of(5.0))
    found = [log.joules(share) for share in (first, second, third)]
    wanted = [20 + 5 + 10 / 3 + 10, 5 + 10 / 3, 10 / 3 + 10 + 20]
    assert found == pytest.approx(wanted) and sum(found) == pytest.approx(80)


def test_time_in_which_nothing_ran_is_nobodys():
    log = log_of(sampler_of(LINE))
    shares = []
    for begin in (1.0, 5.0, 9.0):
        log.begun(0, begin)
        shares.append(log.ended(0, turn_of(2.0)))
    assert [log.joules(share) for share in shares] == [20, 20, 20]
    (entry,) = log.summary()
    assert entry["timed_j"] == 60 and entry["timed_s"] == 6
    assert entry["run_j"] == 110 and entry["run_s"] == 11 and entry["answers"] == 3


def test_many_random_turns_add_up_to_the_energy_of_their_union():
    import random

    chance = random.Random(3)
    points, joules = [], 0.0
    for when in range(200):
        points.append((when / 2, joules))
        joules += chance.uniform(0, 50)
    track = curve(*points)
    log = log_of(sampler_of(track), slots=4)
    now, running, shares = 0.0, {}, []
    for _ in range(300):
        now += chance.uniform(0, 0.6)
        if len(running) < 4 and chance.random() < 0.5:
            slot = next(slot for slot in range(4) if slot not in running)
            running[slot] = now
            log.begun(slot, now)
        elif running:
            slot = chance.choice(sorted(running))
            shares.append(log.ended(slot, turn_of(now - running.pop(slot))))
    for slot in list(running):
        shares.append(log.ended(slot, turn_of(now - running.pop(slot))))
    total = sum(log.joules(share) for share in shares)
    assert len(shares) > 100 and now < 99
    assert total == pytest.approx(sum(track.between(*span) for span in union(log.spans)))
    assert total < track.between(0, now) - 1


def test_a_failed_turn_takes_its_share_with_it(monkeypatch):
    log = log_of(sampler_of(LINE), slots=2)
    log.begun(0, 0.0)
    log.begun(1, 0.0)
    monkeypatch.setattr(energy.time, "perf_counter", lambda: 4.0)
    log.failed(1)
    log.failed(1)  # a slot in which nothing began is none of its business
    assert log.joules(log.ended(0, turn_of(6.0))) == 40
    assert log.summary()[0]["answers"] == 1


def test_several_devices_are_added_and_one_that_died_leaves_no_sum():
    other = curve((0, 0.0), (5, 100.0), lost="GPU is lost")
    log = log_of(sampler_of(LINE, other))
    log.begun(0, 0.0)
    whole = log.ended(0, turn_of(4.0))
    log.begun(0, 4.0)
    late = log.ended(0, turn_of(2.0))
    assert log.joules(whole) == 120 and log.joules(late) is None
    (entry,) = log.summary()
    assert "timed_j" not in entry and "run_j" not in entry
    assert entry["devices"][0]["timed_j"] == 60
    assert "timed_j" not in entry["devices"][1] and entry["devices"][1]["lost"] == "GPU is lost"


def test_a_record_waits_for_the_sample_behind_its_end():
    track = curve((0, 0.0), (5, 50.0))
    log = log_of(sampler_of(track), slots=2)
    written = []
    for slot in (0, 1):
        log.begun(slot, 1.0)
    first = log.ended(0, turn_of(3.0))
    log.when_known(lambda: written.append(log.joules(first)))
    assert written == [15]
    second = log.ended(1, turn_of(6.0))
    log.when_known(lambda: written.append(log.joules(second)))
    assert written == [15]
    track.times.append(8)
    track.joules.append(80.0)
    log.settle()
    assert written == [15, 15 + 30]


def test_without_a_sampler_nothing_waits_and_nothing_has_an_energy():
    log, written = EnergyLog(None), []
    log.ready()
    log.begun(0, 1.0)
    for slot in (0, 1):  # of a source that never says when a turn begins, too
        share = log.ended(slot, turn_of(3.0))
        log.when_known(lambda share=share: written.append(log.joules(share)))
    log.failed(2)
    assert written == [None, None] and log.summary() == []


# the window of ML.ENERGY


def independent(firsts, others, slots):
    """The window by their words: from the moment at which B requests have their first token to
    that at which N - B have."""
    begin = min(t for t in firsts if sum(f <= t for f in firsts) >= slots)
    end = min(t for t in firsts if sum(f <= t for f in firsts) >= len(firsts) - slots)
    return begin, end, sum(begin < t <= end for t in [*firsts, *others])


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_the_steady_window(slots):
    import random

    chance = random.Random(slots)
    firsts = [chance.uniform(0, 30) for _ in range(12)]
    others = [chance.uniform(0, 40) for _ in range(100)]
    tokens = [(when, 1, True) for when in firsts] + [(when, 1, False) for when in others]
    chance.shuffle(tokens)
    assert steady_window(tokens, slots) == independent(firsts, others, slots)


def test_too_few_requests_have_no_steady_window():
    tokens = [(float(when), 1, True) for when in range(8)]
    assert steady_window(tokens, 4) is None and steady_window(tokens, 5) is None
    assert steady_window(tokens, 3) == (2.0, 4.0, 2)


def test_the_summary_of_a_load_run_has_the_window():
    log = log_of(sampler_of(LINE), slots=2)
    for number in range(6):  # two at a time, of 4 s; first tokens after 1 s, 3 tokens a step
        log.begun(number % 2, float(number // 2 * 4))
        if number % 2:
            for slot in (0, 1):
                log.ended(slot, turn_of(4.0, 1.0, [2.0, 4.0], [3, 3]))
    (entry,) = log.summary(load=True)
    assert "steady" not in log.summary()[0]
    assert entry["steady"] == {
        "slots": 2,
        "requests": 6,
        "begin_s": 1.0,
        "end_s": 5.0,
        "joules": 40.0,
        "tokens": 2 * 6 + 2,
        "joules_per_token": pytest.approx(40 / 14, abs=1e-6),
        "full": 1.0,
    }


# the meta


def test_the_summary_of_a_gpu(monkeypatch):
    rates = [SimpleNamespace(gpu=percent, memory=10) for percent in (0, 0, 40, 60, 80)]
    meter = gpu_meter(
        monkeypatch,
        millijoules=[0, 0, 200_000, 700_000, 900_000],
        milliwatts=[0, 100_000, 300_000, 600_000, 200_000],
        temperature=[0, 40, 50, 70, 60],
        rates=rates,
        reasons=[0, 0x1, 0x4, 0x44, 0x0],
    )
    sampler = sampler_of(Track(meter))
    sampler.idle_w = [60.0]
    for when in (0, 1, 2, 3):
        sampler.tracks[0].take(when)
    log = log_of(sampler)
    log.begun(0, 0.5)
    log.ended(0, turn_of(2.0))
    log.last = 3.0
    (entry,) = log.summary()
    (device,) = entry["devices"]
    assert device["timed_j"] == 100 + 500 + 100 and device["run_j"] == 900
    assert (device["mean_w"], device["peak_w"], device["idle_w"]) == (350, 600, 60)
    assert device["utilization"] == 45 and device["temperature_c"] == 70
    assert device["throttled"] == {"power cap": 0.5, "hardware thermal slowdown": 0.25}
    assert device["num_samples"] == 4 and device["power_limit_w"] == 700
    assert device["samples"]["t_s"] == [0, 1, 2, 3]
    assert device["samples"]["joules"] == [0, 200, 700, 900]
    assert device["samples"]["power_w"] == [100, 300, 600, 200]
    assert entry["idle_w"] == 60 and entry["interval_s"] == 0.1
    json.dumps(entry, allow_nan=False)


def test_samples_are_thinned():
    track = curve(*((when / 10, float(when)) for when in range(5001)))
    track.samples = [(when, {}) for when in track.times]
    log = log_of(sampler_of(track))
    log.begun(0, 0.0)
    log.ended(0, turn_of(500.0))
    samples = log.summary()[0]["devices"][0]["samples"]
    assert len(samples["t_s"]) == len(samples["joules"]) <= energy.MOST_SAMPLES
    assert (
        samples["t_s"][1] == 1.1
        and samples["joules"][1] == 11
        and set(samples)
        == {
            "t_s",
            "joules",
        }
    )


def test_peak_power_of_a_counter_is_the_steepest_part():
    track = played([0, 1, 2, 3], (0.0, {}), (10.0, {}), (50.0, {}), (55.0, {}))
    log = log_of(sampler_of(track))
    log.begun(0, 0.0)
    log.ended(0, turn_of(3.0))
    (device,) = log.summary()[0]["devices"]
    assert (device["peak_w"], device["run_j"]) == (40, 55)
    assert "idle_w" not in device and "throttled" not in device and "temperature_c" not in device
