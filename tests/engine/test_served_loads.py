"""Requests that are sent to a server by a schedule."""

import json

from harness_runs import read_meta
from replay_server import EXCHANGES, replaying
from served_runs import answers, run

from evaluation.answers.reader import read_answers

GOOD = json.loads((EXCHANGES / "vllm.json").read_text(encoding="utf-8"))["answers"][0]
EVENTS = GOOD["events"]
SLOW = {"events": [*EVENTS[:1], {"wait_s": 0.4}, *EVENTS[1:]]}
BUSY = {"status": 429, "body": {"error": {"message": "busy"}}}


def spans(records):
    """[(begin, end)] of answered requests, Unix times, in order of their sending."""
    found = [(c["begin_s"][0], c["wall_time"][0]) for r in records for c in r["choices"]]
    return sorted((begin, begin + wall) for begin, wall in found)


def test_an_open_loop_does_not_wait_for_answers(tmp_path):
    """Three requests at once, each of them answered in 0.4 s: all are in flight together."""
    flags = ["--rate", "inf", "--num-prompts", 3]
    records, _ = answers("vllm", tmp_path, *flags, answers=[GOOD, SLOW])
    begins, ends = zip(*spans(records))
    assert max(begins) < min(ends)
    meta = read_meta(tmp_path / "a.jsonl")
    began = meta["load"]["began_s"]
    assert meta["load"]["arrivals"] == [0.0] * 3 and "rate inf" in meta["shared"]["load"]
    for record in records:
        request = record["request"]
        assert request["arrival_s"] == began and 0 <= request["sent_s"] - began < 0.3
        assert abs(record["choices"][0]["begin_s"][0] - request["sent_s"]) < 1e-5
    assert len({record["choices"][0]["slot"][0] for record in records}) == 3


def test_arrivals_are_kept_and_lag_is_real(tmp_path):
    """Even arrivals, 50 ms apart: sent at their times, whatever the answers take."""
    flags = ["--rate", 20, "--num-prompts", 5, "--burstiness", "inf"]
    records, _ = answers("vllm", tmp_path, *flags, answers=[GOOD, SLOW])
    began = read_meta(tmp_path / "a.jsonl")["load"]["began_s"]
    arrivals = sorted(record["request"]["arrival_s"] - began for record in records)
    assert [round(arrival, 3) for arrival in arrivals] == [0.05, 0.1, 0.15, 0.2, 0.25]
    lags = [r["request"]["sent_s"] - r["request"]["arrival_s"] for r in records]
    assert min(lags) >= 0 and len(set(lags)) > 1  # of a clock, not of the schedule
    file = read_answers(tmp_path / "a.jsonl")
    assert all(question.request for question in file.questions.values())


def test_clients_send_when_their_last_request_has_ended(tmp_path):
    flags = ["--concurrency", 2, "--num-prompts", 5]
    records, _ = answers("vllm", tmp_path, *flags, answers=[GOOD, SLOW])
    times = spans(records)
    for moment, _ in times:
        assert sum(begin <= moment < end for begin, end in times) <= 2
    assert times[2][0] >= min(end for _, end in times[:2])
    assert {record["choices"][0]["slot"][0] for record in records} == {0, 1}


def test_what_a_busy_server_refuses_has_failed(tmp_path):
    """In a load run a refusal is a result, not put off; it says when it failed."""
    flags = ["--rate", "inf", "--num-prompts", 3]
    records, asked = answers("vllm", tmp_path, *flags, code=1, answers=[GOOD, BUSY, GOOD])
    failed = [record for record in records if "error" in record]
    assert len(asked) == 4 and len(failed) == 1 and failed[0]["error"] == "HTTP 429: busy"
    assert failed[0]["failed_s"] >= failed[0]["request"]["sent_s"]
    assert not any("failed_s" in record for record in records if "error" not in record)


def test_a_file_a_rate(tmp_path, monkeypatch):
    from model.common import args as arguments

    monkeypatch.setattr(arguments, "ROOT", tmp_path)
    with replaying("vllm") as server:
        flags = ["--rate", "40,80", "--num-prompts", 2, "--model-id", "m", "--bench-name", "b"]
        assert run(server.url, tmp_path, *flags, named=False) == 0
    files = sorted(path.name for path in (tmp_path / "data" / "b" / "model_answer").glob("*.jsonl"))
    assert files == ["m-rate-40.jsonl", "m-rate-80.jsonl"]


def test_several_questions_in_flight(tmp_path):
    """--batch-size: so many requests at a time; counters cannot tell them apart then."""
    records, _ = answers("vllm", tmp_path, "--batch-size", 3, answers=[GOOD, SLOW])
    begins, ends = zip(*spans(records))
    assert max(begins) < min(ends)
    evidence = records[0]["choices"][0]["accept_evidence"]
    assert evidence["checked"] == ["summary", "usage"]
