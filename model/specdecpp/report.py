"""The published evaluation's json of a run: times, refused candidates and target calls by question.

Source: Huang, Guo, Wang, arXiv 2405.19715
Run:    python -m model.specdecpp.report --answers FILE.jsonl --output results.json
"""

from __future__ import annotations

import json
from pathlib import Path

from model.common.args import Parser
from model.common.errors import BadInput, ends_in_one_line, parse_json
from model.common.grid import totals
from model.common.records.writer import whole_lines

NOT_RUN = -1


def main(argv=None) -> None:
    """Write the json and exit: 0, 2 on bad input."""
    parser = Parser(prog="report_specdecpp", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--answers", required=True, help="answer file of a speculative run")
    add("--target-answers", help="answer file of the target alone (vanilla)")
    add("--draft-answers", help="answer file of the draft model alone (vanilla)")
    add("--output", required=True, help="json file")
    args = parser.parse_args(argv)
    with ends_in_one_line(parser.prog):
        write_examples(args)


def read_records(path: str | Path) -> dict[int, dict]:
    """Answers of a file by question id, failed ones left out."""
    if not Path(path).is_file():
        raise BadInput(f"{path}: no such file")
    records = whole_lines(Path(path))
    if not records:
        raise BadInput(f"{path}: no answers in it")
    try:
        counts(list(records.values()))
    except (KeyError, TypeError) as error:
        raise BadInput(f"{path}: not an answer file of this project: {error!r}") from error
    return records


def counts(records: list[dict]) -> dict:
    """What answers add up to, see grid.totals().

    calls    target forwards: steps, and the prefill of every turn, which makes one token
    refused  candidates that were not committed
    """
    found = totals(records)
    refused = found["drafted"] - (found["accept_lengths"] - found["steps"])
    return found | {"calls": found["steps"] + found["turns"], "refused": refused}


def first(record: dict) -> dict:
    """The counts of a question's first answer."""
    return counts([{"choices": record["choices"][:1]}])


def examples(answers: dict, target: dict, draft: dict, ids: list[int]) -> list[dict]:
    """The published fields of every answered question; ids: of the run's questions, in file order.

    Of each question the first choice. -1 stands for what was not run.
    """
    found = []
    for index, question_id in enumerate(ids):
        if question_id not in answers:
            continue
        record = answers[question_id]
        spec = first(record)
        example = {
            "id": index,
            "question_id": question_id,
            "category": record["category"],
            "spec_time": spec["wall_time"],
            "num_mismatched_tokens": spec["refused"],
            "num_LM_call": spec["calls"],
            "generated_length": spec["new_tokens"],
            "drafted_tokens": spec["drafted"],
            **{f"{name}_phase_time": spec[f"{name}_s"] for name in ("draft", "verify", "commit")},
        }
        for name, plain in (("target", target), ("draft", draft)):
            alone = first(plain[question_id]) if question_id in plain else {}
            example[f"{name}_time"] = alone.get("wall_time", NOT_RUN)
            example[f"generated_length_{name}"] = alone.get("new_tokens", NOT_RUN)
        found.append(example)
    return found


def write_examples(args) -> None:
    """Write the published json and say how many questions are in it."""
    answers = read_records(args.answers)
    plain = [
        read_records(path) if path else {} for path in (args.target_answers, args.draft_answers)
    ]
    found = examples(answers, *plain, question_ids(args.answers))
    try:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{args.output}: cannot be written: {error.strerror or error}") from error
    print(f"{len(found)} questions in {args.output}")


def question_ids(path: str) -> list[int]:
    """Ids of all whole lines of an answer file, failed questions included."""
    lines = Path(path).read_bytes().split(b"\n")[:-1]
    return [parse_json(line)["question_id"] for line in lines if line]


if __name__ == "__main__":
    main()
