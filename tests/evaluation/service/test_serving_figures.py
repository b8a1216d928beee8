"""Serving figures against a slow count in fractions, and by hand."""

import math
from fractions import Fraction

import pytest
from answer_samples import write
from served_files import (
    BEGAN,
    TICK,
    counted,
    failed_line,
    load_meta,
    point,
    random_lines,
    request_line,
    server_line,
    ticks,
)

from evaluation.answers.meta import AnswerError
from evaluation.service import figures, timeline
from evaluation.service.imports import read_runs
from evaluation.service.tables import throughput_lines
from model.common.records.schema import SERVING

SLO = {"ttft": 0.2, "tpot": 0.003, "e2e": 0.5}


def run_of(path, lines, meta=None):
    """The Run of lines that are written first."""
    (run,) = read_runs(write(path, lines, load_meta() if meta is None else meta))
    return run


def close(value):
    return pytest.approx(float(value), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("seed", range(2))
def test_two_hundred_requests_as_counted_slowly(tmp_path, seed):
    lines = random_lines(200, seed)
    slow = counted(lines)
    assert {len(row["came"]) for row in slow["rows"]} >= {1} and len(slow["failed"]) > 5
    run = run_of(tmp_path / "m.jsonl", lines)
    found = figures.figures_of(run, SLO)
    for name in figures.LATENCIES:
        values = slow[name]
        assert found[name]["n"] == len(values)
        assert found[name]["mean"] == close(sum(values) / len(values))
        assert found[name]["max"] == close(values[-1])
        for percent in figures.PERCENTILES:
            assert found[name][f"p{percent}"] == close(point(values, percent))
    number, tokens = len(slow["rows"]), slow["tokens"]
    assert (found["requests"], found["failed"]) == (200, 200 - number)
    assert found["failure_rate"] == close(Fraction(200 - number, 200))
    assert (found["busy_s"], found["wall_s"]) == (close(slow["busy"]), close(slow["wall"]))
    assert found["request_throughput"] == close(number / slow["busy"])
    assert found["request_throughput_wall"] == close(number / slow["wall"])
    assert found["token_throughput"] == close(tokens / slow["busy"])
    assert found["token_throughput_wall"] == close(tokens / slow["wall"])
    assert found["joules_per_token"] == close(slow["energy"] / tokens)
    slots = found["slots"]
    assert slots["mean"] == close(slow["used"] / slow["busy"])
    assert (slots["max"], slots["num"]) == (slow["most_used"], 4)
    assert slots["full"] == close(slow["full"] / slow["busy"])
    assert found["peak_queue"] == slow["most_queued"] > 3
    check_goodput(found["goodput"], slow)
    check_acceptance(found["acceptance"], slow["rows"])


def check_goodput(found, slow):
    met = 0
    for row in slow["rows"]:
        first, last = row["came"][0] - row["arrival"], row["came"][-1] - row["arrival"]
        spent = (last - first) / max(1, len(row["came"]) - 1)
        met += first <= SLO["ttft"] and spent <= SLO["tpot"] and last <= SLO["e2e"]
    assert 0 < met < len(slow["rows"])
    assert (found["met"], found["share"]) == (met, close(Fraction(met, 200)))
    assert found["per_s"] == close(met / slow["busy"])


def check_acceptance(found, rows):
    taken = [(sum(row["accepted"]), sum(row["drafted"]), len(row["drafted"])) for row in rows]
    accepted, drafted, steps = map(sum, zip(*taken))
    stepped = [one for one in taken if one[2]]
    assert found["mean_accepted"] == close(Fraction(accepted + steps, steps))
    each = [1 + Fraction(accepted, number) for accepted, _, number in stepped]
    assert found["mean_accepted_per_request"] == close(sum(each) / len(each))
    assert found["rate"] == close(Fraction(accepted, drafted))
    each = [Fraction(accepted, drafted) for accepted, drafted, _ in stepped]
    assert found["rate_per_request"] == close(sum(each) / len(each))


@pytest.mark.parametrize("seed", range(3))
def test_gaps_of_a_request_sum_to_its_time_between_first_and_last_token(tmp_path, seed):
    run = run_of(tmp_path / "m.jsonl", random_lines(60, seed))
    for request in run.answered:
        spent = pytest.approx(request.last_s - request.first_s, rel=1e-12, abs=1e-12)
        assert math.fsum(request.token_gaps) == spent == math.fsum(request.chunk_gaps)
        assert len(request.token_gaps) == request.new_tokens - 1


@pytest.mark.parametrize("seed", range(3))
def test_shares_of_moments_sum_to_the_busy_interval(tmp_path, seed):
    lines = random_lines(80, seed)
    slow = counted(lines)
    run = run_of(tmp_path / "m.jsonl", lines)
    spans = [(float(b), float(e)) for b, e in slow_spans(slow)]
    found = timeline.shares(spans)
    assert found == [close(share) for share in slow["shares"]]
    assert math.fsum(found) == close(slow["busy"]) == figures.throughputs(run)["busy_s"]


def slow_spans(slow):
    """The spans of counted(), from the run's beginning on."""
    spans = [(row["arrival"], row["end"]) for row in slow["rows"]]
    spans += [span for span in slow["failed"] if span[1] is not None]
    return [(begin - Fraction(BEGAN), end - Fraction(BEGAN)) for begin, end in spans]


def test_chunks_of_a_server_with_several_tokens_and_with_none(tmp_path):
    lines = [
        server_line(1, 0, 0, 100, [(10, 2), (20, 0), (30, 3), (40, 0)], first=2),
        server_line(2, 5, 6, 50, []),
        server_line(3, 7, 7, 9, [], first=0),
    ]
    lines[2]["choices"][0] |= {"chunk_tokens": [[]], "chunk_end_s": [[]]}
    run = run_of(tmp_path / "m.jsonl", lines, load_meta(slots=None))
    slow, found = counted(lines), figures.figures_of(run, {"ttft": 1.0})
    first, _, none = run.requests
    assert first.chunk_gaps == [10 * TICK, 50 * TICK]  # the empty chunk's time is the next one's
    assert first.token_gaps == [5 * TICK] * 2 + [50 * TICK / 3] * 3
    assert first.last_s - first.first_s == 60 * TICK  # the last chunk brought no token
    assert first.figures()["tpot"] == 60 * TICK / 6
    for name in ("itl", "chunk_gap", "tpot"):
        assert found[name]["mean"] == close(sum(slow[name]) / len(slow[name]))
    assert none.figures()["ttft"] is None and none.new_tokens == 0
    assert found["ttft"]["n"] == 2 and found["goodput"]["met"] == 2  # no first token, no bound met
    assert found["slots"]["num"] is None and found["slots"]["full"] is None
    assert found["acceptance"] is None  # chunks are no steps


def test_estimated_tokens_of_chunks_give_no_gaps_between_tokens(tmp_path):
    line = server_line(1, 0, 0, 100, [(10, 2), (20, 3)])
    line["choices"][0]["chunk_tokens_estimated"] = True
    run = run_of(tmp_path / "m.jsonl", [line], load_meta(slots=None))
    found = figures.figures_of(run)
    assert found["itl"] is None and found["chunk_gap"]["n"] == 2
    assert any("estimated" in line for line in run.answers.warnings)


def test_runs_of_failures_alone(tmp_path):
    lines = [failed_line(1, 0, 10), failed_line(2, 4, 30), failed_line(3, 5)]
    found = figures.figures_of(run_of(tmp_path / "m.jsonl", lines), SLO)
    assert (found["requests"], found["failed"], found["failure_rate"]) == (3, 3, 1.0)
    assert all(found[name] is None for name in figures.LATENCIES)
    assert (found["busy_s"], found["request_throughput"]) == (30 * TICK, 0.0)
    assert found["goodput"]["share"] == 0.0 and found["acceptance"] is None
    unknown = figures.figures_of(run_of(tmp_path / "n.jsonl", [failed_line(1, 0)]), SLO)
    assert unknown["busy_s"] is None and unknown["token_throughput"] is None


def test_a_run_of_no_length_has_no_rates():
    from evaluation.service.requests import Request, Run

    one = Request(1, arrival_s=0.0, sent_s=0.0, begin_s=0.0, first_s=0.0, last_s=0.0, end_s=0.0)
    one.new_tokens, one.chunk_gaps, one.token_gaps = 1, [], []
    for requests in ([], [one]):
        found = figures.figures_of(Run("-", "-", "answers", requests), SLO)
        assert found["request_throughput"] is None and found["token_throughput_wall"] is None
        assert found["slots"] is None and found["requests"] == len(requests)


def test_failures_and_an_unmet_bound_lower_goodput_by_hand(tmp_path):
    lines = [
        request_line(1, 0, 0, 102, [(10, 1)] * 2),  # TTFT 0.0996 s
        request_line(2, 0, 20, 102, [(10, 1)] * 2, slot=1),  # 0.119 s
        request_line(3, 0, 0, 50, [], slot=2),  # one token: no TPOT to bound
        failed_line(4, 0, 20),
    ]
    found = figures.figures_of(run_of(tmp_path / "m.jsonl", lines), {"ttft": 0.1, "tpot": 0.01})
    assert found["goodput"]["met"] == 2 and found["goodput"]["share"] == 0.5
    assert found["goodput"]["per_s"] == pytest.approx(2 / (142 * TICK))
    assert found["failure_rate"] == 0.25


def test_what_failed_requests_took_is_in_the_runs_joules(tmp_path):
    lines = [request_line(1, 0, 0, 50, [(10, 3)], energy_j=8.0), failed_line(2, 0, 20, 4.0)]
    found = figures.figures_of(run_of(tmp_path / "m.jsonl", lines))
    assert found["joules_per_token"] == (8 + 4) / 4
    del lines[1]["energy_j"]  # of an older file: nobody knows
    assert figures.figures_of(run_of(tmp_path / "n.jsonl", lines))["joules_per_token"] is None
    for odd in (-1.0, "4", True):
        lines[1]["energy_j"] = odd
        with pytest.raises(AnswerError, match="line 2: energy_j is no number of zero or more"):
            run_of(tmp_path / "o.jsonl", lines)


@pytest.mark.parametrize("full, printed", [(1.0, 0.5), (0.95, 0.5), (0.94, None), (None, None)])
def test_a_window_that_was_not_steady_has_no_figure(tmp_path, full, printed):
    steady = {"joules_per_token": 0.5} | ({} if full is None else {"full": full})
    meta = load_meta() | {"energy": [{"steady": steady}]}
    line = request_line(1, 0, 0, 50, [(10, 3)], energy_j=8.0)
    found = figures.figures_of(run_of(tmp_path / "m.jsonl", [line], meta))
    assert found["steady_joules_per_token"] == printed
    row = next(line for line in throughput_lines([found]) if line.startswith("m "))
    assert row.split()[-1] == ("-" if printed is None else "0.500")


def test_a_first_token_is_there_before_the_drafter_has_read_the_prompt(tmp_path):
    """first_s; a file without it is read as it always was, by prefill_s."""
    late = request_line(1, 0, 10, 100, [(20, 2), (30, 2)])
    late["choices"][0]["first_s"] = [60 * TICK]
    single = request_line(2, 0, 10, 100, [], slot=1)
    single["choices"][0]["first_s"] = [60 * TICK]
    old = request_line(3, 0, 10, 100, [(20, 2), (30, 2)], slot=2)
    run = run_of(tmp_path / "m.jsonl", [late, single, old])
    first, second, third = (request.figures() for request in run.requests)
    assert (first["ttft"], second["ttft"], third["ttft"]) == (70 * TICK, 70 * TICK, 110 * TICK)
    assert (first["e2e"], second["e2e"], third["e2e"]) == (160 * TICK, 70 * TICK, 160 * TICK)
    assert (first["tpot"], third["tpot"]) == (90 * TICK / 4, 50 * TICK / 4)
    assert run.requests[0].chunk_gaps == [60 * TICK, 30 * TICK]
    assert run.requests[2].chunk_gaps == [20 * TICK, 30 * TICK]
    late["choices"][0]["first_s"] = [101 * TICK]
    with pytest.raises(AnswerError, match="first_s is later than prefill_s"):
        run_of(tmp_path / "n.jsonl", [late])


def test_slots_never_exceed_their_number_where_rounded_times_overlap(tmp_path):
    lines = [request_line(1, 0, 0, 100, []), request_line(2, 0, 100, 100, [])]
    lines[1]["choices"][0]["begin_s"] = [ticks(100) - 5e-7]
    found = figures.figures_of(run_of(tmp_path / "m.jsonl", lines, load_meta(slots=1)))
    assert found["slots"]["max"] == 1 and found["slots"]["full"] == pytest.approx(1)


def test_ordinary_answers_arrive_when_they_begin(tmp_path):
    lines = random_lines(12, 5)
    for record in lines:
        del record["request"]
    run = run_of(tmp_path / "m.jsonl", [record for record in lines if "error" not in record])
    found = figures.figures_of(run)
    slow = counted(random_lines(12, 5))
    waits = [row["came"][0] - row["begin"] for row in slow["rows"]]
    assert found["ttft"]["mean"] == close(sum(waits) / len(waits))
    assert found["queue"] is None and found["lag"] is None  # nothing is known of them
    assert any("no load run" in note for note in run.notes)


def test_every_definition_is_of_a_figure_that_is_printed():
    of_figures = {"busy", "goodput", "acceptance", "joules_per_token"}
    rates = {"request_throughput", "token_throughput"}
    assert set(SERVING) == set(figures.LATENCIES) | of_figures | rates
