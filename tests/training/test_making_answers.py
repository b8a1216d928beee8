"""Making training data: a target's own answers as conversations, ids as they were recorded."""

import json
import shutil

import pytest
from conftest import make_tokenizer, save_model
from harness_runs import COMMON, read, write

from model.common.errors import BadInput
from model.common.heads.vocabulary import read_counts
from model.common.prompts.prompter import Prompter, load_tokenizer
from model.common.prompts.templates import load_data
from model.common.training.answers import main
from model.common.training.flags import make_parser
from model.common.training.token_counts import main as token_counts
from model.common.training.trainer import train

LIMIT = 12
QUESTIONS = [
    {"question_id": 7, "category": "writing", "turns": ["one", "two"]},
    {"question_id": "b", "category": "qa", "turns": ["What is it?"]},
    {"question_id": 3, "category": "qa", "turns": ["Say no more. " * 3]},
    {"question_id": 4, "category": "qa", "turns": ["Why?"], "system": "Be brief."},
]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A target that soon says its end: what of its embedding's is large is said again."""
    path = tmp_path_factory.mktemp("target")
    return save_model(path, seed=3)


def made(target, folder, *flags, questions=QUESTIONS, code=0):
    """(conversations, answer records by id) of the command."""
    file, output = write(folder / "q.jsonl", questions), folder / "out.jsonl"
    argv = ["--model-path", target, "--question-file", file, "--output", str(output)]
    flags = [*COMMON, "--max-new-tokens", str(LIMIT), "--batch-size", "3", *map(str, flags)]
    if code == 0:
        main([*argv, *flags])
        answers = read(folder / "out-answers.jsonl")
        return read(output), {line["question_id"]: line for line in answers}
    with pytest.raises(SystemExit) as ended:
        main([*argv, *flags])
    assert ended.value.code == code
    return None


def rows_of(target, folder, template=None):
    """What the trainers make of the conversations."""
    flags = ["--model-path", target, "--data", str(folder / "out.jsonl"), "--output", "x"]
    args = make_parser("t", "", lambda group: None).parse_args([*flags, "--held-out", "0"])
    data = load_data(args, Prompter(make_tokenizer(), template), frozenset({1}))
    return [row for batch in data.train for row in batch]


def test_what_is_learned_is_what_was_answered(target, tmp_path):
    """Prompts as they were read, then the recorded ids, an end only where the target said it."""
    records, answers = made(target, tmp_path)
    assert [record["id"] for record in records] == [7, "b", 3, 4]
    prompter, found = Prompter(make_tokenizer()), set()
    for row in rows_of(target, tmp_path):
        found.add((tuple(row.ids.tolist()), tuple(row.mask.tolist())))
    expected, reasons = set(), set()
    for question in QUESTIONS:
        (choice,) = answers[question["question_id"]]["choices"]
        system = question.get("system")
        prompt = prompter.render(question["turns"][:1], [], system)
        ids, mask = prompt + choice["output_ids"][0], [0] * len(prompt)
        mask += [1] * len(choice["output_ids"][0])
        if len(question["turns"]) > 1:
            second = prompter.render(question["turns"], choice["turns"][:1])
            if second[: len(ids)] == ids:
                mask += [0] * (len(second) - len(ids)) + [1] * len(choice["output_ids"][1])
                ids = second + choice["output_ids"][1]
        expected.add((tuple(ids), tuple(map(bool, mask))))
        reasons |= set(choice["finish_reason"])
        cut = choice["finish_reason"][-1] == "length"
        assert (ids[-1] == 1) != cut or len(choice["output_ids"][-1]) < LIMIT
    assert found == expected and "length" in reasons


def test_a_run_is_resumed_and_an_answer_file_is_enough(target, tmp_path, capsys):
    whole, _ = made(target, tmp_path)
    answers = tmp_path / "out-answers.jsonl"
    lines = answers.read_text().splitlines(keepends=True)
    answers.write_text("".join(lines[:2]) + lines[2][:40])
    part, _ = made_from(target, tmp_path)
    assert part == whole[:2]
    assert made(target, tmp_path)[0] == whole
    assert f"{sum(len(q['turns']) for q in QUESTIONS)} answers of" in capsys.readouterr().out


def made_from(target, folder):
    """As made(), of the answers that are there."""
    file, output = folder / "q.jsonl", folder / "part.jsonl"
    main(
        ["--model-path", target, "--question-file", str(file), "--output", str(output)]
        + ["--answer-file", str(folder / "out-answers.jsonl"), "--only-write"]
    )
    return read(output), None


