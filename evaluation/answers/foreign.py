"""Any jsonl of answers: question_id and choices with turns (texts) and, where there are, ids.

Other tools' files need neither times nor counts to be judged by the target's logits, so what
reader.py refuses for want of them is read here with a warning.
"""

import hashlib
from pathlib import Path

from evaluation.answers.fields import Fields
from evaluation.answers.meta import AnswerError, meta_path
from evaluation.answers.reader import (
    HALF,
    AnswerFile,
    Choice,
    Question,
    category_of,
    parse_line,
    read_answers,
)


def read_any(path):
    """The AnswerFile at `path`: checked as ours where it is, else its texts and ids alone."""
    path = Path(path)
    try:
        return read_answers(path)
    except AnswerError as error:
        if meta_path(path).exists() or not path.is_file():
            raise
        reason = error
    content, questions, half = path.read_bytes(), {}, []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}: line {number}"
            record = parse_line(line, where, number == len(lines))
            if record is None:
                half = [f"{path}: {HALF}"]
                continue
            question = read_question(record, where)
            if question is None or question.question_id in questions:
                raise reason
            questions[question.question_id] = question
    if not questions:
        raise reason
    warnings = [f"{path}: read for its texts and ids alone ({reason})", *half]
    digest = hashlib.sha256(content).hexdigest()
    return AnswerFile(path, digest, path.stem, questions, None, warnings)


def read_question(record, where):
    """A Question of ids and texts; None where the line is no answer."""
    question_id, choices = record.get("question_id"), record.get("choices")
    if type(question_id) not in (int, str):
        return None
    category = category_of(record, where)
    if record.get("error"):
        return Question(question_id, category, str(record["error"]), [])
    if not isinstance(choices, list) or not choices:
        return None
    found = [read_choice(choice, number, where) for number, choice in enumerate(choices)]
    return None if None in found else Question(question_id, category, None, found)


def read_choice(record, number, where):
    """A Choice without times and counts; None where it has no texts."""
    texts = record.get("turns") if isinstance(record, dict) else None
    if not isinstance(texts, list) or not texts or set(map(type, texts)) != {str}:
        return None
    fields = Fields(record, f"{where}: choice {number}", len(texts))
    ids = fields.turns("output_ids")
    for turn in ids or []:
        if not isinstance(turn, list) or not set(map(type, turn)) <= {int}:
            fields.refuse("output_ids", "is no list of ids a turn")
    prompts = fields.counts("prompt_tokens") if "prompt_tokens" in record else None
    lengths = [0] * len(texts) if ids is None else [len(turn) for turn in ids]
    return Choice(
        index=fields.index(number),
        texts=texts,
        new_tokens=lengths,
        wall_s=None,
        steps=None,
        accept_lengths=None,
        output_ids=ids,
        prompt_tokens=prompts,
        finish_reason=fields.labels("finish_reason"),
        drafted=fields.step_counts("drafted"),
        prefill_s=None,
        stage_s=None,
    )
