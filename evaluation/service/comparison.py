"""A run against a base run: ratios with intervals, and the knee of runs at several rates.

speedup of a latency     mean of the base / mean of the run, over requests that both answered where
                         they are paired, else over those of each
speedup of throughput    new tokens / busy interval of the run / the same of the base
latency reduction        (1 - run / base) x 100 %; throughput gain (run / base - 1) x 100 %

Requests are paired by id where both runs had the same schedule. Requests that wait for each other
are alike, so the bootstrap draws blocks of neighbours in the order of arrival, ceil(sqrt(N)) long,
the last one joined to the first (circular block bootstrap; Politis and Romano 1992). So that
throughput can be drawn too, every moment of the busy interval is shared equally among the requests
that are there: the shares sum to the interval.
"""

import math

import numpy as np

from evaluation.answers.meta import check_shared, flatten
from evaluation.service import timeline
from evaluation.service.figures import meets
from evaluation.speedup.intervals import wilson

COMPARED = ("ttft", "tpot", "e2e")
GOOD_SHARE = 0.95  # of requests that meet their bounds up to the knee
LEAST = 30  # requests of an interval: five blocks of them are drawn from
CHUNK = 500  # resamples drawn at a time
# fields in which two runs may differ that are not paired, and two runs of one sweep
OF_A_LOAD = frozenset(("load", "questions_sha256", "prompts_sha256"))
OF_A_RATE = OF_A_LOAD | {"rate", "duration", "num_prompts"}


def compare(run, base, figures, resamples, seed, allow=()):
    """What `run` gains over `base`, as a plain dict.

    figures: (the run's, the base's) of figures_of(), for what a file states without its requests.
    Raises AnswerError where the metas differ in more than the method, the load (and with it the
    requests) and what `allow` names.
    """
    paired, why = pairing(run, base)
    too_few = min(len(side.requests) for side in (run, base)) < LEAST
    if too_few:
        why += f"; fewer than {LEAST} requests have no interval"
    allowed = []
    if run.answers is not None and base.answers is not None:
        harmless = OF_A_LOAD if not paired else frozenset()
        allowed = check_shared(run.answers, base.answers, allow, harmless.__contains__)
    found = {
        "run": run.label,
        "base": base.label,
        "paired": paired,
        "why": why,
        "too_few": too_few,
        "allowed": allowed,
        "bootstrap": {"resamples": resamples, "seed": seed, "level": 0.95},
        "left_out": [],
        "pairs": None,
    }
    columns = [columns_of(side) for side in (run, base)]
    if paired:
        by_id = {name: row for row, name in enumerate(columns[1]["ids"])}
        order = [by_id[name] for name in columns[0]["ids"]]
        columns[1] = {name: [column[row] for row in order] for name, column in columns[1].items()}
        found["pairs"] = len(order)
        failed = [a or b for a, b in zip(*(side["failed"] for side in columns))]
        found["left_out"] = [name for name, lost in zip(columns[0]["ids"], failed) if lost]
    found["speedup"] = {
        name: latency_speedup(name, columns, paired, figures, resamples, seed) for name in COMPARED
    }
    found["speedup"]["token_throughput"] = throughput_speedup(
        columns, paired, figures, resamples, seed
    )
    return found | {
        "latency_reduction": percent(found["speedup"]["e2e"], lambda ratio: 1 - 1 / ratio),
        "throughput_gain": percent(found["speedup"]["token_throughput"], lambda ratio: ratio - 1),
    }


def pairing(run, base):
    """(whether two Runs are paired by request, a sentence that says why)."""
    if run.source != "answers" or base.source != "answers":
        return False, "unpaired: another tool's file does not say which request is which"
    schedules = [
        None if side.load is None else {k: v for k, v in side.load.items() if k != "began_s"}
        for side in (run, base)
    ]
    if None in schedules and schedules != [None, None]:
        return False, "unpaired: one of the two is no load run"
    if schedules[0] != schedules[1]:
        ours, theirs = (flatten(schedule) for schedule in schedules)
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        return False, f"unpaired: the schedules differ in {', '.join(names)}"
    if {r.request_id for r in run.requests} != {r.request_id for r in base.requests}:
        return False, "unpaired: the requests differ"
    what = "request, the schedules being the same" if schedules[0] else "turn, without a schedule"
    return True, f"paired by {what}"


