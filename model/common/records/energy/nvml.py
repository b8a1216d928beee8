"""NVIDIA's GPUs, through NVML (the package nvidia-ml-py, whose module is pynvml)."""

from __future__ import annotations

from model.common.records.energy.curve import Meter, MeterLost

MIB = 1 << 20
REASONS = {
    0x2: "clock setting",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clock setting",
}  # bits of NVML's clocks event reasons, without idling (0x1)


def _power(nvml, handle):
    return {"power_w": nvml.nvmlDeviceGetPowerUsage(handle) / 1e3}


def _utilization(nvml, handle):
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    return {"utilization": rates.gpu, "memory_utilization": rates.memory}


def _memory(nvml, handle):
    return {"memory_used_mib": nvml.nvmlDeviceGetMemoryInfo(handle).used / MIB}


def _temperature(nvml, handle):
    sensor = nvml.NVML_TEMPERATURE_GPU
    return {"temperature_c": nvml.nvmlDeviceGetTemperature(handle, sensor)}


def _graphics_clock(nvml, handle):
    clock = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_GRAPHICS)
    return {"clock_graphics_mhz": clock}


def _memory_clock(nvml, handle):
    return {"clock_memory_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)}


def _throttling(nvml, handle):
    return {"throttle_bits": nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)}


SAMPLED = (
    _power,
    _utilization,
    _memory,
    _temperature,
    _graphics_clock,
    _memory_clock,
    _throttling,
)


class NvmlMeter(Meter):
    """One GPU: its counter of joules, or its power where it has none."""

    def __init__(self, nvml, handle, facts: dict):
        super().__init__()
        self.nvml, self.handle, self.facts = nvml, handle, facts
        self.gone = [nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_UNINITIALIZED]
        self.sampled = [read for read in SAMPLED if self._has(read)]
        self.counts = self._has(lambda nvml, handle: self._millijoules())
        if not self.counts and _power not in self.sampled:
            raise MeterLost("neither energy nor power can be read")
        self.kind = "nvml counter" if self.counts else "nvml power"
        self.moduli = (2**32 / 1e3, 2**64 / 1e3)

    def _millijoules(self) -> int:
        return self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)

    def _has(self, read) -> bool:
        """Whether the device has what read(nvml, handle) asks for."""
        try:
            read(self.nvml, self.handle)
        except self.nvml.NVMLError:
            return False
        return True

    def joules(self) -> float | None:
        try:
            return self._millijoules() / 1e3 if self.counts else None
        except self.nvml.NVMLError as error:
            raise MeterLost(str(error)) from error

    def fields(self) -> dict:
        found = {}
        for read in list(self.sampled):
            try:
                found |= read(self.nvml, self.handle)
            except self.nvml.NVMLError as error:
                if error.value in self.gone:
                    raise MeterLost(str(error)) from error
                self.sampled.remove(read)
        return found

    def close(self) -> None:
        try:
            self.nvml.nvmlShutdown()
        except self.nvml.NVMLError:
            pass  # the driver has gone


def nvml_meters(gpus: list[tuple[int, object]]) -> tuple[list[Meter], list[str]]:
    """Meters of PyTorch's devices [(number, properties)], and a line for what cannot be read."""
    try:
        import pynvml as nvml
    except ImportError:
        return [], ["no energy of GPUs: pip install nvidia-ml-py"]
    meters, lines = [], []
    for number, properties in gpus:
        try:
            meters.append(_meter(nvml, number, properties))
        except (nvml.NVMLError, MeterLost) as error:
            lines.append(f"GPU {number} ({properties.name}): {' '.join(str(error).split())}")
    return meters, lines


def _meter(nvml, number: int, properties) -> NvmlMeter:
    """A started meter. Raises MeterLost or NVML's error."""
    nvml.nvmlInit()  # once a meter: NVML counts its users
    try:
        handle = _handle(nvml, properties)
        if handle is None:
            raise MeterLost("NVML does not know it by its PCI bus id or UUID")
        facts = {"device": properties.name, "gpu": number, **_facts(nvml, handle)}
        return NvmlMeter(nvml, handle, facts)
    except Exception:
        nvml.nvmlShutdown()
        raise


def _handle(nvml, properties):
    """NVML's handle of the whole GPU, None where it has none.

    PyTorch's numbers follow CUDA_VISIBLE_DEVICES, which may hold numbers, UUIDs and names of MIG
    devices, and CUDA_DEVICE_ORDER; NVML's do not.
    """
    parts = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    if None not in parts:
        return nvml.nvmlDeviceGetHandleByPciBusId("{:08X}:{:02X}:{:02X}.0".format(*parts))
    uuid = str(properties.uuid)
    for name in (uuid,) if uuid.startswith(("GPU-", "MIG-")) else (f"GPU-{uuid}", f"MIG-{uuid}"):
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(name)
        except nvml.NVMLError:
            continue
        if name.startswith("MIG-"):
            return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        return handle
    return None


def _facts(nvml, handle) -> dict:
    """What of a GPU never changes, as far as it tells."""
    asked = {
        "uuid": lambda: _text(nvml.nvmlDeviceGetUUID(handle)),
        "pci_bus_id": lambda: _text(nvml.nvmlDeviceGetPciInfo(handle).busId),
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        "memory_total_mib": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total / MIB,
        "mig": lambda: bool(nvml.nvmlDeviceGetMigMode(handle)[0]) or None,
    }
    found = {}
    for name, ask in asked.items():
        try:
            value = ask()
        except nvml.NVMLError:
            continue
        if value is not None:
            found[name] = value
    return found


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else value


def used_gpus() -> list[tuple[int, object]]:
    """PyTorch's devices on which this process holds memory: [(number, properties)]."""
    import torch

    if not torch.cuda.is_available():
        return []
    numbers = range(torch.cuda.device_count())
    used = [number for number in numbers if torch.cuda.memory_allocated(number)]
    return [(number, torch.cuda.get_device_properties(number)) for number in used]
