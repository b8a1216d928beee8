"""A run as vLLM's `bench serve --save-result --save-detailed` writes it, for what reads those.

Times are by that tool's definitions, so they count from the sending: ttfts, latencies and itls
(gaps between chunks) in seconds, queue_times from arrival to sending; mean_, median_, std_ and pNN_
of ttft, tpot, itl and e2el in milliseconds, over answered requests. Other than there, duration is
from the first arrival to the last end, max_output_tokens_per_s counts tokens, not chunks,
max_concurrent_requests is exact, and what nothing is known of is null, not 0.

Source of the keys: vllm/benchmarks/serve.py 0.32
"""

import math
from pathlib import Path

import numpy as np

from evaluation.answers.meta import AnswerError, find_field
from evaluation.cli import write_object
from evaluation.service import timeline
from evaluation.service.figures import (
    PERCENTILES,
    acceptance,
    distribution,
    goodput,
    throughputs,
)
from evaluation.service.requests import less

MARKS = {"completed", "total_output_tokens", "ttfts"}


def write_vllm(run, bases, path, slo):
    """Write the Run to `path` as vLLM's tool writes a result; returns [path]."""
    if bases:
        raise AnswerError("--as vllm writes one run: no --base-path")
    return [write_object(Path(path), vllm_result(run, slo), MARKS)]


def vllm_result(run, slo):
    """The result as a dict; only of a Run whose requests are known."""
    if run.source != "answers":
        raise AnswerError(f"--as: {run.path}: {run.source}'s own result; name an answer file")
    answered, rates = run.answered, throughputs(run)
    good = goodput(run, slo)
    tokens = [0 if r.error is not None else r.new_tokens for r in run.requests]
    prompts = [r.prompt_tokens or 0 for r in run.requests]
    both = [n + p for n, p, r in zip(tokens, prompts, run.requests) if r.error is None]
    lists = {
        "input_lens": prompts,
        "output_lens": tokens,
        "ttfts": [less(r.first_s, r.start_s) or 0.0 for r in run.requests],
        "itls": [r.chunk_gaps or [] for r in run.requests],
        "latencies": [less(r.last_s, r.start_s) or 0.0 for r in run.requests],
        "start_times": [r.start_s or 0.0 for r in run.requests],
        "queue_times": [less(r.sent_s, r.arrival_s) or 0.0 for r in run.requests],
        "generated_texts": [r.text or "" for r in run.requests],
        "errors": [r.error or "" for r in run.requests],
    }
    result = {
        **settings(run),
        "duration": rates["wall_s"],
        "completed": len(answered),
        "failed": len(run.requests) - len(answered),
        "total_input_tokens": rates["prompt_tokens"],
        "total_output_tokens": rates["new_tokens"],
        "request_throughput": rates["request_throughput_wall"],
        "request_goodput": good["met"] / rates["wall_s"] if good and rates["wall_s"] else None,
        "output_throughput": rates["token_throughput_wall"],
        "total_token_throughput": sum(both) / rates["wall_s"] if rates["wall_s"] else None,
        **lists,
        "max_output_tokens_per_s": most_tokens(answered),
        "max_concurrent_requests": timeline.peak(
            [(r.start_s, r.end_s) for r in run.requests if None not in (r.start_s, r.end_s)]
        ),
        "rtfx": 0.0,
    }
    return result | speculation(answered) | percentiles(answered)


def settings(run):
    """What was run, and under which load."""
    meta, load = run.answers.meta or {}, run.load or {}
    started = "".join(c for c in str(meta.get("started") or "")[:19] if c.isdigit())
    rate = "inf" if run.rate is None or math.isinf(run.rate) else run.rate
    try:
        burstiness = float(load.get("burstiness") or 1.0)
    except (TypeError, ValueError):
        burstiness = 1.0
    return {
        "date": f"{started[:8]}-{started[8:]}",
        "endpoint_type": "specgauge",
        "backend": "specgauge",
        "label": run.label,
        "model_id": find_field(meta, "target") or run.answers.model_id,
        "tokenizer_id": find_field(meta, "target"),
        "num_prompts": len(run.requests),
        "request_rate": rate,
        "burstiness": burstiness,
        "max_concurrency": load.get("concurrency"),
    }


def speculation(answered):
    """The spec_decode_ keys, of steps that drafted; empty where nothing was drafted, or unknown."""
    found = acceptance(answered)
    if not found or not found["drafted"]:
        return {}
    if any(request.accept_lengths is None for request in answered):
        return {}
    steps = [
        length - 1
        for request in answered
        for length, drafted in zip(request.accept_lengths, request.drafted)
        if drafted
    ]
    return {
        "spec_decode_acceptance_rate": 100 * sum(steps) / found["drafted"],
        "spec_decode_acceptance_length": 1 + sum(steps) / len(steps),
        "spec_decode_num_drafts": len(steps),
        "spec_decode_draft_tokens": found["drafted"],
        "spec_decode_accepted_tokens": sum(steps),
        "spec_decode_per_position_acceptance_rates": [
            sum(accepted > place for accepted in steps) / len(steps) for place in range(max(steps))
        ],
    }


def percentiles(answered):
    """mean_, median_, std_ and pNN_ of that tool's four latencies, in milliseconds."""
    values = {
        "ttft": [less(r.first_s, r.start_s) for r in answered],
        "tpot": [r.figures()["tpot"] for r in answered],
        "itl": [gap for r in answered for gap in r.chunk_gaps or ()],
        "e2el": [less(r.last_s, r.start_s) for r in answered],
    }
    found = {}
    for name, seconds in values.items():
        points = distribution([s for s in seconds if s is not None]) or {}
        words = {"mean": "mean", "median": "p50", "std": "std"}
        words |= {f"p{percent}": f"p{percent}" for percent in PERCENTILES}
        for word, point in words.items():
            found[f"{word}_{name}_ms"] = None if point not in points else 1e3 * points[point]
    return found


def most_tokens(answered):
    """Most tokens that came within one second, counted from the first sending on."""
    moments = [moment for request in answered for moment in token_times(request)]
    if not moments:
        return None
    begin = min(r.start_s for r in answered)
    return float(np.bincount([int(moment - begin) for moment in moments]).max())


def token_times(request):
    """When each token of an answered Request came; [] where the file does not say."""
    if request.first_s is None or request.token_gaps is None:
        return []
    behind = list(request.first_s + np.cumsum(request.token_gaps))
    return [request.first_s] * (request.new_tokens - len(behind)) + behind
