"""Every method through the harness: two turns, order of questions, killed runs (runs.py)."""

import pytest

from conformance.cases import CASES, case
from conformance.runs import check_flags, check_order, check_resume, check_two_turns


@pytest.mark.parametrize("check", [check_two_turns, check_flags, check_order, check_resume])
@pytest.mark.parametrize(
    "method, variant", CASES, ids=["-".join(filter(None, pair)) for pair in CASES]
)
def test_runs(check, method, variant):
    check(case(method, variant))
