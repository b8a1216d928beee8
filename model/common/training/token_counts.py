"""Count how often each id stands in a target's answers, for --draft-vocab and its like.

Run:    python -m model.common.training.token_counts --model-path TARGET --data answers.jsonl
        --output HEAD/token_counts.safetensors

--data is what heads are trained on (ShareGPT's form; recorded token_ids are taken as they are), or
an answer file of this target. The output is one tensor, `counts` [ids of the tokenizer], int32.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from model.common.errors import BadInput, ends_in_one_line

WHOLE = 1 << 30  # no answer is longer


def make_parser():
    """The command line."""
    from model.common.args import Parser
    from model.common.argument_types import add_template_args

    parser = Parser(
        prog="token_counts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model-path", required=True, help="target: model directory, hub id or GGUF file")
    add("--data", required=True, help="conversations, or an answer file: .json or .jsonl")
    add("--output", required=True, help="file of counts; replaced where it is there")
    add("--template", help="FastChat template, or plain (default: the tokenizer's)")
    add_template_args(parser)
    return parser


def main(argv=None) -> None:
    """Count, write and say what was found."""
    args = make_parser().parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with ends_in_one_line("token_counts"):
        counts = count(args)
        write(Path(args.output), counts, args.data)
        print(f"{args.output}: {int((counts > 0).sum()):,} of {len(counts):,} ids in")
        shares = (counts.sort(descending=True).values.cumsum(0) / counts.sum()).tolist()
        for num in (2048, 8192, 16384):
            if num <= len(counts):
                print(f"  the {num:,} most frequent are {shares[num - 1]:.2%} of the tokens")


def count(args):
    """Counts [ids of the tokenizer] of all answers of --data, their ends included."""
    import torch

    from model.common.prompts.json_records import read_records
    from model.common.prompts.prompter import Prompter, load_tokenizer
    from model.common.prompts.templates import Rejected

    tokenizer = load_tokenizer(args.model_path)
    prompter = Prompter(tokenizer, args.template, variables=args.template_args)
    counts = torch.zeros(len(tokenizer), dtype=torch.long)
    rejected, found = Rejected(), 0
    for place, record in read_records(Path(args.data)):
        try:
            ids = torch.tensor(answer_ids(prompter, place, record), dtype=torch.long)
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(counts):
                raise BadInput(f"an id is not from 0 to {len(counts) - 1}: another target's")
        except (BadInput, ValueError) as error:
            rejected.add(place, str(error))
            continue
        counts += torch.bincount(ids, minlength=len(counts))
        found += len(ids) > 0
    rejected.close(args.data, found)
    return counts


def answer_ids(prompter, place: str, record) -> list[int]:
    """Ids of the answers of a record; ValueError or BadInput: why it has none."""
    from model.common.prompts.templates import Conversation, encode, recorded_of, turns_of

    if isinstance(record, dict) and "choices" in record:
        return [token for choice in record["choices"] for turn in _turns(choice) for token in turn]
    sides = turns_of(record)
    conversation = Conversation(place, *sides, *recorded_of(record))
    row = encode(prompter, conversation, WHOLE, frozenset({prompter.tokenizer.eos_token_id}))
    return row.ids[row.mask].tolist()


def _turns(choice) -> list[list[int]]:
    """The ids of every turn of an answer file's choice."""
    turns = choice.get("output_ids") if isinstance(choice, dict) else None
    if not isinstance(turns, list) or not all(
        isinstance(ids, list) and all(type(token) is int for token in ids) for ids in turns
    ):
        raise ValueError("a choice without output_ids")
    return turns


def write(path: Path, counts, source: str) -> None:
    """Write a file that heads.vocabulary.read_counts() reads."""
    import torch
    from safetensors.torch import save_file

    from model.common.heads.vocabulary import NAME

    facts = {"source": Path(source).name, "tokens": str(int(counts.sum()))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({NAME: counts.to(torch.int32)}, path, facts)
    except OSError as error:
        raise BadInput(f"--output {path}: {error.strerror or error}") from error


if __name__ == "__main__":
    main()
