"""The four JSON files of a published benchmark of speculative decoding against the target alone.

OUTPUT_FILE holds all: {"speculative", "target_ar", "gpu_monitoring"}, each where it was run;
OUTPUT_FILE without .json and with _speculative.json, _target.json, _gpu.json hold one part each.

method_result  method, total_requests (the failed ones among them), failed_requests, total_batches,
               total_duration, total_tokens (new ones), total_prompt_tokens, overall_throughput,
               avg_ttft, avg_latency, avg_acceptance_rate, batches
batch          as many requests as there are slots, in the order of arrival; the last may be short.
               With continuous batching they overlap with others, so a batch's throughput is no
               share of the run's
request        prompt_tokens, generated_tokens, total_tokens (both), ttft, total_latency,
               acceptance_rate, drafts_generated, drafts_accepted, time_per_token; a failed one has
               an error in their place

Its names, units (seconds, joules, watts, percent, MB) and nesting are kept. Its values are not:
TTFT is that of the first committed token, latencies are a request's own and count from its arrival,
failed requests are counted, tokens are committed ids, drafts are counted, and a mean acceptance has
the requests in it of which nothing was accepted. What is not known is null, or absent.
gpu_monitoring is of the time in which a request was being answered (the meta's energy, see
model/common/records/energy): duration is its length, average_power its mean; keys are the GPU's
number as a text, or the meter's name on a machine without. With both methods metered it is the
speculative run's, the other one's stands in it as target_ar.

Source: github.com/dadiaokua/speculative-decoding @ 7c8bdb2, benchmark.py
"""

import itertools
import math
from pathlib import Path

from evaluation.answers.meta import AnswerError
from evaluation.cli import write_object
from evaluation.service.figures import acceptance, mean, throughputs, total

KWH = 3.6e6  # joules
MARKS = {"speculative", "target_ar", "gpu_monitoring", "method", "gpu_ids"}
HIGHEST = {"peak_power": "peak_w", "peak_temperature": "temperature_c"}
SAMPLED = {
    "power_draw": "power_w",
    "utilization_gpu": "utilization",
    "utilization_memory": "memory_utilization",
    "memory_used": "memory_used_mib",
    "temperature": "temperature_c",
    "clock_graphics": "clock_graphics_mhz",
    "clock_memory": "clock_memory_mhz",
}


def write_benchmark_results(run, bases, path, slo):
    """Write the files of a method's Run and of the target's alone; returns their paths."""
    if slo:
        raise AnswerError("--as benchmark-results has no goodput: no --slo")
    runs = {}
    for one in (run, *bases):
        if one.source != "answers":
            raise AnswerError(f"--as: {one.path}: {one.source}'s own result; name an answer file")
        name = "target_ar" if (one.answers.meta or {}).get("method") == "vanilla" else "speculative"
        if name in runs:
            raise AnswerError(f"--as: {one.path} and {runs[name].path} are both {name}")
        runs[name] = one
    document = {name: method_result(name, one) for name, one in runs.items()}
    monitored = monitoring_of(runs)
    if monitored:
        document["gpu_monitoring"] = monitored
    path = Path(path)
    parts = {"speculative": "speculative", "target_ar": "target", "gpu_monitoring": "gpu"}
    written = [write_object(path, document, MARKS)]
    for name, ending in parts.items():
        if name in document:
            beside = path.with_name(f"{path.name.removesuffix('.json')}_{ending}.json")
            written.append(write_object(beside, document[name], MARKS))
    return written


def method_result(name, run):
    """One method's part from its Run."""
    rates, size = throughputs(run), run.slots or 1
    batches = [run.requests[i : i + size] for i in range(0, len(run.requests), size)]
    duration = duration_of(run)
    figures = [request.figures() for request in run.answered]
    shares = [share for share in map(acceptance_rate, run.answered) if share is not None]
    return {
        "method": name,
        "model_id": run.label,
        "total_requests": len(run.requests),
        "failed_requests": len(run.requests) - len(run.answered),
        "total_batches": len(batches),
        "total_duration": duration,
        "total_tokens": rates["new_tokens"],
        "total_prompt_tokens": rates["prompt_tokens"],
        "overall_throughput": rates["new_tokens"] / duration if duration else None,
        "avg_ttft": mean_known(figure["ttft"] for figure in figures),
        "avg_latency": mean_known(figure["e2e"] for figure in figures),
        "avg_acceptance_rate": mean(shares),
        "batches": [batch_result(batch) for batch in batches],
    }


