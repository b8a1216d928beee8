"""A chat template that raises: the question's own error, whatever reads its prompt."""

import json
import shutil
from pathlib import Path

import pytest
from answer_samples import report_of, run_tool
from conftest import make_tokenizer
from harness_runs import answer, ids_of, questions_of, read, read_meta, write
from ray_stand_in import stand_in

from evaluation import equal
from model.common.errors import BadInput
from model.common.prompts.conversation import first_prompt, render
from model.common.prompts.prompter import Prompter

# as published templates do: no system role, roles that alternate, no empty answer
RAISING = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if 'third' in m.content and loop.index > 1 %}{{ raise_exception('Only one') }}{% endif %}"
    "{% if 'odd' in m.content %}{{ m.content.items() }}{% endif %}{% endfor %}"
)
SYSTEM, ODD, SECOND = 11, 13, 16  # questions that fail, the last in its second turn
NOT_SUPPORTED = "the tokenizer's chat template refuses: System role not supported"


@pytest.fixture(scope="module")
def raising(tmp_path_factory, model_dir, question_file):
    """(model directory, question file): three of six questions have no prompt, or no second one."""
    folder = tmp_path_factory.mktemp("raising")
    shutil.copytree(model_dir, folder / "m")
    template = folder / "m" / "chat_template.jinja"
    template.write_text(RAISING + make_tokenizer().chat_template)
    questions = {question["question_id"]: question for question in questions_of(question_file)}
    questions[SYSTEM]["system"] = "Be brief."
    questions[ODD]["turns"] = ["an odd one"]
    questions[SECOND]["turns"].append("a third one")
    return folder / "m", write(folder / "question.jsonl", questions.values())


@pytest.fixture(scope="module")
def base(tmp_path_factory, raising):
    """vanilla's file."""
    path = tmp_path_factory.mktemp("base") / "base.jsonl"
    answer("vanilla", *raising, path, code=1)
    return path


def errors(records):
    return {record["question_id"]: record["error"] for record in records if "error" in record}


@pytest.mark.parametrize(
    "flags", [["--warmup", 1], ["--batch-size", 4, "--warmup", 1], ["--paired", 1], ["shards"]]
)
def test_the_other_questions_are_answered(
    raising, model_dir, question_file, tmp_path, monkeypatch, capfd, flags
):
    """The first question fails, so that the warm-up and the cache's size come from others."""
    if flags == ["shards"]:
        stand_in(monkeypatch)
        flags = ["--num-gpus-total", 6, "--device", "auto"]  # a worker a question
    out = tmp_path / "a.jsonl"
    found = answer("pld", *raising, out, *flags, code=1)
    failed = errors(found)
    assert list(failed) == [SYSTEM, ODD, SECOND]
    assert failed[SYSTEM] == NOT_SUPPORTED
    assert failed[ODD].startswith(("UndefinedError", "the tokenizer's chat template refuses"))
    assert failed[SECOND] == "the tokenizer's chat template refuses: Only one"
    plain = ids_of(answer("pld", model_dir, question_file, tmp_path / "plain.jsonl"))
    assert {i: ids for i, ids in ids_of(found).items() if ids} == {
        i: plain[i] for i in (12, 14, 15)
    }
    assert "warm-up" not in capfd.readouterr().err
    hashes = {i: digits.split(" ")[1] for i, digits in read_meta(out)["questions"].items()}
    assert [i for i, digits in hashes.items() if digits == "-"] == ["11", "13"]
    assert len(set(hashes.values())) == 5


def test_the_hash_tells_a_refused_prompt_from_another(raising, model_dir, tmp_path):
    """The same template twice gives the same meta; one that does not refuse gives another."""
    flags = ["--max-new-tokens", 2, "--limit-per-category", 1]
    answer("pld", *raising, tmp_path / "a.jsonl", *flags, code=1)
    answer("pld", *raising, tmp_path / "b.jsonl", *flags, code=1)
    answer("pld", model_dir, raising[1], tmp_path / "c.jsonl", *flags)
    a, b, c = (read_meta(tmp_path / f"{name}.jsonl")["shared"] for name in "abc")
    assert a == b
    assert a["questions_sha256"] == c["questions_sha256"]
    assert a["prompts_sha256"] != c["prompts_sha256"]


