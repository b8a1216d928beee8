"""Question files: reading, checking and choosing."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

from model.common.errors import BadInput
from model.common.prompts.json_records import read_records
from model.common.prompts.question_forms import PLACEHOLDER, to_question

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
    """Questions {question_id, category, turns} and perhaps {system}, in the file's order.

    A broken record is named with its line; a ShareGPT conversation that nobody can be asked (no
    user in it, an unknown speaker) is left out, and a line on stderr says how many are.
    """
    if not path.is_file():
        hint = ""
        if path.name == "question.jsonl" and path.parent.name == "spec_bench":
            hint = " (python data/download.py spec_bench fetches it)"
        raise BadInput(f"{path}: no such question file{hint}")
    questions, left_out = {}, []
    records = _parquet(path) if path.suffix == ".parquet" else read_records(path)
    for number, (where, record) in enumerate(records):
        try:
            question = to_question(record, number)
        except ValueError as error:
            if not isinstance(record, dict) or "conversations" not in record:
                raise BadInput(f"{where}: {error}") from error
            left_out.append(f"{where}: {error}")
            continue
        name = str(question["question_id"])
        if name in questions:
            raise BadInput(f"{where}: question_id {name} occurs twice")
        questions[name] = question
    if left_out:
        first = left_out[0]
        print(f"{path}: {len(left_out)} conversations left out, first {first}", file=sys.stderr)
    if not questions:
        raise BadInput(f"{path}: no questions in it")
    return list(questions.values())


def _parquet(path: Path):
    """(file: row n, record) of a table as the hub has them."""
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise BadInput(f"{path}: a parquet file needs pyarrow: pip install pyarrow") from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except (ArrowInvalid, OSError) as error:
        raise BadInput(f"{path}: no parquet file: {error}") from error
    for number, record in enumerate(rows):
        yield f"{path}: row {number}", record


def select(questions: list[dict], args) -> list[dict]:
    """Apply --question-begin/-end, -ids, --categories, --limit-per-category, in this order."""
    chosen = questions[args.question_begin : args.question_end]
    if args.question_ids:
        wanted = dict.fromkeys(split_ids(args.question_ids))
        known = {str(question["question_id"]) for question in chosen}
        missing = [name for name in wanted if name not in known]
        if missing:
            raise BadInput(f"--question-ids: no question {missing[0]}")
        chosen = [question for question in chosen if str(question["question_id"]) in wanted]
    if args.categories:
        names = {name.strip() for name in args.categories.split(",")}
        known = {name for question in questions for name in _names(question)} | {"mt_bench"}
        if names - known:
            raise BadInput(f"--categories: no category {min(names - known)} in the question file")
        chosen = [question for question in chosen if names & _names(question)]
    if args.limit_per_category:
        chosen = per_category(chosen, args.limit_per_category)
    if not chosen:
        raise BadInput("no question is left by --question-begin, --question-end and the like")
    unfilled = [q for q in chosen if any(text.startswith(PLACEHOLDER) for text in q["turns"])]
    if unfilled:
        raise BadInput(
            f"question {unfilled[0]['question_id']}: {len(unfilled)} of {len(chosen)} questions are"
            " SPEED-Bench's placeholders; its prepare_data.py puts the texts into the file"
        )
    return chosen


def _names(question: dict) -> set[str]:
    return {question["category"], group_of(question)}


def group_of(question: dict) -> str:
    """Its category, but one for all topics of MT-bench that have several turns (Spec-Bench's)."""
    several = len(question["turns"]) > 1
    return "mt_bench" if several and question["category"] in MT_BENCH else question["category"]


def per_category(questions: list[dict], limit: int) -> list[dict]:
    """The first `limit` questions of each group."""
    taken: dict[str, int] = {}
    chosen = []
    for question in questions:
        group = group_of(question)
        taken[group] = taken.get(group, 0) + 1
        if taken[group] <= limit:
            chosen.append(question)
    return chosen


def join_ids(ids) -> str:
    """Ids as --question-ids takes them; one that holds a comma stands in quotes."""
    line = io.StringIO()
    csv.writer(line).writerow(ids)
    return line.getvalue().removesuffix("\r\n")


def split_ids(text: str) -> list[str]:
    """The ids of --question-ids.

    >>> split_ids('81,HumanEval/0, "a,b"')
    ['81', 'HumanEval/0', 'a,b']
    """
    row = next(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True))
    return [name.strip() for name in row]
