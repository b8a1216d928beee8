"""Make training data: a target's own answers to the questions of a file, as ShareGPT conversations.

Run:    python -m model.common.training.answers --model-path TARGET --question-file prompts.jsonl
        --output answers.jsonl --batch-size 32 --max-new-tokens 128

The questions are answered as by the method vanilla, into an answer file that is resumed by the same
command; then OUTPUT is written from it anew: a conversation a line, {"id", "conversations":
[{"from", "value"}]}, which any trainer reads. Beside an answer's text stand token_ids, which the
target chose (EOS included; an answer that was cut at --max-new-tokens has none, and no end is
learned from it), and prompt_tokens, by which our trainers know the prompt for the one that was
answered: give them the same --template and --template-args. A failed question, and what follows an
empty answer, is left out with a line.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

from model.common import args as arguments
from model.common.errors import BadInput, ends_in_one_line
from model.common.records.lock import written_alone

UNCARRIED = ("history", "num_runs")  # flags that a trainer could not follow


def add_args(parser):
    """Flags that only this command has."""
    add = parser.add_argument
    add("--output", required=True, help="conversations, .jsonl; replaced where it is there")
    add(
        "--only-write",
        action="store_true",
        help="answer nothing: write what --answer-file holds (default: OUTPUT's -answers.jsonl)",
    )


def main(argv=None) -> None:
    """Answer, write and exit: 0, 2 on bad input, 130 if interrupted."""
    parser = arguments.make_parser("answers", __doc__, add_args)
    parser.prog = "answers"
    args = parser.parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with ends_in_one_line(parser.prog, "resumes"):
        run(args)


def run(args) -> None:
    """The command; args as parsed."""
    from model.common.records.writer import beside

    arguments.check(args)
    for name in UNCARRIED:
        if getattr(args, name):
            raise BadInput(f"--{name.replace('_', '-')}: the trainers have no such flag")
    if args.paired or args.num_gpus_total > args.num_gpus_per_model:
        raise BadInput("--paired and several models on several GPUs are not for making answers")
    output, only_write = Path(args.output), args.only_write
    del args.output, args.only_write  # what an answer file is of depends on neither
    args.answer_file = args.answer_file or str(beside(output, "-answers"))
    answers = Path(args.answer_file)
    if answers.resolve() == output.resolve():
        raise BadInput(f"--output {output}: it is the --answer-file of this run")
    with written_alone(answers, output):
        if not only_write:
            _answer(args, answers)
        write(args, answers, output)


def _answer(args, path: Path) -> None:
    """Answer what the file at path does not hold yet."""
    from model.common.contract.sequence import EmptyDrafter
    from model.common.eval import Bench

    args.model_id = args.model_id or arguments.default_model_id("vanilla", args)
    args.engine, args.paired = "loop", 0  # vanilla's own flag; the baseline is what runs
    Bench("vanilla", args, lambda args, target: EmptyDrafter(), None, [path]).run()


def write(args, answers: Path, output: Path) -> None:
    """Write the conversations of an answer file, in the questions' order."""
    from model.common.eval import choose_questions
    from model.common.prompts.prompter import Prompter, load_tokenizer
    from model.common.prompts.templates import Rejected
    from model.common.records.files import fingerprints
    from model.common.records.writer import all_lines, check_questions, read_meta

    meta = read_meta(answers) if answers.is_file() else None
    if meta is None:
        raise BadInput(f"{answers}: no answer file with its meta beside it")
    prompter = Prompter.of(load_tokenizer(args.model_path), args.template, vars(args))
    questions, lines = choose_questions(args), all_lines(answers)
    asked = {"questions": fingerprints(prompter, questions)}
    check_questions(answers, lines, meta, asked)
    rejected, records, counts = Rejected(), [], Counter()
    for question in questions:
        line = lines.get(question["question_id"], {"choices": []})
        place = f"question {question['question_id']}"
        if "error" in line:
            rejected.add(place, line["error"])
        system = question.get("system") or args.system_prompt
        for choice in line["choices"]:
            messages = conversation(question["turns"], choice, system)
            if len(messages) - bool(system) < 2 * len(question["turns"]):
                rejected.add(place, "an empty answer, and what follows it")
            if len(messages) - bool(system):
                records.append({"id": question["question_id"], "conversations": messages})
                count(messages, choice, prompter.tokenizer, counts)
    rejected.close(str(answers), len(records))
    part = output.with_name(output.name + ".part")
    output.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    part.write_text(text, encoding="utf-8")
    os.replace(part, output)
    print(
        f"{output}: {len(records):,} conversations of {len(questions):,} questions,"
        f" {counts['turns']:,} answers of {counts['tokens']:,} tokens; {counts['cut']:,} were cut"
        f" at the limit; of {counts['other']:,} the text alone would give other ids"
    )


def conversation(turns: list[str], choice: dict, system: str | None) -> list[dict]:
    """The messages of one answered question, up to an answer without text."""
    messages = [{"from": "system", "value": system}] if system else []
    rows = zip(turns, choice["turns"], choice["output_ids"], choice["prompt_tokens"])
    for turn, text, ids, prompt_tokens in rows:
        if not text.strip():
            break
        messages.append({"from": "human", "value": turn})
        answer = {"from": "gpt", "value": text}
        messages.append(answer | {"token_ids": ids, "prompt_tokens": prompt_tokens})
    return messages


def count(messages: list[dict], choice: dict, tokenizer, counts: Counter) -> None:
    """Add to {turns, tokens, cut, other}: of `other` the ids are not those of their text."""
    answers = [message for message in messages if message["from"] == "gpt"]
    for message, reason in zip(answers, choice["finish_reason"]):
        ids = tokenizer(message["value"], add_special_tokens=False).input_ids
        own = message["token_ids"]
        counts["turns"] += 1
        counts["tokens"] += len(own)
        counts["cut"] += reason == "length"
        counts["other"] += ids not in (own, own[:-1])  # an end is no text


if __name__ == "__main__":
    main()