def duration_of(run):
    """Seconds from the beginning of the schedule, or the first arrival, to the last end."""
    ends = [request.end_s for request in run.requests if request.end_s is not None]
    if not ends:
        return None
    begin = (run.load or {}).get("began_s")
    first = min(r.arrival_s for r in run.requests if r.arrival_s is not None)
    return max(ends) - (first if begin is None else min(first, begin - run.origin_s))


def mean_known(values):
    """The mean of those that are known, None without one."""
    return mean([value for value in values if value is not None])


def batch_result(requests):
    """A batch's part from its Requests."""
    answered = [request for request in requests if request.error is None]
    spans = [request.span for request in requests if request.span is not None]
    latency = max(s[1] for s in spans) - min(s[0] for s in spans) if spans else None
    tokens = total([request.new_tokens for request in answered])
    return {
        "batch_size": len(requests),
        "batch_latency": latency,
        "total_tokens": tokens,
        "avg_ttft": mean_known(request.figures()["ttft"] for request in answered),
        "avg_latency": mean_known(request.figures()["e2e"] for request in answered),
        "throughput": tokens / latency if latency else None,
        "requests": [request_result(request) for request in requests],
    }


def request_result(request):
    """A request's part."""
    if request.error is not None:
        return {"error": request.error}
    figures, drafts = request.figures(), acceptance([request]) or {}
    prompt = request.prompt_tokens
    return {
        "prompt_tokens": prompt,
        "generated_tokens": request.new_tokens,
        "total_tokens": None if prompt is None else prompt + request.new_tokens,
        "ttft": figures["ttft"],
        "total_latency": figures["e2e"],
        "acceptance_rate": acceptance_rate(request),
        "drafts_generated": drafts.get("drafted"),
        "drafts_accepted": drafts.get("accepted"),
        "time_per_token": figures["tpot"],
    }


def acceptance_rate(request):
    """Accepted / drafted of a Request; None where nothing was drafted, or nobody counted."""
    return (acceptance([request]) or {}).get("rate")


def monitoring_of(runs):
    """gpu_monitoring of {name: Run}, None where no run was metered."""
    found = {name: monitoring(run) for name, run in runs.items()}
    found = {name: part for name, part in found.items() if part is not None}
    if not found:
        return None
    first = found.get("speculative") or found["target_ar"]
    return first | ({"target_ar": found["target_ar"]} if len(found) > 1 else {})


def monitoring(run):
    """gpu_monitoring of one Run from its meta's `energy`; None where it has none."""
    entries = (run.answers.meta or {}).get("energy") or []
    devices = {}
    try:
        for entry in entries:
            for device in entry["devices"]:
                devices.setdefault(key_of(device), []).append((entry, device))
        if not devices:
            return None
        return summary(run, entries, devices)
    except (AttributeError, KeyError, TypeError) as error:
        raise AnswerError(f"{run.path}: its meta's energy is broken: {error!r}") from None


def key_of(device):
    """What a device is called: its GPU's number as a text, or the meter's name."""
    return str(device["gpu"]) if "gpu" in device else str(device["device"])


def summary(run, entries, devices):
    """gpu_monitoring of {key: [(process' entry, its device)]}."""
    joules = {
        name: known_sum(d.get("timed_j") for _, d in parts) for name, parts in devices.items()
    }
    joules = {name: value for name, value in joules.items() if value is not None}
    seconds = math.fsum(entry.get("timed_s") or 0.0 for entry in entries)
    found = {
        "gpu_ids": list(devices),
        "duration": seconds,
        "start_time": min(entry["began_s"] for entry in entries),
        "end_time": max(entry["ended_s"] for entry in entries),
        "total_energy_consumed": joules,
        "average_power": {name: value / seconds for name, value in joules.items() if seconds},
    }
    for name, field in HIGHEST.items():
        found[name] = of_devices(devices, lambda parts, field=field: highest(parts, field))
    found["average_utilization"] = of_devices(devices, lambda parts: averaged(parts, "utilization"))
    found["average_memory_usage"] = of_devices(devices, memory_usage)
    totals = counted(run, joules)
    return found | totals | {"snapshots": snapshots(run, devices)}