def columns_of(run):
    """{"ids", "failed", "tokens", "share" and COMPARED: [N]} of a Run in the order of arrival.

    tokens and share, seconds of the busy interval, are None where the file does not say them.
    """
    requests = run.requests
    figures = [request.figures() if request.error is None else {} for request in requests]
    spans = [request.span for request in requests]
    timed = any(spans) and all(r.span is not None for r in run.answered)
    shares = timeline.shares([span or (0.0, 0.0) for span in spans]) if timed else None
    found = {
        "ids": [request.request_id for request in requests],
        "failed": [request.error is not None for request in requests],
        "tokens": [0 if r.error is not None else r.new_tokens for r in requests],
        "share": shares or [None] * len(requests),
    }
    return found | {name: [figure.get(name) for figure in figures] for name in COMPARED}


def latency_speedup(name, columns, paired, figures, resamples, seed):
    """{"value", "low", "high"} of one latency, base / run; None where a side does not hold it."""
    if any(side[name] is None for side in figures):
        return None
    if not all(any(value is not None for value in side[name]) for side in columns):
        means = [side[name]["mean"] for side in figures]
        return entry(means[1] / means[0] if means[0] else None)
    sides = [side[name] for side in columns]
    if paired:
        both = [None not in pair for pair in zip(*sides)]
        sides = [[v if has else None for v, has in zip(side, both)] for side in sides]
    if not all(any(value is not None for value in side) for side in sides):
        return None
    sums = [
        (np.array([v or 0.0 for v in side]), np.array([float(v is not None) for v in side]))
        for side in sides
    ]
    return ratio_entry(sums[1], sums[0], paired, resamples, seed)


def throughput_speedup(columns, paired, figures, resamples, seed):
    """{"value", "low", "high"} of tokens a busy second, run / base.

    Where a file states its throughput only, over the time of its own, the ratio has no interval.
    """
    if not any(None in side[name] for side in columns for name in ("tokens", "share")):
        sums = [(np.array(side["tokens"], float), np.array(side["share"])) for side in columns]
        return ratio_entry(*sums, paired, resamples, seed)
    rates = [side["token_throughput"] or side["token_throughput_wall"] for side in figures]
    return None if None in rates or not rates[1] else entry(rates[0] / rates[1])


def entry(value, low=None, high=None):
    """A ratio with the ends of its interval; None where it is not finite."""
    values = {"value": value, "low": low, "high": high}
    return {k: None if v is None or not math.isfinite(v) else float(v) for k, v in values.items()}


def ratio_entry(over, under, paired, resamples, seed):
    """The ratio of two ratios of sums with its percentile interval.

    over, under: (numerators [N], denominators [N]) of requests in the order of arrival, as many on
    both sides and drawn together where `paired`. Fewer than LEAST requests have no interval.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = (over[0].sum() / over[1].sum()) / (under[0].sum() / under[1].sum())
        if min(len(over[0]), len(under[0])) < LEAST:
            return entry(value)
        rng, drawn = np.random.default_rng(seed), []
        for start in range(0, resamples, CHUNK):
            rows = min(CHUNK, resamples - start)
            weights = block_weights(len(over[0]), rows, rng)
            others = weights if paired else block_weights(len(under[0]), rows, rng)
            upper = (weights @ over[0]) / (weights @ over[1])
            drawn.append(upper / ((others @ under[0]) / (others @ under[1])))
    values = np.concatenate(drawn)
    values = values[np.isfinite(values)]
    return entry(value, *np.percentile(values, (2.5, 97.5))) if len(values) else entry(value)


def block_weights(number, rows, rng):
    """How often each of `number` requests is drawn [rows, number]; every row sums to `number`."""
    length = math.ceil(math.sqrt(number))
    begins = rng.integers(number, size=(rows, math.ceil(number / length)))
    drawn = (begins[:, :, None] + np.arange(length)) % number
    drawn = drawn.reshape(rows, -1)[:, :number] + np.arange(rows)[:, None] * number
    return np.bincount(drawn.ravel(), minlength=rows * number).reshape(rows, number).astype(float)


def percent(ratio, change):
    """A speedup's {"value", "low", "high"} as percent of `change`, a rising function of it."""
    if ratio is None:
        return None
    return {k: None if not v else 100 * change(v) for k, v in ratio.items()}


