"""clock.py on a CPU, with a perf_counter that is told the time, and on a GPU that is pretended."""

import pytest
import torch
from load_simulation import SimulatedTime, pretend_gpu

from model.common.loop import clock as clock_module
from model.common.loop.clock import Clock, now
from model.common.loop.turns import PHASES

CPU = torch.device("cpu")


@pytest.fixture
def told(monkeypatch):
    """A list of times; perf_counter answers them one after the other."""
    times = []
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: times.pop(0))
    return times


def test_time_belongs_to_the_phase_marked_last(told):
    told += [0.5, 0.5, 1.0, 1.5, 3.5, 3.75, 4.0, 10.0, 10.25, 12.25, 12.5, 13.5, 13.5]
    clock = Clock(CPU)
    clock.mark("draft")
    clock.mark("verify")
    clock.mark("commit")
    clock.mark("draft")  # what observe() takes is drafting too
    clock.end_step()
    clock.mark("draft")
    clock.mark("verify")
    clock.mark("commit")
    clock.end_step()  # the six seconds between the steps belong to no phase
    first = {"draft": 0.75, "verify": 2.0, "commit": 0.25}
    second = {"draft": 0.25, "verify": 2.0, "commit": 0.25}
    assert clock.read() == (13.5, [(first, 4.0), (second, 12.5)]) and told == []
    told += [14.0, 15.0, 15.5, 15.5]
    clock.mark("verify")
    clock.end_step()
    alone = dict.fromkeys(PHASES, 0.0) | {"verify": 1.0}
    assert clock.read() == (15.5, [(alone, 15.0)]) and told == []


def test_no_step_no_time(told):
    told += [1.0, 1.0, 2.0, 2.0]
    assert Clock(CPU).read() == (2.0, [])
    told += [5.0]
    assert now(CPU) == 5.0


FAST = 1 + 20e-6  # of a GPU's timer


@pytest.mark.parametrize("speed", [FAST, 2 - FAST])
def test_a_gpus_timer_that_drifts_from_the_hosts(monkeypatch, speed):
    """1,000 s of steps of 20 ms, read every 10 s as by a loop that is never empty."""
    host = SimulatedTime()
    pretend_gpu(monkeypatch, host, speed)
    clock, ends, found = Clock(torch.device("cuda"), host), [], []
    for step in range(50_000):
        clock.mark("verify")
        host.time += 0.02
        clock.end_step()
        ends.append(host.time)
        if step % 500 == 499:
            read_s, steps = clock.read()
            assert read_s == host.time and len(steps) == 500
            assert steps[-1][1] <= read_s + 1e-9  # within the turns that end here
            found += steps
            assert not clock.steps and not clock.marks  # nothing is kept
    assert host.time == pytest.approx(1000)
    assert [end for _, end in found] == pytest.approx(ends, abs=1e-5)
    assert {round(phases["verify"], 5) for phases, _ in found} == {0.02}


def test_work_on_other_devices_is_waited_for(monkeypatch):
    """A draft model's: after Drafter.start() it may go on while the target's device is idle."""
    host = SimulatedTime()
    gpu = pretend_gpu(monkeypatch, host)
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    clock = Clock(first, host, [second])
    gpu.busy_until[second] = 3.0
    assert clock.read() == (3.0, [])
    clock.mark("draft")
    gpu.busy_until[first] = host.time = 4.0
    clock.end_step()
    gpu.busy_until[second] = 7.0
    ((phases, end),) = clock.read()[1]
    assert host.time == 7 and (phases["draft"], end) == (1.0, 4.0)


@pytest.mark.gpu
def test_events_on_a_gpu():
    """Phases are the device's own time: a long multiplication is in the phase that launched it."""
    device = torch.device("cuda")
    matrix = torch.randn(2048, 2048, device=device)
    begin = now(device)
    clock = Clock(device)
    for _ in range(2):
        clock.mark("draft")
        clock.mark("verify")
        for _ in range(50):
            matrix = matrix @ matrix / 2048
        clock.mark("commit")
        clock.end_step()
    end, ((first, first_end), (last, last_end)) = clock.read()
    assert all(phases["verify"] > phases["draft"] >= 0 for phases in (first, last))
    assert sum(map(sum, (first.values(), last.values()))) <= end - begin
    assert begin < first_end < last_end <= end <= now(device)
