"""When the requests of a load run arrive: made before the run, kept in its meta.

    closed   C clients, each of which sends its next request when its last one has ended; back to
             back is a closed loop of as many clients as there are slots
    rate     an open loop: gaps of a gamma distribution of mean 1 / R, of shape 1 (Poisson arrivals)
             or --burstiness; the first request arrives after the first gap
    trace    the times of a file, counted from its first

The gaps of all rates of a sweep are the same draws, scaled: a rate of 2 is a rate of 1 at twice the
speed. vLLM's bench draws gaps in the same way, but stretches them so that the last of N arrives at
N / R; here the number of requests in a duration, or the time of the last one, is left to chance.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

from model.common.errors import BadInput
from model.common.prompts.json_records import read_records

MOST = 1_000_000  # requests of a run


@dataclass(frozen=True)
class Schedule:
    """The arrivals of a run.

    name          in file names: "rate-2", "clients-4", "trace-NAME"
    text          what it is, in one line that two runs of the same schedule share
    figures       kind, seed and what was asked for, with units in their names
    num_requests  of the run
    arrivals      seconds from the beginning of the run, in order; empty for a closed loop
    clients       of a closed loop, else 0
    """

    name: str
    text: str
    figures: dict
    num_requests: int
    arrivals: tuple[float, ...] = ()
    clients: int = 0

    def first_arrivals(self) -> list[float]:
        """Seconds: of all requests, or of those with which the clients of a closed loop begin."""
        return [0.0] * min(self.clients, self.num_requests) if self.clients else [*self.arrivals]

    def meta(self) -> dict:
        """What a meta says in `load`."""
        found = {**self.figures, "num_requests": self.num_requests}
        return found if self.clients else found | {"arrivals": list(self.arrivals)}


def schedules(args) -> list[Schedule]:
    """The loads of a command line that has one: one of each --rate, else one.

    args: of load/flags.py and batch_size. Raises BadInput: a trace that cannot be read, or no
    request, or too many.
    """
    seed = args.load_seed or 0
    if args.trace:
        return [_traced(Path(args.trace), args.num_prompts, seed)]
    if args.rate:
        return [_at_rate(rate, args, seed) for rate in args.rate]
    clients, num = args.concurrency or args.batch_size, args.num_prompts
    name = f"clients-{clients}"
    text = f"{clients} clients, {num} requests, seed {seed}"
    _check_number(num, f"--num-prompts {num}")
    figures = {"kind": "closed", "seed": seed, "concurrency": clients}
    return [Schedule(name, text, figures, num, clients=clients)]


def _at_rate(rate: str, args, seed: int) -> Schedule:
    """The open loop of one rate, a text."""
    num, duration, shape = args.num_prompts, args.duration, args.burstiness or "1"
    ends = f"{num} requests" if duration is None else f"{duration:g} s"
    asked = f"--rate {rate}, {ends}"
    _check_number(num or float(rate) * duration, asked)
    times = gaps_summed(float(rate), float(shape), seed)
    if duration is None:
        arrivals = tuple(itertools.islice(times, num))
    else:
        arrivals = tuple(itertools.takewhile(lambda time: time <= duration, times))
    if not arrivals:
        raise BadInput(f"{asked}: no request arrives in it (--load-seed {seed})")
    figures = {"kind": "rate", "seed": seed, "rate": rate, "burstiness": shape}
    figures |= {"duration_s": duration}
    text = f"rate {rate}, {ends}, burstiness {shape}, seed {seed}"
    return Schedule(f"rate-{rate}", text, figures, len(arrivals), arrivals)


def gaps_summed(rate: float, shape: float, seed: int):
    """Arrival times in seconds, without end.

    Even ones are products, not sums, so that the hundredth at 10 a second is at 10 seconds.

    >>> list(itertools.islice(gaps_summed(10, math.inf, 0), 3))
    [0.1, 0.2, 0.3]
    """
    if math.isinf(rate):
        yield from itertools.repeat(0.0)
    if math.isinf(shape):
        yield from (number / rate for number in itertools.count(1))
    chance, total = random.Random(f"{seed}/arrivals"), 0.0
    while True:
        total += chance.gammavariate(shape, 1 / shape)
        yield total / rate


def _traced(path: Path, num: int | None, seed: int) -> Schedule:
    """The arrivals of a file, or the first `num` of them."""
    if not path.is_file():
        raise BadInput(f"--trace {path}: no such file")
    times = sorted(_time(record, where) for where, record in read_records(path))
    if not times:
        raise BadInput(f"--trace {path}: no arrival in it")
    if num is not None and num > len(times):
        raise BadInput(f"--trace {path}: {len(times)} arrivals, fewer than --num-prompts {num}")
    _check_number(len(times[:num]), f"--trace {path}")
    arrivals = tuple(time - times[0] for time in times[:num])
    digest = hashlib.sha256(json.dumps(arrivals).encode()).hexdigest()[:16]
    figures = {"kind": "trace", "seed": seed, "trace": str(path), "trace_sha256": digest}
    text = f"{len(arrivals)} arrivals {digest}, seed {seed}"
    return Schedule(f"trace-{path.stem}", text, figures, len(arrivals), arrivals)


def _time(record, where: str) -> float:
    """Seconds of a trace's record. Raises BadInput with the file's line."""
    value, unit = record, 1.0
    if isinstance(record, dict):
        if "timestamp" in record:  # Mooncake's traces
            value, unit = record["timestamp"], 1e3
        else:
            own = record.get("request")  # an answer line of a load run
            value = (own if isinstance(own, dict) else record).get("arrival_s")
    if type(value) not in (int, float) or not math.isfinite(value):
        raise BadInput(f"{where}: no arrival time: a number, arrival_s or timestamp is needed")
    return value / unit


def _check_number(num: float, asked: str) -> None:
    if num > MOST:
        raise BadInput(f"{asked}: more than {MOST:,} requests")
