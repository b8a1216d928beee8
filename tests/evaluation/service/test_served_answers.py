"""Load files and servers' answers in the reader, and in the tools that were there before."""

import json

import pytest
from answer_samples import assert_refused, meta, run_tool, task, write
from served_files import (
    failed_line,
    load_meta,
    random_lines,
    request_line,
    server_line,
    ticks,
)

from evaluation.answers.meta import AnswerError
from evaluation.answers.reader import read_answers
from evaluation.audit.recount import read_side, recount
from evaluation.audit_answers import audit
from evaluation.speedup import metrics
from evaluation.speedup.comparison import compare

CHUNKS = [(10, 2), (20, 1), (20, 2)]
TOLD = {"source": "per_step", "checked": ["usage"], "disagree": None}


def served(number, evidence=None, **facts):
    """A server's line of six tokens in four chunks."""
    record = server_line(number, 0, 0, 50, CHUNKS, evidence=evidence)
    record["choices"][0] |= facts
    return record


def columns_of(path):
    return metrics.question_columns(list(read_answers(path).questions.values()))


def test_fields_are_read_as_written(tmp_path):
    line = request_line(1, 0, 5, 50, CHUNKS, sent=2, energy_j=3.5)
    path = write(tmp_path / "m.jsonl", [line, failed_line(2, 4, 9), failed_line(3, 5)])
    one, lost, unknown = read_answers(path).questions.values()
    assert one.request == {"arrival_s": ticks(0), "sent_s": ticks(2)}
    assert one.choices[0].energy_j == [3.5] and one.choices[0].chunk_tokens is None
    assert (lost.error, lost.failed_s) == ("CUDA out of memory", ticks(9))
    assert unknown.failed_s is None and unknown.request["arrival_s"] == ticks(5)


CHANGES = [
    (lambda q: q.update(request=[1]), "request is no JSON object"),
    (lambda q: q["request"].pop("sent_s"), "request.sent_s is missing or no Unix time"),
    (lambda q: q["request"].update(arrival_s="x"), "request.arrival_s is missing or no Unix time"),
    (lambda q: q["request"].update(arrival_s=ticks(9)), "sent_s is before request.arrival_s"),
    (lambda q: q["request"].update(sent_s=ticks(9)), "begin_s is before the request's sent_s"),
    (lambda q: q["choices"][0].update(energy_j=[-1]), "energy_j holds -1, no number"),
    (lambda q: q["choices"][0].update(energy_j=[1, 2]), "energy_j is no list of 1 turns"),
    (lambda q: q["choices"][0].pop("chunk_end_s"), "chunk_end_s is missing"),
    (lambda q: q["choices"][0].pop("chunk_tokens"), "chunk_tokens is missing"),
    (lambda q: q["choices"][0].pop("prefill_s"), "prefill_s is missing, where chunks are timed"),
    (lambda q: q["choices"][0].update(chunk_tokens=[[1, 2, 1]]), "not one a chunk behind"),
    (lambda q: q["choices"][0].update(chunk_tokens=[[1, 2, 1, 1]]), "are not its 6 new_tokens"),
    (lambda q: q["choices"][0].update(chunk_tokens=[[0, 3, 1, 2]]), "are not its 6 new_tokens"),
    (lambda q: q["choices"][0].update(chunk_tokens=[[1, -2, 5, 2]]), "negative number"),
    (lambda q: q["choices"][0].update(chunk_end_s=[[0.2, 0.1, 0.2]]), "falls from a chunk"),
    (lambda q: q["choices"][0].update(chunk_end_s=[[0.0, 0.1, 0.2]]), "falls from a chunk"),
    (lambda q: q["choices"][0].update(wall_time=[0.06]), "chunk_end_s is later than wall_time"),
    (lambda q: q["choices"][0].update(accept_evidence=[]), "accept_evidence is no JSON object"),
    (lambda q: q["choices"][0].update(accept_evidence={"source": "a guess"}), "names another"),
    (lambda q: q["choices"][0].update(accept_evidence={"source": ["usage"]}), "names another"),
    (lambda q: q["choices"][0].update(accept_evidence={"checked": [{}]}), "names another"),
    (lambda q: q["choices"][0].update(accept_evidence={"disagree": 1}), "no sentence in disagree"),
    (
        lambda q: q["choices"][0].update(accept_evidence=TOLD, accept_lengths=[2, 1, 1]),
        "new_tokens is 6, but the prefill's token and the accept_lengths make 5",
    ),
]


@pytest.mark.parametrize("change, message", CHANGES)
def test_broken_fields_are_refused_with_a_place(tmp_path, change, message):
    record = served(1)
    write(tmp_path / "whole.jsonl", [record])
    assert read_answers(tmp_path / "whole.jsonl").questions[1].choices  # as it is, it is read
    change(record)
    path = write(tmp_path / "m.jsonl", [record])
    with pytest.raises(AnswerError, match=message) as refusal:
        read_answers(path)
    assert f"{path}: line 1" in str(refusal.value) and "\n" not in str(refusal.value)


