"""Reports on dynamic draft lengths, made from answer files.

    examples   the published evaluation's json: times, refused candidates and target calls of every
               question, from an answer file and, where given, plain runs of target and draft model
    rates      discarded candidates and target calls per generated token: fixed lengths (sps with
               --schedule constant) against the acceptance head at some thresholds, in one command

Source: Huang, Guo, Wang, arXiv 2405.19715
Run:    python -m model.specdecpp.report examples --answers FILE.jsonl --output results.json
        python -m model.specdecpp.report rates --head-path data/mini_models/specdecpp
        --drafter-path data/mini_models/sps --model-path data/mini_models/target --dtype float32
Flags that `rates` does not know go to both methods' scripts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from model.common.args import ROOT, Parser, at_least, between
from model.common.errors import BadInput
from model.common.records.writer import whole_lines

NOT_RUN = -1
SET_BY_US = (
    "--answer-file",
    "--schedule",
    "--num-draft",
    "--threshold",
    "--num-runs",
    "--model-id",
)


def make_parser() -> Parser:
    """The flags of both reports."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="report_specdecpp", description=__doc__, formatter_class=kind)
    reports = parser.add_subparsers(dest="report", required=True)
    add = reports.add_parser("examples", help="the published evaluation's json").add_argument
    add("--answers", required=True, help="answer file of a speculative run")
    add("--target-answers", help="answer file of the target alone (vanilla)")
    add("--draft-answers", help="answer file of the draft model alone (vanilla)")
    add("--output", required=True, help="json file")
    add = reports.add_parser("rates", help="discard and verification rates").add_argument
    add("--model-path", required=True, help="target: directory or hub id")
    add("--drafter-path", required=True, help="draft model: directory or hub id")
    add("--head-path", required=True, help="acceptance head: directory or hub id")
    add(
        "--lengths",
        type=at_least(1),
        nargs="*",
        default=list(range(2, 11)),
        help="fixed draft lengths (default: 2 to 10)",
    )
    add(
        "--thresholds",
        type=between(0, 1),
        nargs="+",
        default=[0.3, 0.5, 0.7, 0.9],
        help="of the head's rule (default: 0.3 0.5 0.7 0.9)",
    )
    add("--bound", type=at_least(1), nargs=2, default=[2, 20], help="of the head's rule")
    add("--answers-dir", help="keep the answer files here and go on from them (default: nowhere)")
    return parser


def main(argv=None) -> None:
    """Print or write a report and exit: 0, 2 on bad input."""
    parser = make_parser()
    args, flags = parser.parse_known_args(argv)
    try:
        if args.report == "examples":
            if flags:
                raise BadInput(f"unknown flags: {' '.join(flags)}")
            write_examples(args)
        else:
            show_rates(args, flags)
    except BadInput as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def read_records(path: str | Path) -> dict[int, dict]:
    """Answers of a file by question id, failed ones left out."""
    if not Path(path).is_file():
        raise BadInput(f"{path}: no such file")
    records = whole_lines(Path(path))
    if not records:
        raise BadInput(f"{path}: no answers in it")
    try:
        for choice in (choice for record in records.values() for choice in record["choices"]):
            counts(choice)
    except (KeyError, TypeError) as error:
        raise BadInput(f"{path}: not an answer file of this project: {error!r}") from error
    return records


def counts(choice: dict) -> dict:
    """What a choice's turns add up to; times in seconds.

    generated   tokens, the prefill's and EOS included
    calls       target forwards: steps, and the prefill of every turn, which makes one token
    drafted     candidates; of those, refused were not committed
    """
    turns, steps = len(choice["new_tokens"]), len(choice["accept_lengths"])
    drafted = sum(sum(turn) for turn in choice["drafted"])
    phases = {
        phase: sum(sum(turn) for turn in choice.get(f"{phase}_s", []))
        for phase in ("draft", "verify", "commit")
    }
    return {
        "generated": sum(choice["new_tokens"]),
        "calls": steps + turns,
        "drafted": drafted,
        "refused": drafted - (sum(choice["accept_lengths"]) - steps),
        "seconds": sum(choice["wall_time"]),
        **phases,
    }


