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
from model.common.args import add_draft_scale, add_offload
from model.common.errors import BadInput
from model.specexec.flags import add_tree_flags

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
    add_tree_flags(parser, values_of)
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


def check(args) -> None:
    """Refuse what a sweep cannot do."""
    arguments.check(args)
    for name in ("answer_file", "num_runs", "paired"):
        if getattr(args, name):
            raise BadInput(f"--{name.replace('_', '-')} cannot go with a sweep")
    if args.num_gpus_total > args.num_gpus_per_model:
        raise BadInput("--num-gpus-total above --num-gpus-per-model cannot go with a sweep")
    folder = Path(args.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not args.overwrite:
            raise BadInput(f"--output {folder}: not empty; --overwrite replaces its runs")
        (folder / "summary.json").write_text("", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"--output {folder}: cannot be written: {error.strerror}") from error


def run_all(runs: list) -> tuple[list[dict], int]:
    """(a summary of every run, how many questions failed); models are loaded once."""
    from model.common.eval import Bench
    from model.common.records.files import open_answers
    from model.specexec.build import load_draft, make_drafter

    drafts = []

    def build(args, target):
        drafts.append(load_draft(args, target))
        for run in runs:  # a bad combination is refused before the first one is run
            make_drafter(run, drafts[0], target)
        return make_drafter(args, drafts[0], target)

    bench, rows, failed = None, [], 0
    for run in runs:
        path = Path(run.answer_file)
        if bench is None:
            bench = Bench("specexec", run, build, None, [path])
        else:
            bench.args = run
            bench.runs = [open_answers("specexec", run, bench.questions, path)]
            bench.drafter = make_drafter(run, drafts[0], bench.target)
        reset_peak()
        begin = time.perf_counter()
        failed += bench.run()
        seconds = time.perf_counter() - begin
        answers = list(bench.runs[0][0].records.values())
        facts = bench.drafter.facts() | bench.target.facts()
        shape = getattr(bench.drafter, "shape", None)
        rows.append(summary(run, shape, answers, facts, seconds, peak_gib()))
    return rows, failed


def summary(run, shape, answers: list[dict], facts: dict, exp_time: float, mem_use: float) -> dict:
    """One row of the table, with totals and facts beside it; None where nothing was drafted."""
    counts = [steps_of(record) for record in answers if "error" not in record]
    counts = [count for count in counts if count["steps"]]
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
        "tree_size": mean(lambda c: c["nodes"] / c["steps"]),
        "min_CLP": facts.get("mean_lowest_score"),
        "exp_time": exp_time,
        "gen_rate": mean(lambda c: c["tokens"] / c["steps"]),
        "gen_speed": mean(lambda c: c["tokens"] / (c["draft_s"] + c["target_s"])),
        "mem_use": mem_use,
    }
    seconds = total("draft_s") + total("target_s")
    more = {
        "gen_rate_micro": total("tokens") / total("steps") if counts else None,
        "gen_speed_micro": total("tokens") / seconds if counts else None,
        "questions": len(counts),
        "failed": len(answers) - sum("error" not in record for record in answers),
        "tokens": total("tokens"),
        "steps": total("steps"),
        "model_id": run.model_id,
        "answer_file": Path(run.answer_file).name,
    }
    return row | more | facts


def steps_of(record: dict) -> dict:
    """Totals over the steps of a question's answers; the prefill and its token are no step."""
    totals = {"steps": 0, "tokens": 0, "nodes": 0, "depth": 0, "draft_s": 0.0, "target_s": 0.0}
    for choice in record["choices"]:
        totals["steps"] += len(choice["accept_lengths"])
        totals["tokens"] += sum(choice["accept_lengths"])
        names = {"nodes": ("drafted",), "depth": ("depth",), "draft_s": ("draft_s",)}
        names["target_s"] = ("verify_s", "commit_s")
        for name, fields in names.items():
            totals[name] += sum(sum(map(sum, choice[field])) for field in fields)
    return totals


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


def table(rows: list[dict]) -> str:
    """The rows as text, columns aligned, units below."""
    lines = [list(COLUMNS)]
    for row in rows:
        lines.append(
            ["-" if row[n] is None else format(row[n], style) for n, (style, _) in COLUMNS.items()]
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines]
    units = [f"{name}: {meaning}" for name, (_, meaning) in COLUMNS.items()]
    return "\n".join([*text, "", *units])


def write(folder: Path, args, rows: list[dict]) -> None:
    """summary.json (arguments, units, rows) and summary.csv (the table's columns)."""
    units = {name: meaning for name, (_, meaning) in COLUMNS.items()}
    document = {"tool": "sweep", "arguments": vars(args), "units": units, "rows": rows}
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
    try:
        check(args)
        rows, failed = run_all(combinations(args))
        write(Path(args.output), args, rows)
    except BadInput as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    print(table(rows))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
