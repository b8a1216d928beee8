"""Prompts of a load run: turns apart, lengths, seeded draws, ShareGPT's folder."""

import json

import pytest
from harness_runs import write

from model.common.args import make_parser
from model.common.errors import BadInput
from model.common.load.requests import draw, read_prompts, requests_of


def args_of(*flags, model_path="x"):
    argv = ["--model-path", str(model_path), *map(str, flags)]
    return make_parser("pld", "", lambda group: None).parse_args(argv)


def talk(*texts, **more):
    """A line of ShareGPT: a human and a model in turn."""
    speakers = ("human", "gpt")
    turns = [{"from": speakers[i % 2], "value": text} for i, text in enumerate(texts)]
    return json.dumps({"conversations": turns, **more})


def folder_of(tmp_path, **files):
    """A folder with lines in some of the three files."""
    folder = tmp_path / "sharegpt"
    folder.mkdir()
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def texts_of(prompts):
    return {prompt["question_id"]: prompt["turns"] for prompt in prompts}


def test_every_human_turn_of_a_folder_is_a_prompt(tmp_path, capfd):
    """The loader's check of the sheet: of turns of 5 and 20 characters, one is long enough."""
    lines = [talk("  12345 ", "answer", " " + "x" * 20), "{broken", '{"text": "no talk"}']
    folder = folder_of(tmp_path, sharegpt_gpt4=lines)
    lengths = ["--prompt-min-length", 10, "--prompt-max-length", 500]
    prompts = read_prompts(args_of("--sharegpt-dir", folder, *lengths))
    assert texts_of(prompts) == {"sharegpt_gpt4:1#2": ["x" * 20]}
    assert prompts[0]["category"] == "sharegpt"
    said = capfd.readouterr().err
    assert "2 lines left out" in said and "sharegpt_gpt4.jsonl:2" in said
    prompts = read_prompts(args_of("--sharegpt-dir", folder))
    assert texts_of(prompts) == {"sharegpt_gpt4:1#1": ["12345"], "sharegpt_gpt4:1#2": ["x" * 20]}


@pytest.mark.parametrize("length, kept", [(9, False), (10, True), (500, True), (501, False)])
def test_lengths_are_inclusive(tmp_path, length, kept):
    path = write(
        tmp_path / "q.jsonl",
        [
            {"question_id": 1, "category": "c", "turns": ["y" * 20]},
            {"question_id": 2, "category": "c", "turns": [" " + "é" * length + "\n"]},
        ],
    )
    flags = ["--prompt-min-length", 10, "--prompt-max-length", 500]
    prompts = read_prompts(args_of("--question-file", path, *flags))
    assert [prompt["question_id"] for prompt in prompts] == [1, 2][: 1 + kept]


def test_lines_are_counted_in_each_file(tmp_path):
    lines = ["", talk("first"), "{", talk("second"), talk("third")]
    folder = folder_of(tmp_path, sharegpt_gpt4=lines, sharegpt_zh_38K_format=lines[1:])
    prompts = read_prompts(args_of("--sharegpt-dir", folder, "--max-load-lines", 4))
    names = ["sharegpt_gpt4:2", "sharegpt_gpt4:4", "sharegpt_zh_38K_format:1"]
    names += ["sharegpt_zh_38K_format:3", "sharegpt_zh_38K_format:4"]
    assert list(texts_of(prompts)) == names


@pytest.mark.parametrize("files", [{}, {"sharegpt_gpt4": ["{"]}, {"other": [talk("hello")]}])
def test_a_folder_without_prompts(tmp_path, files):
    folder = folder_of(tmp_path, **files)
    with pytest.raises(BadInput, match=f"--sharegpt-dir {folder}: no"):
        read_prompts(args_of("--sharegpt-dir", folder))


def test_a_folder_whose_prompts_are_too_short(tmp_path):
    folder = folder_of(tmp_path, sharegpt_gpt4=[talk("short")])
    with pytest.raises(BadInput, match="no prompt of 1 to 4 characters"):
        read_prompts(args_of("--sharegpt-dir", folder, "--prompt-max-length", 4))


