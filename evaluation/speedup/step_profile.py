"""Where a method's time goes, and how many accepted tokens pay for it.

share        of the decode time: draft, verify, commit, and the rest of the wall time
rows         1 + drafted candidates of a step (probe and inert rows are read too, but no file counts
             them); a mean over steps, as the times are, since drafts come and go
price        of verification: a step's verify_s / the baseline's, whose step reads one row
break-even   accept length at which the method is as fast as the baseline, prefill left out:
             (draft + verify + commit + rest) of a step / the baseline's step
harness      share of the run outside every timed region: tokenising, detokenising (but for stop
             strings), writing
"""

import math
from statistics import fmean


def profile(identity, ours, theirs):
    """{"shares", "rows", "verify_ms", "base_verify_ms", "price", "break_even", ...} of a method.

    identity: metrics.time_identity() of the same questions; ours, theirs: Questions. What the files
    do not hold is None.
    """
    found = dict.fromkeys(("shares", "break_even", "accepted", "pays"))
    if identity is not None:
        parts, step_ms = identity["parts_ms"], math.fsum(identity["parts_ms"].values())
        if "verify" in parts and step_ms > 0:
            found["shares"] = {name: ms / step_ms for name, ms in parts.items()}
        even = identity["base_tokens_per_step"] * step_ms / identity["base_step_ms"]
        found["break_even"], found["accepted"] = even, identity["tokens_per_step"]
        found["pays"] = identity["tokens_per_step"] > even
    verify_s, base_verify_s = mean_step(ours, "verify_s"), mean_step(theirs, "verify_s")
    drafted = mean_step(ours, "drafted")
    return {
        **found,
        "rows": None if drafted is None else 1 + drafted,
        "verify_ms": verify_s and 1e3 * verify_s,
        "base_verify_ms": base_verify_s and 1e3 * base_verify_s,
        "price": verify_s / base_verify_s if verify_s and base_verify_s else None,
    }


def mean_step(questions, name):
    """The mean over all steps of a per-step field of the choices, None where one lacks it."""
    values = []
    for choice in (choice for question in questions for choice in question.choices):
        turns = getattr(choice, name)
        if turns is None:
            return None
        values += [value for turn in turns for value in turn]
    return fmean(values) if values else None


def recompiled_turns(questions):
    """Turns with a compilation or capture inside their wall_time; None where that is not known."""
    counts = [choice.recompiled for question in questions for choice in question.choices]
    if any(count is None for count in counts):
        return None
    return sum(number > 0 for count in counts for number in count)


def harness_share(run_s):
    """Share of a run outside timed regions, from a meta's run_s; None where it is not recorded."""
    if not isinstance(run_s, dict) or not {"decode", "harness"} <= set(run_s):
        return None
    total = run_s["decode"] + run_s["harness"]
    return run_s["harness"] / total if total > 0 else None
