"""Runs in which logits are not finite or a prompt cannot be read: what files and tools say."""

import shutil

import pytest
from answer_samples import report_of, run_tool
from harness_runs import answer, ids_of, own_flags, read, write
from safetensors.torch import load_file, save_file

from model.common.prompts.prompter import load_tokenizer

NAN = float("nan")
QUESTIONS = ["Hello a", "one Z here", "What is it?", "and that?", "the last one"]
REASON = "the target's logits are not finite after the prompt"


def spoilt(folder, model_dir, tensor, row):
    """The tiny model with a row of a tensor that is no number."""
    shutil.copytree(model_dir, folder)
    weights = load_file(folder / "model.safetensors")
    weights[tensor][row] = NAN
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module")
def one_bad(model_dir, tmp_path_factory):
    """A model that has no number for Z."""
    (token,) = load_tokenizer(model_dir)("Z").input_ids
    folder = tmp_path_factory.mktemp("one") / "model"
    return spoilt(folder, model_dir, "model.embed_tokens.weight", token)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    lines = [
        {"question_id": number, "category": "qa", "turns": [text]}
        for number, text in enumerate(QUESTIONS, 1)
    ]
    return write(tmp_path_factory.mktemp("questions") / "question.jsonl", lines)


def tool(name, *flags):
    """(exit status, its report or None, both streams) of a tool."""
    done = run_tool(f"evaluation/{name}.py", *flags)
    return done.returncode, report_of(done), done.stdout + done.stderr


@pytest.mark.parametrize("warmup", [0, 1])
@pytest.mark.parametrize("batch", [1, 3])
def test_one_question_fails_and_no_tool_counts_it(
    one_bad, model_dir, draft_dir, questions, tmp_path, batch, warmup
):
    """Its error is its own, answers to the others are those of a model without the fault."""
    flags = ["--batch-size", batch, "--warmup", warmup, "--drafter-path", draft_dir]
    out = {name: tmp_path / f"{name}.jsonl" for name in ("sps", "vanilla", "sound")}
    found = answer("sps", one_bad, questions, out["sps"], *flags, code=1)
    base = answer("vanilla", one_bad, questions, out["vanilla"], *flags[:-2], code=1)
    sound = answer("vanilla", model_dir, questions, out["sound"], *flags[:-2])
    for records in (found, base):
        assert [record.get("error") for record in records] == [None, REASON, None, None, None]
        assert {**ids_of(records), 2: None} == {**ids_of(sound), 2: None}
        assert records[1]["choices"] == []
    if batch == 3:
        return
    status, document, said = tool("speed", "--file-path", out["sps"], "--base-path", out["vanilla"])
    (result,) = document["results"]
    assert status == 0 and [row["questions"] for row in result["tasks"]] == [4, 4]
    left_out = result["left_out"]
    assert left_out["failed_in_method"] == left_out["failed_in_baseline"] == [2]
    assert f"left out on both sides: 1 question: 2 (first error: {REASON}" in said
    status, document, said = tool("equal", out["vanilla"], out["sps"])
    assert status == 0 and "4 of 4 questions" in said and "1 failed on both sides" in said


@pytest.mark.slow
def test_a_run_of_failures_has_no_speedup(model_dir, questions, tmp_path):
    """And no tool that says nothing of it."""
    broken = spoilt(tmp_path / "model", model_dir, "lm_head.weight", 3)
    out = {name: tmp_path / f"{name}.jsonl" for name in ("pld", "vanilla", "sampled")}
    flags = {"sampled": ["--temperature", 1]}
    for name, path in out.items():
        method = "vanilla" if name == "sampled" else name
        records = answer(method, broken, questions, path, *flags.get(name, []), code=1)
        assert [record["error"] for record in records] == [REASON] * 5
    both = ["--file-path", out["pld"], "--base-path", out["vanilla"]]
    for more in (
        [],
        ["--format", "markdown"],
        ["--format", "csv"],
        ["--ladder", out["vanilla"]],
        ["--detail", "--profile"],
    ):
        status, document, said = tool("speed", *both, *more)
        assert status == 2 and document is None and "no question was answered" in said
        assert REASON in said and "speedup" not in said
    for more in ([], ["--model-path", broken]):
        status, document, said = tool("equal", out["vanilla"], out["pld"], *more)
        assert status == 2 and document["results"] == [] and "every question failed" in said
    status, document, said = tool("audit_sampling", out["sampled"])
    assert status == 2 and document["results"] == [] and "every question failed" in said
    status, document, said = tool("audit_answers", *both)
    assert status == 2 and document is None and REASON in said
    flags = ["--model-path", broken, "--dtype", "float32", "--device", "cpu", "--warmup", "0"]
    flags += ["--question-ids", "1", "--max-new-tokens", "4", "--orders", "1"]
    status, document, said = tool("state", "recycling", *flags)
    assert status == 2 and REASON in said


def test_a_paired_run_fails_in_both_files(one_bad, questions, tmp_path):
    out = tmp_path / "pld.jsonl"
    answer("pld", one_bad, questions, out, "--paired", 1, code=1)
    beside = read(tmp_path / "pld-paired-baseline.jsonl")
    assert [record.get("error") for record in beside] == [None, REASON, None, None, None]
    status, document, _ = tool("speed", "--file-path", out, "--paired")
    (result,) = document["results"]
    assert status == 0 and result["questions"] == 4


@pytest.mark.parametrize("temperature", [0, 1])
def test_transformers_own_loop_says_the_same(one_bad, questions, tmp_path, temperature):
    flags = ["--engine", "hf", "--temperature", temperature]
    records = answer("vanilla", one_bad, questions, tmp_path / "a.jsonl", *flags, code=1)
    assert [record.get("error") for record in records] == [None, REASON, None, None, None]


@pytest.mark.parametrize("method", ["vanilla", "pld", "sps"])
def test_a_token_without_an_embedding_is_named(method, model_dir, draft_dir, tmp_path):
    """The tokenizer has one token more than the model."""
    model = shutil.copytree(model_dir, tmp_path / "model")
    tokenizer = load_tokenizer(model_dir)
    beyond = len(tokenizer)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(model)
    draft = shutil.copytree(draft_dir, tmp_path / "draft")
    tokenizer.save_pretrained(draft)
    lines = [{"question_id": i, "category": "qa", "turns": [f"say {i}"]} for i in range(4)]
    lines[1]["turns"] = ["a <extra> b"]
    lines[3]["turns"] = ["first", "then <extra>"]
    file = write(tmp_path / "q.jsonl", lines)
    flags = ["--batch-size", 2, *own_flags(method, str(draft))]
    records = answer(method, str(model), file, tmp_path / "a.jsonl", *flags, code=1)
    reason = f"token {beyond} ('<extra>') is beyond the target's vocabulary of {beyond}"
    assert [record.get("error") for record in records] == [None, reason, None, reason]
