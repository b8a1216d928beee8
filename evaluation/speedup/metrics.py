"""The numbers of a comparison, each defined once, as pure functions of per-question columns.

tokens/s of a question   sum of new_tokens over turns and choices / sum of wall_time
mean ratio (headline)    mean over questions of the method's tokens/s / the same of the baseline
total ratio              (total tokens / total time) of the method / the same of the baseline
geometric mean           of the per-question ratios of tokens/s
decode ...               the same with the prefill's token and time taken off both sides
joules a token           sum of energy_j / sum of new_tokens, over all questions
mean accepted            tokens committed per step, bonus included, over all steps (headline) or as
                         the mean over questions of a question's own mean
"""

import math
from dataclasses import dataclass

import numpy as np

from evaluation.answers.fields import STAGES
from evaluation.speedup.intervals import few_questions

CHUNK = 1000  # resamples drawn at a time: 1000 x questions x 8 bytes


@dataclass
class Columns:
    """One side of a comparison; arrays [N], a row a question, sums over its turns and choices."""

    tokens: np.ndarray  # new tokens, those of the prefills included
    wall_s: np.ndarray
    steps: np.ndarray | None  # None where a server hides its steps
    accepted: np.ndarray | None  # sum of the accept lengths; None where a question has none
    accept_count: np.ndarray | None  # number of accept lengths
    decode_s: np.ndarray | None  # wall - prefill; None where a question has no prefill time
    stage_s: dict | None  # stage -> seconds over all questions
    energy_j: np.ndarray | None = None  # joules; None where a question has none
    decode_tokens: np.ndarray | None = None  # behind the prefill, or a server's first chunk

    @property
    def speed(self):
        """tokens/s per question [N]."""
        return self.tokens / self.wall_s


def question_columns(questions):
    """Columns of a list of Questions."""
    choices = [question.choices for question in questions]

    def column(value, dtype=np.int64):
        return np.array([sum(value(choice) for choice in row) for row in choices], dtype)

    flat = [choice for row in choices for choice in row]
    counted = all(choice.accepted is not None for choice in flat)
    stepped = all(choice.steps is not None for choice in flat)
    begun = all(choice.accepted or choice.chunk_tokens is not None for choice in flat)
    timed = all(choice.prefill_s is not None for choice in flat)
    staged = timed and all(choice.stage_s is not None for choice in flat)
    metered = all(choice.energy_j is not None for choice in flat)
    return Columns(
        tokens=column(lambda choice: sum(choice.new_tokens)),
        wall_s=column(lambda choice: math.fsum(choice.wall_s), float),
        steps=column(lambda choice: sum(choice.steps)) if stepped else None,
        accepted=column(lambda choice: choice.accepted[0]) if counted else None,
        accept_count=column(lambda choice: choice.accepted[1]) if counted else None,
        decode_tokens=column(decode_tokens) if begun else None,
        decode_s=column(decode_seconds, float) if timed else None,
        stage_s={s: math.fsum(c.stage_s[s] for c in flat) for s in STAGES} if staged else None,
        energy_j=column(lambda choice: math.fsum(choice.energy_j), float) if metered else None,
    )


def decode_seconds(choice):
    """Seconds of a choice's steps: wall_time - prefill_s over its turns."""
    return math.fsum(choice.wall_s) - math.fsum(choice.prefill_s)


def decode_tokens(choice):
    """Tokens of a choice that came within its decode_seconds()."""
    if choice.chunk_tokens is None:
        return choice.accepted[0]
    return sum(sum(tokens[1:]) for tokens in choice.chunk_tokens)


def plain_mean(values):
    """The mean over questions [N] -> scalar; the bootstrap puts a resample's mean in its place."""
    return values.mean()


