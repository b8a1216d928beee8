"""A command's answer files: the method's own and, with --paired, its baseline's."""

from __future__ import annotations

import json
import os
from pathlib import Path

from model.common.prompts.prompter import Prompter, load_tokenizer
from model.common.records.meta import make_meta
from model.common.records.writer import AnswerFile, sha256_text
from model.common.target.loading import check_model_path

BASELINE_SUFFIX = "-paired-baseline"


def open_answers(method: str, args, questions: list[dict], path: Path) -> list[AnswerFile]:
    """Create, resume or refuse the files of one run; the first is the method's.

    The meta holds hashes of the questions asked and of their first prompts' ids.
    """
    check_model_path(args.model_path)
    prompter = Prompter(load_tokenizer(args.model_path), args.template)
    asked = [[q["question_id"], q["category"], q["turns"]] for q in questions]
    prompts = [prompter.render(question["turns"], []) for question in questions]
    hashes = {
        "questions_sha256": sha256_text(json.dumps(asked)),
        "prompts_sha256": sha256_text(json.dumps(prompts)),
    }
    meta = make_meta(method, args, hashes, model_folder(args.model_path), prompter.name)
    meta["num_questions"] = len(questions)
    files = [AnswerFile(path, meta, args.overwrite)]
    if args.paired:
        exact = "greedy" if args.temperature == 0 else "exact sampling"
        own = {"method": "vanilla", "model_id": args.model_id + BASELINE_SUFFIX, "method_args": {}}
        own |= {"lossy": False, "acceptance": exact}
        beside = path.with_name(f"{path.stem}{BASELINE_SUFFIX}.jsonl")
        files.append(AnswerFile(beside, meta | own, args.overwrite))
    return files


def model_folder(path: str) -> Path:
    """The directory of a model: itself, or a hub id's snapshot."""
    if os.path.isdir(path):
        return Path(path)
    from transformers.utils.hub import cached_file

    return Path(cached_file(path, "config.json")).parent
