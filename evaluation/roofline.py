"""How far a baseline's decode step is from what its device allows.

bound   seconds a step cannot be shorter than = bytes that it has to read / read bandwidth
bytes   the weights as loaded (decoder and whole LM head), an embedding row a sequence, and the keys
        and values of every committed token, at most a window of them in layers that have one
read bandwidth   what the run's probe measured on the same device, in a buffer beyond its caches or
        in one of as many bytes as the weights, whichever was faster: weights that fit into a cache
        are held to that cache's speed, not to that of the memory behind it
step    (wall_time - prefill) / steps; of a batch, its longest wall_time and its most steps

A baseline at 40 % of its bound leaves a factor of 2.5 that any faster runtime would give without
drafting. More than twice the bound is called launch-bound: such a step pays for calls, not for
reading weights, and extra rows in it are nearly free, which flatters every method.
"""

import math

import numpy as np

from evaluation.meta import AnswerError

LAUNCH_BOUND = 2.0  # times its bound that a step may take
EMPTY = dict.fromkeys(
    ("step_ms", "bound_ms", "share", "label", "weight_bytes", "kv_bytes", "gb_per_s", "no_bound")
)


def roofline(answers, questions):
    """{"step_ms", "bound_ms", "share", "label", ...} of a baseline's questions.

    share = bound / step; label: "launch-bound" or None; where no bound can be given, no_bound says
    why and the numbers are None.
    """
    batches = batches_of(questions)
    if not batches:
        return {**EMPTY, "no_bound": "no bound recorded"}
    steps = sum(batch["steps"] for batch in batches)
    decode_s = math.fsum(batch["decode_s"] for batch in batches)
    if not steps or decode_s <= 0:
        return {**EMPTY, "no_bound": "no bound: no step was taken"}
    step_ms = 1e3 * decode_s / steps
    reads, rate = read_measured(answers)
    if isinstance(reads, str):
        return {**EMPTY, "step_ms": step_ms, "no_bound": reads}
    weight_bytes = sum(reads["weight_bytes"].values())
    rows = sum(len(lengths) for batch in batches for lengths in batch["lengths"]) / steps
    row_bytes = rows * reads["embedding_row_bytes"]
    kv_bytes = math.fsum(kv_read(reads["kv"], batch["lengths"]) for batch in batches) / steps
    bound_ms = (weight_bytes + row_bytes + kv_bytes) / rate / 1e6
    return {
        "step_ms": step_ms,
        "bound_ms": bound_ms,
        "share": bound_ms / step_ms,
        "label": "launch-bound" if step_ms > LAUNCH_BOUND * bound_ms else None,
        "weight_bytes": weight_bytes,
        "kv_bytes": kv_bytes,
        "gb_per_s": rate,
        "no_bound": None,
    }


def read_measured(answers):
    """(step_reads, GB/s) of a meta, or (why there is no bound, None)."""
    meta = answers.meta or {}
    reads = meta.get("step_reads")
    probes = (meta.get("environment") or {}).get("bandwidth")
    if not reads or not isinstance(reads, dict):
        return "no bound recorded", None
    if reads.get("no_bound"):
        return f"no bound: {reads['no_bound']}", None
    if not probes:
        return "no bound: no bandwidth was measured", None
    try:
        if probes["unit"] != "GB/s":
            raise ValueError(f"bandwidth in {probes['unit']}")
        rate = max(probes["read"], probes.get("read_weights", 0))
        numbers = [rate, *reads["weight_bytes"].values(), reads["embedding_row_bytes"]]
        numbers += [kind["bytes_per_token"] for kind in reads["kv"]]
        numbers += [kind["window"] or 1 for kind in reads["kv"]]
        if not all(math.isfinite(n) and n >= 0 for n in numbers) or rate <= 0:
            raise ValueError("a number below zero")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"{answers.path}: its meta's step_reads or bandwidth is broken: {error!r}"
        raise AnswerError(message) from None
    return reads, rate


def batches_of(questions):
    """[{"steps", "decode_s", "lengths"}] of the turns that were decoded together.

    lengths: per turn the committed tokens in the cache before each of its steps [steps]. Empty
    where a turn lacks what is needed (another writer's file).
    """
    together = {}
    for choice in (choice for question in questions for choice in question.choices):
        needed = choice.prefill_s, choice.accept_lengths, choice.prompt_tokens, choice.batch
        if any(field is None for field in needed) or sum(choice.steps) != len(needed[1]):
            return []
        first = 0
        for turn, steps in enumerate(choice.steps):
            accepted = choice.accept_lengths[first : first + steps]
            first += steps
            key = choice.index, choice.batch[turn], turn
            batch = together.setdefault(key, {"steps": 0, "decode_s": 0.0, "lengths": []})
            batch["steps"] = max(batch["steps"], steps)
            decode_s = choice.wall_s[turn] - choice.prefill_s[turn]
            batch["decode_s"] = max(batch["decode_s"], decode_s)
            before = np.cumsum([0, *accepted[:-1]]) if steps else np.zeros(0)
            batch["lengths"].append(choice.prompt_tokens[turn] + before)
    return list(together.values())


def kv_read(kinds, lengths):
    """Bytes of keys and values that a batch's steps read; kinds as in step_reads."""
    total = 0.0
    for kind in kinds:
        seen = [n if kind["window"] is None else np.minimum(n, kind["window"]) for n in lengths]
        total += kind["bytes_per_token"] * float(sum(tokens.sum() for tokens in seen))
    return total


def megabytes(num_bytes):
    """'14.2 MB' (1e6 bytes)."""
    return f"{num_bytes / 1e6:,.1f} MB"


def share_text(bound):
    """'4.7 % launch-bound', or why there is no share."""
    if bound["share"] is None:
        return "no bound"
    label = f" {bound['label']}" if bound["label"] else ""
    return f"{100 * bound['share']:.1f} %{label}"


def bound_line(label, bound):
    """The line of a baseline below a table."""
    if bound["share"] is None:
        step = "" if bound["step_ms"] is None else f": step {bound['step_ms']:.3f} ms"
        return f"baseline: {label}{step}: {bound['no_bound']}"
    remark = f": {bound['label']}" if bound["label"] else ""
    if bound["share"] > 1:
        remark = " (beyond it: the probe was disturbed)"
    return (
        f"baseline: {label}: step {bound['step_ms']:.3f} ms, bound {bound['bound_ms']:.3f} ms"
        f" ({megabytes(bound['weight_bytes'])} of weights, {megabytes(bound['kv_bytes'])} of KV"
        f" at {bound['gb_per_s']:.1f} GB/s): at {100 * bound['share']:.1f} % of the bound{remark}"
    )
