"""Runs against a base: ratios and their intervals, what is paired, the knee."""

import copy
import random

import numpy as np
import pytest
from answer_samples import write
from served_files import counted, failed_line, load_meta, random_lines, request_line

from evaluation.answers.meta import AnswerError
from evaluation.service import comparison, figures
from evaluation.service.imports import read_runs
from evaluation.speedup import intervals


def run_of(path, lines, meta):
    (run,) = read_runs(write(path, lines, meta))
    return run


def compared(run, base, resamples=200, seed=0, **options):
    both = figures.figures_of(run), figures.figures_of(base)
    return comparison.compare(run, base, both, resamples, seed, **options)


def slowed(lines, times):
    """The same requests, every one alone and all its times after its arrival multiplied."""
    found = copy.deepcopy(lines)
    for record in found:
        arrival = record["request"]["arrival_s"]
        for choice in record["choices"]:
            choice["begin_s"] = [arrival]
            choice["prefill_s"] = [times * s for s in choice["prefill_s"]]
            choice["wall_time"] = [times * s for s in choice["wall_time"]]
            choice["step_end_s"] = [[times * s for s in choice["step_end_s"][0]]]
        record["request"]["sent_s"] = arrival
    return found


def test_a_constant_factor_is_found_exactly_where_requests_are_paired(tmp_path):
    lines = [record for record in random_lines(60, 1) if "error" not in record]
    run = run_of(tmp_path / "m.jsonl", slowed(lines, 1), load_meta())
    base = run_of(tmp_path / "b.jsonl", slowed(lines, 3), load_meta("m", "vanilla"))
    found = compared(run, base)
    assert found["paired"] and found["pairs"] == 60 - (60 - len(lines)) and not found["left_out"]
    for name in ("ttft", "tpot", "e2e"):
        ends = found["speedup"][name]
        assert list(ends.values()) == pytest.approx([3, 3, 3], rel=1e-9)
    reduction = found["latency_reduction"]
    assert list(reduction.values()) == pytest.approx([200 / 3] * 3)
    thirds = found["speedup"]["token_throughput"]
    rates = [figures.throughputs(side)["token_throughput"] for side in (run, base)]
    assert thirds["value"] == pytest.approx(rates[0] / rates[1])
    assert found["throughput_gain"]["value"] == pytest.approx(100 * (rates[0] / rates[1] - 1))
    assert thirds["low"] < thirds["value"] < thirds["high"]


def test_ratios_are_those_of_the_slow_count(tmp_path):
    ours, theirs = random_lines(80, 7, speed=2.0), random_lines(80, 7)
    run = run_of(tmp_path / "m.jsonl", ours, load_meta())
    base = run_of(tmp_path / "b.jsonl", theirs, load_meta("b", "vanilla"))
    found, slow = compared(run, base)["speedup"], [counted(side) for side in (ours, theirs)]
    for name in ("ttft", "tpot", "e2e"):  # the same requests fail on both sides
        means = [sum(side[name]) / len(side[name]) for side in slow]
        assert found[name]["value"] == pytest.approx(float(means[1] / means[0]))
    rates = [side["tokens"] / side["busy"] for side in slow]
    assert found["token_throughput"]["value"] == pytest.approx(float(rates[0] / rates[1]))
    for ends in found.values():
        assert ends["low"] < ends["value"] < ends["high"]


def test_a_request_that_failed_on_one_side_is_in_throughput_only(tmp_path):
    lines = [request_line(n, 100 * n, 100 * n, 10, [(8, 1)] * n) for n in (1, 2, 3)]
    base = run_of(tmp_path / "b.jsonl", lines, load_meta("b", "vanilla"))
    lines = [*copy.deepcopy(lines[:2]), failed_line(3, 300, 400)]
    run = run_of(tmp_path / "m.jsonl", lines, load_meta())
    found = compared(run, base)
    assert found["paired"] and found["left_out"] == [3]
    assert found["speedup"]["e2e"]["value"] == pytest.approx(1)
    ours, theirs = 5 / (18 + 26 + 100), 9 / (18 + 26 + 34)
    assert found["speedup"]["token_throughput"]["value"] == pytest.approx(ours / theirs)


