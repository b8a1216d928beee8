"""The price of verification: planted costs are found, nothing of the target is changed."""

import pytest
import torch
from conftest import make_model

from model.common.fitting import price as pricing
from model.common.fitting.price import price_of_rows, row_counts, seconds_of
from model.common.target.model import Target


class PlannedTime:
    """Stands for clock.now() and clock.Clock: time passes where a target says so."""

    def __init__(self, device=None):
        self.marks = []

    def mark(self, phase):
        self.marks.append(PlannedTarget.time)

    def end_step(self):
        self.marks.append(PlannedTarget.time)

    def read(self):
        begin, end = self.marks
        return end, [({"verify": end - begin}, end)]


class PlannedTarget:
    """Forwards that take cost(rows); the first of a width takes an hour more."""

    device, time = torch.device("cpu"), 0.0

    def __init__(self, cost):
        self.cost, self.rows = cost, []

    def reserve(self, num_slots, capacity):
        self.capacity = capacity

    def prefill(self, slots, ids, lengths, needs):
        self.prompt = ids.tolist()

    def forward(self, root, draft, longest, hidden):
        rows = 1 + draft.tokens.shape[1]
        assert draft.tree.depths.shape == (1, rows) and longest == len(self.prompt[0]) + 1
        PlannedTarget.time += self.cost(rows) + (0 if rows in self.rows else 3600)
        self.rows.append(rows)


@pytest.fixture
def planned(monkeypatch):
    monkeypatch.setattr(pricing, "Clock", PlannedTime)
    monkeypatch.setattr(pricing, "now", lambda device: PlannedTarget.time)
    return PlannedTarget


def test_planned_prices_are_found(planned):
    target = planned(lambda rows: 0.1 + 0.01 * rows)
    found = price_of_rows(target, [1, 2, 3], 2, 60, 8, ("last",))
    assert found == pytest.approx({rows: 0.1 + 0.01 * rows for rows in (1, 2, 4, 8, 16, 32, 60)})
    assert target.prompt == [[1, 2, 3]] * 2 and target.capacity >= 3 + 60
    assert seconds_of(found, 24) == pytest.approx(0.34)
    assert seconds_of(found, 80) == found[60]


def test_rows_that_cannot_pay_are_left_out(planned):
    """The first width that is dearer than that is the last one measured."""
    found = price_of_rows(planned(lambda rows: float(rows)), [1], 1, 1024, 7)
    assert sorted(found) == [1, 2, 4, 8]


def test_a_slow_moment_is_no_price(planned):
    """One forward of a width takes ten times as long."""
    target = planned(lambda rows: 10.0 if target.rows.count(8) == 3 and rows == 8 else 1.0)
    assert set(price_of_rows(target, [1], 1, 64, 50).values()) == {1.0}


def test_row_counts():
    assert row_counts(1) == [1] and row_counts(2) == [1, 2] and row_counts(64)[-2:] == [32, 64]
    assert row_counts(65)[-2:] == [64, 65]


@pytest.mark.parametrize("num_slots", [1, 3])
def test_of_a_target(num_slots):
    """Committed lengths stand where the prompts end; the next answers are as ever."""
    target = Target(make_model())
    found = price_of_rows(target, [5, 6, 7, 8], num_slots, 20, 1000, ("last",))
    assert sorted(found) == [1, 2, 4, 8, 16, 20] and min(found.values()) > 0
    assert target.cache.length.tolist() == [4] * num_slots
