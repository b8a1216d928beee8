"""How large answer files are in the leaderboard's archives, beside the same lines in xz.

Answers are synthetic where no FILE is named: token ids by Zipf's law, every step's draft, verify
and commit drawn around the medians of SmolLM2-135M on a CPU, independently, which is the most that
such times can say. A turn in six is the second of its question, as in Spec-Bench.

Run:    python tests/bench/board_sizes.py                      (four sizes, a minute)
        python tests/bench/board_sizes.py --sizes 60x128
        python tests/bench/board_sizes.py ANSWERS/*.jsonl
"""

import argparse
import json
import lzma
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script from any folder

from evaluation.board.packing import pack, unpack  # noqa: E402

SIZES = "60x128,480x128,480x200,480x1024"  # questions x tokens a turn
STEP_S = {"draft_s": 9e-5, "verify_s": 5.6e-2, "commit_s": 4e-4}  # medians
SPREAD = 0.08  # standard deviation of their logarithms
REST_S, PREFILL_S = 1.3e-5, 0.2
TWO_TURNS = 6  # every sixth question has two turns


def parse_args(argv=None):
    """Flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="answer files")
    parser.add_argument("--sizes", default=SIZES, help="of synthetic ones: QUESTIONSxTOKENS,...")
    parser.add_argument("--accepted", type=float, default=1.0, help="mean tokens a step of them")
    return parser.parse_args(argv)


def turn(draw, num_tokens, accepted):
    """{field: its entry for one turn} of an answer of so many tokens."""
    lengths = draw.geometric(1 / accepted, num_tokens)
    steps = int(np.searchsorted(lengths.cumsum(), num_tokens - 1)) + 1
    lengths = lengths[:steps]
    lengths[-1] -= lengths.sum() - (num_tokens - 1)
    found = {name: s * draw.lognormal(0, SPREAD, steps) for name, s in STEP_S.items()}
    rest = REST_S * draw.lognormal(0, SPREAD, steps)
    found["step_end_s"] = PREFILL_S + np.cumsum(sum(found.values()) + rest)
    found = {name: [round(s, 7) for s in values.tolist()] for name, values in found.items()}
    ids = np.minimum(draw.zipf(1.25, num_tokens), 30_000).tolist()
    width = 0 if accepted == 1 else 7
    return found | {
        "output_ids": ids,
        "turns": " ".join(f"w{token}" for token in ids),
        "decoding_steps": steps,
        "new_tokens": num_tokens,
        "wall_time": found["step_end_s"][-1],
        "accept_lengths": lengths.tolist(),
        "drafted": [width] * steps,
        "depth": [width] * steps,
        "prefill_s": PREFILL_S,
        "finish_reason": "length",
    }


def synthetic(num_questions, num_tokens, accepted):
    """The content of an answer file."""
    draw, lines = np.random.default_rng(0), []
    for number in range(num_questions):
        turns = [turn(draw, num_tokens, accepted) for _ in range(1 + (number % TWO_TURNS == 0))]
        choice = {"index": 0} | {name: [one[name] for one in turns] for name in turns[0]}
        choice["accept_lengths"] = [n for lengths in choice["accept_lengths"] for n in lengths]
        record = {"question_id": number, "category": "qa", "choices": [choice]}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def row(name, content):
    """A line of the table."""
    begin = time.perf_counter()
    archives = pack(content)
    seconds = time.perf_counter() - begin
    if unpack(archives) != content:
        raise AssertionError(f"{name}: other bytes come back")
    packed, xz = sum(map(len, archives)), len(lzma.compress(content, preset=6))
    return (
        f"{name:40} {len(content) / 1e6:8.2f} {xz / 1e6:8.2f} {packed / 1e6:8.2f}"
        f" {len(archives):9} {max(map(len, archives)) / 1e6:8.2f} {seconds:8.1f}"
    )


def main(argv=None):
    """Print a table."""
    args = parse_args(argv)
    heads = ("MB", "xz", "archives", "number", "largest", "seconds")
    print(f"{'file':40} {heads[0]:>8} {heads[1]:>8} {heads[2]:>8} {heads[3]:>9} ", end="")
    print(f"{heads[4]:>8} {heads[5]:>8}")
    for path in args.files:
        print(row(path.name[-40:], path.read_bytes()))
    for size in () if args.files else args.sizes.split(","):
        questions, tokens = map(int, size.split("x"))
        print(row(f"{size}, {args.accepted:g} a step", synthetic(questions, tokens, args.accepted)))


if __name__ == "__main__":
    main()
