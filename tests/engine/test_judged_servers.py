"""A server's answers before the tools: verdicts beside how often it differs from itself."""

import copy

import pytest
from harness_runs import answer, read, write
from replay_server import replaying
from served_runs import MINI, QUESTIONS, run

from evaluation import audit_sampling, equal, speed
from evaluation.answers.meta import AnswerError

LIMIT = 24
MODELS = {"object": "list", "data": [{"id": "mini", "owned_by": "vllm"}]}
PAGES = {"/v1/models": MODELS, "/version": {"version": "0.32.0"}}


def stream(ids):
    """vLLM's events of an answer, a token each."""
    events = []
    for place, token in enumerate(ids, 1):
        ends = place == len(ids)
        finish = ("stop" if token == 1 else "length") if ends else None
        choice = {"index": 0, "text": "", "token_ids": [token], "finish_reason": finish}
        usage = {"prompt_tokens": "$prompt", "completion_tokens": place}
        events.append({"choices": [choice], "usage": usage})
    return {"events": [*events, "[DONE]"]}


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """(file of our loop's answers of the mini target, their ids)."""
    folder = tmp_path_factory.mktemp("loop")
    questions = write(folder / "questions.jsonl", QUESTIONS)
    records = answer("vanilla", MINI, questions, folder / "vanilla.jsonl")
    return folder / "vanilla.jsonl", [r["choices"][0]["output_ids"][0] for r in records]


def serve(folder, *rounds, flags=()):
    """Files of a server that gives these ids, a round of all questions after the other."""
    streams = [stream(ids) for given in rounds for ids in given]
    exchange = {"get": PAGES, "path": "/v1/completions", "answers": [streams[0], *streams]}
    with replaying(exchange) as server:
        assert run(server.url, folder, *flags) == 0
    return folder / "a.jsonl"


def changed(ids):
    """All answers, the second with another token in its middle."""
    found = copy.deepcopy(ids)
    found[1][5] = 7 if found[1][5] != 7 else 8
    return found


def test_a_servers_answers_are_laid_beside_the_loops(loop, tmp_path, capsys):
    file, ids = loop
    served = serve(tmp_path, ids)
    assert equal.main([str(file), str(served)]) == 0
    text = capsys.readouterr().out
    assert "EQUAL: target-vllm-engine-float32-temperature-0.0 [a.jsonl]: 3 of 3 questions" in text
    assert 'note: differs in engine.name: "vllm", baseline (absent)' in text
    assert "A/A: unknown: no a-aa.jsonl" in text


def test_no_footing_is_shared_with_the_loop(loop, tmp_path, monkeypatch):
    served = serve(tmp_path, loop[1])
    argv = ["speed.py", "--file-path", str(served), "--base-path", str(loop[0])]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(AnswerError, match="not comparable.*engine.name: "):
        speed.main()


def test_servers_rows_are_compared_with_each_other(loop, tmp_path, monkeypatch, capsys):
    folders = [tmp_path / name for name in ("plain", "drafting")]
    files = []
    for folder in folders:
        folder.mkdir()
        flags = ["--model-id", folder.name, "--speculation", folder.name]
        files.append(str(serve(folder, loop[1], flags=flags)))
    argv = ["speed.py", "--base-path", files[0], "--file-path", files[1], "--resamples", "20"]
    monkeypatch.setattr("sys.argv", argv)
    assert speed.main() == 0
    assert "drafting" in capsys.readouterr().out


def test_a_server_that_differs_from_itself(loop, tmp_path, capsys):
    file, ids = loop
    served = serve(tmp_path, ids, changed(ids), flags=["--aa"])
    again = tmp_path / "a-aa.jsonl"
    assert [r["choices"][0]["output_ids"][0] for r in read(again)] == changed(ids)
    assert equal.main([str(served), str(served)]) == 0
    line = "answered twice by its server, differs on 1 of 3 questions (33.3 %)"
    assert line in capsys.readouterr().out
    assert equal.main([str(file), str(served), "--aa", str(again)]) == 0
    assert line in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:  # no A/A file, and none of these answers
        raise SystemExit(equal.main([str(file), str(served), "--aa", str(served)]))
    assert ended.value.code == 2


def test_a_wrong_token_of_a_server_is_judged(loop, tmp_path, capsys):
    file, ids = loop
    served = serve(tmp_path, changed(ids))
    flags = ["--model-path", MINI, "--device", "cpu", "--num-threads", "1", "--control", "0"]
    assert equal.main([str(file), str(served), *flags]) == 1
    text = capsys.readouterr().out
    assert "BUG: target-vllm-engine" in text and "question 2 (qa): BUG" in text
    assert "A/A: unknown" in text


def test_a_proof_is_not_asked_of_a_server(loop, tmp_path, capsys):
    served = serve(tmp_path, changed(loop[1]))
    flags = ["--model-path", MINI, "--device", "cpu", "--num-threads", "1", "--control", "0"]
    assert equal.main([str(loop[0]), str(served), *flags, "--proof"]) == 2
    said = capsys.readouterr()
    assert "a server's answers cannot be given again here" in said.err + said.out


def test_sampled_answers_are_audited(tmp_path, capsys, monkeypatch):
    """Ids that our loop drew from the target's law, as a server's: nothing speaks against them."""
    questions = write(tmp_path / "questions.jsonl", QUESTIONS)
    warm = ["--temperature", 1, "--seed", 5]
    records = answer("vanilla", MINI, questions, tmp_path / "vanilla.jsonl", *warm)
    ids = [record["choices"][0]["output_ids"][0] for record in records]
    served = serve(tmp_path, ids, flags=warm)
    argv = ["audit_sampling.py", str(served), "--model-path", MINI, "--device", "cpu"]
    monkeypatch.setattr("sys.argv", argv)
    assert audit_sampling.main() == 0
    assert "target-vllm-engine" in capsys.readouterr().out