def test_failed_questions_and_empty_answers_are_left_out_with_a_line(target, tmp_path, capsys):
    made(target, tmp_path)
    records = read(tmp_path / "out-answers.jsonl")
    records[1] |= {"choices": [], "error": "KeyError: 'x'"}
    records[0]["choices"][0]["turns"][1] = " \n"
    write(tmp_path / "out-answers.jsonl", records)
    found, _ = made_from(target, tmp_path)
    said = capsys.readouterr().out
    assert "left out: question b: KeyError: 'x'" in said
    assert "left out: question 7: an empty answer, and what follows it" in said
    assert [(r["id"], len(r["conversations"])) for r in found] == [(7, 2), (3, 2), (4, 3)]


def test_what_does_not_fit_is_bad_input(target, tmp_path, capsys):
    made(target, tmp_path)
    refused = [
        (["--history", "x"], None, "--history: the trainers have no such flag"),
        (["--only-write", "--answer-file", tmp_path / "no.jsonl"], None, "no answer file with its"),
        (["--answer-file", tmp_path / "out.jsonl"], None, "it is the --answer-file of this run"),
        (["--only-write", "--template", "plain"], None, "question 7, which has an answer, is ano"),
        (["--only-write"], [QUESTIONS[0] | {"turns": ["x"]}], "question 7, which has an answer"),
    ]
    for flags, questions, words in refused:
        made(target, tmp_path, *flags, questions=questions or QUESTIONS, code=2)
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("answers: ") and words in line


def test_another_template_or_target_is_not_trained_on(target, tmp_path, capsys):
    records, _ = made(target, tmp_path, questions=QUESTIONS[1:3])
    with pytest.raises(BadInput, match="turn 1: a prompt of .* another --template, --temp"):
        rows_of(target, tmp_path, "plain")
    for record in records:
        record["conversations"][1]["token_ids"] = [5, 6]
    write(tmp_path / "out.jsonl", records)
    with pytest.raises(BadInput, match="turn 1: token_ids are not those of its text"):
        rows_of(target, tmp_path)
    del records[0]["conversations"][1]["prompt_tokens"]
    write(tmp_path / "out.jsonl", records)
    with pytest.raises(BadInput, match="have to stand beside every answer"):
        rows_of(target, tmp_path)
    assert "left out" in capsys.readouterr().out


@pytest.fixture(scope="module")
def thinking(target, tmp_path_factory):
    """The target with a variable in its chat template."""
    folder = tmp_path_factory.mktemp("thinking") / "target"
    shutil.copytree(target, folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + "{{ thought }}", encoding="utf-8")
    return str(folder)


class Seen(Exception):
    """A trainer has read its data."""


def rows_of_a_trainer(target, folder, *flags):
    """The ids of the rows that a trainer's command makes of the conversations, as a set."""
    found = []

    def method(args, target, data):
        found.extend(tuple(row.ids.tolist()) for batch in data.train for row in batch)
        raise Seen

    own = ["--data", str(folder / "out.jsonl"), "--output", str(folder / "head"), "--held-out", "0"]
    own += ["--model-path", target, "--dtype", "float32", "--device", "cpu", *flags]
    with pytest.raises(Seen):
        train(make_parser("t", "", lambda group: None).parse_args(own), method)
    return set(found)


def test_variables_of_the_template_are_the_trainers_too(thinking, tmp_path, capsys):
    """With them its prompts are those that were answered; without them nothing can be learned."""
    variables, questions = {"thought": "(Hm.)"}, QUESTIONS[1:3]
    flags = ["--template-args", json.dumps(variables)]
    records, answers = made(thinking, tmp_path, *flags, questions=questions)
    kept = [q for q in questions if q["question_id"] in {record["id"] for record in records}]
    prompter = Prompter(load_tokenizer(thinking), variables=variables)
    prompts = [prompter.render(question["turns"], []) for question in kept]
    ids = [answers[question["question_id"]]["choices"][0]["output_ids"][0] for question in kept]
    assert kept and "(Hm.)" in prompter.tokenizer.decode(prompts[0])
    wanted = {(*prompt, *own) for prompt, own in zip(prompts, ids)}
    assert rows_of_a_trainer(thinking, tmp_path, *flags) == wanted
    with pytest.raises(BadInput, match="another --template, --template-args or target"):
        rows_of_a_trainer(thinking, tmp_path)
    file = str(tmp_path / "counts.safetensors")
    command = ["--model-path", thinking, "--data", str(tmp_path / "out.jsonl"), "--output", file]
    token_counts([*command, *flags])
    assert int(read_counts(file, 258).sum()) == sum(map(len, ids))
