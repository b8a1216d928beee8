"""What the loop costs: a step's milliseconds inside the models' forwards, and outside, by phase.

A forward is a call of what a runtime may record: a step of target, draft model or head with its
mask and positions. Everything else of a step is outside: drafting glue, acceptance, the cache's
moves, the copy of ids to the host, stop rules, learning.
Mini models, greedy, float32, batch 1, prefills left out. Methods decode in turn, round after
round; a cell is the mean over prompts, each taken from the round with the least time outside.

Run:    python tests/bench/bench_overhead.py                          (every method, minutes)
        python tests/bench/bench_overhead.py --methods vanilla,sps --runtime eager
"""

import argparse
import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bench")]
MINI = ROOT / "data" / "mini_models"
METHODS = ("vanilla", "pld", "sps", "recycling", "medusa", "hydra", "eagle", "eagle2", "eagle3")


class Forwards:
    """Seconds that the forwards of what was built while building() was entered have taken."""

    def __init__(self):
        self.spent, self.depth = 0.0, 0

    @contextmanager
    def building(self):
        """Whatever is handed to a runtime to be recorded is timed from then on."""
        from model.common.target.runtime import CudaGraphs, Runtime

        kinds = (Runtime, CudaGraphs)
        originals = [vars(kind)["captured"] for kind in kinds]
        for kind, original in zip(kinds, originals):
            kind.captured = self._timed(original)
        try:
            yield
        finally:
            for kind, original in zip(kinds, originals):
                kind.captured = original

    def _timed(self, captured):
        def wrapped(runtime, function):
            return TimedCall(captured(runtime, function), self)

        return wrapped


class TimedCall:
    """A function whose calls are timed; the outermost one where they are nested."""

    def __init__(self, function, forwards: Forwards):
        self.function, self.forwards = function, forwards

    def __call__(self, *arguments):
        forwards, begin = self.forwards, time.perf_counter()
        forwards.depth += 1
        try:
            return self.function(*arguments)
        finally:
            forwards.depth -= 1
            if not forwards.depth:
                forwards.spent += time.perf_counter() - begin


def decode(target, drafter, stop, limit: int, ids, forwards: Forwards) -> dict:
    """A prompt's mean milliseconds a step: {phase: (in forwards, outside)}."""
    from model.common.loop import decode as loop
    from model.common.loop.clock import Clock
    from model.common.loop.sampling import Sampler

    inside: dict[str, float] = {}

    class Split(Clock):
        """A clock that also notes what forwards have taken, by phase."""

        phase, before = None, 0.0

        def mark(self, phase):
            self.note(phase)
            super().mark(phase)

        def end_step(self):
            self.note(None)
            super().end_step()

        def note(self, following):
            if self.phase is not None:
                inside[self.phase] = inside.get(self.phase, 0.0) + forwards.spent - self.before
            self.phase, self.before = following, forwards.spent

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

    def __init__(self, target, drafter, stop, forwards: Forwards, limit: int, prompts):
        self.parts, self.prompts = (target, drafter, stop, limit), prompts
        self.forwards, self.best = forwards, [None] * len(prompts)

    def round(self) -> None:
        """Decode all prompts; of each the round with the least time outside is kept."""
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
    """(target, drafter, stop rules, Forwards) of a method with its defaults, all compiled."""
    from bench_batch import FLAGS
    from bench_drafters import build_script

    from model.common.prompts.prompter import Prompter, load_tokenizer
    from model.common.target.loading import load_target

    path, forwards = str(MINI / "target"), Forwards()
    flags = ["--model-path", path, "--dtype", "float32", "--runtime", runtime]
    with forwards.building():
        target = load_target(path, "float32", "cpu", runtime)
        drafter = build_script(method, flags + FLAGS.get(method, "").split(), target)
    stop = Prompter(load_tokenizer(path)).stop_rules(target.model.generation_config)
    warm_up(target, drafter, stop, prompts[0], max(map(len, prompts)) + limit)
    return target, drafter, stop, forwards


def warm_up(target, drafter, stop, ids, capacity: int, num_slots: int = 1) -> None:
    """Answers and forwards in which the runtime meets every shape of a drafter."""
    from model.common.loop.decode import Loop
    from model.common.loop.sampling import Sampler
    from model.common.loop.source import Prompts, Request

    loop = Loop(target, drafter, Sampler(), stop, num_slots, capacity)
    loop.run(Prompts([Request(ids, 24) for _ in range(2 * num_slots)]))
    for shown in target.rehearse(drafter, ids):
        loop.run(Prompts([Request(shown, 8)]))


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
