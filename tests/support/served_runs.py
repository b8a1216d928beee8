"""Runs of inference_engine inside the test process, against servers that replay exchanges."""

import socket

import pytest
from harness_runs import ROOT, read, write
from replay_server import replaying

from model.engine import inference_engine
from model.engine.run import main

MINI = str(ROOT / "data" / "mini_models" / "target")
QUESTIONS = [
    {"question_id": n, "category": "qa", "turns": [text]}
    for n, text in enumerate(["What is a clock?", "Who is Greta?", "Where is the cat?"], 1)
]


def run(url, folder, *flags, questions=QUESTIONS, named=True):
    """Exit code of a run of `questions`; named: it answers into folder/a.jsonl."""
    file = write(folder / "questions.jsonl", questions)
    argv = ["--url", url, "--model-path", MINI, "--dtype", "float32", "--warmup", "0"]
    argv += ["--answer-file", str(folder / "a.jsonl")] if named else []
    argv += ["--question-file", file, "--max-new-tokens", "24", "--stall", "5"]
    with pytest.raises(SystemExit) as ended:
        main(inference_engine.__doc__, inference_engine.add_args, [*argv, *map(str, flags)])
    return ended.value.code


def answers(exchange, folder, *flags, code=0, questions=QUESTIONS, **changed):
    """(records, what the server was asked) of a run against an exchange."""
    with replaying(exchange, **changed) as server:
        assert run(server.url, folder, *flags, questions=questions) == code
        return read(folder / "a.jsonl"), server.asked


def free_port():
    """A port on which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
