"""Processors, through the kernel's powercap tree (RAPL's counters of Intel and AMD)."""

from __future__ import annotations

from pathlib import Path

from model.common.records.energy.curve import Meter, MeterLost

POWERCAP = Path("/sys/class/powercap")
COUNTED = ("package", "dram")  # core and uncore are in their package's energy, psys holds it all


class RaplMeter(Meter):
    """The counter of one domain, in microjoules; it begins anew after max_energy_range_uj."""

    kind = "rapl"

    def __init__(self, zone: Path, device: str):
        super().__init__()
        self.counter = zone / "energy_uj"
        self.facts = {"device": device}
        self.moduli = (_number(zone / "max_energy_range_uj") / 1e6,)
        self.joules()  # raises where it cannot be read
        try:
            self.facts["power_limit_w"] = _number(zone / "constraint_0_power_limit_uw") / 1e6
        except (OSError, ValueError):
            pass  # a domain without a limit of its own

    def joules(self) -> float:
        try:
            return _number(self.counter) / 1e6
        except (OSError, ValueError) as error:
            raise MeterLost(_why(self.counter, error)) from error


def rapl_meters() -> tuple[list[Meter], list[str]]:
    """The packages and their memory, and a line for each that cannot be read."""
    meters, lines = [], []
    zones = sorted(POWERCAP.glob("intel-rapl:*"))  # intel-rapl-mmio has the same packages again
    if not zones:
        return [], [f"{POWERCAP}: no counters of this processor (intel-rapl)"]
    for zone in zones:
        try:
            device = _device(zone)
            if device is not None:
                meters.append(RaplMeter(zone, device))
        except MeterLost as error:
            lines.append(str(error))
        except (OSError, ValueError) as error:
            lines.append(_why(zone, error))
    return meters, lines


def _device(zone: Path) -> str | None:
    """'package-0', or 'package-0/dram'; None of a domain whose energy another one has."""
    name = (zone / "name").read_text(encoding="ascii").strip()
    if not name.startswith(COUNTED):
        return None
    parent = zone.with_name(zone.name.rpartition(":")[0])
    if zone.name.count(":") == 1:
        return name
    return f"{(parent / 'name').read_text(encoding='ascii').strip()}/{name}"


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _why(path: Path, error: Exception) -> str:
    """One line: what of `path` cannot be read."""
    if isinstance(error, PermissionError):
        return f"{error.filename or path}: permission denied (it is root's; chmod a+r)"
    reason = getattr(error, "strerror", None) or error
    return f"{getattr(error, 'filename', None) or path}: {reason}"
