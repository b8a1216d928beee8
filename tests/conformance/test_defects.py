"""The checks turn red under each planted defect (defects.py), so that green ones mean something."""

import pytest

from conformance import defects, drafter_defects, law
from conformance.cases import Case

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "defect, check, method, variant",
    defects.EXPECTED,
    ids=[f"{d.__name__}-{c.__name__}-{method}" for d, c, method, _ in defects.EXPECTED],
)
def test_a_defect_is_seen(defect, check, method, variant, monkeypatch):
    case = Case(method, variant)  # nothing is shared with the healthy tests
    defect(monkeypatch)
    try:
        with pytest.raises(AssertionError):
            check(case)
    finally:
        law.baseline_answers.cache_clear()  # they come out of the loop


def test_every_defect_is_expected_somewhere():
    planted = {
        value
        for module in (defects, drafter_defects)
        for value in vars(module).values()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    } - {defects.read_wrapped, defects.new_answers}
    assert planted == {defect for defect, *_ in defects.EXPECTED}
