"""Small answer files with round numbers, for the tests of speed.py and equal.py."""

import copy
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from evaluation.answers.reader import read_answers
from evaluation.speedup.comparison import compare

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
REPORTS, NUMBERS = tempfile.TemporaryDirectory(), itertools.count()
REPORTING = ("speed", "serving", "equal", "audit_answers", "audit_sampling", "merge", "state")
REPORTING = {f"evaluation/{tool}.py" for tool in REPORTING}
SHARED = {
    "target": "mini",
    "weights_sha256": "aa",
    "temperature": 0.0,
    "dtype": "float32",
    "batch_size": 1,
    "versions": {"torch": "2.13.0"},
}


def choice(turns, index=0):
    """A choice whose turns are [(accept lengths, seconds of each step)], 0.5 s of prefill each.

    Of a step's time, 1/10 is draft, 6/10 verify, 1/10 commit; 2/10 remain as rest.
    """
    ids = [list(range(7, 8 + sum(lengths))) for lengths, _ in turns]
    return {
        "index": index,
        "turns": [" ".join(f"t{i}" for i in turn) for turn in ids],
        "decoding_steps": [len(lengths) for lengths, _ in turns],
        "new_tokens": [len(turn) for turn in ids],
        "wall_time": [0.5 + sum(times) for _, times in turns],
        "accept_lengths": [n for lengths, _ in turns for n in lengths],
        "output_ids": ids,
        "prompt_tokens": [11] * len(turns),
        "finish_reason": ["stop"] * len(turns),
        "prefill_s": [0.5] * len(turns),
        "batch": [0] * len(turns),
        "drafted": [[5] * len(lengths) for lengths, _ in turns],
        "depth": [[5] * len(lengths) for lengths, _ in turns],
        "draft_s": [[0.1 * t for t in times] for _, times in turns],
        "verify_s": [[0.6 * t for t in times] for _, times in turns],
        "commit_s": [[0.1 * t for t in times] for _, times in turns],
    }


def line(question_id, category, turns, model_id="m"):
    """One answer line with a single choice."""
    record = {"question_id": question_id, "category": category, "answer_id": "x"}
    return {**record, "model_id": model_id, "choices": [choice(turns)], "tstamp": 0.0}


def failed(question_id, category, model_id="m"):
    """The line of a question that failed."""
    record = {"question_id": question_id, "category": category, "model_id": model_id}
    return {**record, "error": "CUDA out of memory\nsecond line", "choices": []}


def base_lines():
    """Two questions at 2 tokens/s: 5 tokens in 2.5 s and 3 tokens in 1.5 s."""
    return [
        line(1, "translation", [([1] * 4, [0.5] * 4)], "base"),
        line(2, "qa", [([1] * 2, [0.5] * 2)], "base"),
    ]


def method_lines():
    """The same tokens in 1.5 s (3 steps) and 0.75 s (1 step)."""
    return [
        line(1, "translation", [([2, 1, 1], [0.25, 0.25, 0.5])]),
        line(2, "qa", [([2], [0.25])]),
    ]


def in_slot(record, slot, begin_s, step_end_s):
    """A line of one turn as a loop with slots writes it; its last step ends the turn."""
    (only,) = record["choices"]
    del only["batch"]
    only |= {"slot": [slot], "begin_s": [begin_s], "step_end_s": [step_end_s]}
    only["wall_time"] = [step_end_s[-1]]
    return record


def refilled_lines(model_id="base", start_s=1.7e9):
    """Two slots for 3.5 s, the first refilled after 2 s: 12 tokens in five steps of nine rows.

    Steps end after 1.0, 1.5, 2.0, 3.0 and 3.5 s; slot 1's turn is in the first four of them. It
    begins a microsecond late, as clocks that are rounded do.
    """
    a, b, c = (
        line(number, "qa", [([1] * steps, [0.5] * steps)], model_id)
        for number, steps in ((1, 3), (2, 2), (3, 4))
    )
    return [
        in_slot(a, 0, start_s, [1.0, 1.5, 2.0]),
        in_slot(b, 0, start_s + 2, [1.0, 1.5]),
        in_slot(c, 1, start_s + 1e-6, [1.0, 1.5, 2.0, 3.0]),
    ]


def meta(model_id, method="pld", lossy=False, **shared):
    """A meta file's content."""
    return {
        "schema": 1,
        "method": method,
        "model_id": model_id,
        "acceptance": "typical (lossy)" if lossy else "greedy",
        "lossy": lossy,
        "shared": {**copy.deepcopy(SHARED), **shared},
        "method_args": {},
        "environment": {"commit": "0123456789abcdef", "host": "h"},
        "started": "2025-01-01T00:00:00",
    }


def write(path, lines, meta_content=None):
    """Write an answer file and, where given, its meta; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in lines))
    if meta_content is not None:
        path.with_name(path.stem + ".meta.json").write_text(json.dumps(meta_content))
    return path


def write_pair(folder, **method_meta):
    """(method's file, baseline's file), both with metas."""
    base = write(folder / "base.jsonl", base_lines(), meta("base", "vanilla"))
    return write(folder / "m.jsonl", method_lines(), meta("m", **method_meta)), base


def report_file():
    """A new path for a report."""
    return f"{REPORTS.name}/{next(NUMBERS)}.json"


def run_tool(script, *args, cwd=ROOT, env=None):
    """Run a script of the project; returns the finished process with its text.

    A tool that reports writes its --json where report_of() finds it.
    """
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    if script in REPORTING and "--json" not in command:
        command += ["--json", report_file()]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=180)


def report_of(process):
    """What a finished tool wrote to its --json; None: nothing."""
    path = Path(process.args[process.args.index("--json") + 1])
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def assert_refused(process, *parts):
    """Exit status 2 and one line on stderr (warnings aside) that holds all of `parts`."""
    lines = [text for text in process.stderr.splitlines() if not text.startswith("warning: ")]
    assert process.returncode == 2, process.stderr
    assert len(lines) == 1, process.stderr
    for part in parts:
        assert str(part) in lines[0]


def compared(method, base, **options):
    """comparison.compare() of two files."""
    return compare(read_answers(method), read_answers(base), 500, 0, **options)


def task(result, name):
    """The row of a task."""
    return next(row for row in result["tasks"] if row["task"] == name)
