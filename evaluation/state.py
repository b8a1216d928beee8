"""What state between questions does to a method: cold, warm, and warm in other orders.

Runs the method on the same questions with --state cold in their own and in a shuffled order, and
with --state warm in their own, the reverse and shuffled orders, and prints mean accepted tokens by
task. Cold rows have to agree in every answer and accept length; all rows have to agree in their ids
where decoding is greedy. Flags that this tool does not know go to the method.

Run:    python evaluation/state.py recycling --model-path data/mini_models/target --dtype float32
        python evaluation/state.py nasd --model-path lmsys/vicuna-7b-v1.3 --orders 5
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from evaluation import cli, report  # noqa: E402
from evaluation.answers import read_answers  # noqa: E402
from evaluation.comparison import TASK_NAMES  # noqa: E402
from evaluation.meta import AnswerError  # noqa: E402

OWN_FLAGS = ("--answer-file", "--question-file", "--state", "--num-runs")


def main():
    """Run every state and order; exit status 0, or 1 where the state leaks into a cold run."""
    parser = cli.Parser(__doc__)
    parser.add_argument("method", help="a method with --state: recycling, nasd, samd, ...")
    parser.add_argument("--bench-name", default="mini_bench", help="folder of data/")
    parser.add_argument("--orders", type=int, default=2, help="shuffled orders of the warm runs")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffles")
    args, flags = parser.parse_known_args()
    for flag in OWN_FLAGS:
        if flag in flags:
            raise AnswerError(f"{flag} is set by this tool")
    questions = ROOT / "data" / args.bench_name / "question.jsonl"
    if not questions.is_file():
        raise AnswerError(f"{questions}: no such file")
    lines = [line for line in questions.read_text(encoding="utf-8").splitlines() if line.strip()]
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: run(args.method, state, order, Path(folder) / f"{number}", flags)
            for number, (name, state, order) in enumerate(plans(lines, args.orders, args.seed))
        }
    return show(args, runs)


def plans(lines, num_orders, seed):
    """(name, state, question lines) of every run."""

    def shuffled(number):
        mixed = lines[:]
        random.Random(f"{seed}/{number}").shuffle(mixed)
        return mixed

    yield "cold", "cold", lines
    yield "cold, shuffled", "cold", shuffled(0)
    yield "warm", "warm", lines
    yield "warm, reversed", "warm", lines[::-1]
    for number in range(num_orders):
        yield f"warm, shuffle {number + 1}", "warm", shuffled(number)


def run(method, state, lines, path, flags):
    """{question_id: Question} of one run of the method's own script."""
    questions, answers = path.with_suffix(".questions.jsonl"), path.with_suffix(".jsonl")
    questions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", f"model.{method}.inference_{method}", *flags]
    command += ["--state", state, "--question-file", questions, "--answer-file", answers]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise AnswerError(f"{method} --state {state}: {reason[-1]}")
    return read_answers(answers).questions


def column(questions, field):
    """A field of every choice, by question."""
    return {key: [getattr(c, field) for c in questions[key].choices] for key in sorted(questions)}


def means_of(questions):
    """{task: mean accept length over all steps}, the last one overall."""
    found = {}
    for question in questions.values():
        lengths = [n for choice in question.choices for n in choice.accept_lengths]
        found.setdefault(question.task, []).extend(lengths)
    order = [task for task in TASK_NAMES if task in found]
    columns = {TASK_NAMES[task]: found[task] for task in order}
    columns["Overall"] = [n for lengths in found.values() for n in lengths]
    return {name: sum(lengths) / len(lengths) for name, lengths in columns.items()}


def show(args, runs):
    """Print the table, what agrees, and one JSON line; the exit status."""
    means = {name: means_of(questions) for name, questions in runs.items()}
    tasks = list(means["cold"])
    rows = [[name, *(report.fixed(mean[task]) for task in tasks)] for name, mean in means.items()]
    print("\n".join(report.table(["mean accepted tokens", *tasks], rows)))
    cold, again = runs["cold"], runs["cold, shuffled"]
    fields = ("output_ids", "accept_lengths")
    leaks = any(column(cold, field) != column(again, field) for field in fields)
    ids = [column(questions, "output_ids") for questions in runs.values()]
    same = sum(found == ids[0] for found in ids)
    print(f"cold runs {'DIFFER' if leaks else 'agree'} in every question's ids and accept lengths")
    print(f"ids as cold: {same} of {len(ids)} runs")
    document = {"tool": "state", "method": args.method, "cold_agrees": not leaks, "same_ids": same}
    print(json.dumps({**document, "mean_accepted": means}))
    return int(leaks)


if __name__ == "__main__":
    cli.run(main)
