"""Arrival times: their laws, and the same ones again from the same seed."""

import itertools
import json
import math
import statistics

import pytest
from harness_runs import write

from model.common.args import make_parser
from model.common.errors import BadInput
from model.common.load.flags import check_load
from model.common.load.schedule import gaps_summed, schedules


def load(*flags):
    """The schedules of flags."""
    argv = ["--model-path", "x", *map(str, flags)]
    args = make_parser("pld", "", lambda group: None).parse_args(argv)
    args.paired = 0
    check_load(args)
    return schedules(args)


def gaps(rate, shape, num=20000, seed=3):
    times = [0.0, *itertools.islice(gaps_summed(rate, shape, seed), num)]
    return [after - before for before, after in itertools.pairwise(times)]


@pytest.mark.parametrize("shape", [0.25, 1, 4])
def test_gaps_are_of_a_gamma_distribution(shape):
    """Mean 1 / R, variance 1 / (shape R^2): of 20,000 within four standard errors."""
    found = gaps(5, shape)
    spread = 1 / 5 / math.sqrt(shape)
    assert abs(statistics.fmean(found) - 1 / 5) < 4 * spread / math.sqrt(len(found))
    kurtosis = 3 + 6 / shape
    error = spread**2 * math.sqrt((kurtosis - 1) / len(found))
    assert abs(statistics.pvariance(found) - spread**2) < 4 * error


def test_poisson_arrivals():
    """Of gaps of shape 1 a share exp(-t) is longer than t means; counts vary by their mean."""
    found = gaps(2, 1)
    for means in (0.1, 1, 3):
        share = sum(gap > means / 2 for gap in found) / len(found)
        assert share == pytest.approx(math.exp(-means), abs=4 * 0.5 / math.sqrt(len(found)))
    counts = [0] * 9000
    for time in itertools.takewhile(lambda time: time < 9000, gaps_summed(2, 1, 4)):
        counts[int(time)] += 1
    assert statistics.fmean(counts) == pytest.approx(2, abs=0.06)
    assert statistics.pvariance(counts) == pytest.approx(2, abs=0.15)  # of a Poisson law: its mean


def test_even_arrivals():
    (even,) = load("--rate", 10, "--duration", 60, "--burstiness", "inf")
    assert even.arrivals == tuple(number / 10 for number in range(1, 601))


def test_the_same_seed_has_the_same_arrivals():
    flags = ["--rate", "2", "--duration", 30]
    (first,), (again,) = load(*flags), load(*flags, "--load-seed", 0)
    (other,) = load(*flags, "--load-seed", 1)
    assert first == again and first.arrivals != other.arrivals and first.text != other.text
    (longer,) = load("--rate", 2, "--duration", 60)
    assert longer.arrivals[: first.num_requests] == first.arrivals
    (counted,) = load("--rate", 2, "--num-prompts", 10)
    assert counted.arrivals == first.arrivals[:10]


def test_rates_of_a_sweep_are_one_draw_scaled():
    slow, fast = load("--rate", "0.5,4", "--num-prompts", 50)
    assert [schedule.name for schedule in (slow, fast)] == ["rate-0.5", "rate-4"]
    assert [time / 8 for time in slow.arrivals] == pytest.approx(fast.arrivals)
    assert [load.meta()["rate"] for load in (slow, fast)] == ["0.5", "4"]


def test_all_at_once():
    (burst,) = load("--rate", "inf", "--num-prompts", 3)
    assert burst.first_arrivals() == [0, 0, 0] and burst.name == "rate-inf"
    assert json.loads(json.dumps(burst.meta(), allow_nan=False))["rate"] == "inf"


def test_closed_loops():
    (slots,) = load("--num-prompts", 10, "--batch-size", 4)
    (clients,) = load("--num-prompts", 10, "--batch-size", 4, "--concurrency", 12)
    assert slots.first_arrivals() == [0] * 4 and slots.clients == 4
    assert clients.first_arrivals() == [0] * 10  # no more than there are requests
    assert slots.meta() == {"kind": "closed", "seed": 0, "concurrency": 4, "num_requests": 10}


@pytest.mark.parametrize(
    "lines, arrivals",
    [
        ("3\n1.5\n\n2\n", (0, 0.5, 1.5)),
        ('{"arrival_s": 7}\n{"arrival_s": 7.25}\n', (0, 0.25)),
        ('{"timestamp": 1000, "input_length": 5}\n{"timestamp": 1500}\n', (0, 0.5)),
        ('{"question_id": 1, "request": {"arrival_s": 1e9, "sent_s": 2e9}}\n', (0,)),
        ("[2, 4]", None),
    ],
)
def test_traces(tmp_path, lines, arrivals):
    path = tmp_path / ("times.json" if arrivals is None else "times.txt")
    path.write_text(lines)
    (schedule,) = load("--trace", path)
    assert schedule.arrivals == (arrivals or (0, 2)) and schedule.name == "trace-times"
    assert schedule.meta()["arrivals"] == list(schedule.arrivals)
    (first,) = load("--trace", path, "--num-prompts", 1)
    assert first.arrivals == (0,) and first.num_requests == 1


@pytest.mark.parametrize(
    "lines, words",
    [
        ("1\nx\n", [":2", "arrival time"]),
        ("1\nnan\n", [":2", "arrival time"]),
        ("true\n", [":1", "arrival time"]),
        ('{"time": 3}\n', [":1", "arrival_s"]),
        ('{"timestamp": "3"}\n', [":1", "timestamp"]),
        ("\n", ["no arrival"]),
        (None, ["no such file"]),
    ],
)
def test_broken_traces(tmp_path, lines, words):
    path = tmp_path / "times.jsonl"
    if lines is not None:
        path.write_text(lines)
    with pytest.raises(BadInput) as error:
        load("--trace", path)
    for word in (str(path), *words):
        assert word in str(error.value)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--rate", 0.001, "--duration", 1], ["--rate 0.001", "no request"]),
        (["--rate", 1e6, "--duration", 1e6], ["--rate 1000000", "1,000,000"]),
        (["--num-prompts", 10**7], ["--num-prompts", "1,000,000"]),
    ],
)
def test_no_request_or_too_many(flags, words):
    with pytest.raises(BadInput) as error:
        load(*flags)
    for word in words:
        assert word in str(error.value)


def test_a_trace_has_the_arrivals_that_are_asked_for(tmp_path):
    path = write(tmp_path / "t.jsonl", [1, 2])
    with pytest.raises(BadInput, match="2 arrivals, fewer than --num-prompts 3"):
        load("--trace", path, "--num-prompts", 3)
