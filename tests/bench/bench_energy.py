"""What --energy costs: a run's time with and without its thread, and what a sample takes.

Answers of vanilla in alternation, round after round, metered and not; a run is metered as the
harness does it, with a sample before and behind every answer, which stand outside its time. Where
no meter can be read, files in a folder take the place of a processor's counters, and the table says
so. The aim of 1 % of the busy time is judged by the processor time of a sample; the two speeds also
differ by what the machine does beside them.

Run:  python tests/bench/bench_energy.py                      (mini target, half a minute)
      python tests/bench/bench_energy.py --model-path data/models/smollm2 --max-new-tokens 32
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from unittest import mock

import bench_parts as parts

AIM = 0.01  # of the busy time
SAMPLES = 200  # of which the time of one is the median


class Metered:
    """Answers of all prompts, metered or not; speeds: tokens/s of each round."""

    def __init__(self, answers, sampler_of):
        self.answers, self.sampler_of, self.speeds = answers, sampler_of, []

    def round(self) -> None:
        """Decode all prompts once."""
        sampler = self.sampler_of()
        if sampler:
            sampler.start()
        try:
            tokens, seconds = self.answers(sampler)
        finally:
            if sampler:
                sampler.stop()
        self.speeds.append(tokens / seconds)


def meters_of(target, folder):
    """(meters of the target's devices, what they are); without any, of files in `folder`."""
    from fake_meters import Powercap

    from model.common.records.energy import rapl
    from model.common.records.energy.nvml import nvml_meters, used_gpus

    gpus = used_gpus()
    meters, _ = nvml_meters(gpus) if gpus else rapl.rapl_meters()
    if meters:
        return meters, ", ".join(f"{m.facts['device']} ({m.kind})" for m in meters)
    Powercap(Path(folder), {"intel-rapl:0": "package-0", "intel-rapl:0:0": "dram"})
    with mock.patch.object(rapl, "POWERCAP", Path(folder)):
        return rapl.rapl_meters()[0], "files in the place of a processor's counters"


def answers_of(target, drafter, stop, prompts, limit):
    """A function of a sampler (or None) that decodes all prompts: (tokens, their wall seconds)."""
    from model.common.records.energy.log import EnergyLog

    def run(sampler):
        log, tokens, seconds = EnergyLog(sampler), 0, 0.0
        for ids in prompts:
            log.ready()
            log.begun(0, time.perf_counter())
            turn = parts.answer(target, drafter, stop, ids, limit)
            log.ended(0, turn)
            tokens, seconds = tokens + len(turn.output_ids), seconds + turn.wall_s
        return tokens, seconds

    return run


def sample_s(meters) -> tuple[float, float]:
    """(seconds, processor seconds) of one sample of all meters."""
    from model.common.records.energy.curve import Sampler

    sampler = Sampler(meters, 1.0)
    wall, spent = [], time.thread_time()
    for _ in range(SAMPLES):
        begin = time.perf_counter()
        sampler.sample()
        wall.append(time.perf_counter() - begin)
    return median(wall), (time.thread_time() - spent) / SAMPLES


def main(argv=None) -> None:
    """Print the table; exit status 1 where the aim is missed."""
    shared = {"model_path": parts.TARGET, "questions": 6, "max_new_tokens": 128, "rounds": 5}
    shared |= {"num_threads": 1, "dtype": "float32", "device": "auto", "runtime": "eager"}
    parser = parts.make_parser(__doc__, **shared, output=None)
    parser.add_argument("--energy-interval", type=float, default=0.1, help="as of the harness (s)")
    args = parser.parse_args(argv)
    import torch

    from model.common.contract.sequence import EmptyDrafter
    from model.common.records.energy.curve import Sampler
    from model.common.target.loading import load_target

    torch.set_num_threads(args.num_threads)
    target = load_target(args.model_path, args.dtype, args.device, args.runtime)
    prompter, prompts = parts.read_bench(args.model_path, args.questions)
    stop, drafter = prompter.stop_rules(target.model.generation_config), EmptyDrafter()
    parts.warm_up(target, drafter, stop, prompts, args.max_new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        meters, what = meters_of(target, folder)
        wall_s, spent_s = sample_s(meters)
        answers = answers_of(target, drafter, stop, prompts, args.max_new_tokens)
        plain = Metered(answers, lambda: None)
        for meter in meters:
            meter.close = lambda: None  # every round has a sampler of its own
        metered = Metered(answers, lambda: Sampler(meters, args.energy_interval))
        parts.run_rounds([plain, metered], args.rounds)
    share, speeds = spent_s / args.energy_interval, [median(c.speeds) for c in (plain, metered)]
    print(f"meters: {what}")
    print(f"a sample: {1e3 * wall_s:.3f} ms, of the processor {1e3 * spent_s:.3f} ms")
    print(f"the thread: {100 * share:.3f} % of the busy time at {args.energy_interval:g} s")
    print(f"tokens/s without {speeds[0]:.1f}, with {speeds[1]:.1f}: {speeds[1] / speeds[0]:.4f}")
    found = {"meters": what, "sample_s": wall_s, "sample_processor_s": spent_s, "share": share}
    parts.write_json("bench_energy", args, **found, tokens_per_s=speeds)
    sys.exit(0 if share < AIM else 1)


if __name__ == "__main__":
    main()
