"""A command's answer files: the method's own and, but for --paired 0, its baseline's."""

from __future__ import annotations

import json
from pathlib import Path

from model.common.prompts.conversation import first_prompt
from model.common.prompts.prompter import Prompter, load_tokenizer
from model.common.records.meta import make_meta, question_totals
from model.common.records.writer import AnswerFile, beside, meta_path, sha256_text
from model.common.target.loading import check_model_path, model_folder

BASELINE_SUFFIX = "-paired-baseline"


def run_meta(method: str, args, questions: list[dict], schedule=None) -> dict:
    """The meta of a run's answers; schedule: as for open_answers()."""
    check_model_path(args.model_path)
    prompter = Prompter.of(load_tokenizer(args.model_path), args.template, vars(args))
    asked = fingerprints(prompter, questions)
    hashes = question_totals(asked)
    meta = make_meta(method, args, hashes, model_folder(args.model_path), prompter.name)
    meta |= {"num_questions": len(questions), "questions": asked}
    if schedule is not None:
        meta["shared"]["load"] = schedule.text
        meta["load"] = schedule.meta()
    return meta


def open_answers(
    method: str, args, questions: list[dict], path: Path, schedule=None
) -> list[AnswerFile]:
    """Create, resume or refuse the files of one run; the first is the method's.

    schedule: the load.schedule.Schedule by which its questions arrive, None = it has no load.
    Pairs stand beside their answers in time: those of answers that are gone are not kept.
    """
    meta = run_meta(method, args, questions, schedule)
    files = [AnswerFile(path, meta, args.overwrite)]
    where = beside(path, BASELINE_SUFFIX)
    if args.overwrite and not args.paired:
        for old in (where, meta_path(where)):
            old.unlink(missing_ok=True)
    if args.paired:
        exact = "greedy" if args.temperature == 0 else "exact sampling"
        own = {"method": "vanilla", "model_id": args.model_id + BASELINE_SUFFIX, "method_args": {}}
        own |= {"lossy": False, "acceptance": exact, "pairs_of": args.model_id}
        files.append(AnswerFile(where, meta | own, args.overwrite or not files[0].lines))
    return files


def fingerprints(prompter: Prompter, questions: list[dict]) -> dict[str, str]:
    """{id: "QUESTION PROMPT"}, a meta's `questions`: what was asked, as two hashes of 16 digits."""
    return {str(q["question_id"]): f"{asked_hash(q)} {prompt_hash(prompter, q)}" for q in questions}


def asked_hash(question: dict) -> str:
    """Of a question's category, turns and system text."""
    asked = [question["category"], question["turns"], question.get("system")]
    return sha256_text(json.dumps(asked))[:16]


def prompt_hash(prompter: Prompter, question: dict) -> str:
    """Of its first prompt's ids; "-" where the template refuses it, as the answer will say."""
    prompt = first_prompt(prompter, question)
    return "-" if prompt is None else sha256_text(json.dumps(prompt))[:16]
