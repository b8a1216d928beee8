"""Servers that fail: an error on the question, and the run goes on; or one line, and exit 2."""

import json

import pytest
from harness_runs import messages, read, read_meta, refusal, timeless, write
from replay_server import EXCHANGES, replaying
from served_runs import QUESTIONS, answers, free_port, run

GOOD = json.loads((EXCHANGES / "vllm.json").read_text(encoding="utf-8"))["answers"][0]
EVENTS = GOOD["events"]
LATER = {"status": 429, "headers": {"Retry-After": "0.01"}, "body": {"error": {"message": "busy"}}}
BROKEN = {"status": 500, "body": {"error": {"message": "a broken\nengine", "code": 500}}}


def without_ids_and_usage(events):
    """A server that counts nothing."""
    found = []
    for event in events[:-2]:
        choice = {k: v for k, v in event["choices"][0].items() if k != "token_ids"}
        found.append({k: v for k, v in event.items() if k != "usage"} | {"choices": [choice]})
    return {"events": [*found, "[DONE]"]}


FAILURES = {
    "a dropped connection": (
        {"events": [*EVENTS[:3], {"drop": True}]},
        "the connection broke after 3 events",
    ),
    "HTTP 500": (BROKEN, "HTTP 500: a broken engine"),
    "a stall": ({"events": [*EVENTS[:2], {"stall": True}]}, "the server stalled after 2 events"),
    "a silent server": ({"events": [{"stall": True}]}, "the server stalled after 0 events"),
    "no usage": (without_ids_and_usage(EVENTS), "neither token ids nor token usage"),
    "an error in the stream": (
        {"events": [*EVENTS[:2], {"error": {"message": "out of memory"}}, "[DONE]"]},
        "the server ended the stream: out of memory",
    ),
    "no finish reason": (
        {"events": [*EVENTS[:2], "[DONE]"]},
        "the stream ended without a finish reason after 2 events",
    ),
    "no JSON": ({"events": [{"raw": "data: {oops\n\n"}]}, "an event that cannot be read"),
    "no stream": ({"status": 200, "body": {"choices": []}}, "the server does not stream"),
    "an abort": (
        {
            "events": [
                *EVENTS[:2],
                EVENTS[2] | {"choices": [EVENTS[2]["choices"][0] | {"finish_reason": "abort"}]},
            ]
        },
        "the server ended the answer: abort",
    ),
    "another prompt": (
        {"events": [event if event == "[DONE]" else event | {"usage": EVENTS[-2]["usage"] | {
            "prompt_tokens": 3}} for event in EVENTS]},
        "ids has 3 at the server",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_question_is_recorded_and_the_others_go_on(name, tmp_path, capfd):
    answer, reason = FAILURES[name]
    flags = ["--stall", 0.5]
    records, _ = answers("vllm", tmp_path, *flags, code=1, answers=[GOOD, GOOD, answer, GOOD])
    assert [record["question_id"] for record in records] == [1, 2, 3]
    assert reason in records[1]["error"] and records[1]["choices"] == []
    assert "error" not in records[0] and "error" not in records[2]
    told = messages(capfd)
    assert any(line.startswith("question 2: ") and reason in line for line in told)
    assert told[-1].endswith("1 question failed, see `error` in the answers")


def test_failed_questions_are_asked_again(tmp_path):
    """The same command resumes: what was answered stays, and only the rest is asked."""
    with replaying("vllm", answers=[GOOD, GOOD, BROKEN, GOOD]) as server:
        assert run(server.url, tmp_path) == 1
        first = read(tmp_path / "a.jsonl")
        before = len(server.asked)
        assert run(server.url, tmp_path) == 0
        again = read(tmp_path / "a.jsonl")
        assert len(server.asked) == before + 2  # the probe and the question
    assert [timeless(again)[n] for n in (0, 2)] == [timeless(first)[n] for n in (0, 2)]
    assert [record["question_id"] for record in again] == [1, 2, 3] and "error" not in again[1]


def test_what_is_put_off_is_asked_again(tmp_path):
    records, asked = answers("vllm", tmp_path, answers=[GOOD, LATER, LATER, GOOD])
    assert len(asked) == 6 and records[0]["choices"][0]["tries"] == [3]
    assert records[1]["choices"][0]["tries"] == [1]
    assert read_meta(tmp_path / "a.jsonl")["method_facts"]["retried"] == 2


def test_what_is_put_off_for_ever_fails(tmp_path, capfd):
    records, asked = answers(
        "vllm", tmp_path, "--retries", 1, code=1, answers=[GOOD, LATER, LATER, GOOD]
    )
    assert records[0]["error"] == "HTTP 429: busy" and len(asked) == 5


def test_an_unreachable_server(tmp_path, capfd):
    url = f"http://127.0.0.1:{free_port()}"
    line = refusal(capfd, run(url, tmp_path))
    assert line.startswith(f"inference_engine: {url} cannot be reached: ")
    assert not (tmp_path / "a.jsonl").exists()


def test_a_server_that_is_gone_ends_the_run(tmp_path, capfd):
    """Its answers so far are kept, and the next question finds nobody."""
    leaving = {"events": [*EVENTS[:3], {"leave": True}]}
    records, _ = answers("vllm", tmp_path, code=2, answers=[GOOD, GOOD, leaving])
    assert messages(capfd)[-1].endswith("answers so far are kept")
    assert "error" not in records[0] and "the connection broke" in records[1]["error"]
    assert [record["question_id"] for record in records][:2] == [1, 2]


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--model", "other"], "--model other: URL serves mini"),
        (["--paired", "1"], "--paired: a server's baseline is a run of its own"),
        (["--rate", "1"], "one of them ends --rate"),
        (["--rate", "0", "--duration", "3"], "0: a number above 0 or inf is needed"),
        (["--duration", "3"], "--duration needs --rate"),
        (["--aa", "--num-prompts", "3"], "--aa repeats answers"),
        (["--api-key-env", "NO_SUCH_KEY"], "the environment has no such variable"),
        (["--api", "chat"], "HTTP 404: no page /v1/chat/completions"),
        (["--extra-body", "[]"], "a JSON object is needed"),
    ],
)
def test_bad_input_is_one_line(flags, expected, tmp_path, capfd):
    with replaying("vllm") as server:
        line = refusal(capfd, run(server.url, tmp_path, *flags))
        assert expected.replace("URL", server.url) in line


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://", "ftp://host"])
def test_what_is_no_url(url, tmp_path, capfd):
    line = refusal(capfd, run(url, tmp_path))
    assert f"--url {url}: http://HOST:PORT is needed" in line


