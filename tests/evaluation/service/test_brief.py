"""Names in the compact table of load runs."""

import pytest

from evaluation.service.brief import short_names


@pytest.mark.parametrize(
    "labels, wanted",
    [
        (["t-a-rate-1", "t-a-rate-2", "t-b-rate-1"], ["a-rate-1", "a-rate-2", "b-rate-1"]),
        (["t-pld-rate-10", "t-pld-rate-12"], ["rate-10", "rate-12"]),
        (["alone"], ["alone"]),
        (["one", "other"], ["one", "other"]),
        ([], []),
    ],
)
def test_names_lose_what_all_share(labels, wanted):
    assert short_names(labels) == wanted
