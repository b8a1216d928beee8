"""Throughput over batch sizes: tokens/s of all slots together, and the speedup over vanilla there.

Contenders (a method at a batch size) decode the same prompts in turn, round after round; a cell is
the median over rounds. Greedy. A slot whose answer has ended takes the next question; "idle" is the
share of the steps of slots for which there was none left. Ids are held against vanilla's at batch
size 1; in float32 every one has to be equal, or the exit status is 1.

Run:    python tests/bench/bench_batch.py                    (mini models, minutes)
        python tests/bench/bench_batch.py --runtime compile --batches 1,4 --methods vanilla,pld
        python tests/bench/bench_batch.py --model-path lmsys/vicuna-7b-v1.3 --dtype float16
            --device cuda --methods vanilla,pld,eagle2
            --flags eagle2="--eagle-path yuhuili/EAGLE-Vicuna-7B-v1.3"
"""

import os
import shlex
import statistics
import sys

import bench_parts as parts

COLUMNS = {  # heading: (key, format, factor)
    "tokens/s": ("tokens_per_s", ".1f", 1),
    "speedup": ("speedup", ".2f", 1),
    "accepted": ("accepted", ".2f", 1),
    "idle %": ("idle", ".0f", 100),
    "same ids": ("same_ids", "d", 1),
}


class Contender:
    """A method's drafter on the target of a batch size, and what it did in every round."""

    def __init__(self, method: str, batch: int, given):
        self.method, self.batch, self.given = method, batch, given
        self.speeds: list[float] = []
        self.answers: list[list[int]] = []
        self.idle = self.accepted = 0.0

    def round(self) -> None:
        """Decode all prompts once."""
        from model.common.loop.decode import generate

        turns = generate(*self.given, num_slots=self.batch)
        seconds = max(t.begin_s + t.wall_s for t in turns) - min(t.begin_s for t in turns)
        ends = {round(turn.begin_s + end, 6) for turn in turns for end in turn.step_end_s}
        slots = self.batch * len(ends)
        self.answers = [turn.output_ids for turn in turns]
        lengths = [length for turn in turns for length in turn.accept_lengths]
        self.idle = 1 - len(lengths) / slots if slots else 0.0
        self.accepted = statistics.fmean(lengths) if lengths else 0.0
        self.speeds.append(sum(map(len, self.answers)) / seconds)


def parse_args(argv=None):
    """Flags; lists are separated by commas."""
    parser = parts.make_parser(
        __doc__,
        methods="vanilla,pld,sps,medusa,eagle2",
        model_path=parts.TARGET,
        dtype="float32",
        device="cpu",
        runtime="eager",
        questions=32,
        max_new_tokens=128,
        rounds=3,
        num_threads=None,
        output=None,
    )
    parser.add_argument("--batches", default="1,2,4,8,16", help="batch sizes; 1 is always there")
    parser.add_argument("--flags", action="append", default=[], help="METHOD=FLAGS, its own ones")
    args = parser.parse_args(argv)
    try:
        args.batches = sorted({int(part) for part in args.batches.split(",")} | {1})
    except ValueError:
        parser.error(f"--batches {args.batches}: integers separated by commas are needed")
    for batch in args.batches:
        if not 1 <= batch <= args.questions:
            parser.error(f"--batches {batch}: from 1 to --questions {args.questions}")
    args.methods = list(dict.fromkeys(["vanilla", *args.methods]))
    args.flags = {text.partition("=")[0]: text.partition("=")[2] for text in args.flags}
    for method in args.flags:
        if method not in parts.METHODS:
            parser.error(f"--flags: no method {method}")
    return args


def build(args) -> list[Contender]:
    """Warmed-up contenders; a target per batch size, all on the same weights.

    Under compile all share one, which wraps the layers of its model.
    """
    import torch

    from model.common.loop.sampling import Sampler
    from model.common.target.loading import load_target
    from model.common.target.model import Target

    threads = args.num_threads or (1 if args.model_path == parts.TARGET else None)
    torch.set_num_threads(threads or torch.get_num_threads())
    prompter, prompts = parts.read_bench(args.model_path, args.questions)
    first = load_target(args.model_path, args.dtype, args.device, args.runtime)
    stop, limit = prompter.stop_rules(first.model.generation_config), args.max_new_tokens
    shared = ["--model-path", args.model_path, "--dtype", args.dtype, "--device", args.device]
    shared += ["--runtime", args.runtime]
    contenders = []
    for batch in args.batches:
        target = first if args.runtime == "compile" else Target(first.model, args.runtime)
        for method in args.methods:
            own = shlex.split(args.flags.get(method, ""))
            drafter = parts.build_script(method, [*shared, *own], target)
            given = target, drafter, prompts, Sampler(), [0] * len(prompts), stop, limit
            contenders.append(Contender(method, batch, given))
            parts.warm_up(target, drafter, stop, prompts, limit, batch)
    return contenders


def report(contenders, args) -> int:
    """Print the table; the exit status."""
    speeds = {(c.method, c.batch): statistics.median(c.speeds) for c in contenders}
    reference = next(c for c in contenders if (c.method, c.batch) == ("vanilla", 1)).answers
    print(f"{'method':12}{'batch':>6}{parts.header(COLUMNS)}")
    rows = []
    for c in sorted(contenders, key=lambda c: args.methods.index(c.method)):
        speed = speeds[c.method, c.batch]
        row = {
            "method": c.method,
            "batch": c.batch,
            "tokens_per_s": round(speed, 1),
            "speedup": round(speed / speeds["vanilla", c.batch], 3),
            "accepted": round(c.accepted, 3),
            "idle": round(c.idle, 3),
            "same_ids": sum(a == b for a, b in zip(c.answers, reference)),
            "tokens_per_s_rounds": [round(speed, 1) for speed in c.speeds],
        }
        rows.append(row)
        print(f"{c.method:12}{c.batch:>6}{parts.cells(row, COLUMNS)}")
    same, num = sum(row["same_ids"] for row in rows), len(reference) * len(rows)
    print(f"ids as vanilla {same}/{num}")
    parts.write_json("bench_batch", args, rows=rows)
    return 1 if same < num and args.dtype == "float32" else 0


def main(argv=None) -> None:
    """Build the contenders, run the rounds, print; exit 1 where float32 ids differ."""
    args = parse_args(argv)
    from model.common.errors import ends_in_one_line

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with ends_in_one_line("bench_batch.py"):
        contenders = build(args)
    parts.run_rounds(contenders, args.rounds)
    sys.exit(report(contenders, args))


if __name__ == "__main__":
    main()
