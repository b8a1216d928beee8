"""SpecExec over a grid: one run of the bench per combination of flags, one table of them all.

--max-num-beams, --max-beam-len, --max-budget, --min-log-prob and --max-branch-width take lists
("16, 32,none", none being the default; --min-log-prob=-3,none), whose product is run. Every run
writes an ordinary answer file into --output; summary.json and summary.csv there hold the table that
is printed.

Source: the experiment script of Svirschevski et al., arXiv 2406.02532, whose columns these are
Run:    python -m model.specexec.sweep --model-path meta-llama/Llama-2-70b-chat-hf --drafter-path
        meta-llama/Llama-2-7b-chat-hf --offload ram --max-budget 128,256,512 --output sweep
"""

from __future__ import annotations

import copy
import csv
import itertools
import json
import sys
import time
from pathlib import Path

from model.common import args as arguments
from model.common.args import add_offload
from model.common.draft_flags import add_draft_scale
from model.common.errors import BadInput, ends_in_one_line
from model.common.grid import Grid, check, table, totals
from model.specexec.flags import add_tree_flags, load_draft, make_drafter

SWEPT = ("max_num_beams", "max_beam_len", "max_budget", "min_log_prob", "max_branch_width")
COLUMNS = {  # name -> (format, unit or meaning)
    "beams": ("d", "nodes a pass reads; specinfer: chains"),
    "max_h": ("d", "passes of the draft model"),
    "budget": ("d", "nodes"),
    "minLP": (".2f", "least score of a node"),
    "branch": ("d", "successors of a node"),
    "t0": (".4f", "s a step, drafting"),
    "t1": (".4f", "s a step, target pass, acceptance and commit"),
    "tree_h": (".1f", "levels of a draft"),
    "tree_size": (".1f", "nodes of a draft"),
    "min_CLP": (".2f", "lowest score in a draft, decay included"),
    "exp_time": (".1f", "s, the whole run with its warm-up"),
    "gen_rate": (".2f", "tokens a target pass, the bonus included"),
    "gen_speed": (".3f", "tokens a second of t0 + t1"),
    "mem_use": (".2f", "GiB, peak: the device's, on a CPU the process's so far"),
}
UNITS = {name: meaning for name, (_, meaning) in COLUMNS.items()}


def values_of(kind):
    """Argument type: values separated by commas, "none" among them.

    >>> values_of(int)("16, 32,none")
    [16, 32, None]
    """

    def parse(text):
        parts = [part.strip() for part in text.split(",")]
        return [None if part == "none" else kind(part) for part in parts]

    return parse


def add_args(parser):
    """The method's flags, the sweepable ones as lists."""
    add_tree_flags(parser, values_of, fits=False)
    add_draft_scale(parser)
    add_offload(parser)
    parser.add_argument(
        "--output", required=True, help="folder of the answer files and the summary"
    )


def combinations(args) -> list:
    """Arguments of every run: the product in the order beams, length, budget, score, branch."""
    lists = [getattr(args, name) or [None] for name in SWEPT]
    if sum(len(values) > 1 for values in lists) > 2:
        runs = len(list(itertools.product(*lists)))
        print(f"sweep: more than two flags are lists: {runs} runs", file=sys.stderr)
    found = []
    for values in itertools.product(*lists):
        single = copy.copy(args)
        vars(single).update(zip(SWEPT, values))
        shape = "-".join("none" if value is None else f"{value:g}" for value in values)
        single.model_id = f"{args.model_id}-{args.gen_type}-{shape}"
        single.answer_file = str(Path(args.output) / f"{single.model_id}.jsonl")
        single.overwrite = True  # the folder was found empty, or is to be written anew
        found.append(single)
    return found


