"""What the loop costs: a step's milliseconds inside the models' forwards, and outside, by phase.

A forward is a call of a runtime that runs target, draft model or head: of a compiled step the whole
call, masks, positions and the greedy acceptance inside; eager, the model's own code with its mask.
Everything else of a step is outside: drafting glue, the copy of ids to the host, stop rules,
learning, and where no runtime is static acceptance and cache.
Mini models, greedy, float32, batch 1, prefills left out. Methods decode in turn, round after
round; a cell is the mean over prompts, each taken from the round with the least time outside.

Run:    .venv/bin/python tests/bench_overhead.py                          (every method, minutes)
        .venv/bin/python tests/bench_overhead.py --methods vanilla,sps --runtime frozen
"""

import argparse
import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
MINI = ROOT / "data" / "mini_models"
METHODS = ("vanilla", "pld", "sps", "recycling", "medusa", "hydra", "eagle", "eagle2", "eagle3")


class Forwards:
    """Seconds that the forwards have taken so far, while counting() is entered."""

    spent = 0.0

    @contextmanager
    def counting(self):
        """Every runtime's calls are timed."""
        from model.common.target.compiled import Compiled
        from model.common.target.runtime import Eager, Graphs

        kinds = (Eager, Compiled, Graphs)
        originals = [kind.__call__ for kind in kinds]

        def timed(call):
            def run(this, *arguments):
                begin = time.perf_counter()
                result = call(this, *arguments)
                self.spent += time.perf_counter() - begin
                return result

            return run

        for kind, original in zip(kinds, originals):
            kind.__call__ = timed(original)
        try:
            yield
        finally:
            for kind, original in zip(kinds, originals):
                kind.__call__ = original


def decode(target, drafter, stop, limit: int, ids, forwards: Forwards) -> dict:
    """A prompt's mean milliseconds a step: {phase: (in forwards, outside)}."""
    from model.common.loop import decode as loop
    from model.common.loop.clock import Clock
    from model.common.loop.sampling import Sampler

    spent = []  # by the forwards, at every mark

    class Split(Clock):
        """A clock that also notes what forwards have taken so far."""

        def mark(self, phase):
            spent.append(forwards.spent)
            super().mark(phase)

        def seconds(self):
            for (phase, _), before, after in zip(self.marks, spent, spent[1:]):
                inside[phase] = inside.get(phase, 0.0) + after - before
            return super().seconds()

    inside: dict[str, float] = {}

    loop.Clock = Split
    try:
        turn = loop.generate(target, drafter, [ids], Sampler(), [0], stop, limit)[0]
    finally:
        loop.Clock = Clock
    steps = len(turn.accept_lengths)
    parts = {name: sum(times) for name, times in turn.phase_s.items()}
    parts["rest"] = turn.wall_s - turn.prefill_s - sum(parts.values())
    return {
        name: (1e3 * inside.get(name, 0.0) / steps, 1e3 * (s - inside.get(name, 0.0)) / steps)
        for name, s in parts.items()
    }


class Contender:
    """A method's drafter on a target of its own, and each prompt's best round."""

    def __init__(self, target, drafter, stop, limit: int, prompts):
        self.parts, self.prompts = (target, drafter, stop, limit), prompts
        self.forwards, self.best = Forwards(), [None] * len(prompts)

    def round(self) -> None:
        """Decode all prompts; of each the round with the least time outside is kept."""
        with self.forwards.counting():
            for place, ids in enumerate(self.prompts):
                cells = decode(*self.parts, ids, self.forwards)
                if self.best[place] is None or _outside(cells) < _outside(self.best[place]):
                    self.best[place] = cells

    def row(self) -> dict:
        """Means over prompts, in ms a step."""
        best = self.best
        row = {"outside_ms": fmean(map(_outside, best))}
        row["forwards_ms"] = fmean(sum(inside for inside, _ in cells.values()) for cells in best)
        for name in best[0]:
            row[f"{name}_outside_ms"] = fmean(cells[name][1] for cells in best)
        return {name: round(value, 3) for name, value in row.items()}


def _outside(cells: dict) -> float:
    return sum(outside for _, outside in cells.values())


def build(method: str, runtime: str, prompts, limit: int):
    """(target, drafter, stop rules) of a method with its defaults, every shape compiled."""
    from bench_batch import FLAGS
    from bench_drafters import build_script

    from model.common.loop.decode import generate
    from model.common.loop.sampling import Sampler
    from model.common.prompts.prompter import Prompter, load_tokenizer
    from model.common.target.loading import load_target

    path = str(MINI / "target")
    target = load_target(path, "float32", "cpu", runtime)
    flags = ["--model-path", path, "--dtype", "float32", "--runtime", runtime]
    flags += FLAGS.get(method, "").split()
    drafter = build_script(method, flags, target)
    stop = Prompter(load_tokenizer(path)).stop_rules(target.model.generation_config)
    capacity = max(map(len, prompts)) + limit + 64
    target.reserve(1, capacity)
    generate(target, drafter, prompts[:1], Sampler(), [0], stop, 16)
    target.warm(capacity, drafter.shapes(), drafter.needs.hidden)
    drafter.warm(capacity)
    return target, drafter, stop


def main(argv=None):
    """Print the table and one JSON line."""
    from model.common.args import RUNTIMES

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", default=",".join(METHODS), help="comma list")
    parser.add_argument("--runtime", choices=RUNTIMES, default="compile")
    parser.add_argument("--limit-per-category", type=int, default=1)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--num-threads", type=int, default=1)
    args = parser.parse_args(argv)
    import torch

    from model.common.prompts.prompter import Prompter, load_tokenizer
    from model.common.prompts.questions import per_category, read_questions

    torch.set_num_threads(args.num_threads)
    prompter = Prompter(load_tokenizer(str(MINI / "target")))
    questions = read_questions(ROOT / "data" / "mini_bench" / "question.jsonl")
    questions = per_category(questions, args.limit_per_category)
    prompts = [prompter.render(question["turns"], []) for question in questions]
    limit = args.max_new_tokens
    contenders = {}
    for method in args.methods.split(","):
        parts = build(method, args.runtime, prompts, limit)
        contenders[method] = Contender(*parts, limit, prompts)
    for _ in range(args.rounds):
        for contender in contenders.values():
            contender.round()
    rows = [{"method": name, "runtime": args.runtime, **c.row()} for name, c in contenders.items()]
    cells = list(rows[0])[2:]
    print(f"{'ms a step':12}" + "".join(f"{name[:-3]:>16}" for name in cells))
    for row in rows:
        print(f"{row['method']:12}" + "".join(f"{row[name]:>16}" for name in cells))
    print(json.dumps({"tool": "bench_overhead", "rows": rows}))


if __name__ == "__main__":
    main()
