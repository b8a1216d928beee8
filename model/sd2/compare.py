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
import tempfile
from argparse import Namespace
from pathlib import Path

from model.common import args as arguments
from model.common.errors import BadInput, ends_in_one_line
from model.common.grid import Grid, add_json, check, finish, totals
from model.sd2.flags import add_draft_flags

MAX_LENGTH, BATCH_TOKENS = 2048, 8192  # tokens of a conversation and of a batch, at most
COLUMNS = {  # name -> (heading, format)
    "draft": ("draft", "s"),
    "name": ("exits", "s"),
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
    add_json(parser)
    parser.add_argument("--output", help="folder to keep the answer files in (default: nowhere)")


def plans(args, folder: Path) -> list[tuple]:
    """(exit or None = adaptive, share of the draft's layers, arguments) of every run."""
    from model.common.heads.checkpoint import read_config
    from model.sd2.flags import resolve

    found = []
    for path in filter(None, (args.drafter_path, args.control_path)):
        own = copy.copy(args)
        own.drafter_path, own.overwrite = path, True
        vars(own).pop("json", None)  # where the table goes is no fact of a run
        exits, thresholds = resolve(own, read_config(path))
        for layer in [*exits, None]:
            run = copy.copy(own)
            run.exits = exits if layer is None else [layer]
            run.thresholds = thresholds if layer is None else [0.0]
            run.model_id = f"{len(found)}-{Path(path).name}-{layer or 'adaptive'}"
            run.answer_file = str(folder / f"{run.model_id}.jsonl")
            found.append((layer, run.exits[-1] / exits[-1], run))
    return found


def compare(args, folder: Path) -> tuple[list[dict], int]:
    """(a row of every run, how many questions failed)."""
    from model.sd2.build import make_drafter

    grid, rows = Grid("sd2", make_drafter), []
    for layer, depth, run in plans(args, folder):
        records, facts = grid.run(run)
        name = f"exit {layer}" if layer else "adaptive"
        row = {"draft": run.drafter_path, "name": name}
        row |= {"exits": run.exits, "thresholds": run.thresholds}
        rows.append(row | summary(records, facts, depth))
    if args.data:
        add_losses(rows, grid.bench, args)
    return rows, grid.failed


def summary(answers: list[dict], facts: dict, depth: float) -> dict:
    """A run's means; None where nothing was decoded.

    depth: share of the draft's layers that the run's deepest exit has; layer forwards are saved
    against reading every row through all layers, so that a fixed exit saves 1 - depth.
    """
    total = totals(answers)
    steps, tokens, seconds = (total[name] for name in ("steps", "new_tokens", "wall_time"))
    read, saved = facts["draft_layer_forwards"], facts["draft_layer_forwards_saved"]
    return {
        "mean_accepted": total["accept_lengths"] / steps if steps else None,
        "tokens_per_s": tokens / seconds if seconds else None,
        "layer_forwards_per_token": read / tokens if tokens else None,
        "layer_forwards_saved": 1 - depth * read / (read + saved) if read else None,
        "tokens": tokens,
        **facts,
    }


def add_losses(rows: list[dict], bench, args) -> None:
    """Cross-entropy and accuracy of the rows of one exit, by --data's answers."""
    from model.common.prompts.templates import load_data
    from model.common.target.loading import load_model
    from model.sd2.losses import mean_losses

    how = {"max_length": MAX_LENGTH, "batch_tokens": BATCH_TOKENS, "held_out": 0, "seed": 0}
    batches = load_data(Namespace(data=args.data, **how), bench.prompter, bench.stop.eos_ids).train
    for path in dict.fromkeys(row["draft"] for row in rows):
        model = load_model(path, args.dtype, args.drafter_device or str(bench.target.device))
        model.set_attn_implementation("sdpa")
        own = [row for row in rows if row["draft"] == path and row["name"] != "adaptive"]
        losses = mean_losses(model, batches, [row["exits"][0] for row in own])
        for row in own:
            row |= losses[row["exits"][0]]


def main(argv=None) -> None:
    """Run all and exit: 0, 1 if questions failed, 2 on bad input."""
    parser = arguments.make_parser("sd2", __doc__, add_args)
    parser.prog = "compare_sd2"
    args = parser.parse_args(argv)
    with ends_in_one_line(parser.prog, "starts anew"), contextlib.ExitStack() as stack:
        check(args, "comparison", "model_id")
        if args.data and not Path(args.data).is_file():
            raise BadInput(f"--data {args.data}: no such file")
        folder = args.output or stack.enter_context(tempfile.TemporaryDirectory())
        rows, failed = compare(args, Path(folder))
    finish("sd2.compare", rows, COLUMNS, failed, args.json)


if __name__ == "__main__":
    main()