def open_folder(args) -> Path:
    """The folder of --output, empty or to be written anew."""
    folder = Path(args.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not args.overwrite:
            raise BadInput(f"--output {folder}: not empty; --overwrite replaces its runs")
        (folder / "summary.json").write_text("", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"--output {folder}: cannot be written: {error.strerror}") from error
    return folder


def run_all(runs: list) -> tuple[list[dict], int]:
    """(a row of every run, how many questions failed); models are loaded once."""
    drafts, begun = [], 0.0

    def build(args, target):
        nonlocal begun
        if not drafts:
            drafts.append(load_draft(args, target))
            for run in runs:  # a bad combination is refused before the first one is run
                make_drafter(run, drafts[0], target)
        reset_peak()
        begun = time.perf_counter()
        return make_drafter(args, drafts[0], target)

    grid, rows = Grid("specexec", build), []
    for run in runs:
        answers, facts = grid.run(run)
        shape = getattr(grid.bench.drafter, "shape", None)
        seconds = time.perf_counter() - begun
        failed = len(grid.bench.questions) - len(answers)
        rows.append(summary(run, shape, answers, facts, seconds, peak_gib()) | {"failed": failed})
    return rows, grid.failed


def summary(run, shape, answers: list[dict], facts: dict, exp_time: float, mem_use: float) -> dict:
    """One row of the table, with totals and facts beside it; None where nothing was drafted."""
    counts = [count for answer in answers if (count := totals([answer]))["steps"]]
    for count in counts:
        count["target_s"] = count["verify_s"] + count["commit_s"]
    tree = run.gen_type == "specexec"

    def mean(number):
        return sum(map(number, counts)) / len(counts) if counts else None

    def total(name):
        return sum(count[name] for count in counts)

    row = {
        "beams": shape and shape.num_beams,
        "max_h": shape and shape.beam_len,
        "budget": shape.budget if tree else None,
        "minLP": run.min_log_prob,
        "branch": shape.branch_width if tree else None,
        "t0": mean(lambda c: c["draft_s"] / c["steps"]),
        "t1": mean(lambda c: c["target_s"] / c["steps"]),
        "tree_h": mean(lambda c: c["depth"] / c["steps"]),
        "tree_size": mean(lambda c: c["drafted"] / c["steps"]),
        "min_CLP": facts.get("mean_lowest_score"),
        "exp_time": exp_time,
        "gen_rate": mean(lambda c: c["accept_lengths"] / c["steps"]),
        "gen_speed": mean(lambda c: c["accept_lengths"] / (c["draft_s"] + c["target_s"])),
        "mem_use": mem_use,
    }
    seconds = total("draft_s") + total("target_s")
    more = {
        "gen_rate_micro": total("accept_lengths") / total("steps") if counts else None,
        "gen_speed_micro": total("accept_lengths") / seconds if counts else None,
        "questions": len(counts),
        "tokens": total("accept_lengths"),
        "steps": total("steps"),
        "model_id": run.model_id,
        "answer_file": Path(run.answer_file).name,
    }
    return row | more | facts


def reset_peak() -> None:
    """Begin a new peak of the device's memory."""
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.reset_peak_memory_stats()


def peak_gib() -> float:
    """Most memory so far, in GiB: the device's, or the process's where there is none."""
    import resource

    import torch

    if torch.accelerator.is_available():
        return torch.accelerator.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write(folder: Path, args, rows: list[dict]) -> None:
    """summary.json (arguments, units, rows) and summary.csv (the table's columns)."""
    document = {"tool": "sweep", "arguments": vars(args), "units": UNITS, "rows": rows}
    (folder / "summary.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    with (folder / "summary.csv").open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(COLUMNS), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def main(argv=None) -> None:
    """Run the grid and exit: 0, 1 if questions failed, 2 on bad input."""
    parser = arguments.make_parser("specexec", __doc__, add_args)
    parser.prog = "sweep"
    args = parser.parse_args(argv)
    args.model_id = args.model_id or arguments.default_model_id("specexec", args)
    with ends_in_one_line(parser.prog, "starts anew"):
        check(args, "sweep")
        folder = open_folder(args)
        rows, failed = run_all(combinations(args))
        write(folder, args, rows)
    print(table(rows, {name: (name, style) for name, (style, _) in COLUMNS.items()}))
    print("\n".join(["", *(f"{name}: {meaning}" for name, meaning in UNITS.items())]))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
