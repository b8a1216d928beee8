"""How often a row is marked as moved: honest runs, and runs that are slowed in their second half.

Round after round, vanilla answers some questions of the mini bench, then the method does, with
pairs (--paired N), and then the method again, with busy processes beside it from the moment on at
which half of its answers are there. Both rows are compared with the round's vanilla file as
speed.py does. Run it where nothing else runs: what is honest is the machine's own drift.

Run:    python tests/bench/drift_rates.py         (20 runs of each kind, a quarter of an hour)
        python tests/bench/drift_rates.py --runs 2 --limit-per-category 2
"""

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench_parts as parts

KINDS = ("honest", "slowed")
BUSY = "while True: pass"
MARKED_LEAST = 0.9  # share of slowed runs
MARKED_MOST = 0.1  # of honest ones


def parse_args(argv=None):
    """Flags."""
    from model.common.args import at_least

    parser = parts.make_parser(
        __doc__, model_path=parts.TARGET, max_new_tokens=48, num_threads=1, output=None
    )
    parser.add_argument("--method", default="pld", help="of model/; it needs no further flag")
    parser.add_argument("--runs", type=at_least(1), default=20, help="of each kind")
    parser.add_argument("--limit-per-category", type=at_least(1), default=4, help="questions")
    parser.add_argument("--paired", type=at_least(1), default=3, metavar="N", help="of the runs")
    parser.add_argument(
        "--busy",
        type=at_least(1),
        default=os.cpu_count() or 1,
        help="processes that slow a run (default: one a processor)",
    )
    args = parser.parse_args(argv)
    if args.method not in parts.METHODS or args.method == "vanilla":
        parser.error(f"--method {args.method}: no method that drafts")
    return args


def command(method: str, out: Path, args, every: int) -> list[str]:
    """A run of a method's script."""
    flags = {
        "--model-path": args.model_path,
        "--dtype": "float32",
        "--device": "cpu",
        "--num-threads": args.num_threads,
        "--max-new-tokens": args.max_new_tokens,
        "--limit-per-category": args.limit_per_category,
        "--warmup": 1,
        "--paired": every,
        "--answer-file": out,
    }
    script = f"model.{method}.inference_{method}"
    return [sys.executable, "-m", script, *(str(part) for pair in flags.items() for part in pair)]


def answered(path: Path) -> int:
    """Lines of an answer file."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def run(method: str, out: Path, args, every: int = 0, slow_from: int | None = None) -> int:
    """Answer into a file, busy processes beside it once it has `slow_from` answers; its lines."""
    said, busy = out.with_suffix(".log"), []
    with said.open("w") as log:
        process = subprocess.Popen(command(method, out, args, every), cwd=parts.ROOT, stderr=log)
    try:
        while process.poll() is None:
            if slow_from is not None and not busy and answered(out) >= slow_from:
                busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(args.busy)]
            time.sleep(0.005)
    finally:
        for one in (*busy, process):
            one.kill()
            one.wait()
    if process.returncode:
        last = [f"exit status {process.returncode}", *said.read_text().splitlines()][-1]
        sys.exit(f"drift_rates.py: {method}: {last}")
    return answered(out)


def row(kind: str, method: Path, base: Path) -> dict:
    """What speed.py says of a run's drift and speedup."""
    from evaluation.answers.reader import read_answers
    from evaluation.speedup.comparison import compare

    result = compare(read_answers(method), read_answers(base), 1000, 0)
    drift = result["drift"]
    ratio = result["tasks"][-1]["speedup"]["mean_ratio"]
    moved = max((part["moved"] for part in drift["parts"]), key=lambda x: abs(math.log(x)))
    facts = {"marked": drift["marked"], "moved": moved, "pairs": drift["pairs"]}
    return {"kind": kind, **facts, "speedup": [ratio[name] for name in ("value", "low", "high")]}


def rounds(args, folder: Path) -> list[dict]:
    """The rows of all rounds."""
    rows = []
    for number in range(1, args.runs + 1):
        base = folder / f"vanilla-{number}.jsonl"
        half = run("vanilla", base, args) // 2
        for kind in KINDS:
            out = folder / f"{kind}-{number}.jsonl"
            run(args.method, out, args, args.paired, half if kind == "slowed" else None)
            rows.append(row(kind, out, base))
            said = rows[-1]
            print(
                f"round {number} of {args.runs}: {kind}: {said['moved']:.3f}x"
                f"{' MOVED' * said['marked']}, speedup {said['speedup'][0]:.2f}"
                f" [{said['speedup'][1]:.2f}, {said['speedup'][2]:.2f}]",
                flush=True,
            )
    return rows


def main(argv=None) -> None:
    """Run the rounds, print both rates; exit 1 where they are not as they should be."""
    args = parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(args.num_threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = rounds(args, Path(folder))
    rates = {}
    print(f"{'runs':10}{'number':>8}{'marked':>8}{'moved furthest, median and range':>36}")
    for kind in KINDS:
        own = [one for one in rows if one["kind"] == kind]
        moved = sorted(one["moved"] for one in own)
        rates[kind] = sum(one["marked"] for one in own) / len(own)
        span = f"{statistics.median(moved):.3f}x  {moved[0]:.3f}x to {moved[-1]:.3f}x"
        print(f"{kind:10}{len(own):>8}{100 * rates[kind]:>6.0f} %{span:>36}")
    parts.write_json("drift_rates", args, rates=rates, rows=rows)
    sys.exit(int(rates["slowed"] < MARKED_LEAST or rates["honest"] > MARKED_MOST))


if __name__ == "__main__":
    main()