def knees(runs, figures):
    """[{"label", "rates", "knee", "between", "text"}] of Runs that differ only in their rate.

    knee: the highest rate up to which the share of requests that met their bounds stays at 95 % or
    more. None where all rates are below or above it, or where a share is not known. between: the
    same of the lower and the upper ends of the shares' intervals; None = below, or above, all rates
    """
    groups = {}
    for run, found in zip(runs, figures):
        if run.rate is not None:
            groups.setdefault(sweep_key(run), []).append((run, found))
    results = []
    for members in groups.values():
        members = sorted(members, key=lambda member: member[0].rate)
        rates = [run.rate for run, _ in members]
        if len(set(rates)) < 2:
            continue
        shares = [found["goodput"] and found["goodput"]["share"] for _, found in members]
        knee, text = knee_of(rates, shares)
        between = [None, None]
        if len(set(rates)) < len(rates):
            knee, text = None, "knee: cannot be told: two files of one rate"
        elif None not in shares:
            ends = zip(*(share_interval(run, one["goodput"]["slo"]) for run, one in members))
            between, within = knee_between(rates, *ends)
            text += within
        points = [{"rate": rate, "share": share} for rate, share in zip(rates, shares)]
        label = sweep_label([run.label for run, _ in members])
        found = {"label": label, "rates": points, "knee": knee, "between": between, "text": text}
        results.append(found)
    return results


def share_interval(run, slo):
    """(low, high): 95 % interval of the share of a Run's requests that met every bound.

    The wider of Wilson's, of requests that do not depend on each other, and the bootstrap's of
    blocks, which says nothing where all met them.
    """
    met = np.array([bool(meets(request, slo)) for request in run.requests], float)
    ends = [wilson(met.sum(), len(met))]
    if len(met) >= LEAST:
        drawn = block_weights(len(met), 4 * CHUNK, np.random.default_rng(0)) @ met / len(met)
        ends.append(np.percentile(drawn, (2.5, 97.5)))
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def knee_between(rates, lows, highs):
    """([the least knee, the largest], words) by the ends of the shares' intervals.

    >>> knee_between([1.0, 2.0, 4.0], [0.96, 0.9, 0.2], [1.0, 0.98, 0.4])
    ([1.0, 2.0], "; within the shares' 95 % intervals 1 to 2")
    """
    found, words = [], []
    for ends in (lows, highs):
        count = next((i for i, end in enumerate(ends) if end < GOOD_SHARE), len(rates))
        known = 0 < count < len(rates)
        found.append(rates[count - 1] if known else None)
        side = "" if known else "above " if count else "below "
        words.append(f"{side}{rates[max(count - 1, 0)]:g}")
    return found, f"; within the shares' 95 % intervals {' to '.join(dict.fromkeys(words))}"


def sweep_key(run):
    """What runs of one sweep share: everything but the rate and what follows from it."""
    if run.answers is None or run.answers.meta is None:
        return run.source, run.system or str(run.path)
    meta = run.answers.meta
    fields = flatten({"shared": meta["shared"], "own": meta.get("method_args") or {}})
    same = {k: str(v) for k, v in fields.items() if OF_A_RATE.isdisjoint(k.split("."))}
    schedule = {k: str(v) for k, v in run.load.items() if k in ("kind", "seed", "burstiness")}
    return meta["method"], tuple(sorted(same.items())), tuple(sorted(schedule.items()))


def sweep_label(labels):
    """What the names of a sweep's runs begin with.

    >>> sweep_label(["pld-rate-1", "pld-rate-16"])
    'pld-rate'
    """
    first, last = min(labels), max(labels)
    same = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), len(first))
    return first[:same].rstrip("-_: .1234567890") or first


def knee_of(rates, shares):
    """(the knee or None, a sentence) of rates in their order and the shares of met bounds."""
    if None in shares:
        return None, "knee: cannot be told without --slo, and files that hold what it bounds"
    good = [share >= GOOD_SHARE for share in shares]
    limit = f"{100 * GOOD_SHARE:.0f} % of requests"
    if all(good):
        return None, f"knee: above {rates[-1]:g} a second, where {limit} or more meet the bounds"
    if not any(good):
        return None, f"knee: below {rates[0]:g} a second, where fewer than {limit} meet the bounds"
    first_bad = good.index(False)
    if first_bad == 0:
        return (
            None,
            f"knee: cannot be told: {rates[0]:g} a second is below {limit}, a higher is not",
        )
    text = f"knee: {rates[first_bad - 1]:g} a second, {rates[first_bad]:g} is below {limit}"
    if any(good[first_bad:]):
        text += "; a higher rate meets the bounds again"
    return rates[first_bad - 1], text