def test_a_server_that_counts_nothing_is_refused_at_once(tmp_path, capfd):
    with replaying("vllm", answers=[without_ids_and_usage(EVENTS)]) as server:
        line = refusal(capfd, run(server.url, tmp_path))
    assert "neither token ids nor token usage" in line
    assert not (tmp_path / "a.jsonl").exists()


def test_several_models_need_a_name(tmp_path, capfd):
    said = json.loads((EXCHANGES / "vllm.json").read_text(encoding="utf-8"))
    said["get"]["/v1/models"]["data"].append({"id": "maxi", "owned_by": "vllm"})
    with replaying(said) as server:
        line = refusal(capfd, run(server.url, tmp_path))
        assert line.endswith(f"--model is needed: which one of {server.url}? (mini, maxi)")
        assert run(server.url, tmp_path, "--model", "maxi") == 0
        assert server.asked[-1][1]["model"] == "maxi"


def test_another_servers_answers_are_not_resumed(tmp_path, capfd):
    answers("vllm", tmp_path, "--model-id", "m")
    with replaying("sglang") as server:
        line = refusal(capfd, run(server.url, tmp_path, "--model-id", "m"))
    assert "answers of another run (method_args.speculation" in line


def test_a_refused_template_is_its_questions_error(tmp_path):
    questions = [*QUESTIONS, {"question_id": 4, "category": "qa", "turns": ["x"], "system": "S"}]
    write(tmp_path / "questions.jsonl", questions)
    records, _ = answers("vllm", tmp_path, "--template", "plain", questions=questions)
    assert len(records) == 4 and not any("error" in record for record in records)
