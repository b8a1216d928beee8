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

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bench")]

MINI = ROOT / "data" / "mini_models"
FLAGS = {
    "sps": f"--drafter-path {MINI / 'sps'}",
    "medusa": f"--medusa-path {MINI / 'medusa'}",
    "hydra": f"--hydra-path {MINI / 'hydra'}",
    "eagle": f"--eagle-path {MINI / 'eagle'}",
    "eagle2": f"--eagle-path {MINI / 'eagle'}",
    "eagle3": f"--eagle-path {MINI / 'eagle3'}",
}


class Contender:
    """A method's drafter on the target of a batch size, and what it did in every round."""

    def __init__(self, method: str, batch: int, target, drafter):
        self.method, self.batch, self.target, self.drafter = method, batch, target, drafter
        self.speeds: list[float] = []
        self.answers: list[list[int]] = []
        self.idle = self.accepted = 0.0

    def round(self, prompts, stop, limit: int) -> None:
        """Decode all prompts once."""
        from model.common.loop.decode import generate
        from model.common.loop.sampling import Sampler

        given = self.target, self.drafter, prompts, Sampler(), [0] * len(prompts), stop, limit
        turns = generate(*given, num_slots=self.batch)
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
    from model.common.args import DTYPES, RUNTIMES, Parser, at_least

    parser = Parser(
        prog="bench_batch.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--methods", default="vanilla,pld,sps,medusa,eagle2", help="vanilla is always there")
    add("--batches", default="1,2,4,8,16", help="batch sizes; 1 is always there")
    add("--flags", action="append", default=[], help="METHOD=FLAGS in place of the mini models'")
    add("--model-path", default=str(MINI / "target"), help="target: model directory or hub id")
    add("--dtype", choices=DTYPES, default="float32", help="target's precision")
    add("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    add("--runtime", choices=RUNTIMES, default="eager", help="of steps")
    add("--questions", type=at_least(1), default=32, help="how many")
    add("--max-new-tokens", type=at_least(2), default=128, help="per question (tokens)")
    add("--rounds", type=at_least(1), default=3, help="timed rounds after one that is not")
    add("--num-threads", type=at_least(1), help="CPU threads (mini target: 1, else PyTorch's)")
    args = parser.parse_args(argv)
    try:
        args.batches = sorted({int(part) for part in args.batches.split(",")} | {1})
    except ValueError:
        parser.error(f"--batches {args.batches}: integers separated by commas are needed")
    for batch in args.batches:
        if not 1 <= batch <= args.questions:
            parser.error(f"--batches {batch}: from 1 to --questions {args.questions}")
    args.methods = list(dict.fromkeys(["vanilla", *args.methods.split(",")]))
    known = {path.parent.name for path in (ROOT / "model").glob("*/inference_*.py")}
    args.method_flags = dict(FLAGS)
    for text in args.flags:
        method, _, flags = text.partition("=")
        args.method_flags[method] = flags
    for method in [*args.methods, *args.method_flags]:
        if method not in known:
            parser.error(f"no method {method}; there are: {', '.join(sorted(known))}")
    return args


def spread(questions: list[dict], num: int) -> list[dict]:
    """`num` questions, the categories in turn, so that any first few are mixed."""
    from model.common.errors import BadInput
    from model.common.prompts.questions import group_of

    groups: dict[str, list] = {}
    for question in questions:
        groups.setdefault(group_of(question["category"]), []).append(question)
    depth = max(map(len, groups.values()))
    mixed = [g[i] for i in range(depth) for g in groups.values() if i < len(g)]
    if len(mixed) < num:
        raise BadInput(f"--questions {num}: the bench has {len(mixed)}")
    return mixed[:num]


def build(args):
    """(contenders, prompts, stop rules); a target per batch size, all on the same weights.

    Under compile all share one, which wraps the layers of its model.
    """
    import shlex

    import torch
    from bench_drafters import build_script

    from model.common.prompts.prompter import Prompter, load_tokenizer
    from model.common.prompts.questions import read_questions
    from model.common.target.loading import load_target
    from model.common.target.model import Target

    threads = args.num_threads or (1 if args.model_path == str(MINI / "target") else None)
    torch.set_num_threads(threads or torch.get_num_threads())
    prompter = Prompter(load_tokenizer(args.model_path))
    questions = spread(read_questions(ROOT / "data/mini_bench/question.jsonl"), args.questions)
    prompts = [prompter.render(question["turns"], []) for question in questions]
    first = load_target(args.model_path, args.dtype, args.device, args.runtime)
    stop = prompter.stop_rules(first.model.generation_config)
    shared = ["--model-path", args.model_path, "--dtype", args.dtype, "--device", args.device]
    shared += ["--runtime", args.runtime]
    contenders = []
    for batch in args.batches:
        target = first if args.runtime == "compile" else Target(first.model, args.runtime)
        for method in args.methods:
            own = shlex.split(args.method_flags.get(method, ""))
            drafter = build_script(method, [*shared, *own], target)
            contenders.append(Contender(method, batch, target, drafter))
    return contenders, prompts, stop


def report(contenders, args) -> int:
    """Print the table and one JSON line; the exit status."""
    speeds = {(c.method, c.batch): statistics.median(c.speeds) for c in contenders}
    reference = next(c for c in contenders if (c.method, c.batch) == ("vanilla", 1)).answers
    header = ("method", "batch", "tokens/s", "speedup", "accepted", "idle", "ids as vanilla")
    print("{:12}{:>6}{:>10}{:>9}{:>10}{:>7}{:>16}".format(*header))
    rows, all_same = [], True
    for c in sorted(contenders, key=lambda c: args.methods.index(c.method)):
        same = sum(a == b for a, b in zip(c.answers, reference))
        all_same &= same == len(reference)
        speed = speeds[c.method, c.batch]
        row = {
            "method": c.method,
            "batch": c.batch,
            "tokens_per_s": round(speed, 1),
            "speedup": round(speed / speeds["vanilla", c.batch], 3),
            "accepted": round(c.accepted, 3),
            "idle": round(c.idle, 3),
            "same_ids": same,
            "tokens_per_s_rounds": [round(speed, 1) for speed in c.speeds],
        }
        rows.append(row)
        line = f"{c.method:12}{c.batch:>6}{speed:>10.1f}{row['speedup']:>9.2f}"
        print(line + f"{c.accepted:>10.2f}{c.idle:>7.0%}{f'{same}/{len(reference)}':>16}")
    print(f"ids as vanilla {sum(r['same_ids'] for r in rows)}/{len(reference) * len(rows)}")
    names = ("model_path", "dtype", "device", "runtime", "questions", "max_new_tokens", "rounds")
    settings = {name: getattr(args, name) for name in names}
    print(json.dumps({"tool": "bench_batch", **settings, "rows": rows}))
    return 0 if all_same or args.dtype != "float32" else 1


def main(argv=None) -> None:
    """Build the contenders, run the rounds, print; exit 1 where float32 ids differ."""
    args = parse_args(argv)
    from model.common.errors import ends_in_one_line

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with ends_in_one_line("bench_batch.py"):
        from bench_overhead import warm_up

        contenders, prompts, stop = build(args)
        capacity = max(map(len, prompts)) + args.max_new_tokens
        for contender in contenders:
            parts = contender.target, contender.drafter, stop, prompts[0], capacity
            warm_up(*parts, contender.batch)
        for number in range(args.rounds + 1):
            for contender in contenders if number % 2 else contenders[::-1]:
                contender.round(prompts, stop, args.max_new_tokens)
                if number == 0:
                    contender.speeds.clear()
            print(f"round {number} of {args.rounds}", file=sys.stderr)
    sys.exit(report(contenders, args))


if __name__ == "__main__":
    main()
