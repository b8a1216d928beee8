"""Discarded drafts and target calls per generated token: fixed lengths beside the acceptance head.

Each of --lengths and --thresholds is a run on one target; the other flags are the method's.

Source: Huang, Guo, Wang, arXiv 2405.19715
Run:    python -m model.specdecpp.rates --model-path data/mini_models/target --dtype float32
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from pathlib import Path

from model.common import args as arguments
from model.common.args import at_least, between
from model.common.errors import BadInput, ends_in_one_line
from model.common.grid import Grid, add_json, check, finish
from model.specdecpp.flags import add_flags
from model.specdecpp.report import counts

COLUMNS = {  # name -> (heading, format)
    "name": ("", "s"),
    "discard_rate": ("discard rate", ".3f"),
    "fixed_discard_rate": ("of fixed lengths", ".3f"),
    "verification_rate": ("verification rate", ".3f"),
    "mean_drafted": ("drafted", ".2f"),
    "mean_accepted": ("accepted", ".2f"),
    "tokens_per_s": ("tokens/s", ".1f"),
    "draft_share": ("drafting", ".0%"),
}


def add_args(parser):
    """The method's flags; lists in place of its draft length and threshold."""
    add_flags(parser)
    add = parser.add_argument
    fixed, own = list(range(2, 11)), [0.3, 0.5, 0.7, 0.9]
    add("--lengths", type=at_least(1), nargs="*", default=fixed, help="fixed ones (default: 2..10)")
    add("--thresholds", type=between(0, 1), nargs="+", default=own, help="(default: .3 .5 .7 .9)")
    add_json(parser)
    add("--answers-dir", help="keep the answer files here and go on from them (default: nowhere)")


def plans(args, folder: Path) -> dict:
    """{name: arguments} of every run; those that the head's flags can refuse come first."""
    changes = {f"h = {h:g}": {"threshold": h} for h in args.thresholds}
    for length in args.lengths:
        fixed = {"schedule": "constant", "num_draft": length}
        changes[f"K = {length}"] = fixed | {"head_path": None, "bound": None}
    found = {}
    for name, changed in changes.items():
        found[name] = run = copy.copy(args)
        run.model_id = name.replace(" ", "")
        run.answer_file = str(folder / f"{run.model_id}.jsonl")
        vars(run).update(changed)
        for own in ("lengths", "thresholds", "answers_dir", "json"):  # no facts of this run
            delattr(run, own)
    return found


def rates_of(records: list[dict]) -> dict:
    """Sums over all questions, divided; the published definitions.

    discard       refused candidates per generated token
    verification  target forwards per generated token
    """
    total = counts(records)
    generated, steps, seconds = (total[name] for name in ("new_tokens", "steps", "wall_time"))
    if not generated:
        raise BadInput("no question was answered")
    return {
        "discard_rate": total["refused"] / generated,
        "verification_rate": total["calls"] / generated,
        "mean_drafted": total["drafted"] / max(steps, 1),
        "mean_accepted": total["accept_lengths"] / max(steps, 1),
        "tokens_per_s": generated / seconds,
        "draft_share": total["draft_s"] / seconds,
        "generated": generated,
    }


def discard_of_fixed(fixed: list[dict], verification: float) -> float | None:
    """Discard rate of fixed lengths at a verification rate, on lines between neighbouring lengths.

    None where no two lengths lie around it. What a rule is below this is what it gains.
    """
    points = sorted((row["verification_rate"], row["discard_rate"]) for row in fixed)
    for (low, first), (high, second) in zip(points, points[1:]):
        if low <= verification <= high:
            share = (verification - low) / (high - low) if high > low else 0.0
            return first + share * (second - first)
    return None


def rates(args, folder: Path) -> tuple[list[dict], int]:
    """(a row of every run, how many questions failed)."""
    from model.specdecpp.drafter import build_drafter

    grid = Grid("specdecpp", build_drafter)
    rows = [
        {"name": name, **rates_of(grid.run(run)[0])} for name, run in plans(args, folder).items()
    ]
    fixed = [row for row in rows if row["name"].startswith("K")]
    for row in rows:
        row["fixed_discard_rate"] = discard_of_fixed(fixed, row["verification_rate"])
    return rows, grid.failed


def main(argv=None) -> None:
    """Run all and exit: 0, 1 if questions failed, 2 on bad input."""
    parser = arguments.make_parser("specdecpp", __doc__, add_args)
    parser.prog = "rates_specdecpp"
    args = parser.parse_args(argv)
    with ends_in_one_line(parser.prog, "resumes"), contextlib.ExitStack() as stack:
        check(args, "list of lengths and thresholds", "model_id", "num_draft", "threshold")
        if args.schedule != "ada":
            raise BadInput("--schedule cannot go with a list of lengths and thresholds")
        folder = args.answers_dir or stack.enter_context(tempfile.TemporaryDirectory())
        rows, failed = rates(args, Path(folder))
    finish("specdecpp.rates", rows, COLUMNS, failed, args.json)


if __name__ == "__main__":
    main()