def wall_ratios(method, base, mean=plain_mean):
    """{aggregate's name: speedup} of two Columns whose rows are the same questions."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "mean_ratio": mean(method.speed) / mean(base.speed),
            "total_ratio": (mean(method.tokens) / mean(method.wall_s))
            / (mean(base.tokens) / mean(base.wall_s)),
            "geometric_mean": np.exp(mean(finite_log(method.speed / base.speed))),
        }


def finite_log(ratio):
    """log of ratios [N]; of 0 a number that exp() takes to 0, so that a weight of 0 removes it."""
    return np.maximum(np.log(ratio), -1e300)


def decode_rows(method, base):
    """[N] whether a question has a decode speed on both sides."""
    sides = ((side.decode_tokens > 0) & (side.decode_s > 0) for side in (method, base))
    return np.logical_and(*sides)


def decode_ratios(method, base, mean=plain_mean):
    """wall_ratios() without the prefill, or None where a side has no prefill times.

    A question that ends at the prefill's token has no decode speed; mean ratio and geometric mean
    leave it out on both sides (a mean over the others is mean(x * has) / mean(has), so that `mean`
    may be a resample's).
    """
    if any(side.decode_s is None or side.decode_tokens is None for side in (method, base)):
        return None
    has = decode_rows(method, base)
    if not has.any():
        return None
    speed, base_speed = (
        np.divide(side.decode_tokens, side.decode_s, out=np.zeros(len(has)), where=has)
        for side in (method, base)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.divide(speed, base_speed, out=np.ones(len(has)), where=has)
        return {
            "mean_ratio": mean(speed) / mean(base_speed),
            "total_ratio": (mean(method.decode_tokens) / mean(method.decode_s))
            / (mean(base.decode_tokens) / mean(base.decode_s)),
            "geometric_mean": np.exp(mean(np.log(ratio)) / mean(has.astype(float))),
        }


def joules_per_token(columns, mean=plain_mean):
    """Energy of all questions / their new tokens; None where a question has no energy."""
    return None if columns.energy_j is None else mean(columns.energy_j) / mean(columns.tokens)


def energy_ratios(method, base, mean=plain_mean):
    """{"total_ratio": joules a token, method / baseline}, None where a side has no energy.

    No mean of questions' own ratios: a meter that moves ten times a second is coarse for a short
    answer.
    """
    ours, theirs = joules_per_token(method, mean), joules_per_token(base, mean)
    if ours is None or theirs is None:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"total_ratio": ours / theirs}


def resample_means(num_questions, resamples, seed):
    """Yield functions mean(values [N]) -> [R], the means of R bootstrap resamples of the questions.

    A resample draws N of N questions with replacement; both sides of a pair use the same draw, so
    the bootstrap is paired. It is kept as counts [R, N], which makes every mean one product.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        draws = rng.integers(num_questions, size=(rows, num_questions))
        draws += np.arange(rows)[:, None] * num_questions
        counts = np.bincount(draws.ravel(), minlength=rows * num_questions)
        weights = counts.reshape(rows, num_questions) / num_questions
        yield lambda values, weights=weights: weights @ values


def bootstrap_intervals(ratios, method, base, resamples, seed):
    """{aggregate's name: (low, high)}: 95 % intervals of `ratios` over questions.

    `ratios` is wall_ratios or decode_ratios. Percentiles of the bootstrap, whose distances from the
    value, as logarithms, are few_questions() times as large. A resample in which a ratio is not
    defined (no question with a step was drawn) is dropped. One question alone has no interval:
    (None, None).
    """
    found = ratios(method, base)
    rows = decode_rows(method, base) if ratios is decode_ratios else base.wall_s > 0
    if rows.sum() < 2:
        return {name: (None, None) for name in found}
    means = resample_means(len(base.wall_s), resamples, seed)
    drawn = [ratios(method, base, mean) for mean in means]
    stretch, intervals = few_questions(int(rows.sum())), {}
    for name, value in found.items():
        values = np.concatenate([chunk[name] for chunk in drawn])
        values = values[np.isfinite(values)]
        ends = np.percentile(values, [2.5, 97.5]) if len(values) else (None, None)
        if len(values) and min(value, *ends) > 0:
            ends = value * (ends / value) ** stretch
        intervals[name] = tuple(ends)
    return intervals


def mean_accepted(columns):
    """{"over_steps", "over_questions"}: mean accepted tokens per step, or None without lengths."""
    if columns.accepted is None or not columns.accept_count.sum():
        return None
    has = columns.accept_count > 0
    return {
        "over_steps": columns.accepted.sum() / columns.accept_count.sum(),
        "over_questions": (columns.accepted[has] / columns.accept_count[has]).mean(),
    }


def time_identity(method, base):
    """Why a method is as fast as it is, from totals; every time is milliseconds per step.

    speedup = (tokens_per_step / base_tokens_per_step) x base_step_ms / (sum of parts_ms)

    With prefill times on both sides ("decode"), the tokens are accept lengths, so the first factor
    is the accept length (the baseline's is 1.00), and the parts are draft, verify, commit and
    rest = wall - prefill - (draft + verify + commit). Without ("wall"), tokens are new_tokens and
    the only part is the whole step, prefill inside. None where a side took no step, or hides them.
    """
    sides, parts = (method, base), {}
    if any(side.steps is None or not side.steps.sum() for side in sides):
        return None
    split = all(side.decode_s is not None and is_decoded(side) for side in sides)
    tokens, base_tokens = (int((s.accepted if split else s.tokens).sum()) for s in sides)
    seconds, base_s = (float((s.decode_s if split else s.wall_s).sum()) for s in sides)
    if min(seconds, base_s, base_tokens) <= 0:
        return None
    steps, base_steps = (int(side.steps.sum()) for side in sides)
    if split and method.stage_s is not None:
        parts = {stage: 1e3 * total / steps for stage, total in method.stage_s.items()}
        parts["rest"] = 1e3 * (seconds - math.fsum(method.stage_s.values())) / steps
    else:
        parts["step"] = 1e3 * seconds / steps
    return {
        "time": "decode" if split else "wall",
        "speedup_total_ratio": (tokens / seconds) / (base_tokens / base_s),
        "tokens_per_step": tokens / steps,
        "base_tokens_per_step": base_tokens / base_steps,
        "base_step_ms": 1e3 * base_s / base_steps,
        "parts_ms": parts,
    }


def is_decoded(columns):
    """Whether the tokens that the steps committed are those that came within the decode time."""
    return columns.accepted is not None and np.array_equal(columns.accepted, columns.decode_tokens)


def identity_product(identity):
    """The right-hand side of time_identity(), from its terms alone."""
    gain = identity["tokens_per_step"] / identity["base_tokens_per_step"]
    return gain * identity["base_step_ms"] / math.fsum(identity["parts_ms"].values())


def batch_throughput(questions):
    """tokens/s of turns that are decoded together, or None where the file does not say when.

    Where begin_s is recorded: new_tokens / busy_s. Of files with fixed batches: new_tokens / sum
    over (choice, batch, turn) of the longest wall_time.
    """
    choices = [choice for question in questions for choice in question.choices]
    tokens, seconds = sum(sum(choice.new_tokens) for choice in choices), busy_s(questions)
    if seconds is None:
        if any(choice.batch is None for choice in choices):
            return None
        longest_s = {}
        for choice in choices:
            for turn, (batch, wall_s) in enumerate(zip(choice.batch, choice.wall_s)):
                together = choice.index, batch, turn
                longest_s[together] = max(wall_s, longest_s.get(together, 0.0))
        seconds = math.fsum(longest_s.values())
    return tokens / seconds


def busy_s(questions):
    """Seconds in which a turn was prefilled or decoded; None where a turn has no begin_s."""
    spans = []
    for choice in (choice for question in questions for choice in question.choices):
        if choice.begin_s is None:
            return None
        spans += [(begin, begin + wall_s) for begin, wall_s in zip(choice.begin_s, choice.wall_s)]
    return covered_s(spans)


def covered_s(spans):
    """Length of the union of spans [(begin, end)].

    >>> covered_s([(5, 6), (0, 2), (1, 3)])
    4
    """
    total, covered = 0, -math.inf  # covered: all up to here is counted
    for begin, end in sorted(spans):
        total += max(end, covered) - max(begin, covered)
        covered = max(end, covered)
    return total


def published_ratio(method_tokens, method_s, base_retokenised, base_s):
    """Spec-Bench's formula as published: mean(new_tokens / s) / mean(re-tokenised length / s).

    The two sides count by different rules: new_tokens includes the end-of-sequence token and the
    baseline's re-tokenised text does not, so the ratio is a little above mean_ratio.
    """
    return np.mean(method_tokens / method_s) / np.mean(base_retokenised / base_s)