def test_tools_read_the_file(base, raising, tmp_path, capsys):
    """speed.py leaves the questions out, equal.py judges the others by the target's logits."""
    model, questions = raising
    out = tmp_path / "a.jsonl"
    answer("pld", *raising, out, code=1)
    done = run_tool("evaluation/speed.py", "--file-path", out, "--base-path", base)
    assert "left out on both sides: 3 questions: 11, 13, 16" in done.stdout
    records = read(out)
    changed = next(record for record in records if record["question_id"] == 14)["choices"][0]
    changed["output_ids"][0][-1] = 90 if changed["output_ids"][0][-1] != 90 else 91
    write(out, records)
    cut_off(out)
    argv = [base, out, "--model-path", model, "--device", "cpu", "--noise-tokens", 32]
    argv += ["--json", tmp_path / "report.json"]
    status = equal.main([str(part) for part in [*argv, "--control", 0]])
    captured = capsys.readouterr()
    assert f"{out}: its half-written last line is ignored" in captured.err
    document = json.loads((tmp_path / "report.json").read_text())
    assert status == 1 and document["not_compared"] == []
    assert document["results"][0]["judgement"]["verdict"] == "BUG"
    assert Path(document["file"]) == base and questions


def cut_off(path):
    """Half a line at a file's end, as a killed run leaves it."""
    with path.open("a") as file:
        file.write('{"question_id": 17, "choi')


def test_the_audit_of_samples_goes_on(raising, tmp_path):
    """Past questions that failed, one of them by its NaN, and past half a line."""
    out = tmp_path / "a.jsonl"
    flags = ["--temperature", 1, "--num-choices", 2]
    records = answer("vanilla", *raising, out, *flags, code=1)
    records[1]["choices"][0]["wall_time"][0] = float("nan")
    write(out, records)
    cut_off(out)
    done = run_tool("evaluation/audit_sampling.py", out, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "CONSISTENT" in done.stdout
    (result,) = report_of(done)["results"]
    left = [choice for r in records for choice in r["choices"] if r["question_id"] in (14, 15)]
    assert result["tokens"] == sum(sum(choice["new_tokens"]) for choice in left)


def test_anything_may_be_raised():
    """And a system message that a template passes over is no prompt either."""

    class Broken:
        def render(self, turns, answers, system):
            raise {"a": KeyError, "b": RuntimeError}[turns[0]]("no")

    for text in "ab":
        assert first_prompt(Broken(), {"turns": [text]}) is None
    refusing = make_tokenizer()
    for body, said in (
        ("{{ 1 // 0 }}", "ZeroDivisionError: integer division or modulo by zero"),
        ("{{ raise_exception('No\n  system') }}", "No system"),
    ):
        refusing.chat_template = body
        with pytest.raises(BadInput) as refused:
            Prompter(refusing).render(["Hi"], [])
        assert str(refused.value) == f"the tokenizer's chat template refuses: {said}"
    prompter = Prompter(make_tokenizer())
    asked = {"turns": ["Hi"], "system": "Be brief."}
    deaf = make_tokenizer()
    deaf.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    assert first_prompt(Prompter(deaf), {"turns": ["Hi"]}) == deaf("Hi").input_ids
    with pytest.raises(BadInput, match="the template tokenizer has no place for a system message"):
        render(Prompter(deaf), asked, [])
    assert first_prompt(Prompter(deaf), asked) is None
    assert first_prompt(prompter, asked) == render(prompter, asked, [])
    assert prompter.tokenizer.decode(first_prompt(prompter, asked)) == (
        "<s>system: Be brief.\nuser: Hi\nassistant: "
    )
