"""One compact table of all runs under a load, for the end of ./eval.sh."""

import os

from evaluation.service.comparison import LEAST
from evaluation.service.tables import count_text, percent_text, scaled
from evaluation.speedup.report import NO_VALUE, fixed, ratio_text, table

PAIRS = ("ttft", "tpot")  # shown as p50 / p99
COMPARED = ("tpot", "token_throughput")


def brief_lines(found, results):
    """A row a run: requests, throughput, p50 / p99 of TTFT and TPOT, and what a base makes of it.

    found: figures.figures_of() of every run; results: comparison.compare() of some of them.
    """
    names = short_names([figures["label"] for figures in found])
    speedups = {result["run"]: result["speedup"] for result in results}
    bounded = any(figures["goodput"] for figures in found)
    metered = any(figures["joules_per_token"] is not None for figures in found)
    header = ["run", "requests", "failed", "tokens/s", "TTFT p50 / p99", "TPOT p50 / p99"]
    header += ["good"] * bounded + ["accepted", "slots"] + ["J/token"] * metered
    header += ["TPOT speedup", "tokens/s speedup"] * bool(speedups)
    rows = []
    for name, figures in zip(names, found):
        row = [name, str(figures["requests"]), count_text(figures["failed"] or None)]
        row.append(fixed(figures["token_throughput"], 1))
        row += [half_and_worst(figures[latency]) for latency in PAIRS]
        row += [percent_text((figures["goodput"] or {}).get("share"))] * bounded
        row.append(fixed((figures["acceptance"] or {}).get("mean_accepted"), 2))
        row.append(fixed((figures["slots"] or {}).get("mean"), 1))
        row += [fixed(figures["joules_per_token"])] * metered
        if speedups:
            own = speedups.get(figures["label"])
            row += [ratio_text(own[kind]) if own else NO_VALUE for kind in COMPARED]
        rows.append(row)
    few = any(result["too_few"] for result in results)
    lines = [f"no interval where there are fewer than {LEAST} requests"] if few else []
    return [
        "times in ms, from the arrival on; tokens/s: of the time in which requests were there;"
        " accepted: tokens a step; slots: in use on average",
        *table(header, rows),
        *lines,
    ]


def half_and_worst(latency):
    """'12.6 / 15.2' of a latency's figures in seconds."""
    if not latency:
        return NO_VALUE
    return " / ".join(fixed(scaled(latency[name]), 1) for name in ("p50", "p99"))


def short_names(labels):
    """The labels without the words that all begin with; what is left has a letter in it, and is not
    how another one ends.

    >>> short_names(["mini-pld-rate-1", "mini-pld-rate-2", "mini-sps-rate-1"])
    ['pld-rate-1', 'pld-rate-2', 'sps-rate-1']
    >>> short_names(["mini-pld-rate-1", "mini-pld-rate-2"])
    ['rate-1', 'rate-2']
    >>> short_names(["mini-vanilla-rate-1", "mini-vanilla-compile-rate-1"])
    ['vanilla-rate-1', 'vanilla-compile-rate-1']
    """
    words = [label.split("-") for label in labels]
    shared = len(os.path.commonprefix(words)) if len(labels) > 1 else 0
    names = ["-".join(own[shared:]) for own in words]
    while shared and not all(tells(name, names) for name in names):
        shared -= 1
        names = ["-".join(own[shared:]) for own in words]
    return names


def tells(name, others):
    """Whether a name has a letter, and none of the others ends with it."""
    return any(map(str.isalpha, name)) and not any(one.endswith(f"-{name}") for one in others)
