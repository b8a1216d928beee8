"""clock.py on a CPU, with a perf_counter that is told the time."""

import pytest
import torch

from model.common.loop import clock as clock_module
from model.common.loop.clock import PHASES, Clock, now

CPU = torch.device("cpu")


@pytest.fixture
def told(monkeypatch):
    """A list of times; perf_counter answers them one after the other."""
    times = []
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: times.pop(0))
    return times


def test_time_belongs_to_the_phase_marked_last(told):
    told += [0.5, 1.0, 1.5, 3.5, 3.75, 4.0, 10.0, 10.25, 12.25, 12.5]
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
    assert clock.seconds(0) == {"draft": [0.75, 0.25], "verify": [2.0, 2.0], "commit": [0.25, 0.25]}
    assert clock.ends(0) == [4.0, 12.5] and clock.ends(1) == [12.5]
    assert clock.seconds(1) == {"draft": [0.25], "verify": [2.0], "commit": [0.25]}
    assert clock.seconds(2) == {phase: [] for phase in PHASES} and told == []


def test_no_step_no_time(told):
    told += [1.0]
    assert Clock(CPU).seconds(0) == {phase: [] for phase in PHASES}
    told += [5.0]
    assert now(CPU) == 5.0


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
    end = now(device)
    seconds = clock.seconds(0)
    assert all(a > b >= 0 for a, b in zip(seconds["verify"], seconds["draft"]))
    assert sum(map(sum, seconds.values())) <= end - begin
    first, last = clock.ends(0)
    assert begin < first < last <= end
