"""Energy of a run (--energy): meters, the thread that samples them, the share of every answer.

A turn's energy_j is defined in records/schema.py. The meta's `energy` is a list, an entry a process
that answered (a resumed run, or one of several workers, adds one), each of the answers of its own
file; a killed process leaves none, and the records hold what it measured. What a device lacks is
absent, never 0. An entry:

    host, began_s, ended_s   Unix times of the first question's begin and the last one's end
    interval_s               seconds between two samples
    answers                  turns that this process answered
    timed_s, timed_j         length and energy of the time in which at least one turn of this file
                             was being answered, or had not failed yet; of all devices
    run_s, run_j             from began_s to ended_s: pairs and the harness' own work among it
    idle_w                   sum over devices
    devices                  [{
        meter                "nvml counter" (the GPU's own counter of joules), "nvml power" (its
                             power, integrated) or "rapl" (a processor's counter)
        device               "NVIDIA H200", "package-0", "package-0/dram"
        gpu, uuid, pci_bus_id  of a GPU: PyTorch's number of it, and what it is known by elsewhere
        mig                  true: the run had a part of the GPU, the meter is of the whole
        timed_j, run_j
        idle_w               before the run, after the model was loaded, nothing running
        mean_w               timed_j / timed_s
        peak_w               the highest power that was sampled
        power_limit_w
        utilization          %, mean: time in which a kernel ran
        memory_utilization   %, mean: time in which the GPU's memory was read or written
        memory_used_mib      highest; memory_total_mib
        temperature_c        highest
        clock_graphics_mhz   mean; clock_memory_mhz
        throttled            {reason: share of the samples}, of reasons other than idling
        num_samples
        lost                 one line: why it could not be read to the end
        samples              thinned: {"t_s": [seconds after began_s], "joules": [since the first],
                             and those of power_w, utilization, memory_utilization, memory_used_mib,
                             temperature_c, clock_graphics_mhz, clock_memory_mhz that it has}
    }]
    unread                   lines: devices that the run uses and that are in no figure
    steady                   of a load run, see log.steady_window(): {slots, requests, begin_s and
                             end_s (seconds after began_s), joules, tokens, joules_per_token,
                             full: share of the window in which all slots were taken; below 95 %
                             nothing was steady, and serving.py prints no figure}

Idle power is subtracted nowhere. Only the devices that the run uses are metered: of a run on GPUs
neither the processor nor its memory is in any figure.
"""

from __future__ import annotations

from model.common.argument_types import between

ENERGY = ("needed", "if-any")
INTERVAL_S = 0.1


def add_energy(group) -> None:
    """The flags."""
    group.add_argument(
        "--energy",
        nargs="?",
        choices=ENERGY,
        const="needed",
        help="meter the joules of the devices that the run uses: GPUs by NVML, a processor by RAPL;"
        " where no meter can be read the run is refused, or (if-any) has no energy",
    )
    group.add_argument(
        "--energy-interval",
        type=between(0.005, 60),
        metavar="S",
        help=f"of --energy: seconds between two samples (default: {INTERVAL_S})",
    )
