"""Questions that fail: recorded, counted, tried again, and no harm to the others."""

import pytest
from harness_runs import answer, ids_of, messages, questions_of, timeless, write

from model.common.contract.sequence import EmptyDrafter
from model.common.prompts.prompter import load_tokenizer


class Failing(EmptyDrafter):
    """Raises for prompts that hold the text "28?", which is question 15's."""

    def start(self, prompt):
        for ids in prompt.host_ids:
            text = "".join(map(chr, FAILING_IDS))
            if text in "".join(map(chr, ids)):
                raise RuntimeError("no luck\nwith this one")
        super().start(prompt)


FAILING_IDS = []


@pytest.fixture
def failing(model_dir):
    """Flags of a build whose drafter fails on question 15, until `heal` is called."""
    FAILING_IDS[:] = load_tokenizer(model_dir)("28?").input_ids
    yield lambda args, target: Failing()
    FAILING_IDS[:] = []


@pytest.mark.parametrize("warmup", [0, 1])
def test_failing_question_is_recorded_and_tried_again(
    failing, model_dir, question_file, tmp_path, capfd, warmup
):
    out = tmp_path / "a.jsonl"
    flags = ["--warmup", warmup]
    first = answer("pld", model_dir, question_file, out, *flags, build=failing, code=1)
    assert [r["question_id"] for r in first if "error" in r] == [15]
    failed = first[4]
    assert failed["error"] == "RuntimeError: no luck with this one"
    assert failed["choices"] == []
    assert [len(r["choices"]) for r in first] == [1, 1, 1, 1, 0, 1]
    lines = messages(capfd)
    assert lines[0] == "question 15: RuntimeError: no luck with this one"
    assert len(lines) == 2 and "1 question" in lines[1]
    again = answer("pld", model_dir, question_file, out, *flags, build=failing, code=1)
    assert [r["question_id"] for r in again] == [11, 12, 13, 14, 15, 16]
    FAILING_IDS[:] = [999]
    healed = answer("pld", model_dir, question_file, out, *flags, build=failing)
    full = answer("vanilla", model_dir, question_file, tmp_path / "b.jsonl", *flags)
    assert ids_of(healed) == ids_of(full)
    assert [r["question_id"] for r in healed] == [11, 12, 13, 14, 15, 16]
    assert timeless(healed[:4]) == timeless(first[:4])


def test_failing_first_question_does_not_end_the_warm_up_in_a_crash(
    failing, model_dir, question_file, tmp_path
):
    questions = questions_of(question_file)
    file = write(tmp_path / "q.jsonl", [questions[4], *questions[:4]])
    flags = ["--warmup", 2]
    out = tmp_path / "a.jsonl"
    records = answer("pld", model_dir, file, out, *flags, build=failing, code=1)
    assert ["error" in record for record in records] == [True] + [False] * 4


def test_paired_failure_is_one_question(failing, model_dir, question_file, tmp_path, capfd):
    """A prompt that fits neither file is one failed question."""
    questions = questions_of(question_file)[3:5]
    questions[1]["turns"] = ["long " * 200]
    file = write(tmp_path / "q.jsonl", questions)
    answer("pld", model_dir, file, tmp_path / "a.jsonl", "--paired", 1, code=1)
    assert "1 question" in capfd.readouterr().err.splitlines()[-1]


def test_a_failure_takes_only_who_is_in_a_slot(failing, model_dir, question_file, tmp_path):
    """Three slots: question 15 enters one beside two others; all else is as it would be."""
    out, flags = tmp_path / "a.jsonl", ["--batch-size", 3]
    records = answer("pld", model_dir, question_file, out, *flags, build=failing, code=1)
    failed = [r["question_id"] for r in records if "error" in r]
    assert 15 in failed and len(failed) <= 3
    whole = answer("vanilla", model_dir, question_file, tmp_path / "b.jsonl")
    for record, wanted in zip(records, whole):
        if record["question_id"] not in failed:
            assert ids_of([record]) == ids_of([wanted])
    FAILING_IDS[:] = [999]
    healed = answer("pld", model_dir, question_file, out, *flags, build=failing)
    assert ids_of(healed) == ids_of(whole)


@pytest.mark.parametrize("batch", [1, 3])
def test_prompt_beyond_the_context_fails_alone(model_dir, question_file, tmp_path, batch):
    questions = questions_of(question_file)[1:5]
    questions[1]["turns"] = ["long " * 200]
    file = write(tmp_path / "q.jsonl", questions)
    flags = ["--batch-size", batch, "--warmup", 1]
    records = answer("pld", model_dir, file, tmp_path / "a.jsonl", *flags, code=1)
    assert ["error" in record for record in records] == [False, True, False, False]
    assert "does not fit the context of 512" in records[1]["error"]


def test_answer_ends_at_the_context(model_dir, question_file, tmp_path):
    questions = questions_of(question_file)[1:2]
    questions[0]["turns"] = ["x" * 480]
    file = write(tmp_path / "q.jsonl", questions)
    for method in ("vanilla", "pld"):
        flags = ["--max-new-tokens", 100]
        (record,) = answer(method, model_dir, file, tmp_path / f"{method}.jsonl", *flags)
        (choice,) = record["choices"]
        assert choice["prompt_tokens"][0] + choice["new_tokens"][0] == 512
        assert choice["finish_reason"] == ["length"]


def test_second_turn_beyond_the_context_fails_the_question(model_dir, question_file, tmp_path):
    questions = questions_of(question_file)[:2]
    questions[0]["turns"][1] = "long " * 200
    file = write(tmp_path / "q.jsonl", questions)
    records = answer("pld", model_dir, file, tmp_path / "a.jsonl", code=1)
    assert [record["choices"] == [] for record in records] == [True, False]
