"""Latency, throughput and goodput of runs under a load, side by side and against a base.

Reads answer files of load runs and of servers (records/schema.py defines every figure), ordinary
answer files, whose turns arrive when they begin, and results of vLLM's bench serve, SGLang's
bench_serving and AIPerf, which count from the sending of a request: what they do not hold is "-".
Failed requests stay in all totals. A run whose settings are those of no base has its figures, and a
line that says what differs: exit status 2.

Run:  python evaluation/serving.py ANSWERS/pld-rate-2.jsonl --base-path ANSWERS/vanilla-rate-2.jsonl
      python evaluation/serving.py ANSWERS/pld-rate-*.jsonl --slo ttft=0.5,tpot=0.05 --base-path
      ANSWERS/vanilla-rate-*.jsonl
      python evaluation/serving.py ANSWERS/pld-rate-2.jsonl --as vllm pld.json
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from any folder

from evaluation.answers.meta import AnswerError, Incomparable  # noqa: E402
from evaluation.cli import (  # noqa: E402
    Parser,
    append_lines,
    field_list,
    run,
    text_beside,
    warn,
    write_json,
)
from evaluation.service import brief, comparison, figures, tables  # noqa: E402
from evaluation.service.benchmark_results import write_benchmark_results  # noqa: E402
from evaluation.service.imports import read_runs  # noqa: E402
from evaluation.service.vllm_result import write_vllm  # noqa: E402

FORMATS = {"vllm": write_vllm, "benchmark-results": write_benchmark_results}


def parse_args(argv=None):
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="answer files or tools' results")
    parser.add_argument(
        "--base-path",
        nargs="+",
        default=[],
        metavar="BASE",
        help="what the others are held to; of several bases, each the one that had its schedule",
    )
    parser.add_argument(
        "--slo",
        type=bounds,
        metavar="ttft=S,tpot=S,e2e=S",
        help="bounds in seconds that a request has to meet to be good: goodput, and the knee of"
        " files that differ in their rate alone",
    )
    parser.add_argument(
        "--as",
        dest="write_as",
        nargs=2,
        metavar=("FORMAT", "PATH"),
        help="write one FILE in another form: vllm (vLLM's bench serve), or benchmark-results"
        " (PATH and PATH_speculative, _target, _gpu; BASE is the target alone)",
    )
    parser.add_argument(
        "--allow",
        type=field_list,
        default=[],
        metavar="FIELD[,FIELD]",
        help="shared settings (dotted names) in which a run may differ from the base",
    )
    add_output(parser)
    args = parser.parse_args(argv)
    if not args.files and not args.definitions:
        parser.error("no FILE")
    parser.check_bootstrap(args)
    if args.write_as:
        if args.write_as[0] not in FORMATS:
            parser.error(f"--as {args.write_as[0]}: not one of {', '.join(FORMATS)}")
        if len(args.files) != 1:
            parser.error("--as writes one FILE")
    return args


def add_output(parser):
    """Flags that say how, and where to."""
    parser.add_bootstrap()
    parser.add_argument(
        "--details", metavar="FILE", help="append the tables there and print a compact one here"
    )
    parser.add_argument(
        "--definitions", action="store_true", help="print what every figure means, and end"
    )
    parser.add_json()


def bounds(text):
    """{"ttft", "tpot" or "e2e": seconds} of --slo."""
    found = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if name not in figures.BOUNDS or name in found or not 0 < seconds < math.inf:
            names = ", ".join(figures.BOUNDS)
            raise argparse.ArgumentTypeError(f"{part!r}: NAME=SECONDS, once, of {names}")
        found[name] = seconds
    return found


def report(args):
    """Print the tables of all files; return the JSON document's content."""
    runs = [one for path in args.files for one in read_runs(path)]
    bases = []
    for path in args.base_path:
        same = [one for one in runs if one.path.resolve() == Path(path).resolve()]
        bases += same or read_runs(path)
    rows = [base for base in bases if not any(base is one for one in runs)] + runs
    found = [figures.figures_of(one, args.slo) for one in rows]
    for message in (line for one in rows if one.answers for line in one.answers.warnings):
        warn(message)
    results, refused = compare_all(runs, bases, dict(zip(map(id, rows), found)), args)
    if args.write_as and refused:
        raise AnswerError(refused[0])
    knees = comparison.knees(rows, found)
    lines = [*tables.run_lines(found), *(tables.comparison_lines(results) if results else [])]
    last = [*tables.knee_lines(knees), *refused]
    if args.details:
        append_lines(args.details, [*lines, *last])
        lines = brief.brief_lines(found, results)
    print(*lines, *last, sep="\n")
    if args.write_as:
        name, path = args.write_as
        for written in FORMATS[name](runs[0], bases, path, args.slo):
            print(f"written: {written}")
    document = [
        {**its, "per_request": figures.per_request(one, args.slo)} for one, its in zip(rows, found)
    ]
    return {"runs": document, "comparisons": results, "knees": knees, "incomparable": refused}


def compare_all(runs, bases, found, args):
    """([comparison] of every Run with the bases that had its schedule, or with the first base,
    [line of a Run that none of these can be held to]).

    A base is compared with none. found: {id of a Run: its figures}.
    """
    results, lines = [], []
    for one in runs:
        if any(one is base for base in bases):
            continue
        alike = [base for base in bases if comparison.pairing(one, base)[0]]
        made, refused = [], []
        for base in alike or bases[:1]:
            pair = found[id(one)], found[id(base)]
            settings = args.resamples, args.seed, args.allow
            try:
                made.append(comparison.compare(one, base, pair, *settings))
            except Incomparable as error:
                refused.append(str(error))
        results += made
        lines += [] if made else refused
    return results, lines


def main():
    """Report, and write the same as one JSON document; 2 where a run was held to no base."""
    args = parse_args()
    if args.definitions:
        print("\n".join(tables.definition_lines()))
        return 0
    with text_beside(args.json):
        document = report(args)
    write_json(args.json, {"tool": "serving", "schema": 1, **document})
    return 2 if document["incomparable"] else 0


if __name__ == "__main__":
    run(main)
