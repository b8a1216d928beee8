"""Checks through the harness: two turns, shuffled questions, a run that was killed and resumed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from harness_runs import COMMON, read, run, write

from conformance.cases import EOS, LETTERS, Case, new_folder
from conformance.greedy import PENALTIES, cut_at

LIMIT = 24
TWO_TURNS = {
    "question_id": 7,
    "category": "writing",
    "turns": ["hill no has tone", "shore hill root"],
}
QUESTIONS = [
    TWO_TURNS,
    {"question_id": 3, "category": "qa", "turns": ["tell us on the hill: rain or sun"]},
    {"question_id": 12, "category": "rag", "turns": ["ha ha ha ha"]},
    {"question_id": 5, "category": "qa", "turns": ["u"]},
]
SAMPLED = ["--temperature", 0.9, "--top-p", 0.95]


class Killed(BaseException):
    """The process ends here."""


def answers(case: Case, questions, out: Path, *flags, build=None) -> list[dict]:
    """Records of the method's command over questions; build replaces its own."""
    file = write(Path(new_folder()) / "question.jsonl", questions)
    where = ["--model-path", case.world.paths["target"], "--question-file", file]
    more = ["--max-new-tokens", LIMIT, "--answer-file", out, *case.flags, *flags]
    assert run(case.method, *where, *COMMON, *more, build=build) == 0
    return read(out)


def facts(records) -> dict:
    """By question: ids of every turn, and how they came about."""
    found = {}
    for record in records:
        (choice,) = record["choices"]
        found[record["question_id"]] = [
            choice[name] for name in ("output_ids", "accept_lengths", "drafted")
        ]
    return found


def token_ids(text: str) -> list[int]:
    """What the tokenizer makes of a text without special tokens: letters, the rest dropped."""
    return [2 + LETTERS.index(letter) for letter in text if letter in LETTERS]


def text_of(ids: list[int]) -> str:
    """Of an answer: special tokens and ids that are no tokens say nothing."""
    return "".join(LETTERS[token - 2] for token in ids if 2 <= token < 2 + len(LETTERS))


def check_two_turns(case: Case) -> None:
    """The second prompt holds the first answer; both answers are the plain model's."""
    (record,) = answers(case, [TWO_TURNS], Path(new_folder()) / "a.jsonl")
    (choice,) = record["choices"]
    prompt, wanted = [0], []
    for turn in TWO_TURNS["turns"]:
        prompt += token_ids(f"user: {turn}") + token_ids("assistant: ")
        wanted.append(cut_at(case.world.answer(prompt, LIMIT), {EOS}))
        prompt = prompt[: -len(token_ids("assistant: "))]
        prompt += token_ids("assistant: " + text_of(wanted[-1])) + [EOS]
    assert len(wanted[0]) > 2  # there is an answer that could be forgotten
    assert choice["output_ids"] == wanted
    assert choice["turns"] == [text_of(ids) for ids in wanted]


def whole_text(ids: list[int]) -> str:
    """With special tokens, which stop strings are looked for between."""
    words = ["<s>", "</s>", *LETTERS]
    return "".join(words[token] for token in ids if token < len(words))


def first_end(ids: list[int], token: int, text: str) -> tuple[int, str]:
    """(tokens up to the first end, which kind it is) of an answer: "id", "text" or "length"."""
    for num in range(1, len(ids) + 1):
        if ids[num - 1] == token:
            return num, "id"
        if text in whole_text(ids[:num]):
            return num, "text"
    return len(ids), "length"


def choose_ends(known: list[list[int]]) -> tuple[int, str]:
    """An id and a text of two letters that each end an answer, not at once, EOS or not before."""
    pairs = {text_of(ids[at : at + 2]) for ids in known for at in range(4, 9)}
    for token in range(2, 2 + len(LETTERS)):
        for text in sorted(pair for pair in pairs if len(pair) == 2):
            ends = [first_end(ids, token, text) for ids in known]
            if {"id", "text"} <= {kind for _, kind in ends} and min(ends)[0] > 2:
                return token, text
    raise AssertionError("no such ends")


def check_flags(case: Case) -> None:
    """Penalties, system prompt, template's variables and ends of the command line, all at once."""
    system, opening, prompts = "no noise", "rain", []
    for turn in (question["turns"][0] for question in QUESTIONS):
        text = f"system: {system} user: {turn} assistant: {opening}"
        prompts.append([0, *token_ids(text)])
    known = [case.world.answer(prompt, LIMIT, PENALTIES) for prompt in prompts]
    token, text = choose_ends(known)
    flags = ["--system-prompt", system, "--template-args", json.dumps({"opening": opening})]
    flags += ["--stop-token-ids", token, "--stop", text, "--ignore-eos", "--batch-size", 2]
    for name, value in vars(PENALTIES).items():
        flags += [f"--{name}-penalty", value]
    questions = [{**question, "turns": question["turns"][:1]} for question in QUESTIONS]
    records = answers(case, questions, Path(new_folder()) / "a.jsonl", *flags)
    for record, ids in zip(records, known):
        (choice,), (num, kind) = record["choices"], first_end(ids, token, text)
        assert choice["output_ids"] == [ids[:num]]
        cut = len(text) if kind == "text" else 0
        assert choice["turns"] == [text_of(ids[: num - cut])]
        assert choice["finish_reason"] == ["length" if kind == "length" else "stop"]


def sampled_run(case: Case, questions=QUESTIONS) -> list[dict]:
    """Records of a run in a new folder."""
    return answers(case, questions, Path(new_folder()) / "a.jsonl", *SAMPLED)


def check_order(case: Case) -> None:
    """Cold answers, and what was drafted for them, do not depend on the questions' order."""
    questions = random.Random(2).sample(QUESTIONS, len(QUESTIONS))
    assert [q["question_id"] for q in questions] != [q["question_id"] for q in QUESTIONS]
    assert facts(sampled_run(case, questions)) == facts(sampled_run(case))


def check_resume(case: Case) -> None:
    """Killed behind the second answer and started again: the file of an uninterrupted run."""
    whole = sampled_run(case)
    out = Path(new_folder()) / "a.jsonl"

    def build(args, target):
        drafter = case.script.build(args, target)
        start = drafter.start

        def dying_start(*given):
            if out.exists() and len(read(out)) == 2:
                raise Killed
            return start(*given)

        drafter.start = dying_start
        return drafter

    with pytest.raises(Killed):
        answers(case, QUESTIONS, out, *SAMPLED, build=build)
    before = out.read_bytes()
    after = answers(case, QUESTIONS, out, *SAMPLED)
    assert out.read_bytes().startswith(before)
    assert facts(after) == facts(whole)
    order = [json.loads(line)["question_id"] for line in out.read_text().splitlines()]
    assert order == [question["question_id"] for question in QUESTIONS]