def test_other_schedules_are_not_paired_and_it_is_said_why(tmp_path):
    lines = random_lines(40, 2)
    base = run_of(tmp_path / "b.jsonl", lines, load_meta("b", "vanilla"))
    same = run_of(tmp_path / "s.jsonl", lines, load_meta(began_s=1.0))  # another day
    assert compared(same, base)["paired"]
    for load, word in (({"rate": "4"}, "rate"), ({"arrivals": [1.0]}, "arrivals")):
        other = run_of(tmp_path / "m.jsonl", lines, load_meta(**load))
        found = compared(other, base)
        assert not found["paired"] and found["why"].endswith(f"schedules differ in {word}")
        assert found["speedup"]["e2e"]["value"] == pytest.approx(1)
        assert found["speedup"]["e2e"]["low"] < 1 < found["speedup"]["e2e"]["high"]
    fewer = run_of(tmp_path / "f.jsonl", lines[1:], load_meta())
    assert compared(fewer, base)["why"] == "unpaired: the requests differ"


def test_metas_that_differ_in_more_than_the_method_are_refused(tmp_path):
    lines = random_lines(10, 2)
    base = run_of(tmp_path / "b.jsonl", lines, load_meta("b", "vanilla"))
    run = run_of(tmp_path / "m.jsonl", lines, load_meta(slots=8))
    with pytest.raises(AnswerError, match="not comparable: batch_size: 8, baseline 4"):
        compared(run, base)
    assert compared(run, base, allow=["batch_size"])["allowed"][0]["field"] == "batch_size"


def test_one_request_has_no_interval_and_a_seed_gives_the_same_one(tmp_path):
    lines = random_lines(40, 4)
    run = run_of(tmp_path / "m.jsonl", random_lines(40, 4, speed=2.0), load_meta())
    base = run_of(tmp_path / "b.jsonl", lines, load_meta("b", "vanilla"))
    assert compared(run, base, seed=3) == compared(run, base, seed=3)
    assert compared(run, base, seed=3)["speedup"] != compared(run, base, seed=4)["speedup"]
    single = [request_line(1, 0, 0, 10, [(5, 1)])]
    run = run_of(tmp_path / "m.jsonl", single, load_meta())
    base = run_of(tmp_path / "b.jsonl", single, load_meta("b", "vanilla"))
    assert compared(run, base)["speedup"]["e2e"] == {"value": 1.0, "low": None, "high": None}


def test_blocks_are_of_neighbours_and_every_resample_is_whole():
    weights = comparison.block_weights(50, 200, np.random.default_rng(0))
    assert weights.shape == (200, 50) and set(weights.sum(1)) == {50}
    assert weights.mean(0) == pytest.approx(np.ones(50), abs=0.35)
    alike = np.corrcoef(weights[:, :-1].ravel(), weights[:, 1:].ravel())[0, 1]
    assert alike > 0.6  # a draw of single requests gives none


def test_intervals_hold_the_truth_where_neighbours_are_alike():
    """Waiting times of neighbours are alike; single draws would be too sure of their mean."""
    rng, number, hits, plain = random.Random(1), 200, 0, 0
    for trial in range(120):
        value, sides = 0.0, []
        for _ in range(2):
            series = []
            for _ in range(number):
                value = 0.8 * value + rng.gauss(0, 1)
                series.append(20 + value)
            sides.append((np.array(series), np.ones(number)))
        found = comparison.ratio_entry(*sides, False, 200, trial)
        hits += found["low"] <= 1 <= found["high"]
        means = [
            side[0][np.random.default_rng(trial).integers(number, size=(200, number))]
            for side in sides
        ]
        low, high = np.percentile(means[0].mean(1) / means[1].mean(1), (2.5, 97.5))
        plain += low <= 1 <= high
    assert hits / 120 > 0.84 and plain / 120 < 0.65