def examples(answers: dict, target: dict, draft: dict, ids: list[int]) -> list[dict]:
    """The published fields of every answered question; ids: of the run's questions, in file order.

    Of each question the first choice. -1 stands for what was not run.
    """
    found = []
    for index, question_id in enumerate(ids):
        if question_id not in answers:
            continue
        record = answers[question_id]
        spec = counts(record["choices"][0])
        example = {
            "id": index,
            "question_id": question_id,
            "category": record["category"],
            "spec_time": spec["seconds"],
            "num_mismatched_tokens": spec["refused"],
            "num_LM_call": spec["calls"],
            "generated_length": spec["generated"],
            "drafted_tokens": spec["drafted"],
            **{f"{phase}_phase_time": spec[phase] for phase in ("draft", "verify", "commit")},
        }
        for name, plain in (("target", target), ("draft", draft)):
            alone = counts(plain[question_id]["choices"][0]) if question_id in plain else None
            example[f"{name}_time"] = alone["seconds"] if alone else NOT_RUN
            example[f"generated_length_{name}"] = alone["generated"] if alone else NOT_RUN
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
    return [json.loads(line)["question_id"] for line in lines if line]


def show_rates(args, flags: list[str]) -> None:
    """Run every length and threshold, print the table and one JSON line."""
    for flag in flags:
        if flag.split("=")[0] in SET_BY_US:
            raise BadInput(f"{flag} is set by this command")
    if args.bound[0] > args.bound[1]:
        raise BadInput("--bound {} {}: the first is above the second".format(*args.bound))
    shared = ["--model-path", args.model_path, "--drafter-path", args.drafter_path, *flags]
    head = ["--schedule", "ada", "--head-path", args.head_path, "--bound", *map(str, args.bound)]
    plans = {
        f"K = {n}": ("sps", ["--schedule", "constant", "--num-draft", str(n)]) for n in args.lengths
    }
    for threshold in args.thresholds:
        plans[f"h = {threshold:g}"] = ("specdecpp", [*head, "--threshold", str(threshold)])
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(args.answers_dir or folder)
        rows = {
            name: rates_of(run(method, shared + own, folder / f"{name.replace(' ', '')}.jsonl"))
            for name, (method, own) in plans.items()
        }
    fixed = [rates for name, rates in rows.items() if plans[name][0] == "sps"]
    for found in rows.values():
        found["fixed_discard_rate"] = discard_of_fixed(fixed, found["verification_rate"])
    print("\n".join(table(rows)))
    print(json.dumps({"tool": "specdecpp.report rates", "rows": rows}))


def run(method: str, flags: list[str], path: Path) -> dict[int, dict]:
    """The answers of a method's own script."""
    command = [sys.executable, "-m", f"model.{method}.inference_{method}", *flags]
    command += ["--answer-file", str(path), "--model-id", path.stem]
    print(f"{path.stem}: {method}", file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise BadInput(f"{path.stem}: {lines[-1]}")
    return read_records(path)


def rates_of(records: dict[int, dict]) -> dict:
    """Sums over all questions, divided; the published definitions.

    discard       refused candidates per generated token
    verification  target forwards per generated token
    """
    every = [counts(choice) for record in records.values() for choice in record["choices"]]
    total = {name: sum(each[name] for each in every) for name in every[0]}
    generated = total["generated"]
    steps = sum(len(c["accept_lengths"]) for r in records.values() for c in r["choices"])
    committed = sum(sum(c["accept_lengths"]) for r in records.values() for c in r["choices"])
    return {
        "discard_rate": total["refused"] / generated,
        "verification_rate": total["calls"] / generated,
        "mean_drafted": total["drafted"] / max(steps, 1),
        "mean_accepted": committed / max(steps, 1),
        "tokens_per_s": generated / total["seconds"],
        "draft_share": total["draft"] / total["seconds"],
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


def table(rows: dict[str, dict]) -> list[str]:
    """Markdown lines."""
    names = ("discard rate", "of fixed lengths", "verification rate")
    names += ("drafted", "accepted", "tokens/s", "drafting")
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for name, row in rows.items():
        keys = ("discard_rate", "fixed_discard_rate", "verification_rate")
        values = ["-" if row[key] is None else f"{row[key]:.3f}" for key in keys]
        values += [f"{row[key]:.2f}" for key in ("mean_drafted", "mean_accepted")]
        values += [f"{row['tokens_per_s']:.1f}", f"{100 * row['draft_share']:.0f} %"]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return lines


if __name__ == "__main__":
    main()
