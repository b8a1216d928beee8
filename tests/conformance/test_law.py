"""Sampling of every method follows the target's law, by enumeration (law.py)."""

import pytest

from conformance.cases import CASES, case, world_of
from conformance.law import (
    LEVEL,
    NUM,
    check_law,
    check_penalised_law,
    check_seeds,
    detectable_variation,
    g_test,
    holm,
    law_of,
)

pytestmark = pytest.mark.slow

p_values: dict[str, float] = {}  # of the cases that this process has judged
every_case = pytest.mark.parametrize(
    "method, variant", CASES, ids=["-".join(filter(None, pair)) for pair in CASES]
)


@every_case
def test_law(method, variant):
    one = case(method, variant)
    p_values[repr(one)] = check_law(one)


@every_case
def test_penalised_law(method, variant):
    check_penalised_law(case(method, variant))


def test_no_method_is_rejected():
    """Holm's rule over the cases that were judged."""
    assert holm(p_values) == []


@every_case
def test_seeds(method, variant):
    check_seeds(case(method, variant))


@pytest.mark.parametrize("layers", [3, 8])
def test_power(layers):
    """With chance 99 % a bias of 10 % in total variation is found; the law is worth a test."""
    law = law_of(world_of("llama", layers))
    assert abs(sum(law.values()) - 1) < 1e-9 and len(law) > 100
    assert detectable_variation(world_of("llama", layers)) < 0.1


def test_the_g_test_finds_what_is_there():
    law = {(0,): 0.5, (1,): 0.25, (2,): 0.2499, (3,): 0.0001}
    fair = [(0,)] * (NUM // 2) + [(1,)] * (NUM // 4) + [(2,)] * (NUM // 4)
    assert g_test(fair, law) > 0.9
    assert g_test([*fair[1:], (4,)], law) == 0
    bent = fair[: NUM * 9 // 10] + [(0,)] * (NUM // 10)
    assert g_test(bent, law) < LEVEL


def test_holm():
    assert holm({"a": 0.5, "b": 3e-4, "c": 0.02}) == ["b"]
    assert holm({"a": 4e-4, "b": 3e-4, "c": 6e-4}) == ["b", "a", "c"]
    assert holm({"a": 4e-4, "b": 4e-4, "c": 6e-4}) == []
    assert holm({}) == []
