"""Load runs among the files: latencies against the rate, and the knee, by serving.py's figures."""

from evaluation.service import comparison, figures
from evaluation.service.requests import of_answers

LATENCIES = ("ttft", "tpot", "itl", "e2e", "queue")


def load_part(files, slo=None):
    """{"series", "knees", "slo"} of the load runs among some AnswerFiles, None without any.

    A series is {"label", "points"}: runs that differ in their rate alone, in its order; a run
    without a rate (a trace) is a series of its own. slo: bounds in seconds, as serving.py has them.
    """
    runs = [of_answers(one.path) for one in files if (one.meta or {}).get("load")]
    if not runs:
        return None
    found = [figures.figures_of(run, slo) for run in runs]
    series = {}
    for number, (run, shown) in enumerate(zip(runs, found)):
        key = number if run.rate is None else comparison.sweep_key(run)
        series.setdefault(key, []).append(point(shown))
    return {
        "series": [
            {
                "label": comparison.sweep_label([one["label"] for one in points]),
                "points": sorted(points, key=lambda one: one["rate"] or 0),
            }
            for points in series.values()
        ],
        "knees": comparison.knees(runs, found),
        "slo": slo,
    }


def point(found):
    """One run's figures that are drawn or listed."""
    kept = ("label", "rate", "requests", "failed", "request_throughput", "token_throughput")
    return {
        **{name: found[name] for name in kept},
        **{name: found[name] for name in LATENCIES},
        "good": found["goodput"] and found["goodput"]["share"],
        "joules": found["joules_per_token"],
        "accepted": (found["acceptance"] or {}).get("mean_accepted"),
    }
