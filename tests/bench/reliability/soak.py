"""A load run of hours with all slots busy: memory, file handles and clocks stay what they were.

The run is a method's own command, a closed loop of as many clients as slots. Once a second its
resident memory, threads and open files are read. After the first tenth (of two hours: 12 minutes)
memory may grow by no more than its own scatter, handles and threads not at all; the loop's clock
and the system's must not drift apart by more than 10 ms an hour.

Run:    python tests/bench/reliability/soak.py --minutes 120         (pld, the mini target)
        python tests/bench/reliability/soak.py --minutes 120 --model-path data/models/smollm2
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bench")]
DRIFT_MS = 10.0  # an hour
SETTLED = 0.1  # share of the run after which memory has to be flat


def parse_args(argv=None):
    """Flags."""
    from model.common.args import Parser, at_least, between

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--minutes", type=between(0.1, 1e5), default=120.0, help="of answering")
    add("--model-path", default=str(ROOT / "data/mini_models/target"), help="target")
    add("--method", default="pld", help="of model/; it needs no further flag")
    add("--slots", type=at_least(1), default=4, help="and clients")
    add("--requests-per-minute", type=at_least(1), default=400, help="an upper bound of the speed")
    return parser.parse_args(argv)


def command(args, folder: Path) -> list[str]:
    """More requests than can be answered in the time."""
    flags = {
        "--model-path": args.model_path,
        "--answer-file": folder / "a.jsonl",
        "--concurrency": args.slots,
        "--batch-size": args.slots,
        "--num-prompts": int(args.minutes * args.requests_per_minute) + args.slots,
        "--max-new-tokens": 64,
        "--dtype": "float32",
        "--device": "cpu",
        "--num-threads": 1,
        "--seed": 0,
    }
    module = f"model.{args.method}.inference_{args.method}"
    return [sys.executable, "-m", module, *(str(part) for pair in flags.items() for part in pair)]


def watch(process, minutes: float, answers: Path) -> list[tuple]:
    """(seconds, resident bytes, handles, threads) once a second from the first answer on."""
    import psutil

    seen, rows, begin = psutil.Process(process.pid), [], None
    while process.poll() is None:
        now = time.monotonic()
        if begin is None and answers.exists() and answers.stat().st_size:
            begin = now
        if begin is not None:
            seconds = now - begin
            facts = seen.memory_info().rss, seen.num_fds(), seen.num_threads()
            rows.append((seconds, *facts))
            if seconds > 60 * minutes:
                break
        time.sleep(1)
    return rows


def clock_drift(answers: Path) -> float:
    """Milliseconds an hour by which the loop's clock runs away from the system's."""
    import numpy as np

    times, behind = [], []
    for line in answers.read_bytes().split(b"\n")[:-1]:
        record = json.loads(line)
        (choice,) = record["choices"] or [None]
        if choice:
            ended = choice["begin_s"][-1] + choice["wall_time"][-1]
            times.append(ended)
            behind.append(record["tstamp"] - ended)
    slope, _ = np.polyfit(np.array(times) - times[0], behind, 1)
    return float(slope) * 3600 * 1000


def verdict(rows) -> tuple[dict, list[str]]:
    """Figures, and what is wrong with them."""
    import numpy as np

    table = np.array(rows)
    late = table[table[:, 0] >= SETTLED * table[-1, 0]]
    slope, start = np.polyfit(late[:, 0], late[:, 1], 1)
    scatter = float(np.std(late[:, 1] - slope * late[:, 0] - start))
    grown = float(slope) * float(late[-1, 0] - late[0, 0])
    figures = {
        "seconds": round(float(table[-1, 0])),
        "resident_mb": round(float(late[:, 1].mean()) / 1e6, 1),
        "grown_mb": round(grown / 1e6, 2),
        "scatter_mb": round(scatter / 1e6, 2),
        "handles": [int(late[0, 2]), int(late[-1, 2])],
        "threads": [int(late[0, 3]), int(late[-1, 3])],
    }
    wrong = ["memory grows"] if grown > max(3 * scatter, 4e6) else []
    wrong += [f"{n} grow" for n in ("handles", "threads") if figures[n][1] > figures[n][0]]
    return figures, wrong


def main(argv=None) -> None:
    """Run, watch, print the figures; exit 1 where one of them is not flat."""
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answers = folder / "a.jsonl"
        with (folder / "log").open("w") as log:
            own = os.environ | {"OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(command(args, folder), cwd=ROOT, env=own, stderr=log)
        try:
            rows = watch(process, args.minutes, answers)
        finally:
            process.kill()
            process.wait()
        if len(rows) < 10:
            sys.exit(f"soak.py: {(folder / 'log').read_text()[-500:]}")
        figures, wrong = verdict(rows)
        figures["answers"] = answers.read_bytes().count(b"\n")
        figures["clock_ms_per_hour"] = round(clock_drift(answers), 3)
    wrong += ["clocks drift"] if abs(figures["clock_ms_per_hour"]) > DRIFT_MS else []
    print(json.dumps(figures, indent=1))
    print("wrong: " + ", ".join(wrong) if wrong else "all flat")
    sys.exit(int(bool(wrong)))


if __name__ == "__main__":
    main()
