"""Every figure of schema.SERVING from a run's Requests, as a plain dict."""

import math

import numpy as np

from evaluation.service import timeline
from evaluation.speedup.metrics import covered_s

PERCENTILES = (50, 90, 95, 99)
LATENCIES = ("ttft", "tpot", "itl", "chunk_gap", "e2e", "queue", "lag")
BOUNDS = ("ttft", "tpot", "e2e")  # what --slo may bound
FULL = 0.95  # of a steady window, in which all slots were taken
EMPTY_GOODPUT = {"slo": None, "met": None, "share": None, "per_s": None}


def distribution(values):
    """{"n", "mean", "std", "p50", ..., "max"} of numbers, None without any; std is of them all.

    Percentiles are interpolated between the two nearest values, as numpy's and vLLM's are.
    """
    if not len(values):
        return None
    values = np.asarray(values, float)
    found = {"n": len(values), "mean": float(values.mean()), "std": float(values.std())}
    points = np.percentile(values, PERCENTILES)
    found |= {f"p{percent}": float(point) for percent, point in zip(PERCENTILES, points)}
    return found | {"max": float(values.max())}


def figures_of(run, slo=None):
    """All figures of a Run; what its file cannot give is None.

    slo: {"ttft", "tpot" or "e2e": seconds}, or None.
    """
    answered = run.answered
    found = {
        "label": run.label,
        "file": str(run.path),
        "source": run.source,
        "rate": run.rate,
        "requests": len(run.requests),
        "failed": len(run.requests) - len(answered),
        "failure_rate": ratio(len(run.requests) - len(answered), len(run.requests)),
        **latencies(answered),
        **throughputs(run),
        "goodput": goodput(run, slo),
        "acceptance": acceptance(answered),
        "slots": slots(run),
        "peak_queue": queue_peak(answered),
        "joules_per_token": joules_per_token(run),
        "steady_joules_per_token": steady_joules(run),
        "notes": list(run.notes),
    }
    for name, value in run.given.items():
        if found[name] is None:
            found[name] = value
    return found


def ratio(part, whole):
    """part / whole, None where one is unknown or nothing is divided."""
    return part / whole if whole and part is not None else None


def latencies(answered):
    """{name of LATENCIES: distribution, None where a Request's is not known}.

    A figure that is not defined for a request (TPOT of one token) is no member of its distribution.
    """
    found = {}
    figures = [request.figures() for request in answered]
    for name in ("ttft", "tpot", "e2e", "queue", "lag"):
        known = all(is_known(request, name) for request in answered)
        values = [figure[name] for figure in figures if figure[name] is not None]
        found[name] = distribution(values) if known else None
    for name, gaps in (("itl", "token_gaps"), ("chunk_gap", "chunk_gaps")):
        lists = [getattr(request, gaps) for request in answered]
        known = all(gaps is not None for gaps in lists)
        found[name] = distribution([gap for gaps in lists for gap in gaps]) if known else None
    return found


def is_known(request, name):
    """Whether an answered Request has a figure, or is known to have none."""
    if request.figures()[name] is not None:
        return True
    if name == "tpot" and request.new_tokens == 1:
        return True
    return name in ("ttft", "tpot", "e2e") and request.new_tokens == 0


def throughputs(run):
    """Busy and wall seconds, and requests and tokens a second of both."""
    answered = run.answered
    spans = [request.span for request in run.requests]
    known = [span for span in spans if span is not None]
    counts = [request.new_tokens for request in answered]
    found = {
        "prompt_tokens": total([request.prompt_tokens for request in answered]),
        "new_tokens": total(counts),
        "busy_s": None,
        "wall_s": None,
    }
    # a failure at an unknown moment leaves the rest measurable, an answer at one does not
    if known and all(request.span is not None for request in answered):
        found["busy_s"] = float(covered_s(known))
        found["wall_s"] = max(end for _, end in known) - min(begin for begin, _ in known)
    for suffix, seconds in (("", found["busy_s"]), ("_wall", found["wall_s"])):
        found[f"request_throughput{suffix}"] = ratio(len(answered), seconds)
        found[f"token_throughput{suffix}"] = ratio(found["new_tokens"], seconds)
    return found


def total(values):
    """Their sum, None where one is not known."""
    return None if any(value is None for value in values) else sum(values)


def meets(request, slo):
    """Whether a Request met every bound; None where its file does not say.

    A failed one did not. One without a token has no first token, so it met no bound on one; the
    TPOT of one token is 0.
    """
    if request.error is not None:
        return False
    figures, verdicts = request.figures(), []
    for name, bound in slo.items():
        value = figures[name]
        if value is not None:
            verdicts.append(value <= bound)
        elif not is_known(request, name):
            verdicts.append(None)
        else:
            verdicts.append(name == "tpot")
    return False if False in verdicts else None if None in verdicts else True


