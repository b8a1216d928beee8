"""Load runs in simulated time against an independent account: every moment has to be exact."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
from harness_runs import write
from load_simulation import (
    LATE,
    LIMIT,
    TICK,
    Account,
    SimulatedTime,
    fake_bench,
    prefill_s,
    pretend_gpu,
    run,
)

from evaluation.service.requests import of_answers
from model.common.args import make_parser
from model.common.load.queue import LoadQueue
from model.common.load.schedule import Schedule, gaps_summed, schedules
from model.common.loop import decode
from model.common.loop.clock import Clock
from model.common.loop.turns import Turn

NUM = 200


def questions_of(num, seed=0):
    """Prompts of 1 to 30 ids, some beyond the vocabulary, some that cannot be rendered."""
    chance, questions = random.Random(seed), []
    for number in range(num):
        ids = [chance.randrange(60) for _ in range(chance.randint(1, 30))]
        if number % 23 == 11:
            ids[0] = 61
        text = "no" if number % 29 == 13 else " ".join(map(str, ids))
        questions.append({"question_id": number, "category": "c", "turns": [text]})
    return questions


def open_loop(rate, shape, num=NUM):
    """Arrivals of an open loop, as multiples of TICK."""
    times = itertools.islice(gaps_summed(rate, shape, 5), num)
    arrivals = tuple(round(time / TICK) * TICK for time in times)
    return Schedule("rate", "", {}, num, arrivals)


LOADS = {
    "light": open_loop(1.5, 1),
    "heavy": open_loop(12, 1),
    "in bursts": open_loop(4, 0.1),
    "even": open_loop(4, float("inf")),
    "all at once": open_loop(float("inf"), 1),
    "more clients than slots": Schedule("closed", "", {}, NUM, clients=7),
    "back to back": Schedule("closed", "", {}, NUM, clients=4),
    "fewer clients than slots": Schedule("closed", "", {}, NUM, clients=2),
}


SLOW = 5 * TICK  # of a drafter that reads prompts
RUNS = [*((load, 4, 0.0) for load in LOADS), ("heavy", 1, 0.0)]
RUNS += [("heavy", 4, SLOW), ("more clients than slots", 4, SLOW)]


@pytest.mark.parametrize("load, num_slots, start_s", RUNS)
def test_every_moment(load, num_slots, start_s):
    questions, schedule = questions_of(NUM), LOADS[load]
    records, queue = run(questions, schedule, num_slots, start_s=start_s)
    account = Account(questions, schedule, num_slots, start_s)
    assert len(records) == len(account.facts) == NUM
    for record in records:
        fact = account.facts[record["question_id"]]
        assert record["request"] == {"arrival_s": fact["arrival"], "sent_s": fact["sent"]}
        if "failed" in fact:
            assert record["error"] and record["choices"] == []
            assert record["failed_s"] == fact["failed"] >= fact["sent"]
            continue
        assert "error" not in record and "failed_s" not in record
        (choice,) = record["choices"]
        begin, ends = fact["begin"], fact["ends"]
        assert choice["begin_s"] == [begin] and begin >= fact["sent"] >= fact["arrival"]
        assert choice["first_s"] == [fact["first"] - begin]
        assert choice["prefill_s"] == [fact["read"] - begin]
        assert choice["step_end_s"] == [[end - begin for end in ends]]
        assert choice["wall_time"] == [[fact["read"], *ends][-1] - begin]
        assert choice["accept_lengths"] == fact["lengths"]
        assert choice["output_ids"] == [fact["ids"]]
        assert choice["finish_reason"] == ["stop" if fact["ids"][-1] == 60 else "length"]
    assert queue.idle_s == account.idle and queue.client_s == 0
    assert queue.host.time == account.time
    assert sum("error" in record for record in records) == 9 + 7  # see questions_of()


@pytest.mark.parametrize("start_s", [0.0, SLOW])
def test_latencies_of_the_records(tmp_path, start_s):
    """As evaluation/serving.py reads them: of 200 requests, exactly those of the account.

    A first token is there before a slow drafter has read the prompt, the second one is not.
    """
    questions, schedule = questions_of(NUM), LOADS["heavy"]
    records, _ = run(questions, schedule, 4, start_s=start_s)
    account = Account(questions, schedule, 4, start_s)
    requests = of_answers(write(tmp_path / "a.jsonl", records)).requests
    assert len(requests) == NUM
    for request in requests:
        fact, figures = account.facts[request.request_id], request.figures()
        assert figures["lag"] == fact["sent"] - fact["arrival"]
        if "failed" in fact:
            assert request.error and figures["ttft"] is figures["tpot"] is figures["e2e"] is None
            continue
        moments, lengths = [fact["first"], *fact["ends"]], fact["lengths"]
        assert figures["queue"] == fact["begin"] - fact["sent"]
        assert figures["ttft"] == moments[0] - fact["arrival"]
        assert figures["e2e"] == moments[-1] - fact["arrival"]
        spent = moments[-1] - moments[0]
        assert figures["tpot"] == (spent / (len(fact["ids"]) - 1) if lengths else None)
        gaps = [after - before for before, after in itertools.pairwise(moments)]
        assert request.chunk_gaps == gaps
        parts = [gap / count for gap, count in zip(gaps, lengths) for _ in range(count)]
        assert request.token_gaps == parts
        assert (request.prompt_tokens, request.new_tokens) == (fact["prompt"], 1 + sum(lengths))


def test_a_gpus_timer_that_runs_fast(tmp_path, monkeypatch):
    """By 1 %, and the slots are never all empty: steps end within their turns all the same."""
    host, cuda = SimulatedTime(), torch.device("cuda")
    pretend_gpu(monkeypatch, host, 1.01)
    monkeypatch.setattr(decode, "Clock", lambda device, *others: Clock(cuda, *others))
    questions, schedule = questions_of(NUM), LOADS["all at once"]
    records, _ = run(questions, schedule, 4, host=host)
    account = Account(questions, schedule, 4)
    assert host.time == account.time > 5
    of_answers(write(tmp_path / "a.jsonl", records))  # is not refused
    for record in records:
        for choice in record["choices"]:
            ends, begin = account.facts[record["question_id"]]["ends"], choice["begin_s"][0]
            wanted = [end - begin for end in ends]
            assert choice["step_end_s"][0] == pytest.approx(wanted, abs=1e-6)


def test_the_loads_are_what_their_names_say():
    """So that the test above has met queues, idle slots, late sleeps, short answers."""
    found = {name: Account(questions_of(NUM), load, 4) for name, load in LOADS.items()}
    answered = {
        name: [fact for fact in account.facts.values() if "begin" in fact]
        for name, account in found.items()
    }
    queued = {name: [f["begin"] - f["sent"] for f in facts] for name, facts in answered.items()}
    assert max(queued["light"]) < 2 < 5 < max(queued["heavy"]) < max(queued["all at once"])
    assert found["light"].idle > 50 and found["heavy"].idle < 1 and found["back to back"].idle == 0
    # a client whose request has failed sends its next one while the others' prompts are read
    longest = prefill_s(30)
    assert max(queued["back to back"]) <= longest < max(queued["more clients than slots"])
    assert sum(queued["back to back"]) < 16 * longest
    lags = {f["sent"] - f["arrival"] for f in answered["light"]}
    assert 0 in lags and max(lags) >= LATE
    lengths = [len(fact["ids"]) for fact in answered["light"]]
    assert min(lengths) == 1 and max(lengths) == LIMIT
    steps = [length for fact in answered["light"] for length in fact["lengths"]]
    assert set(steps) == {1, 2, 3, 4}


def test_times_are_of_requests_not_of_slots():
    """The definitions on four requests, worked out by hand: two slots, all of one token a step."""
    texts = ["0 0 0 0", "4", "8", "12 12 12 12"]
    questions = [
        {"question_id": i, "category": "c", "turns": [text]} for i, text in enumerate(texts)
    ]
    arrivals = (0.0, 2 * TICK, 2 * TICK, 50.0)
    records, _ = run(questions, Schedule("trace", "", {}, 4, arrivals), 2)
    first, second, third, last = records
    assert first["choices"][0]["begin_s"] == [0.0]
    assert first["choices"][0]["prefill_s"] == [3 * TICK]  # its prompt has four tokens
    # the second arrived while the first was read, and begins when that has ended
    assert second["request"] == {"arrival_s": 2 * TICK, "sent_s": 2 * TICK}
    assert second["choices"][0]["begin_s"] == [3 * TICK]
    # the third waits for the first slot that is free
    ends = min(r["choices"][0]["begin_s"][0] + r["choices"][0]["wall_time"][0] for r in records[:2])
    assert third["choices"][0]["begin_s"] == [ends]
    # before the last one the loop slept, a tick too long
    assert last["request"] == {"arrival_s": 50.0, "sent_s": 50.0 + LATE}
    assert last["choices"][0]["begin_s"] == [50.0 + LATE]


@pytest.mark.parametrize("load", ["heavy", "more clients than slots", "light"])
def test_a_loop_that_breaks_costs_the_requests_in_its_slots(load):
    questions, schedule = questions_of(60), replace(LOADS[load], num_requests=60)
    records, queue = run(questions, schedule, 4, broken_step=20)
    broken = [record for record in records if record.get("error") == "planted"]
    assert 1 <= len(broken) <= 4 and len({record["failed_s"] for record in broken}) == 1
    assert sorted(record["question_id"] for record in records) == list(range(60))
    after = [
        r for r in records if r["choices"] and r["choices"][0]["begin_s"][0] > broken[0]["failed_s"]
    ]
    assert after and not queue.unfinished
    clean, _ = run(questions, schedule, 4)
    ids = {r["question_id"]: r["choices"][0]["output_ids"] for r in clean if r["choices"]}
    for record in records:
        if record["choices"]:
            assert record["choices"][0]["output_ids"] == ids[record["question_id"]]


def serve(flags, service_s):
    """Records of a load on one slot of an engine that takes so many seconds a request."""
    args = make_parser("pld", "", lambda group: None).parse_args(["--model-path", "x", *flags])
    (schedule,) = schedules(args)
    host, records = SimulatedTime(), []
    questions = [q for q in questions_of(100) if q["turns"] != ["no"]][: schedule.num_requests]
    queue = LoadQueue(fake_bench(), questions, "m", records.append, schedule, host)
    while queue.unfinished:
        request = queue.take(0)
        if request is None:
            assert queue.wait()
            continue
        begin = host.time
        queue.begun(request, 0, begin)
        host.time += service_s
        queue.done(request, Turn([1], "stop", service_s, service_s, begin_s=begin))
    return records


@pytest.mark.parametrize("service_s, queues", [(0.01, False), (0.5, True)])
def test_an_open_loop_does_not_wait_for_answers(service_s, queues):
    """At 10 a second for 2 s: 20 arrivals, whatever an answer takes."""
    records = serve(["--rate", "10", "--duration", "2", "--burstiness", "inf"], service_s)
    arrivals = [record["request"]["arrival_s"] for record in records]
    assert arrivals == pytest.approx([(1 + number) / 10 for number in range(20)])
    waits = [r["choices"][0]["begin_s"][0] - r["request"]["sent_s"] for r in records]
    rising = [after - before for before, after in itertools.pairwise(waits)]
    assert rising[1:] == pytest.approx([0.4 if queues else 0] * 18, abs=1e-5)


def test_a_closed_loop_waits_for_answers():
    """Of 0.5 s each, so that it makes 4 in 2 s and nobody ever waits."""
    records = serve(["--concurrency", "1", "--num-prompts", "4"], 0.5)
    assert [record["request"]["arrival_s"] for record in records] == [0, 0.5, 1, 1.5]
    assert [record["choices"][0]["begin_s"] for record in records] == [[0], [0.5], [1], [1.5]]