def test_turns_of_a_question_file(tmp_path):
    """A question of one turn keeps its id and its text as it is; system texts stay."""
    questions = [
        {"question_id": 81, "category": "writing", "turns": ["One.", "  ", "Three."]},
        {"question_id": "x/1", "category": "qa", "turns": [" Alone.\n"], "system": "Be brief."},
    ]
    path = write(tmp_path / "q.jsonl", questions)
    prompts = read_prompts(args_of("--question-file", path))
    assert texts_of(prompts) == {"81#1": ["One."], "81#3": ["Three."], "x/1": [" Alone.\n"]}
    assert prompts[2] == questions[1]
    chosen = read_prompts(args_of("--question-file", path, "--question-ids", "81"))
    assert list(texts_of(chosen)) == ["81#1", "81#3"]


def thousand():
    return [{"question_id": i, "category": "c", "turns": [f"Prompt {i}"]} for i in range(1000)]


def test_draws_are_distinct_and_seeded():
    drawn = draw(thousand(), 1000, 7)
    assert len({prompt["question_id"] for prompt in drawn}) == 1000
    assert drawn[:50] == draw(thousand(), 50, 7) != draw(thousand(), 50, 8)
    first = [prompt["question_id"] for prompt in drawn[:50]]
    assert first != sorted(first)
    means = [sum(p["question_id"] for p in draw(thousand(), 50, seed)) / 50 for seed in range(40)]
    assert abs(sum(means) / 40 - 499.5) < 4 * 289 / (2000**0.5)


def test_a_second_pass_says_so(tmp_path):
    path = write(tmp_path / "q.jsonl", thousand()[:5])
    asked = requests_of(args_of("--question-file", path), 12)
    names = [prompt["question_id"] for prompt in asked]
    assert sorted(names[:5]) == list(range(5))
    assert sorted(names[5:10]) == [f"{number}@2" for number in range(5)]
    assert all(name.endswith("@3") for name in names[10:]) and len(set(names)) == 12
    assert [int(name[0]) for name in names[5:10]] != names[:5]
    for prompt in asked:
        assert prompt["turns"] == [f"Prompt {str(prompt['question_id']).partition('@')[0]}"]


@pytest.mark.parametrize(
    "questions, num",
    [
        ([{"question_id": 1, "turns": ["a", "b"]}, {"question_id": "1#2", "turns": ["c"]}], 1),
        ([{"question_id": 1, "turns": ["a"]}, {"question_id": "1@2", "turns": ["c"]}], 4),
    ],
)
def test_ids_that_two_prompts_would_have(tmp_path, questions, num):
    path = write(tmp_path / "q.jsonl", questions)
    with pytest.raises(BadInput, match="two prompts are called 1[#@]2"):
        requests_of(args_of("--question-file", path), num)


def test_prompts_of_too_many_tokens_are_not_drawn(tmp_path, model_dir):
    """As the template renders them; a second pass has the same ones."""
    from model.common.prompts.conversation import first_prompt
    from model.common.prompts.prompter import Prompter, load_tokenizer

    questions = [
        {"question_id": i, "category": "c", "turns": ["word " * (i + 1)]} for i in range(8)
    ]
    path = write(tmp_path / "q.jsonl", questions)
    prompter = Prompter.of(load_tokenizer(str(model_dir)), None, {})
    lengths = [len(first_prompt(prompter, question)) for question in questions]
    assert lengths == sorted(set(lengths))
    flags = ["--question-file", path, "--prompt-max-tokens"]
    asked = requests_of(args_of(*flags, lengths[3], model_path=model_dir), 6)
    names = [str(question["question_id"]) for question in asked]
    assert sorted(names[:4]) == ["0", "1", "2", "3"]
    assert all(name.endswith("@2") for name in names[4:]) and len(set(names)) == 6
    with pytest.raises(BadInput, match="--prompt-max-tokens: every prompt is longer"):
        requests_of(args_of(*flags, lengths[0] - 1, model_path=model_dir), 6)
