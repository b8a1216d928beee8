"""Question files: reading, checking and choosing."""

from __future__ import annotations

import json
from pathlib import Path

from model.common.errors import BadInput

MT_BENCH = (
    "writing",
    "roleplay",
    "reasoning",
    "math",
    "coding",
    "extraction",
    "stem",
    "humanities",
)


def read_questions(path: Path) -> list[dict]:
    """Questions {question_id, category, turns, ...}; a broken line is named with its number."""
    if not path.is_file():
        hint = ""
        if path.name == "question.jsonl" and path.parent.name == "spec_bench":
            hint = " (python data/download.py spec_bench fetches it)"
        raise BadInput(f"{path}: no such question file{hint}")
    questions, seen = [], set()
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        question = _parse(line, f"{path}:{number}")
        if question["question_id"] in seen:
            raise BadInput(f"{path}:{number}: question_id {question['question_id']} occurs twice")
        seen.add(question["question_id"])
        questions.append(question)
    if not questions:
        raise BadInput(f"{path}: no questions in it")
    return questions


def _parse(line: bytes, where: str) -> dict:
    try:
        question = json.loads(line.decode())
        json.dumps(question, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise BadInput(f"{where}: not JSON: {error.msg}") from error
    except UnicodeError as error:
        raise BadInput(f"{where}: not Unicode text: {error.reason}") from error
    if not isinstance(question, dict) or not isinstance(question.get("question_id"), int):
        raise BadInput(f"{where}: a question needs an integer question_id")
    turns = question.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) for t in turns):
        raise BadInput(f"{where}: a question needs turns, a list of texts")
    if not isinstance(question.get("category"), str):
        raise BadInput(f"{where}: a question needs a category")
    return question


def select(questions: list[dict], args) -> list[dict]:
    """Apply --question-begin/-end, -ids, --categories, --limit-per-category, in this order."""
    chosen = questions[args.question_begin : args.question_end]
    if args.question_ids:
        wanted = _ids(args.question_ids)
        missing = wanted - {question["question_id"] for question in chosen}
        if missing:
            raise BadInput(f"--question-ids: no question {min(missing)}")
        chosen = [question for question in chosen if question["question_id"] in wanted]
    if args.categories:
        names = set(args.categories.split(","))
        known = {question["category"] for question in questions} | {"mt_bench"}
        if names - known:
            raise BadInput(f"--categories: no category {min(names - known)} in the question file")
        if "mt_bench" in names:
            names |= set(MT_BENCH)
        chosen = [question for question in chosen if question["category"] in names]
    if args.limit_per_category:
        chosen = per_category(chosen, args.limit_per_category)
    if not chosen:
        raise BadInput("no question is left by --question-begin, --question-end and the like")
    return chosen


def group_of(category: str) -> str:
    """Spec-Bench's six categories: the two-turn topics are one."""
    return "mt_bench" if category in MT_BENCH else category


def per_category(questions: list[dict], limit: int) -> list[dict]:
    """The first `limit` questions of each of the six categories."""
    taken: dict[str, int] = {}
    chosen = []
    for question in questions:
        group = group_of(question["category"])
        taken[group] = taken.get(group, 0) + 1
        if taken[group] <= limit:
            chosen.append(question)
    return chosen


def _ids(text: str) -> set[int]:
    try:
        return {int(part) for part in text.split(",")}
    except ValueError as error:
        raise BadInput(f"--question-ids {text}: integers separated by commas are needed") from error
