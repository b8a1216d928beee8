"""Requests that are sent to a server by a schedule."""

import asyncio
import errno
import itertools
import json
import resource
import time

import aiohappyeyeballs
import pytest
from harness_runs import messages, read, read_meta
from replay_server import EXCHANGES, replaying
from served_runs import answers, run

from evaluation.answers.reader import read_answers
from model.common.records.writer import AnswerFile
from model.engine import client
from model.engine.arrivals import still_running

VLLM = (EXCHANGES / "vllm.json").read_text(encoding="utf-8")
GOOD = json.loads(VLLM)["answers"][0]
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


def stream(sizes):
    """vLLM's answer without speculation, in events of so many tokens."""
    ids = [token for event in EVENTS[:-2] for token in event["choices"][0]["token_ids"]]
    events, done = [], 0
    for size in sizes:
        done += size
        choice = {"index": 0, "text": "", "token_ids": ids[done - size : done]}
        choice["finish_reason"] = "stop" if done == len(ids) else None
        usage = {"prompt_tokens": "$prompt", "completion_tokens": done}
        events.append({"choices": [choice], "usage": usage})
    return {"events": [*events, "[DONE]"]}


def test_a_plain_servers_merged_events_are_no_drafts(tmp_path):
    """Under a load it makes one event of what has waited: 1, 2, 1, 3 tokens without a draft."""
    said, sizes = json.loads(VLLM), [1, 2, 1, 3, *[1] * 10]
    said["get"]["/metrics"] = 'vllm:generation_tokens_total{engine="0"} $tokens\n'
    said["answers"] = [stream([1] * 17), stream(sizes)]
    records, _ = answers(said, tmp_path, "--rate", "inf", "--num-prompts", 3)
    meta = read_meta(tmp_path / "a.jsonl")
    assert meta["method_args"]["speculation"] == "none"
    assert meta["method_facts"]["server_counted"]["accepted"] == 0
    for record in records:
        (choice,) = record["choices"]
        assert choice["chunk_tokens"] == [sizes] and choice["accept_lengths"] == [1] * 16
        evidence = {"source": "usage", "checked": ["plain"], "disagree": None}
        assert choice["accept_evidence"] == evidence


def test_under_a_load_events_alone_are_no_steps(tmp_path):
    """A server that drafts, and tells nothing of a request: counters cannot be told apart."""
    said = json.loads(VLLM)
    del said["answers"][0]["events"][-2]["metrics"]
    records, _ = answers(said, tmp_path, "--rate", "inf", "--num-prompts", 3)
    for record in records:
        (choice,) = record["choices"]
        assert "accept_lengths" not in choice and choice["accept_evidence"] is None
        assert choice["decoding_steps"] == [6]  # chunks
    answers_file = read_answers(tmp_path / "a.jsonl")
    assert any("steps are unknown" in warning for warning in answers_file.warnings)


@pytest.mark.parametrize("flags", [["--rate", "inf", "--num-prompts", 3], ["--batch-size", 3]])
def test_the_counters_of_a_run_speak_against_its_answers(flags, tmp_path, capfd):
    """Whatever was in flight together: the answers say 36 accepted tokens, the page 33."""
    said = json.loads(VLLM)
    said["counters"]["accepted"] = [f"{11.0 * n}" for n in range(9)]
    records, _ = answers(said, tmp_path, *flags)
    sentence = (
        "the run's answers: 36 drafted tokens accepted;"
        " counters: 33 drafted tokens accepted in 15 steps"
    )
    assert f"no accept lengths: {sentence}" in messages(capfd)
    assert len(records) == 3
    for record in records:
        (choice,) = record["choices"]
        assert "accept_lengths" not in choice and "drafted" not in choice
        assert choice["accept_evidence"]["disagree"] == sentence
    (warning,) = read_answers(tmp_path / "a.jsonl").warnings
    assert f"accept lengths of 3 answers are unknown: {sentence}" in warning


def test_counters_of_a_run_that_counted_others_say_nothing(tmp_path):
    said = json.loads(VLLM)
    said["counters"]["tokens"] = [f"{30.0 * n}" for n in range(9)]
    said["counters"]["accepted"] = [f"{20.0 * n}" for n in range(9)]
    records, _ = answers(said, tmp_path, "--rate", "inf", "--num-prompts", 3)
    assert all(len(record["choices"][0]["accept_lengths"]) == 6 for record in records)


