"""Speedups, accepted tokens and the time identity of methods against a baseline.

Everything is computed from the answer files; speedup/metrics.py defines each number. Files whose
metas differ in a shared setting are refused. --json PATH writes the report as one JSON document.
What the machine drifted between the two files, as a method's pairs show it, widens every interval;
--format markdown (rows for people) leaves out a row that moved by more than 10 %, names it, and
ends with exit status 2; csv and jsonl have a row a task of each method, with all its settings.

Run:  python evaluation/speed.py --file-path ANSWERS/pld.jsonl --base-path ANSWERS/vanilla.jsonl
      python evaluation/speed.py --file-path ANSWERS/pld.jsonl ANSWERS/sps.jsonl --paired
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from any folder

from evaluation.answers.meta import AnswerError, check_shared  # noqa: E402
from evaluation.answers.reader import read_answers  # noqa: E402
from evaluation.cli import (  # noqa: E402
    Parser,
    TokenCounter,
    field_list,
    run,
    text_beside,
    warn,
    write_json,
)
from evaluation.speedup import drift, flat, ladder, repeated_runs, report  # noqa: E402
from evaluation.speedup.comparison import compare  # noqa: E402

FORMATS = {"markdown": report.markdown_text, "csv": flat.csv_text, "jsonl": flat.jsonl_text}
NEEDS_TOKENIZER = (
    "spec-bench-compat: not computed; --tokenizer-path is missing, and the published formula counts"
    " the baseline's texts with the target's tokenizer"
)


def parse_args(argv=None):
    """The command line."""
    parser = Parser(__doc__)
    add_files(parser)
    add_report(parser)
    parser.add_json()
    args = parser.parse_args(argv)
    parser.check_bootstrap(args)
    if args.format != "table":
        asked = ("mean_report", "ladder", "profile", "detail", "spec_bench_compat")
        for name in (name for name in asked if getattr(args, name)):
            flag = f"--{name.replace('_', '-')}"
            parser.error(f"--format {args.format} prints rows of one run alone, drop {flag}")
    if args.mean_report and args.ladder:
        parser.error("--ladder compares files of one run, drop --mean-report")
    if args.paired == bool(args.base_path):
        parser.error("either --base-path or --paired says what the baseline is")
    if args.paired and (args.ladder or args.mean_report):
        parser.error("--paired has a baseline a file, drop --ladder and --mean-report")
    args.count_tokens = TokenCounter(args.tokenizer_path) if args.tokenizer_path else None
    return args


def add_files(parser):
    """Flags that say which files are read and what may differ in them."""
    parser.add_argument("--file-path", nargs="+", required=True, help="answer files of the methods")
    parser.add_argument("--base-path", help="answer file of the baseline")
    parser.add_argument(
        "--paired",
        action="store_true",
        help="every file against the baseline that its run decoded beside every answer"
        " (--paired 1; NAME-paired-baseline.jsonl), so that no drift stands between them",
    )
    parser.add_argument(
        "--tokenizer-path",
        help="the target's tokenizer; for --spec-bench-compat, and files that count no tokens",
    )
    parser.add_argument(
        "--mean-report",
        action="store_true",
        help="mean and standard deviation over repeated runs: files of, or beside, run_1 ... run_N",
    )
    parser.add_argument(
        "--allow",
        type=field_list,
        default=[],
        metavar="FIELD[,FIELD]",
        help="shared settings (dotted names) that may differ; the report says so",
    )
    parser.add_argument(
        "--common", action="store_true", help="compare the questions that both files have"
    )
    parser.add_argument(
        "--ladder",
        nargs="+",
        default=[],
        metavar="FILE",
        help="answer files of further baselines, of any runtime: how good each is, and the"
        " speedups against the best",
    )


def add_report(parser):
    """Flags that say what is printed."""
    parser.add_argument(
        "--detail", action="store_true", help="add total ratio and geometric mean of the speedups"
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="add where the time goes, the price of verification and the break-even accept length",
    )
    parser.add_argument(
        "--spec-bench-compat",
        action="store_true",
        help="add Spec-Bench's speedup as published (needs --tokenizer-path)",
    )
    parser.add_argument(
        "--format",
        choices=("table", *FORMATS),
        default="table",
        help="what is printed: tables for people; a row a method of a markdown table; a row a task"
        " of each method as csv, or as JSON objects",
    )
    parser.add_bootstrap()


def compare_files(file_paths, base_path, args, first_base=None, not_compared=None):
    """Read the files, compare each method with the baseline.

    Returns (baseline, methods' files, results).

    base_path: None = the one beside each file; first_base: the baseline of the first of several
    runs, whose shared settings every other must have; not_compared: a list that takes what is
    refused, {"file", "reason"}, of a method while others can be compared; None = it is an error.
    """
    base, methods, results = None, [], []
    for path in file_paths:
        if base is None or base_path is None:
            base = read_answers(base_path or drift.pairs_path(path))
            first_base = first_base or base
            check_shared(base, first_base, args.allow)
            for message in base.warnings:
                warn(message)
        try:
            method, result = compare_file(path, base, base_path is None, args)
        except AnswerError as error:
            if not_compared is None:
                raise
            not_compared.append({"file": str(path), "reason": str(error)})
            continue
        methods.append(method)
        results.append(result)
    if not results and not_compared:
        raise AnswerError(not_compared[0]["reason"])
    return base, methods, results


def compare_file(path, base, paired, args):
    """(a method's AnswerFile, its comparison with the baseline's)."""
    compat = args.spec_bench_compat and args.count_tokens is not None
    settings = args.allow, args.common, args.count_tokens, compat
    method = base if Path(path) == base.path else read_answers(path)
    for message in method.warnings if method is not base else ():
        warn(message)
    if paired and not args.common:
        check_whole(method, base)
    return method, compare(method, base, args.resamples, args.seed, *settings)


def check_whole(method, pairs):
    """Refuse pairs that are a share of a method's questions: they measure drift, not speedups."""
    lacking = [i for i in method.questions if i not in pairs.questions]
    if lacking:
        raise AnswerError(
            f"{pairs.path}: pairs of {len(pairs.questions)} of {len(method.questions)} questions:"
            " --paired compares a run of --paired 1; --base-path FILE measures the drift from them,"
            " --common compares the questions that have one"
        )


def single_report(args):
    """Print the tables of one run; return the JSON document's content."""
    lost = []
    base, methods, results = compare_files(
        args.file_path, args.base_path, args, not_compared=lost if len(args.file_path) > 1 else None
    )
    for one in lost:
        print(f"speed.py: error: not compared: {one['reason']}", file=sys.stderr)
    if args.format != "table":
        print(FORMATS[args.format](results), end="")
    else:
        print("\n".join(report.definition_lines(results[0]["bootstrap"])))
        for result in results:
            print("\n".join(report.report_lines(result, args.detail)) + "\n")
        if len(results) > 1:
            print("\n".join(report.summary_lines(results)) + "\n")
    if args.profile:
        print("\n".join(report.profile_lines(results)) + "\n")
    document = {"results": results, "not_compared": lost}
    if args.ladder:
        document["ladder"] = ladder_report(args, base, methods, results)
    return document


def ladder_report(args, base, methods, results):
    """Print the ladder of baselines; return the JSON document's part."""
    rungs = ladder.read_rungs(args.ladder, base)
    for message in (message for rung in rungs if rung is not base for message in rung.warnings):
        warn(message)
    built = ladder.build(rungs, methods, base, args)
    print("\n".join(ladder.ladder_lines(built, results)) + "\n")
    return built


def mean_report(args):
    """Print every run and the averages over the runs; return the JSON document's content."""
    folders, by_run, first_base = [], [], None
    for methods, base_path in repeated_runs.expand(args.file_path, args.base_path):
        base, _, results = compare_files(methods, base_path, args, first_base)
        first_base = first_base or base
        folders.append(base_path.parent)
        by_run.append(results)
    print("\n".join(report.definition_lines(by_run[0][0]["bootstrap"])))
    for folder, results in zip(folders, by_run):
        print(f"== {folder}")
        for result in results:
            print("\n".join(report.report_lines(result, args.detail)) + "\n")
        if args.profile:
            print("\n".join(report.profile_lines(results)) + "\n")
    averages = [repeated_runs.average(results) for results in zip(*by_run)]
    for averaged in averages:
        print("\n".join(repeated_runs.average_lines(averaged)) + "\n")
    return {"runs": by_run, "mean_report": averages}


def refused_rows(results):
    """Exit status of --format markdown: 2 where a row is none of a leaderboard's; lines say why.

    A row of unknown drift is printed; a warning says what speaks against it.
    """
    moved = [result for result in results if result["drift"]["marked"]]
    for result in results:
        if drift.suspected(result["drift"]):
            warn(
                f"{result['method']['label']}: drift unknown; {'; '.join(result['drift']['named'])}"
            )
    for result in moved:
        (line, *_) = drift.drift_lines(result["method"]["label"], result["drift"])
        print(f"speed.py: error: left out: {line}", file=sys.stderr)
    return 2 if moved else 0


def main():
    """Report, and write the same as one JSON document."""
    args = parse_args()
    with text_beside(args.json):
        document = (mean_report if args.mean_report else single_report)(args)
        if args.spec_bench_compat and args.count_tokens is None:
            print(NEEDS_TOKENIZER)
            document["spec_bench_compat"] = NEEDS_TOKENIZER
    if args.tokenizer_path and args.count_tokens.tokenizer is None:
        warn("--tokenizer-path is not needed: tokens are counted by new_tokens on both sides")
    write_json(args.json, {"tool": "speed", "schema": 1, **document})
    status = refused_rows(document["results"]) if args.format == "markdown" else 0
    return 2 if document.get("not_compared") else status


if __name__ == "__main__":
    run(main)