def test_chunks_are_never_taken_for_steps(tmp_path):
    path = write(tmp_path / "m.jsonl", [served(1)])
    answers = read_answers(path)
    (choice,) = answers.questions[1].choices
    assert choice.steps is None and choice.accepted is None
    assert any("steps are unknown" in warning for warning in answers.warnings)
    columns = columns_of(path)
    assert columns.steps is None and metrics.mean_accepted(columns) is None
    assert list(columns.decode_tokens) == [5]


def test_evidence_of_steps_is_taken_with_and_without_lengths(tmp_path):
    listed = served(1, TOLD, accept_lengths=[2, 1, 2])
    path = write(tmp_path / "m.jsonl", [listed])
    assert metrics.mean_accepted(columns_of(path))["over_steps"] == pytest.approx(5 / 3)
    counted = served(1, {"source": "summary"}, decoding_steps=[2])  # two steps made five tokens
    path = write(tmp_path / "n.jsonl", [counted])
    assert read_answers(path).questions[1].choices[0].accept_lengths is None
    assert metrics.mean_accepted(columns_of(path))["over_steps"] == pytest.approx(5 / 2)


def test_a_disagreement_leaves_no_accept_length_and_is_told(tmp_path):
    doubt = {"source": "summary", "disagree": "summary: 4 accepted; usage: 7"}
    path = write(
        tmp_path / "m.jsonl", [served(1, doubt, accept_lengths=[2, 1, 2]), served(2, TOLD)]
    )
    found = read_answers(path)
    assert found.questions[1].choices[0].accepted is None
    assert any("1 answers are unknown: summary: 4 accepted" in line for line in found.warnings)
    assert columns_of(path).accepted is None  # of all questions, or of none


def pair(folder, ours, theirs):
    """Files of servers with metas."""
    method = write(folder / "m.jsonl", ours, meta("m", "engine"))
    return method, write(folder / "base.jsonl", theirs, meta("m", "engine"))


def test_speed_compares_servers_without_their_steps(tmp_path):
    slow = [served(n) for n in (1, 2)]
    for record in slow:
        (choice,) = record["choices"]
        choice["wall_time"] = [2 * s for s in choice["wall_time"]]
        choice["prefill_s"] = [2 * s for s in choice["prefill_s"]]
        choice["chunk_end_s"] = [[2 * s for s in choice["chunk_end_s"][0]]]
    files = pair(tmp_path, [served(1), served(2)], slow)
    result = compare(*map(read_answers, files), 50, 0)
    overall = task(result, "overall")
    assert overall["speedup"]["mean_ratio"]["value"] == pytest.approx(2)
    assert overall["decode_speedup"]["mean_ratio"]["value"] == pytest.approx(2)
    assert overall["mean_accepted"] is None and result["time_identity"] is None
    done = run_tool("evaluation/speed.py", "--file-path", files[0], "--base-path", files[1])
    assert done.returncode == 0, done.stderr
    assert "hides its steps" in done.stdout


def test_decode_speed_of_a_first_chunk_of_several_tokens(tmp_path):
    record = server_line(1, 0, 0, 50, [(10, 2)], first=3, evidence=TOLD)
    record["choices"][0] |= {"accept_lengths": [2, 2], "decoding_steps": [2]}
    method, base = pair(tmp_path, [record], [served(1, TOLD, accept_lengths=[2, 1, 2])])
    columns = columns_of(method)
    assert (columns.decode_tokens[0], columns.accepted[0]) == (2, 4)
    identity = compare(read_answers(method), read_answers(base), 10, 0)["time_identity"]
    assert identity["time"] == "wall"  # the steps' tokens are not those of the decode time


def test_equal_and_audit_read_servers_and_load_files(tmp_path):
    method, base = pair(tmp_path, [served(1), served(2)], [served(1), served(2)])
    done = run_tool("evaluation/equal.py", base, method)
    assert done.returncode == 0 and "EQUAL" in done.stdout, done.stderr
    sides = [read_side(name, path) for name, path in (("method", method), ("baseline", base))]
    assert recount(*sides).questions[1].choices[0].steps is None
    found = audit(*sides, resamples=20)
    assert found["recounted"]["tasks"][-1]["mean_accepted"] is None
    lines = random_lines(30, 3)
    load = write(tmp_path / "load.jsonl", lines, load_meta())
    other = write(tmp_path / "other.jsonl", lines, load_meta())
    done = run_tool("evaluation/equal.py", load, other)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run_tool("evaluation/speed.py", "--file-path", load, "--base-path", other)
    assert done.returncode == 0 and "failed in the method" in done.stdout, done.stderr


def test_a_load_file_is_refused_where_its_requests_are_no_requests(tmp_path):
    lines = random_lines(4, 1)
    assert "error" not in lines[0]
    both = json.loads(json.dumps(lines))
    del both[1]["request"]
    path = write(tmp_path / "m.jsonl", both, load_meta())
    assert_refused(run_tool("evaluation/serving.py", path), "question 1 has no request")
    del lines[0]["choices"][0]["begin_s"]
    path = write(tmp_path / "n.jsonl", lines, load_meta())
    assert_refused(run_tool("evaluation/serving.py", path), path, "question 0 has no begin_s")
