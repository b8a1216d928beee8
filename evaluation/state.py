"""What state between questions does to methods: cold, warm, and warm in other orders.

Runs each method on the same questions with --state cold in their own and in a shuffled order, and
with --state warm in their own, the reverse and shuffled orders, and prints mean accepted tokens by
task, a row a run. Cold rows have to agree in every answer and accept length; all rows have to agree
in their ids where decoding is greedy. The methods stand first; none, or "all", means every method
with a --state. Flags that this tool does not know go to all methods, --flags to one.

Run:    python evaluation/state.py recycling --model-path data/mini_models/target --dtype float32
        python evaluation/state.py nasd --model-path lmsys/vicuna-7b-v1.3 --orders 5
        python evaluation/state.py all --flags samd="--auxiliary recycling" --model-path TARGET

Exit status: 0, 1 where the state of a method leaks into a cold run, 2 where a method did not run.
"""

import argparse
import json
import random
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from evaluation import cli  # noqa: E402
from evaluation.answers.meta import AnswerError  # noqa: E402
from evaluation.answers.reader import read_answers  # noqa: E402
from evaluation.speedup import report  # noqa: E402
from evaluation.speedup.comparison import TASK_NAMES  # noqa: E402
from evaluation.speedup.pairing import named  # noqa: E402

OWN_FLAGS = ("--answer-file", "--question-file", "--state", "--num-runs", "--paired")
BY_PLACE = ("--limit-per-category", "--question-begin", "--question-end")


def method_flags(text):
    """('samd', ['--auxiliary', 'recycling']) from 'samd=--auxiliary recycling'."""
    method, equals, flags = text.partition("=")
    try:
        split = shlex.split(flags)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error} in {text!r}") from None
    if not (method and equals and split):
        raise argparse.ArgumentTypeError(f'{text!r} is not METHOD="FLAG ..."')
    return method, split


def parse_args(argv):
    """(own arguments with `methods`, the flags of all methods)."""
    parser = cli.Parser(__doc__)
    parser.usage = "state.py [METHOD ... | all] [own flags] [flags of the methods]"
    parser.add_argument("--bench-name", default="mini_bench", help="folder of data/")
    parser.add_argument("--orders", type=int, default=2, help="shuffled orders of the warm runs")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffles")
    parser.add_json()
    parser.add_argument(
        "--flags",
        type=method_flags,
        action="append",
        default=[],
        metavar='METHOD="FLAG ..."',
        help="flags of one method only; may be given several times",
    )
    count = next((i for i, part in enumerate(argv) if part.startswith("-")), len(argv))
    args, flags = parser.parse_known_args(argv[count:])
    if flags and not flags[0].startswith("-"):
        parser.error(f"{flags[0]}: name the methods before the flags")
    args.methods = list(dict.fromkeys(argv[:count]))
    for flag in [*flags, *(part for _, own in args.flags for part in own)]:
        if flag.split("=")[0] in OWN_FLAGS:
            raise AnswerError(f"{flag} is set by this tool")
        if flag.split("=")[0] in BY_PLACE:
            raise AnswerError(
                f"{flag} selects questions by their place, which this tool changes; --question-ids"
                " and --categories do not"
            )
    if args.methods in ([], ["all"]):
        args.methods = stateful_methods()
    for method in args.methods:
        if not (ROOT / "model" / method / f"inference_{method}.py").is_file():
            parser.error(f"{method}: no method of model/")
    for method, _ in args.flags:
        if method not in args.methods:
            raise AnswerError(f"--flags {method}: it is not among {', '.join(args.methods)}")
    return args, flags


