"""Text of serving figures: a row a file, what is gained over a base, the knee, the definitions."""

from evaluation.answers.meta import describe
from evaluation.service.figures import FULL, LATENCIES, PERCENTILES
from evaluation.speedup.report import NO_VALUE, fixed, ratio_text, table
from model.common.records.schema import SERVING

NAMES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "chunk_gap": "chunk gap", "e2e": "E2E"}
NAMES |= {"queue": "queue", "lag": "lag"}


def definition_lines():
    """A line a figure: its unit and its definition, from records/schema.py."""
    width = max(map(len, SERVING))
    rows = [f"{name.ljust(width)}  {unit or '-'}: {text}" for name, (unit, text) in SERVING.items()]
    return [
        *rows,
        f"percentiles interpolate between the two nearest values; mean, {percent_names()}",
    ]


def percent_names():
    """'p50, p90, p95, p99'."""
    return ", ".join(f"p{percent}" for percent in PERCENTILES)


def run_lines(figures):
    """The tables of all runs: requests and throughput, then one table a latency."""
    lines = []
    for found in figures:
        lines += [f"{found['label']}: {note}" for note in found["notes"]]
    lines += [*throughput_lines(figures), "", *occupancy_lines(figures), ""]
    for name in LATENCIES:
        if any(found[name] is not None for found in figures):
            lines += [*latency_lines(name, figures), ""]
    return lines


def throughput_lines(figures):
    """One row a file: how much was served, and how much of it well."""
    header = ["requests", "rate", "number", "failed", "answered/s", "tokens/s", "busy s"]
    header += ["tokens/s of wall", "wall s", "good", "good/s"]
    metered = any(found["joules_per_token"] is not None for found in figures)
    header += ["J/token", "steady"] if metered else []
    rows = []
    for found in figures:
        good = found["goodput"] or {}
        row = [found["label"], NO_VALUE if found["rate"] is None else f"{found['rate']:g}"]
        row += [str(found["requests"]), str(found["failed"])]
        row += [fixed(found["request_throughput"]), fixed(found["token_throughput"], 1)]
        row += [fixed(found["busy_s"], 2), fixed(found["token_throughput_wall"], 1)]
        row += [fixed(found["wall_s"], 2), percent_text(good.get("share"))]
        row.append(fixed(good.get("per_s")))
        joules = [fixed(found[f"{kind}joules_per_token"]) for kind in ("", "steady_")]
        rows.append([*row, *(joules if metered else [])])
    lines = [
        "answered/s, tokens/s, good/s: of answered requests, a second of the busy interval (at"
        " least one request there); wall: first arrival to last end",
        *table(header, rows),
    ]
    if metered:
        lines.append(
            "J/token: of all requests, the failed ones among them; steady: from the B-th first"
            " token to the (N - B)-th of N requests in B slots (ML.ENERGY's window), where all"
            f" slots were taken in {percent_text(FULL)} of it or more"
        )
    bounds = next((found["goodput"]["slo"] for found in figures if found["goodput"]), None)
    if bounds:
        limits = ", ".join(f"{NAMES[name]} <= {bound:g} s" for name, bound in bounds.items())
        lines.append(f"good: share of all requests, the failed ones among them, with {limits}")
    return lines


def occupancy_lines(figures):
    """One row a file: what steps committed, how many sequences were in service, the queue."""
    header = ["steps", "accepted/step", "| request", "of drafted", "| request"]
    header += ["slots", "in use", "max", "full", "queue max"]
    rows = []
    for found in figures:
        taken, slots = found["acceptance"] or {}, found["slots"] or {}
        row = [found["label"]]
        row += [fixed(taken.get(f"mean_accepted{of}")) for of in ("", "_per_request")]
        row += [percent_text(taken.get(f"rate{of}")) for of in ("", "_per_request")]
        row += [count_text(slots.get("num")), fixed(slots.get("mean"), 2)]
        row += [count_text(slots.get("max")), percent_text(slots.get("full"))]
        rows.append([*row, count_text(found["peak_queue"])])
    return [
        "accepted/step, of drafted: over all steps and drafts | mean over requests; slots: in use"
        " at once over the busy interval (of a server: requests it was sent)",
        *table(header, rows),
    ]


def count_text(number):
    """A whole number, or '-' for None."""
    return NO_VALUE if number is None else str(number)


def percent_text(share):
    """'97.5 %' of 0.975."""
    return NO_VALUE if share is None else f"{100 * share:.1f} %"


def latency_lines(name, figures):
    """One row a file: a latency's mean and percentiles in milliseconds."""
    columns = ["mean", *(f"p{percent}" for percent in PERCENTILES), "max"]
    rows = []
    for found in figures:
        values = found[name] or {}
        cells = [fixed(scaled(values.get(column)), 2) for column in columns]
        number = values.get("n")
        rows.append([found["label"], *cells, NO_VALUE if number is None else str(number)])
    return table([f"{NAMES[name]} (ms)", *columns, "of"], rows)


def scaled(seconds):
    """Milliseconds, None as it is."""
    return None if seconds is None else 1e3 * seconds


def comparison_lines(results):
    """One row a compared run: speedups, latency reduction, throughput gain, and how it was done."""
    header = ["speedup [95 %]", "TTFT", "TPOT", "E2E", "tokens/s", "latency reduction"]
    header += ["throughput gain"]
    rows = []
    for result in results:
        speedup = result["speedup"]
        row = [
            f"{result['run']} / {result['base']}",
            *(ratio_text(speedup[name]) for name in speedup),
        ]
        row += [percents_text(result[name]) for name in ("latency_reduction", "throughput_gain")]
        rows.append(row)
    bootstrap = results[0]["bootstrap"]
    lines = [
        "run / base: TTFT, TPOT, E2E: mean of the base / mean of the run; tokens/s: run / base, of"
        " the busy interval; above 1 is better",
        "latency reduction: 1 - E2E of the run / of the base; throughput gain: tokens/s of the run"
        " / of the base - 1",
        f"[ , ]: 95 % bootstrap over blocks of neighbouring requests ({bootstrap['resamples']}"
        f" resamples, seed {bootstrap['seed']}); what the machine drifted between the runs is not"
        " in it",
        *table(header, rows),
    ]
    for result in results:
        line = f"{result['run']}: {result['why']}"
        if result["left_out"]:
            line += f"; {len(result['left_out'])} failed on a side, in tokens/s only"
        lines += [line, *(f"  differs in {describe(field)}" for field in result["allowed"])]
    return lines


def percents_text(entry):
    """'12.3 % [10.1, 14.2]' of {"value", "low", "high"} in percent."""
    if entry is None or entry["value"] is None:
        return NO_VALUE
    if entry["low"] is None:
        return f"{entry['value']:.1f} %"
    return f"{entry['value']:.1f} % [{entry['low']:.1f}, {entry['high']:.1f}]"


def knee_lines(results):
    """A line a sweep."""
    for result in results:
        shares = ", ".join(f"{p['rate']:g}: {percent_text(p['share'])}" for p in result["rates"])
        yield f"{result['label']}: {result['text']} ({shares})"
