"""Which prompts a load run asks: every user's turn of a question file or of ShareGPT's files.

A prompt is a question of one turn. A turn of a conversation is asked without what came before it
and called ID#TURN; a question of one turn keeps its id, and with it its answer in other runs. The
prompts are asked in a seeded order, none of them twice; where more requests than prompts are
wanted, all are asked again in another order, as ID@2, and so on.

Source of the folder's names, of the lengths in characters and of the rule that every turn is a
prompt: github.com/dadiaokua/speculative-decoding @ 7c8bdb2, which draws with replacement.
"""

from __future__ import annotations

import itertools
import random
import sys
from argparse import Namespace
from pathlib import Path

from model.common import args as arguments
from model.common.errors import BadInput
from model.common.prompts.json_records import read_records
from model.common.prompts.question_forms import to_question
from model.common.prompts.questions import read_questions, select

SHAREGPT = ("sharegpt_gpt4.jsonl", "sharegpt_V3_format.jsonl", "sharegpt_zh_38K_format.jsonl")


def requests_of(args, num: int) -> list[dict]:
    """The questions of one turn that a load run of `num` requests asks, in their order.

    Raises BadInput where there is no prompt, or two have one id.
    """
    prompts = read_prompts(args)
    return draw(prompts, num, args.load_seed or 0, short_enough(args))


def questions_of_run(meta: dict | None, source: Path, model_path: str) -> list[dict]:
    """All questions of the file that a run asked; of a load run its requests, also of a folder.

    model_path: the target's here.
    """
    if not meta or "load" not in meta:
        return read_questions(source)
    args, folder = Namespace(**meta["arguments"]), source.is_dir()
    args.model_path = model_path
    args.sharegpt_dir, args.question_file = (source, None) if folder else (None, source)
    return requests_of(args, meta["load"]["num_requests"])


def source_of(args) -> Path:
    """The file or the folder that the prompts are read from."""
    return Path(args.sharegpt_dir) if args.sharegpt_dir else arguments.question_path(args)


def read_prompts(args) -> list[dict]:
    """All prompts of the command line's source that have the lengths asked for, as they stand."""
    source = source_of(args)
    folder = args.sharegpt_dir is not None
    questions = _sharegpt(source, args.max_load_lines) if folder else read_questions(source)
    shortest, longest = args.prompt_min_length or 1, args.prompt_max_length or sys.maxsize
    prompts = {}
    for question in select(questions, args):
        for prompt in turns_apart(question):
            if not shortest <= len(prompt["turns"][0].strip()) <= longest:
                continue
            name = str(prompt["question_id"])
            if name in prompts:
                raise BadInput(f"{source}: two prompts are called {name}")
            prompts[name] = prompt
    if not prompts:
        most = "any number of" if longest == sys.maxsize else longest
        raise BadInput(f"{source}: no prompt of {shortest} to {most} characters in it")
    return list(prompts.values())


def turns_apart(question: dict) -> list[dict]:
    """A question for each of its turns; turns without text are left out.

    >>> [q["question_id"] for q in turns_apart({"question_id": 81, "turns": ["Hi.", " ", "So?"]})]
    ['81#1', '81#3']
    """
    turns, name = question["turns"], question["question_id"]
    if len(turns) == 1:
        return [question] if turns[0].strip() else []
    return [
        question | {"question_id": f"{name}#{number}", "turns": [turn]}
        for number, turn in enumerate(turns, 1)
        if turn.strip()
    ]


def short_enough(args):
    """Whether a question's prompt, as it is rendered, has at most --prompt-max-tokens.

    One that cannot be rendered is kept: it becomes a failed request.
    """
    most = getattr(args, "prompt_max_tokens", None)
    if most is None:
        return lambda question: True
    from model.common.prompts.conversation import first_prompt
    from model.common.prompts.prompter import Prompter, load_tokenizer

    prompter = Prompter.of(load_tokenizer(args.model_path), args.template, vars(args))
    return lambda question: len(first_prompt(prompter, question) or ()) <= most


def draw(prompts: list[dict], num: int, seed: int, fits=lambda question: True) -> list[dict]:
    """`num` of the prompts that fit, in a seeded order; a second pass has ids that say so."""
    chance = random.Random(f"{seed}/prompts")

    def shuffled():
        order = prompts.copy()
        chance.shuffle(order)
        return order

    drawn = list(itertools.islice(filter(fits, shuffled()), num))
    if not drawn:
        raise BadInput("--prompt-max-tokens: every prompt is longer")
    passes, fitting = 1, {id(prompt) for prompt in drawn}
    prompts = [prompt for prompt in prompts if id(prompt) in fitting]
    while len(drawn) < num:
        passes += 1
        drawn += [p | {"question_id": f"{p['question_id']}@{passes}"} for p in shuffled()]
    names = [str(prompt["question_id"]) for prompt in drawn[:num]]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput(f"two prompts are called {twice}: another one has this id in the file")
    return drawn[:num]


def _conversation(record):
    """What to_question() reads of a line: its conversation alone, or what is wrong with it."""
    if isinstance(record, ValueError):
        return record
    if not isinstance(record, dict) or "conversations" not in record:
        return ValueError("no conversations in it")
    return {"conversations": record["conversations"]}


def _sharegpt(folder: Path, max_lines: int | None) -> list[dict]:
    """The conversations of those of ShareGPT's files that a folder has, whitespace stripped.

    Lines that are no conversation are left out, and a line on stderr says how many.
    """
    files = [folder / name for name in SHAREGPT if (folder / name).is_file()]
    if not files:
        raise BadInput(f"--sharegpt-dir {folder}: none of {', '.join(SHAREGPT)} in it")
    questions, left_out = [], []
    for file in files:
        for where, record in read_records(file, max_lines):
            try:
                question = to_question(_conversation(record), 0)
            except ValueError as error:
                left_out.append(f"{where}: {error}")
                continue
            question["question_id"] = f"{file.stem}:{where.rpartition(':')[2]}"
            question["turns"] = [turn.strip() for turn in question["turns"]]
            questions.append(question)
    if left_out:
        print(f"{folder}: {len(left_out)} lines left out, first {left_out[0]}", file=sys.stderr)
    if not questions:
        raise BadInput(f"--sharegpt-dir {folder}: no conversation in it")
    return questions