def counted(run, joules):
    """Tokens and requests of the whole run, and tokens per joule where there are joules."""
    tokens, drafts = throughputs(run)["new_tokens"], acceptance(run.answered) or {}
    found = {
        "total_tokens_generated": tokens,
        "total_tokens_accepted": drafts.get("accepted"),
        "total_requests": len(run.requests),
    }
    energy = math.fsum(joules.values())
    if not energy:
        return found
    found["total_energy_all_gpus"] = energy
    for name, value in (("tokens", tokens), ("tokens_accepted", drafts.get("accepted"))):
        if value is not None:
            found[f"{name}_per_joule"] = value / energy
            found[f"{name}_per_kwh"] = value / energy * KWH
    return found


def known_sum(values):
    """The sum of those that are known, None without one."""
    values = [value for value in values if value is not None]
    return math.fsum(values) if values else None


def of_devices(devices, value):
    """{key: value(its parts)} of the devices that have one."""
    found = {name: value(parts) for name, parts in devices.items()}
    return {name: number for name, number in found.items() if number is not None}


def highest(parts, field):
    """The highest of a field of a device over the processes."""
    return max((device[field] for _, device in parts if field in device), default=None)


def averaged(parts, field):
    """The mean of a field of a device over the processes, by their timed seconds."""
    pairs = [(d[field], entry.get("timed_s") or 0.0) for entry, d in parts if field in d]
    seconds = math.fsum(weight for _, weight in pairs)
    return math.fsum(value * weight for value, weight in pairs) / seconds if seconds else None


def memory_usage(parts):
    """Mean of used / total x 100 over a device's samples."""
    shares = []
    for _, device in parts:
        whole = device.get("memory_total_mib")
        used = (device.get("samples") or {}).get("memory_used_mib") or ()
        shares += [100 * value / whole for value in used if value is not None] if whole else []
    return mean(shares)


def snapshots(run, devices):
    """[snapshot] of all devices' samples in the order of time, with the run's progress by then."""
    found = []
    for name, parts in devices.items():
        for entry, device in parts:
            samples = device.get("samples") or {}
            columns = {
                ours: samples[theirs] for ours, theirs in SAMPLED.items() if theirs in samples
            }
            if "power_draw" not in columns and "joules" in samples:
                columns["power_draw"] = powers(samples["t_s"], samples["joules"])
            for index, seconds in enumerate(samples.get("t_s") or ()):
                snapshot = {"timestamp": entry["began_s"] + seconds, "gpu_id": name}
                for field, place in (
                    ("power_limit", "power_limit_w"),
                    ("memory_total", "memory_total_mib"),
                ):
                    if place in device:
                        snapshot[field] = device[place]
                snapshot |= {k: v[index] for k, v in columns.items() if v[index] is not None}
                found.append(snapshot)
    found.sort(key=lambda snapshot: snapshot["timestamp"])
    return [snapshot | progress(run, snapshot["timestamp"]) for snapshot in found]


def powers(times, joules):
    """Watts since the sample before, from a counter's joules; the first has none."""
    pairs = zip(itertools.pairwise(times), itertools.pairwise(joules))
    return [
        None,
        *((b - a) / (end - begin) if end > begin else None for (begin, end), (a, b) in pairs),
    ]


def progress(run, moment):
    """What had been answered by a moment, a Unix time."""
    done = [r for r in run.answered if r.end_s is not None and run.origin_s + r.end_s <= moment]
    passed = moment - run.origin_s
    tokens, drafts = sum(r.new_tokens for r in done), acceptance(done) or {}
    found = {
        "total_tokens_generated": tokens,
        "total_tokens_accepted": drafts.get("accepted"),
        "requests_completed": len(done),
        "throughput": tokens / passed if passed > 0 else None,
        "avg_ttft": mean_known(r.figures()["ttft"] for r in done),
        "avg_latency": mean_known(r.figures()["e2e"] for r in done),
    }
    return {name: value for name, value in found.items() if value is not None}
