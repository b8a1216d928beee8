"""State between questions: the same beginning for every warm run. Cold ones: conformance/."""

import random

import pytest
from harness_runs import COMMON, answer, questions_of, read, run, write

from model.common import args as arguments

WARM = {
    "recycling": ["--prompt-seeds"],
    "nasd": [],
    "suffix": [],
    "samd": ["--auxiliary", "recycling", "--len-threshold", 30],
}


def facts(records):
    """What a question's answer was and how it came about, by question."""
    return {
        r["question_id"]: [
            (c["output_ids"], c["accept_lengths"], c["drafted"]) for c in r["choices"]
        ]
        for r in records
    }


@pytest.fixture(scope="module")
def shuffled_file(question_file, tmp_path_factory):
    questions = questions_of(question_file)
    random.Random(5).shuffle(questions)
    return write(tmp_path_factory.mktemp("shuffled") / "shuffled.jsonl", questions)


@pytest.mark.parametrize("method", WARM)
def test_warm_ups_and_runs_leave_nothing_to_a_warm_run(
    model_dir, question_file, shuffled_file, tmp_path, method
):
    """The questions of a warm-up are the first ones asked: learning them would be cheating."""
    flags = ["--state", "warm", *WARM[method]]

    def answers(name, file, *more):
        return facts(answer(method, model_dir, file, tmp_path / f"{name}.jsonl", *flags, *more))

    plain = answers("plain", question_file)
    assert answers("warmed", question_file, "--warmup", 2) == plain
    assert answers("shuffled", shuffled_file) != plain  # so there is state that could have leaked


@pytest.mark.parametrize("method", WARM)
def test_every_run_of_a_warm_method_begins_anew(
    model_dir, question_file, tmp_path, monkeypatch, method
):
    monkeypatch.setattr(arguments, "ROOT", tmp_path)
    bench = tmp_path / "data" / "tiny_bench"
    bench.mkdir(parents=True)
    write(bench / "question.jsonl", questions_of(question_file))
    flags = ["--model-path", model_dir, "--bench-name", "tiny_bench", "--max-new-tokens", 16]
    flags += ["--state", "warm", *WARM[method], *COMMON, "--num-runs", 2, "--model-id", "m"]
    assert run(method, *flags) == 0
    first, second = (facts(read(bench / "model_answer" / f"run_{i}" / "m.jsonl")) for i in (1, 2))
    assert first == second