def test_one_failed_connection_is_its_requests_result(tmp_path, monkeypatch):
    """This process has no file left for it, at one moment: the others are sent and answered."""
    connect, failed = aiohappyeyeballs.start_connection, []

    async def scarce(*args, **kwargs):
        if server.asked and not failed:  # the first one behind the probe
            failed.append(True)
            raise OSError(errno.EMFILE, "Too many open files")
        return await connect(*args, **kwargs)

    monkeypatch.setattr(aiohappyeyeballs, "start_connection", scarce)
    with replaying("vllm", answers=[GOOD, SLOW]) as server:
        assert run(server.url, tmp_path, "--rate", "inf", "--num-prompts", 3) == 1
    records = read(tmp_path / "a.jsonl")
    errors = [record["error"] for record in records if "error" in record]
    assert len(records) == 3 and len(errors) == 1
    assert "cannot be reached" in errors[0] and "Too many open files" in errors[0]
    assert [("failed_s" in record) for record in records].count(True) == 1


def test_what_was_in_flight_when_the_server_went_has_failed(tmp_path, capfd):
    """The first request waits for its answer, the second sees the server leave, the third nobody.
    The fourth is not sent."""
    waiting = {"events": [EVENTS[0], {"stall": True}]}
    leaving = {"events": [EVENTS[0], {"leave": True}]}
    flags = ["--rate", 5, "--num-prompts", 4, "--burstiness", "inf"]
    records, _ = answers("vllm", tmp_path, *flags, code=2, answers=[GOOD, waiting, leaving])
    records.sort(key=lambda record: record["request"]["arrival_s"])
    first, second, third = records
    assert "cannot be reached" in first["error"] and "cannot be reached" in third["error"]
    assert "the connection broke after 1 event" in second["error"]
    assert first["failed_s"] > third["failed_s"] > second["failed_s"]
    assert messages(capfd)[-1].endswith("answers so far are kept")


def test_the_soft_limit_of_open_files_is_raised():
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 512) if hard >= 0 else 512, hard))
        assert client.open_files() == (hard if hard >= 0 else float("inf"))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_requests_beyond_the_files_that_there_are_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "open_files", lambda: client.RESERVED + 1)
    flags = ["--rate", "inf", "--num-prompts", 3]
    records, asked = answers("vllm", tmp_path, *flags, code=1, answers=[GOOD, SLOW])
    errors = [record["error"] for record in records if "error" in record]
    assert errors == ["1 requests are in flight, as many as `ulimit -n` has"] * 2
    assert len(asked) == 2  # the probe, and the one that was sent


def test_a_clock_that_is_set_back_moves_no_time(tmp_path, monkeypatch):
    """Every look at it finds it a minute earlier."""
    looks = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1.8e9 - 60 * next(looks))
    flags = ["--rate", 20, "--num-prompts", 3, "--burstiness", "inf"]
    records, _ = answers("vllm", tmp_path, *flags, answers=[GOOD, SLOW])
    began = read_meta(tmp_path / "a.jsonl")["load"]["began_s"]
    arrivals = sorted(record["request"]["arrival_s"] - began for record in records)
    assert [round(arrival, 3) for arrival in arrivals] == [0.05, 0.1, 0.15]
    for record in records:
        request = record["request"]
        assert 0 <= request["sent_s"] - request["arrival_s"] < 0.3
        assert abs(record["choices"][0]["begin_s"][0] - request["sent_s"]) < 1e-5
    assert len(read_answers(tmp_path / "a.jsonl").questions) == 3


def test_a_clients_next_request_arrives_at_the_end_of_its_last(tmp_path, monkeypatch):
    """Not where its record has been written, which takes 0.1 s here: the next one is late by it."""
    add = AnswerFile.add

    def slow(self, record):
        time.sleep(0.1)
        add(self, record)

    monkeypatch.setattr(AnswerFile, "add", slow)
    records, _ = answers("vllm", tmp_path, "--concurrency", 1, "--num-prompts", 3)
    requests = sorted((r["request"]["arrival_s"], r["request"]["sent_s"]) for r in records)
    ends = [end for _, end in spans(records)]
    assert len(requests) == 3
    for (arrival, sent), end in zip(requests[1:], ends):
        assert abs(arrival - end) < 1e-5 and sent - arrival > 0.1


def test_requests_that_have_ended_are_forgotten():
    async def fail():
        raise ValueError("a broken file")

    async def check():
        ended, waits = (asyncio.ensure_future(asyncio.sleep(s)) for s in (0, 60))
        failed = asyncio.ensure_future(fail())
        await asyncio.sleep(0.01)
        assert still_running([ended, waits]) == [waits]
        with pytest.raises(ValueError, match="a broken file"):
            still_running([waits, failed])
        waits.cancel()

    asyncio.run(check())
