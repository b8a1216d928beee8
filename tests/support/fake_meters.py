"""NVML and the kernel's powercap tree as tests want them: they play recorded values."""

import os
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

CODES = {
    "NVML_ERROR_UNINITIALIZED": 1,
    "NVML_ERROR_NOT_SUPPORTED": 3,
    "NVML_ERROR_NOT_FOUND": 6,
    "NVML_ERROR_GPU_IS_LOST": 15,
}
NOT_SUPPORTED, LOST = CODES["NVML_ERROR_NOT_SUPPORTED"], CODES["NVML_ERROR_GPU_IS_LOST"]
ASKED = {
    "nvmlDeviceGetTotalEnergyConsumption": "millijoules",
    "nvmlDeviceGetPowerUsage": "milliwatts",
    "nvmlDeviceGetEnforcedPowerLimit": "limit_milliwatts",
    "nvmlDeviceGetUtilizationRates": "rates",
    "nvmlDeviceGetMemoryInfo": "memory",
    "nvmlDeviceGetCurrentClocksEventReasons": "reasons",
    "nvmlDeviceGetMigMode": "mig",
    "nvmlDeviceGetUUID": "uuid",
    "nvmlDeviceGetPciInfo": "pci",
}


class NVMLError(Exception):
    """As pynvml's: its value is a code of NVML."""

    def __init__(self, value):
        super().__init__(value)
        self.value = value

    def __str__(self):
        return {NOT_SUPPORTED: "Not Supported", LOST: "GPU is lost"}.get(self.value, "NVML error")


class Gpu:
    """What a device plays: lists of which a call takes the next entry; the last one stays.

    An Error's code in the place of a value is raised; of what is not given all calls raise Not
    Supported.
    """

    def __init__(self, uuid="GPU-1", bus="00000000:17:00.0", **played):
        self.uuid, self.bus = uuid, bus
        self.played = {name: list(values) for name, values in played.items()}
        self.played |= {"uuid": [uuid], "pci": [SimpleNamespace(busId=bus.encode())]}

    def next(self, name):
        values = self.played.get(name, [NVMLError(NOT_SUPPORTED)])
        value = values.pop(0) if len(values) > 1 else values[0]
        if isinstance(value, NVMLError):
            raise value
        return value


class FakeNvml(ModuleType):
    """The module pynvml over a few Gpus."""

    NVML_TEMPERATURE_GPU, NVML_CLOCK_GRAPHICS, NVML_CLOCK_MEM = 0, 0, 2
    NVMLError = NVMLError

    def __init__(self, *gpus, migs=()):
        super().__init__("pynvml")
        self.gpus, self.migs, self.users = gpus, dict(migs), 0
        for name, code in CODES.items():
            setattr(self, name, code)
        for name, what in ASKED.items():
            setattr(self, name, lambda gpu, what=what: gpu.next(what))

    def nvmlInit(self):
        self.users += 1

    def nvmlShutdown(self):
        self.users -= 1

    def nvmlDeviceGetTemperature(self, gpu, sensor):
        assert sensor == self.NVML_TEMPERATURE_GPU
        return gpu.next("temperature")

    def nvmlDeviceGetClockInfo(self, gpu, clock):
        return gpu.next({0: "graphics_mhz", 2: "memory_mhz"}[clock])

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid in self.migs:
            return self.migs[uuid]
        return self._one("uuid", uuid)

    def nvmlDeviceGetHandleByPciBusId(self, bus):
        return self._one("bus", bus)

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, mig):
        return self._one("uuid", mig)

    def _one(self, name, value):
        for gpu in self.gpus:
            if getattr(gpu, name) == value:
                return gpu
        raise NVMLError(CODES["NVML_ERROR_NOT_FOUND"])


def install(monkeypatch, *gpus, **more):
    """Put a FakeNvml in the place of pynvml."""
    module = FakeNvml(*gpus, **more)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def properties(name="Fake GPU", uuid="1", pci=None):
    """PyTorch's properties of a device; pci: (domain, bus, device), None = it does not tell."""
    known = dict(zip(("pci_domain_id", "pci_bus_id", "pci_device_id"), pci or ()))
    return SimpleNamespace(name=name, uuid=uuid, **known)


class Powercap:
    """A powercap tree in a folder; domains: {"intel-rapl:0": "package-0", ...}."""

    def __init__(self, folder, domains, top_uj=262_143_328_850):
        self.folder, self.top_uj = folder, top_uj
        self.lock, self.gone = threading.Lock(), set()
        for zone, name in domains.items():
            (folder / zone).mkdir(parents=True)
            (folder / zone / "name").write_text(f"{name}\n")
            (folder / zone / "max_energy_range_uj").write_text(f"{top_uj}\n")
            self.set(zone, 0)

    def set(self, zone, microjoules):
        """Make a domain's counter say so, as a kernel does: nobody reads half a number."""
        part = self.folder / f"part-{zone}"  # no name of a zone
        with self.lock:
            if zone not in self.gone:
                part.write_text(f"{int(microjoules) % self.top_uj}\n")
                os.replace(part, self.folder / zone / "energy_uj")

    def lose(self, zone):
        """A domain's counter vanishes."""
        with self.lock:
            self.gone.add(zone)
            (self.folder / zone / "energy_uj").unlink()


class Running:
    """A thread that lets domains use watts(seconds) until the with-block ends."""

    def __init__(self, tree, watts, first_uj=0, step_s=0.002):
        self.tree, self.watts, self.used = tree, watts, dict.fromkeys(watts, first_uj)
        self.step_s, self.stopping = step_s, threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._write()
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.stopping.set()
        self.thread.join()

    def _run(self):
        begin = last = time.perf_counter()
        while not self.stopping.wait(self.step_s):
            now = time.perf_counter()
            for zone, watts in self.watts.items():
                self.used[zone] += 1e6 * watts(now - begin) * (now - last)
            last = now
            self._write()

    def _write(self):
        for zone, used in self.used.items():
            self.tree.set(zone, used)
