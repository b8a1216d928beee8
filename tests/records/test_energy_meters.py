"""NVML and RAPL, as a fake package and a fake powercap tree have them."""

import os
import re
import time

import pytest
from energy_curves import FULL, gpu_meter
from fake_meters import LOST, FakeNvml, Gpu, NVMLError, Powercap, install, properties

from model.common.records.energy import nvml as nvml_module
from model.common.records.energy import rapl
from model.common.records.energy.curve import Sampler, Track
from model.common.records.energy.nvml import NvmlMeter, nvml_meters


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
