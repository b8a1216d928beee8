"""How far a baseline's decode step is from what its device allows.

bound   seconds a step cannot be shorter than = bytes that it has to read / read bandwidth
bytes   the weights as loaded (decoder and whole LM head), an embedding row a sequence, and the keys
        and values of every committed token, at most a window of them in layers that have one
read bandwidth   what the run's probe measured on the same device, in a buffer beyond its caches or
        in one of as many bytes as the weights, whichever was faster: weights that fit into a cache
        are held to that cache's speed, not to that of the memory behind it
step    of a turn alone, (wall_time - prefill) / steps; of turns in one loop, the time in which one
        of them was past its prefill / the distinct ends of their steps (begin_s + step_end_s, equal
        to SAME_S); of a fixed batch in files without begin_s, its longest time / its most steps

A baseline at 40 % of its bound leaves a factor of 2.5 that any faster runtime would give without
drafting. More than twice the bound is called launch-bound: such a step pays for calls, not for
reading weights, and extra rows in it are nearly free, which flatters every method.
"""

import math
from dataclasses import dataclass

import numpy as np

from evaluation.answers.meta import AnswerError
from evaluation.speedup.metrics import covered_s

LAUNCH_BOUND = 2.0  # times its bound that a step may take
SAME_S = 1e-4  # times that lie closer are one: begin_s is rounded to 1e-6 s, step_end_s to 1e-7 s
EMPTY = dict.fromkeys(
    ("step_ms", "bound_ms", "share", "label", "weight_bytes", "kv_bytes", "gb_per_s", "no_bound")
)


def roofline(answers, questions):
    """{"step_ms", "bound_ms", "share", "label", ...} of a baseline's questions.

    share = bound / step; label: "launch-bound" or None; where no bound can be given, no_bound says
    why and the numbers are None.
    """
    batches = batches_of(questions)
    if isinstance(batches, str):
        return {**EMPTY, "no_bound": batches}
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


@dataclass
class TurnSteps:
    """A turn's place in time and what its steps read."""

    batch: tuple  # (choice, batch, turn) of fixed batches
    slot: int | None
    begin_s: float | None
    prefill_s: float
    wall_s: float
    ends_s: list | None  # [steps] after begin_s
    lengths: np.ndarray  # [steps] committed tokens in the cache before each step

    @property
    def end_s(self):
        """Unix time of its end."""
        return self.begin_s + self.wall_s


def turns_of(questions):
    """[TurnSteps]; empty where a turn lacks what is needed (another writer's file)."""
    turns = []
    for choice in (choice for question in questions for choice in question.choices):
        needed = choice.prefill_s, choice.accept_lengths, choice.prompt_tokens
        needed += (choice.batch if choice.begin_s is None else choice.begin_s,)
        if any(field is None for field in needed) or sum(choice.steps) != len(needed[1]):
            return []
        first, none = 0, [None] * len(choice.steps)
        for turn, steps in enumerate(choice.steps):
            accepted = choice.accept_lengths[first : first + steps]
            first += steps
            before = np.cumsum([0, *accepted[:-1]]) if steps else np.zeros(0)
            turns.append(
                TurnSteps(
                    (choice.index, (choice.batch or none)[turn], turn),
                    (choice.slot or none)[turn],
                    (choice.begin_s or none)[turn],
                    choice.prefill_s[turn],
                    choice.wall_s[turn],
                    (choice.step_end_s or none)[turn],
                    choice.prompt_tokens[turn] + before,
                )
            )
    return turns


def batches_of(questions):
    """[{"steps", "decode_s", "lengths"}] of the turns that were decoded together.

    lengths: per turn the committed tokens in the cache before each of its steps [steps]. A string
    says why the turns cannot be grouped.
    """
    turns = turns_of(questions)
    if not turns:
        return "no bound recorded"
    timed = [turn.begin_s is not None for turn in turns]
    if not any(timed):
        return [fixed_batch(batch) for batch in fixed_batches(turns)]
    batches = loops_of(turns) if all(timed) else []
    together = [turn for batch in batches if len(batch) > 1 for turn in batch]
    if not batches or any(turn.ends_s is None for turn in together):
        return "no bound: not every turn says when it began and when its steps ended"
    if any(map(share_a_slot, batches)):
        return "no bound: turns overlap in a slot, so more than one loop wrote this file"
    return [loop_batch(batch) if len(batch) > 1 else fixed_batch(batch) for batch in batches]


def fixed_batches(turns):
    """The turns by their batch ids."""
    together = {}
    for turn in turns:
        together.setdefault(turn.batch, []).append(turn)
    return list(together.values())


def fixed_batch(turns):
    """Turns that began together, or one alone: the longest time and the most steps count."""
    return {
        "steps": max(len(turn.lengths) for turn in turns),
        "decode_s": max(0.0, *(turn.wall_s - turn.prefill_s for turn in turns)),
        "lengths": [turn.lengths for turn in turns],
    }


def loops_of(turns):
    """The turns by chains that overlap in time; a run with one slot decodes every turn alone."""
    slots = {turn.slot for turn in turns}
    if len(slots) == 1 and None not in slots:
        return [[turn] for turn in turns]
    batches, end_s = [], -math.inf
    for turn in sorted(turns, key=lambda turn: turn.begin_s):
        if turn.begin_s > end_s - SAME_S:
            batches.append([])
        batches[-1].append(turn)
        end_s = max(end_s, turn.end_s)
    return batches


def share_a_slot(batch):
    """Whether two turns of a loop, in the order in which they began, were in one slot at once."""
    last = {}
    for turn in batch:
        before = last.get(turn.slot)
        if turn.slot is not None and before and turn.begin_s < before.end_s - SAME_S:
            return True
        last[turn.slot] = turn
    return False


def loop_batch(turns):
    """Turns that began and ended while others went on.

    Example: slot 0 decodes turn A with steps that end at 1.0, 1.5, 2.0 and then turn B, which
    begins at 2.0 and steps until 3.0 and 3.5; slot 1 decodes turn C until 1.0, 1.5, 2.0, 3.0. The
    loop took five steps.
    """
    first_s = turns[0].begin_s  # small numbers keep their digits
    spans, prefills, ends = [], [], []
    for number, turn in enumerate(turns):
        begin_s = turn.begin_s - first_s
        spans.append((begin_s, begin_s + turn.wall_s))
        prefills.append((begin_s, begin_s + turn.prefill_s))
        ends += [(begin_s + end_s, number) for end_s in turn.ends_s]
    steps, step_s, members = 0, -math.inf, set()
    for end_s, number in sorted(ends):
        if end_s > step_s + SAME_S or number in members:  # a turn takes part in a step once
            steps, step_s, members = steps + 1, end_s, set()
        members.add(number)
    return {
        "steps": steps,
        "decode_s": covered_s(spans) - covered_s(prefills),
        "lengths": [turn.lengths for turn in turns],
    }


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
