"""How time and memory of a run grow: with answer length, nodes of a draft, slots, and questions.

A tiny random Llama answers, so that what is ours shows beside the model's own products. Each cell
is a run in a process of its own. `power` is the exponent of the growth from the line before (1: in
proportion). A step reads the cache of its sequence, so that its time grows with length, at most in
proportion; with nodes and slots at most in proportion; memory of an answer with its length; a run's
memory with its questions by what an answer file's lines hold.

Run:    python tests/bench/reliability/limits.py               (10 minutes)
        python tests/bench/reliability/limits.py --tables length --longest 200000
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / part) for part in (".", "tests", "tests/support", "tests/bench")]
CONTEXT = 1 << 18
TABLES = {  # name: (values, most that a step's time may grow by, as a power)
    "length": ((1000, 4000, 16000, 64000, 200000), 1.1),
    "nodes": ((8, 16, 32, 64, 128, 256), 1.1),
    "slots": ((1, 2, 4, 8, 16, 32), 1.1),
    "questions": ((30, 120, 480), 1.1),
}
LAST = 200  # steps at the end of an answer, of which a step's time is the median


def parse_args(argv=None):
    """Flags; --cell is what the script calls itself with."""
    from model.common.args import Parser

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tables", default=",".join(TABLES), help=f"comma list of {', '.join(TABLES)}")
    add("--longest", type=int, default=64000, help="tokens of the longest answer")
    add("--output", help="write the figures there as JSON")
    add("--cell", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def cell(table: str, value: int, folder: str) -> dict:
    """One run; {step_ms, peak_mb}."""
    import torch

    torch.set_num_threads(1)
    turns = {"questions": asked, "nodes": grown, "length": long, "slots": wide}[table](
        value, folder
    )
    ends = [end for turn in turns for end in turn[-LAST:]]
    gaps = [b - a for turn in turns for a, b in zip(turn[-LAST:], turn[1 - LAST :])]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"step_ms": 1e3 * statistics.median(gaps) if ends else None, "peak_mb": peak}


def loaded(folder: str):
    """The tiny target."""
    from model.common.target.loading import load_target

    return load_target(folder, "float32", "cpu", "eager")


def decoded(target, drafter, num_prompts: int, limit: int, slots: int) -> list[list[float]]:
    """Ends of the steps of answers that nothing ends."""
    from model.common.loop.decode import generate
    from model.common.loop.sampling import Sampler
    from model.common.loop.turns import StopRules

    prompts = [[3 + i, 5, 7, 9] for i in range(num_prompts)]
    given = target, drafter, prompts, Sampler(), [0] * num_prompts, StopRules(), limit
    return [turn.step_end_s for turn in generate(*given, num_slots=slots)]


def long(value: int, folder: str):
    """One answer of so many tokens, of the baseline."""
    from model.common.contract.sequence import EmptyDrafter

    return decoded(loaded(folder), EmptyDrafter(), 1, value, 1)


def wide(value: int, folder: str):
    """So many slots, each with an answer of 400 tokens."""
    from model.common.contract.sequence import EmptyDrafter

    return decoded(loaded(folder), EmptyDrafter(), value, 400, value)


def grown(value: int, folder: str):
    """EAGLE-2 with trees of so many nodes."""
    import bench_parts as parts
    from eagle_dirs import eagle_dir

    target = loaded(folder)
    head = eagle_dir(Path(folder) / f"head-{value}", folder)
    flags = ["--model-path", folder, "--eagle-path", head, "--total-token", value, "--depth", 8]
    drafter = parts.build_script("eagle2", [*flags, "--draft-top-k", 10], target)
    return decoded(target, drafter, 1, 400, 1)


def asked(value: int, folder: str):
    """A run of the baseline over so many questions of 100 tokens, its answer file included."""
    from harness_runs import answer, write

    rows = [{"question_id": i, "category": "c", "turns": [f"q {i}"]} for i in range(value)]
    file = write(Path(folder) / f"questions-{value}.jsonl", rows)
    flags = ["--max-new-tokens", 100, "--min-p", 0]
    answers = Path(folder) / f"answers-{value}.jsonl"
    records = answer("vanilla", folder, file, answers, *flags)
    return [choice["step_end_s"][0] for record in records for choice in record["choices"]]


def main(argv=None) -> None:
    """All tables; exit 1 where something grows faster than it should."""
    args = parse_args(argv)
    if args.cell:
        table, value, folder = args.cell
        print(json.dumps(cell(table, int(value), folder)))
        return
    from conftest import save_model

    found, wrong = {}, []
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder) / "model", max_position_embeddings=CONTEXT)
        for name in args.tables.split(","):
            values, most = TABLES[name]
            values = [v for v in values if name != "length" or v <= args.longest]
            print(f"{name:>10}{'step, ms':>12}{'power':>8}{'peak, MB':>12}{'MB more':>10}")
            found[name] = []
            for value in values:
                row = {"value": value, **run_cell(name, value, model)}
                before = found[name][-1] if found[name] else None
                found[name].append(row)
                power = shown = "-"
                if before and row["step_ms"] and before["step_ms"]:
                    power = math.log(row["step_ms"] / before["step_ms"])
                    power /= math.log(value / before["value"])
                    wrong += [f"{name} {value}: {power:.2f}"] if power > most else []
                    power = f"{power:.2f}"
                if before:
                    shown = f"{row['peak_mb'] - before['peak_mb']:.1f}"
                line = f"{value:>10}{row['step_ms']:>12.3f}{power:>8}"
                print(f"{line}{row['peak_mb']:>12.0f}{shown:>10}", flush=True)
    if args.output:
        Path(args.output).write_text(json.dumps(found, indent=1) + "\n")
    print("faster than in proportion: " + "; ".join(wrong) if wrong else "nothing above its power")
    sys.exit(int(bool(wrong)))


def run_cell(table: str, value: int, folder: str) -> dict:
    """cell() in a process of its own, whose peak is its own."""
    command = [sys.executable, __file__, "--cell", table, str(value), folder]
    own = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=own, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"limits.py: {table} {value}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