def stateful_methods():
    """Methods whose command line has a --state, by name."""
    found = []
    for script in sorted(ROOT.glob("model/*/inference_*.py")):
        command = [sys.executable, "-m", f"model.{script.parent.name}.{script.stem}", "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            cli.warn(f"{script.parent.name} --help: exit status {done.returncode}; left out")
        elif re.search(r"--state(?![\w-])", done.stdout):
            found.append(script.parent.name)
    return found


def main():
    """Run every method, state and order; the exit status."""
    args, flags = parse_args(sys.argv[1:])
    questions = ROOT / "data" / args.bench_name / "question.jsonl"
    if not questions.is_file():
        raise AnswerError(f"{questions}: no such file")
    lines = question_lines(questions)
    found, refused = {}, {}
    for method in args.methods:
        own = [part for name, parts in args.flags if name == method for part in parts]
        try:
            found[method] = run_all(method, lines, args, [*flags, *own])
        except AnswerError as error:
            print(f"state.py: error: {error}", file=sys.stderr)
            refused[method] = str(error)
    leaks = show(found, refused, args.json) if found else []
    return 2 if refused else int(bool(leaks))


def question_lines(path):
    """The questions of a file of any form, a JSON line each; ids that were places stay theirs."""
    from model.common.errors import BadInput
    from model.common.prompts.questions import read_questions

    try:
        return [json.dumps(question) for question in read_questions(path)]
    except BadInput as error:
        raise AnswerError(str(error)) from error


def run_all(method, lines, args, flags):
    """{(state, order): {question_id: Question}} of all runs of a method."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            (state, order): run(method, state, ordered, Path(folder) / f"{number}", flags)
            for number, (state, order, ordered) in enumerate(plans(lines, args.orders, args.seed))
        }


def plans(lines, num_orders, seed):
    """(state, name of the order, question lines) of every run."""

    def shuffled(number):
        mixed = lines[:]
        random.Random(f"{seed}/{number}").shuffle(mixed)
        return mixed

    yield "cold", "as given", lines
    yield "cold", "shuffled", shuffled(0)
    yield "warm", "as given", lines
    yield "warm", "reversed", lines[::-1]
    for number in range(num_orders):
        yield "warm", f"shuffle {number + 1}", shuffled(number)


def run(method, state, lines, path, flags):
    """{question_id: Question} of one run of the method's own script."""
    questions, answers = path.with_suffix(".questions.jsonl"), path.with_suffix(".jsonl")
    questions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", f"model.{method}.inference_{method}", *flags]
    command += ["--state", state, "--question-file", questions, "--answer-file", answers]
    command += ["--paired", "0"]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    found = read_answers(answers).questions if answers.is_file() else {}
    if done.returncode:
        message = f"{method} --state {state}: {cli.reason_of(done)}"
        if done.returncode > 1 or len(found) < len(lines):
            raise AnswerError(message)
        cli.warn(message)  # some questions failed; every run says which
    return found


def facts(question):
    """What has to agree between cold runs: {field: its value of every choice}."""
    fields = ("output_ids", "accept_lengths")
    return {field: [getattr(choice, field) for choice in question.choices] for field in fields}


def differing(runs, state, order, fields):
    """Ids of the questions in which a run differs from the cold one in any of the fields."""
    cold, other = runs["cold", "as given"], runs[state, order]
    pairs = ((key, facts(cold[key]), facts(other[key])) for key in cold)
    return [key for key, ours, theirs in pairs if any(ours[f] != theirs[f] for f in fields)]


def means_of(questions):
    """{task: mean accept length over all steps, None without steps}, the last one overall."""
    found = {}
    for question in questions.values():
        lengths = [n for choice in question.choices for n in choice.accept_lengths]
        found.setdefault(question.task, []).extend(lengths)
    order = [task for task in TASK_NAMES if task in found]
    order += sorted(task for task in found if task not in TASK_NAMES)
    columns = {TASK_NAMES.get(task, task): found[task] for task in order}
    columns["Overall"] = [n for lengths in found.values() for n in lengths]
    return {name: sum(some) / len(some) if some else None for name, some in columns.items()}


def result_of(runs):
    """What a method's runs show, as a dict for JSON."""
    leaks = differing(runs, "cold", "shuffled", ("output_ids", "accept_lengths"))
    rows = [
        {
            "state": state,
            "order": order,
            "mean_accepted": means_of(questions),
            "ids_differ_in": differing(runs, state, order, ("output_ids",)),
        }
        for (state, order), questions in runs.items()
    ]
    same = sum(not row["ids_differ_in"] for row in rows)
    return {"cold_agrees": not leaks, "leaks": leaks, "same_ids": same, "runs": rows}


def verdict_line(method, result):
    """Whether the cold runs of a method agree, and which runs gave other ids."""
    ids = f"ids as cold: {result['same_ids']} of {len(result['runs'])} runs"
    others = [f"{row['state']} {row['order']}" for row in result["runs"] if row["ids_differ_in"]]
    if others:
        ids += f" (not {', '.join(others)})"
    if result["cold_agrees"]:
        return f"{method}: cold runs agree in every question's ids and accept lengths; {ids}"
    return f"{method}: LEAK: cold runs DIFFER in {named(result['leaks'])}; {ids}"


def show(found, refused, json_path):
    """Print the table and the verdicts, write the report; the methods whose state leaks."""
    results = {method: result_of(runs) for method, runs in found.items()}
    tasks = list(next(iter(results.values()))["runs"][0]["mean_accepted"])
    rows = [
        [method, row["state"], row["order"], *map(report.fixed, row["mean_accepted"].values())]
        for method, result in results.items()
        for row in result["runs"]
    ]
    with cli.text_beside(json_path):
        print("mean accepted tokens")
        print("\n".join(report.table(["method", "state", "order", *tasks], rows)))
        print("\n".join(verdict_line(method, result) for method, result in results.items()))
    listed = [{"method": method, **result} for method, result in results.items()]
    document = {"tool": "state", "schema": 1, "results": listed, "not_run": refused}
    cli.write_json(json_path, document)
    return [method for method, result in results.items() if result["leaks"]]


if __name__ == "__main__":
    cli.run(main)
