"""What the loop costs: a step's milliseconds inside the models' forwards, and outside, by phase.

A forward is a call of what a runtime may record: a step of target, draft model or head with its
mask and positions. Everything else of a step is outside: drafting glue, acceptance, the cache's
moves, the copy of ids to the host, stop rules, learning.
Mini models, greedy, float32, batch 1, prefills left out. Methods decode in turn, round after
round; a cell is the mean over prompts, each taken from the round with the least time outside.

Run:    python tests/bench/bench_overhead.py                          (every method, minutes)
        python tests/bench/bench_overhead.py --methods vanilla,sps --runtime eager
"""

import time
from contextlib import ExitStack, contextmanager
from statistics import fmean
from unittest import mock

import bench_parts as parts

METHODS = "vanilla,pld,sps,recycling,medusa,hydra,eagle,eagle2,eagle3"


class Forwards:
    """Seconds that the forwards of what was built while building() was entered have taken."""

    def __init__(self):
        self.spent, self.depth = 0.0, 0

    @contextmanager
    def building(self):
        """Whatever is handed to a runtime to be recorded is timed from then on."""
        from model.common.target.runtime import CudaGraphs, Runtime

        with ExitStack() as patches:
            for kind in (Runtime, CudaGraphs):
                captured = self._capturing(kind.captured)
                patches.enter_context(mock.patch.object(kind, "captured", captured))
            yield

    def _capturing(self, captured):
        return lambda runtime, function: self._timed(captured(runtime, function))

    def _timed(self, function):
        """A function whose calls are timed; the outermost one where they are nested."""

        def call(*arguments):
            begin = time.perf_counter()
            self.depth += 1
            try:
                return function(*arguments)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.spent += time.perf_counter() - begin

        return call


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
    spent = {name: sum(times) for name, times in turn.phase_s.items()}
    spent["rest"] = turn.wall_s - turn.prefill_s - sum(spent.values())
    return {
        name: (1e3 * inside.get(name, 0.0) / steps, 1e3 * (s - inside.get(name, 0.0)) / steps)
        for name, s in spent.items()
    }


class Contender:
    """A method's drafter on a target of its own, and each prompt's best round."""

    def __init__(self, target, drafter, stop, forwards: Forwards, limit: int, prompts):
        self.given, self.prompts = (target, drafter, stop, limit), prompts
        self.forwards, self.best = forwards, [None] * len(prompts)

    def round(self) -> None:
        """Decode all prompts; of each the round with the least time outside is kept."""
        for place, ids in enumerate(self.prompts):
            cells = decode(*self.given, ids, self.forwards)
            if self.best[place] is None or _outside(cells) < _outside(self.best[place]):
                self.best[place] = cells

    def row(self) -> dict:
        """Means over prompts, in ms a step."""
        best = self.best
        row = {"outside_ms": fmean(map(_outside, best))}
        row["forwards_ms"] = fmean(sum(inside for inside, _ in cells.values()) for cells in best)
        row["draft_forwards_ms"] = fmean(cells["draft"][0] for cells in best)
        for name in best[0]:
            row[f"{name}_outside_ms"] = fmean(cells[name][1] for cells in best)
        return {name: round(value, 3) for name, value in row.items()}


def _outside(cells: dict) -> float:
    return sum(outside for _, outside in cells.values())


def build(method: str, args, prompter, prompts) -> Contender:
    """A method with its defaults on a target of its own, all compiled."""
    from model.common.target.loading import load_target

    path, limit, forwards = parts.TARGET, args.max_new_tokens, Forwards()
    flags = ["--model-path", path, "--dtype", "float32", "--runtime", args.runtime]
    with forwards.building():
        target = load_target(path, "float32", "cpu", args.runtime)
        drafter = parts.build_script(method, flags, target)
    stop = prompter.stop_rules(target.model.generation_config)
    parts.warm_up(target, drafter, stop, prompts, limit)
    return Contender(target, drafter, stop, forwards, limit, prompts)


def main(argv=None) -> None:
    """Print the table."""
    shared = {"methods": METHODS, "runtime": "compile", "questions": 6, "max_new_tokens": 128}
    parser = parts.make_parser(__doc__, **shared, rounds=8, num_threads=1, output=None)
    args = parser.parse_args(argv)
    import torch

    torch.set_num_threads(args.num_threads)
    prompter, prompts = parts.read_bench(parts.TARGET, args.questions)
    contenders = {method: build(method, args, prompter, prompts) for method in args.methods}
    for _ in range(args.rounds):
        for contender in contenders.values():
            contender.round()
    rows = [{"method": name, "runtime": args.runtime, **c.row()} for name, c in contenders.items()]
    names = list(rows[0])[2:]
    print(f"{'ms a step':12}" + "".join(f"{name[:-3]:>16}" for name in names))
    for row in rows:
        print(f"{row['method']:12}" + "".join(f"{row[name]:>16}" for name in names))
    parts.write_json("bench_overhead", args, rows=rows)


if __name__ == "__main__":
    main()