def goodput(run, slo):
    """{"slo", "met", "share", "per_s"}: requests that met every bound, of all and a busy second."""
    if not slo:
        return None
    verdicts = [meets(request, slo) for request in run.requests]
    if not verdicts or None in verdicts:
        return EMPTY_GOODPUT | {"slo": slo}
    met = sum(verdicts)
    busy_s = throughputs(run)["busy_s"]
    return {"slo": slo, "met": met, "share": met / len(verdicts), "per_s": ratio(met, busy_s)}


def acceptance(answered):
    """Tokens a step and the accepted share of drafts, pooled and as means over requests.

    None where a request does not say what its steps committed. Of a step's accept length all but
    one token count as accepted of the draft, since the last is the bonus.
    """
    if not answered or any(request.accepted is None for request in answered):
        return None
    stepped = [request.accepted for request in answered if request.accepted[1]]
    committed, steps = (sum(pair[i] for pair in stepped) for i in (0, 1))
    found = {
        "steps": steps,
        "mean_accepted": ratio(committed, steps),
        "mean_accepted_per_request": mean([tokens / count for tokens, count in stepped]),
        "drafted": None,
        "accepted": None,
        "rate": None,
        "rate_per_request": None,
    }
    if any(request.drafted is None for request in answered):
        return found
    pairs = [(r.accepted[0] - r.accepted[1], sum(r.drafted)) for r in answered]
    accepted, drafted = (sum(pair[i] for pair in pairs) for i in (0, 1))
    shares = [part / whole for part, whole in pairs if whole]
    found |= {"drafted": drafted, "accepted": accepted, "rate": ratio(accepted, drafted)}
    return found | {"rate_per_request": mean(shares)}


def mean(values):
    """Their mean, None without any."""
    return math.fsum(values) / len(values) if values else None


def in_service(run):
    """[(begin, end, slot)] of the answered requests, None where one does not say."""
    spans = [(request.begin_s, request.end_s, request.slot) for request in run.answered]
    return None if any(None in span[:2] for span in spans) else spans


def slots(run):
    """Sequences in service over the busy interval: {"num", "mean", "max", "full"}.

    In a loop those are its slots, of a server the requests that it was sent; full: the share of
    the time in which all slots were taken, None where their number is not known. A slot takes its
    next request when the last has ended: rounded clock readings that overlap count once.
    """
    spans, busy_s = in_service(run), throughputs(run)["busy_s"]
    if not spans or not busy_s:
        return None
    if run.slots is not None and all(slot is not None for *_, slot in spans):
        taken = {slot: [span[:2] for span in spans if span[2] == slot] for *_, slot in spans}
        spans = [span for of_one in taken.values() for span in timeline.merged(of_one)]
    else:
        spans = [span[:2] for span in spans]
    found = timeline.levels(spans)
    used_s = math.fsum((end - begin) * number for begin, end, number in found)
    full_s = math.fsum(end - begin for begin, end, number in found if number == run.slots)
    return {
        "num": run.slots,
        "mean": used_s / busy_s,
        "max": max((number for *_, number in found), default=0),
        "full": None if run.slots is None else full_s / busy_s,
    }


def queue_peak(answered):
    """The most requests that had arrived and not begun at one moment; None where one is unknown.

    Failed requests are not in it: nobody recorded whether they had begun.
    """
    spans = [(request.arrival_s, request.begin_s) for request in answered]
    return None if any(None in span for span in spans) else timeline.peak(spans)


def joules_per_token(run):
    """Sum of energy_j / sum of new_tokens; None where a request was not metered.

    What a failed request took is in it, and its tokens are not.
    """
    return ratio(
        total([request.energy_j for request in run.requests]),
        total([request.new_tokens for request in run.answered]),
    )


def steady_joules(run):
    """Joules a token of the meta's steady window (model/common/records/energy), or None.

    The window is a process' own: of a run of several there is none. Nor where slots were free for
    more than 1 - FULL of it, as they are where requests are not always waiting.
    """
    entries = run.answers and (run.answers.meta or {}).get("energy")
    try:
        steady = (entries[0].get("steady") or {}) if len(entries) == 1 else {}
        return steady.get("joules_per_token") if steady.get("full", 0.0) >= FULL else None
    except (AttributeError, KeyError, TypeError):
        return None


def per_request(run, slo=None):
    """[one dict a Request] for JSON, in the order of arrival; times in seconds after the origin."""
    rows = []
    for request in run.requests:
        row = {
            "request_id": request.request_id,
            "error": request.error,
            "arrival_s": request.arrival_s,
            "start_s": request.begin_s,
            "end_s": request.end_s,
            **request.figures(),
            "itl": request.token_gaps,
            "chunk_gaps": request.chunk_gaps,
            "prompt_tokens": request.prompt_tokens,
            "new_tokens": request.new_tokens,
            "accept_lengths": request.accept_lengths,
            "finish_reason": request.finish_reason,
            "slot": request.slot,
            "energy_j": request.energy_j,
        }
        rows.append(row | ({"met_slo": meets(request, slo)} if slo else {}))
    return rows
