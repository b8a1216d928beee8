"""A/A: how often a server differs from itself, told by answers that it gave twice.

A server batches requests, splits prompts and chooses kernels as its load has it, so that it need
not give the same ids again. NAME-aa.jsonl (inference_engine --aa) holds NAME.jsonl's questions,
answered a second time by the same server.
"""

from pathlib import Path

from evaluation.answers.differences import file_verdicts
from evaluation.answers.meta import AnswerError
from evaluation.answers.reader import read_answers

SUFFIX = "-aa.jsonl"


def is_served(answers):
    """Whether a server gave the answers of an AnswerFile."""
    return bool(answers.meta and answers.meta["shared"].get("engine"))


def repeat_path(path):
    """NAME-aa.jsonl for NAME.jsonl."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".jsonl") + SUFFIX)


def self_difference(base, other, given=None):
    """What is known of a server's differences from itself, of two AnswerFiles; None of none served.

    given: the path of a NAME-aa.jsonl; else the baseline's is looked for, then the other file's.
    Returns {"file", "label", "questions", "differ"}, or {"unknown": a line}. Raises AnswerError.
    """
    served = [side for side in (base, other) if is_served(side)]
    if not served:
        return None
    if given is not None:
        first = Path(given)
        if not first.name.endswith(SUFFIX):
            raise AnswerError(f"--aa {given}: NAME{SUFFIX} is needed, of inference_engine --aa")
        path = first.with_name(first.name.removesuffix(SUFFIX) + ".jsonl")
        return counted(read_answers(path), read_answers(first))
    for side in served:
        if repeat_path(side.path).is_file():
            return counted(side, read_answers(repeat_path(side.path)))
    name = repeat_path(served[0].path).name
    return {"unknown": f"no {name} (inference_engine --aa), and a server may differ from itself"}


def counted(first, again):
    """Of the questions that a server has answered twice, how many have other answers."""
    if not again.meta or again.meta.get("repeat_of") != first.model_id:
        raise AnswerError(f"{again.path}: its meta does not say that it repeats {first.path}")
    verdicts = [v for v in file_verdicts(first, again) if not v.both_failed]
    differ = sum(not verdict.equal for verdict in verdicts)
    label = first.model_id
    return {"file": str(again.path), "label": label, "questions": len(verdicts), "differ": differ}


def self_difference_line(found):
    """'A/A: vllm-plain, answered twice by its server, differs on 1 of 24 questions (4.2 %)'."""
    if "unknown" in found:
        return f"A/A: unknown: {found['unknown']}"
    share = 100 * found["differ"] / found["questions"] if found["questions"] else 0.0
    return (
        f"A/A: {found['label']}, answered twice by its server, differs on {found['differ']} of"
        f" {found['questions']} questions ({share:.1f} %)"
    )
