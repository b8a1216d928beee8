"""Adaptive against fixed exits, and SoFT against SFT: one run of the bench per row of a table.

Rows are every exit of the draft alone (--exits E) and all of them with the thresholds; with
--control-path the same of a second draft, which has to know the same exits. With --data, a file of
conversations that neither was trained on, cross-entropy and accuracy of every exit on its answers.
All other flags are the method's own.

Run:    python -m model.sd2.compare --model-path data/mini_models/target --dtype float32
        --drafter-path data/mini_models/sd2 --control-path data/mini_models/sd2_sft
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import tempfile
from pathlib import Path

from model.common import args as arguments
from model.common.errors import BadInput, ends_in_one_line
from model.sd2.flags import add_draft_flags

MAX_LENGTH, BATCH_TOKENS = 2048, 8192  # tokens of a conversation and of a batch, at most
COLUMNS = {  # name -> (heading, format)
    "mean_accepted": ("accepted", ".3f"),
    "tokens_per_s": ("tokens/s", ".1f"),
    "layer_forwards_per_token": ("draft layers/token", ".1f"),
    "layer_forwards_saved": ("layers saved", ".1%"),
    "cross_entropy": ("cross-entropy", ".4f"),
    "accuracy": ("accuracy", ".3f"),
}


def add_args(parser):
    """The method's flags and the comparison's own."""
    add_draft_flags(parser)
    parser.add_argument("--control-path", help="a second draft to compare with, trained as control")
    parser.add_argument("--data", help="held-out conversations in ShareGPT form, .json(l)")
    parser.add_argument("--output", help="folder to keep the answer files in (default: nowhere)")


def plans(args) -> list[tuple]:
    """(draft's path, exit or None = adaptive, arguments, deepest exit) of every run."""
    from model.common.heads.checkpoint import read_config
    from model.sd2.flags import resolve

    found = []
    for path in filter(None, (args.drafter_path, args.control_path)):
        own = copy.copy(args)
        own.drafter_path = path
        exits, thresholds = resolve(own, read_config(path))
        for layer in [*exits, None]:
            run = copy.copy(own)
            run.exits = exits if layer is None else [layer]
            run.thresholds = thresholds if layer is None else [0.0]
            found.append((path, layer, run, exits[-1]))
    return found


def check(args) -> None:
    """Refuse what a comparison cannot do."""
    arguments.check(args)
    for name in ("answer_file", "num_runs", "paired", "model_id"):
        if getattr(args, name):
            raise BadInput(f"--{name.replace('_', '-')} cannot go with a comparison")
    if args.num_gpus_total > args.num_gpus_per_model:
        raise BadInput("--num-gpus-total above --num-gpus-per-model cannot go with a comparison")
    if args.data and not Path(args.data).is_file():
        raise BadInput(f"--data {args.data}: no such file")


def compare(args, folder: Path) -> tuple[list[dict], int]:
    """(a row of every run, how many questions failed); the target is loaded once."""
    from model.common.eval import Bench
    from model.common.records.files import open_answers
    from model.sd2.build import make_drafter

    bench, rows, failed = None, [], 0
    for number, (path, layer, run, deepest) in enumerate(plans(args)):
        run.model_id = f"{number}-{Path(path).name}-{'adaptive' if layer is None else layer}"
        run.overwrite = True
        file = folder / f"{run.model_id}.jsonl"
        print(run.model_id, file=sys.stderr, flush=True)
        if bench is None:
            bench = Bench("sd2", run, make_drafter, None, [file])
        else:
            bench.args = run
            bench.runs = [open_answers("sd2", run, bench.questions, file)]
            bench.drafter = make_drafter(run, bench.target)
        failed += bench.run()
        answers = list(bench.runs[0][0].records.values())
        name = "adaptive" if layer is None else f"exit {layer}"
        row = {"draft": path, "name": name, "exits": run.exits, "thresholds": run.thresholds}
        rows.append(row | summary(answers, bench.drafter.facts(), run.exits[-1] / deepest))
    if args.data:
        add_losses(rows, bench, args)
    return rows, failed


def summary(answers: list[dict], facts: dict, depth: float) -> dict:
    """A run's means; None where nothing was decoded.

    depth: share of the draft's layers that the run's deepest exit has; layer forwards are saved
    against reading every row through all layers, so that a fixed exit saves 1 - depth.
    """
    choices = [
        choice for record in answers if "error" not in record for choice in record["choices"]
    ]
    steps = sum(len(choice["accept_lengths"]) for choice in choices)
    tokens = sum(sum(choice["new_tokens"]) for choice in choices)
    seconds = sum(sum(choice["wall_time"]) for choice in choices)
    read, saved = facts["draft_layer_forwards"], facts["draft_layer_forwards_saved"]
    committed = sum(sum(choice["accept_lengths"]) for choice in choices)
    return {
        "mean_accepted": committed / steps if steps else None,
        "tokens_per_s": tokens / seconds if seconds else None,
        "layer_forwards_per_token": read / tokens if tokens else None,
        "layer_forwards_saved": 1 - depth * read / (read + saved) if read else None,
        "tokens": tokens,
        **facts,
    }


def add_losses(rows: list[dict], bench, args) -> None:
    """Cross-entropy and accuracy of the rows of one exit, by --data's answers."""
    from model.common.prompts.templates import Rejected, by_length, encode, read_conversations
    from model.common.target.loading import load_model
    from model.sd2.losses import mean_losses

    rejected, data = Rejected(), []
    for conversation in read_conversations(args.data, rejected):
        try:
            row = encode(bench.prompter, conversation, MAX_LENGTH, bench.stop.eos_ids)
        except BadInput as error:
            rejected.add(conversation.place, str(error))
            continue
        if row.mask.any():
            data.append(row)
        else:
            rejected.add(conversation.place, f"no answer within {MAX_LENGTH} tokens")
    rejected.close(args.data, len(data))
    batches = by_length(data, BATCH_TOKENS)
    for path in dict.fromkeys(row["draft"] for row in rows):
        model = load_model(path, args.dtype, args.drafter_device or str(bench.target.device))
        model.set_attn_implementation("sdpa")
        own = [row for row in rows if row["draft"] == path and row["name"] != "adaptive"]
        losses = mean_losses(model, batches, [row["exits"][0] for row in own])
        for row in own:
            row |= losses[row["exits"][0]]


def table(rows: list[dict]) -> str:
    """Markdown lines."""
    lines = [f"| draft | exits | {' | '.join(heading for heading, _ in COLUMNS.values())} |"]
    lines.append("|---" * (2 + len(COLUMNS)) + "|")
    for row in rows:
        cells = [Path(row["draft"]).name, row["name"]]
        for name, (_, style) in COLUMNS.items():
            value = row.get(name)
            cells.append("-" if value is None else format(value, style))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv=None) -> None:
    """Run all and exit: 0, 1 if questions failed, 2 on bad input."""
    parser = arguments.make_parser("sd2", __doc__, add_args)
    parser.prog = "compare_sd2"
    args = parser.parse_args(argv)
    with ends_in_one_line(parser.prog, "starts anew"), contextlib.ExitStack() as stack:
        check(args)
        folder = args.output or stack.enter_context(tempfile.TemporaryDirectory())
        rows, failed = compare(args, Path(folder))
    print(table(rows))
    print(json.dumps({"tool": "sd2.compare", "failed": failed, "rows": rows}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