SWEEPS = [
    ([0.99, 0.96, 0.7], 2.0, "knee: 2 a second, 4 is below 95 % of requests"),
    ([0.95, 0.2, 0.1], 1.0, "knee: 1 a second"),
    ([1.0, 1.0, 0.95], None, "knee: above 4 a second"),
    ([0.9, 0.5, 0.0], None, "knee: below 1 a second"),
    ([0.5, 0.99, 0.2], None, "cannot be told: 1 a second is below 95 % of requests, a higher is"),
    ([0.97, 0.5, 0.99], 1.0, "a higher rate meets the bounds again"),
    ([0.97, None, 0.2], None, "cannot be told without --slo"),
]


@pytest.mark.parametrize("shares, knee, text", SWEEPS)
def test_knee_is_the_highest_rate_up_to_which_goodput_stays(shares, knee, text):
    found = comparison.knee_of([1.0, 2.0, 4.0], shares)
    assert found[0] == knee and text in found[1]


BETWEEN = [
    ([0.96, 0.96, 0.2], [1.0, 1.0, 0.4], [2.0, 2.0], "intervals 2"),
    ([0.9, 0.5, 0.1], [0.99, 0.96, 0.3], [None, 2.0], "intervals below 1 to 2"),
    ([0.96, 0.9, 0.9], [1.0, 1.0, 1.0], [1.0, None], "intervals 1 to above 4"),
    ([0.1, 0.1, 0.1], [0.5, 0.5, 0.5], [None, None], "intervals below 1"),
]


@pytest.mark.parametrize("lows, highs, between, text", BETWEEN)
def test_where_the_knee_may_be(lows, highs, between, text):
    found = comparison.knee_between([1.0, 2.0, 4.0], lows, highs)
    assert found[0] == between and found[1].endswith(text)


def test_a_share_of_few_or_of_neighbouring_requests_is_not_sure(tmp_path):
    """20 of 20 may be 84 %; of 100, six in a row are less sure than six that lie apart."""
    (few,) = sweep(tmp_path, "pld", ["1"], [0])
    low, high = comparison.share_interval(few, {"ttft": 0.1})
    assert low == pytest.approx(20 / (20 + intervals.Z**2)) and high == 1
    widths = []
    for name, late in (("apart", range(0, 96, 16)), ("row", range(6))):
        lines = [
            request_line(n, n, n + (600 if n in late else 1), 10, [(5, 1)]) for n in range(100)
        ]
        run = run_of(tmp_path / f"{name}.jsonl", lines, load_meta(name, "pld", rate="1"))
        low, high = comparison.share_interval(run, {"ttft": 0.1})
        assert low < 0.94 < high
        widths.append(high - low)
    assert widths[1] > 1.2 * widths[0]


def sweep(folder, method, rates, waits):
    """Runs of one method at several rates; of 20 requests so many wait too long."""
    for rate, late in zip(rates, waits):
        lines = [request_line(n, 0, 600 if n < late else 1, 10, [(5, 1)]) for n in range(20)]
        path = folder / f"{method}-rate-{rate}.jsonl"
        yield run_of(path, lines, load_meta(f"{method}-rate-{rate}", method, rate=rate))


def test_runs_of_several_methods_have_a_knee_each(tmp_path):
    runs = [
        *sweep(tmp_path, "pld", ["4", "1", "2"], [9, 0, 1]),
        *sweep(tmp_path, "vanilla", ["1", "2", "4"], [0, 9, 20]),
        *sweep(tmp_path, "sps", ["1"], [0]),
    ]
    found = [figures.figures_of(run, {"ttft": 0.1}) for run in runs]
    first, second = comparison.knees(runs, found)
    assert (first["label"], first["knee"]) == ("pld-rate", 2.0)
    assert [point["share"] for point in first["rates"]] == [1.0, 0.95, 0.55]
    assert first["between"] == [None, 2.0] and "below 1 to 2" in first["text"]  # 20 requests each
    assert (second["label"], second["knee"]) == ("vanilla-rate", 1.0)
    other = run_of(tmp_path / "x.jsonl", random_lines(5, 1), load_meta("x", "pld", 8, rate="8"))
    assert len(comparison.knees([*runs, other], [*found, figures.figures_of(other)])) == 2
    again = [*runs, *sweep(tmp_path / "again", "pld", ["1"], [0])]
    found.append(figures.figures_of(again[-1], {"ttft": 0.1}))
    assert "two files of one rate" in comparison.knees(again, found)[0]["text"]
