"""A leaderboard row from answer files: its numbers, its verdict, and why it is none.

examine() is what `leaderboard.py add` and `check` both call, on the files of a run and on those
that come out of the store: the numbers are those of speed.py, by its own functions.
"""

import math
from dataclasses import dataclass

from evaluation.answers.meta import AnswerError, find_field
from evaluation.answers.reader import read_answers
from evaluation.board import endings, questions, rules, times, verdicts
from evaluation.speedup import drift
from evaluation.speedup.comparison import compare

RESAMPLES, SEED = 10_000, 0  # speed.py's defaults
DIGITS, TOLERANCE = 9, 1e-6  # kept of a number; by how much another machine's arithmetic may differ
JOULES = ("joules_per_token", "base_joules_per_token")
SHARED = ("target", "scale_to", "bench_name", "device", "num_threads", "dtype", "temperature")
SHARED += ("top_p", "batch_size", "runtime", "max_new_tokens", "weights_sha256", "questions_sha256")


@dataclass
class Examined:
    """What the files of a row say."""

    numbers: dict  # the row's numbers
    verdict: dict  # of verdicts.decide()
    reasons: list  # why it is no row, a line each
    meta: dict  # the method's


def examine(method_path, base_path, kept, evidence=None):
    """Examined of a method's and a baseline's answer files.

    Its pairs are those beside the method's file, as drift.py reads them. kept: questions of the
    bench, None where they are not known; evidence: a judge's findings. Raises AnswerError where
    files cannot be compared, or are broken in a place that readers of answer files do not look at.
    """
    try:
        return examine_files(method_path, base_path, kept, evidence)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise AnswerError(f"{method_path}: its files are broken: {error!r}") from error


def examine_files(method_path, base_path, kept, evidence):
    """examine() of files whose metas are whole."""
    method, base = read_answers(method_path), read_answers(base_path)
    rules.require_metas(method, base)
    pairs_path = drift.pairs_path(method_path)
    pairs = read_answers(pairs_path) if pairs_path.is_file() else None
    result = compare(method, base, RESAMPLES, SEED)
    verdict = verdicts.decide(method, base, evidence)
    reasons = [*rules.problems(method, base, result), *rules.verdict_problems(verdict)]
    reasons += verdicts.problems(method, base, verdict)
    sides = {id(side): side for side in (method, base)}.values()
    for side in sides:
        found = times.problems(side, pairs if side is method else None)
        found += endings.problems(side)
        if kept is None:
            found.append(f"no question set of bench {find_field(side.meta, 'bench_name')}")
        else:
            found += questions.problems(side, kept)
        reasons += found if side is method else [f"baseline: {line}" for line in found]
    return Examined(numbers(method, base, result, kept), verdict, reasons, method.meta)


def numbers(method, base, result, kept):
    """The numbers of a row, from speed.py's comparison of its files."""
    side, overall = result["method"], result["tasks"][-1]
    shared = method.meta["shared"]
    ratios = {row["name"]: row["speedup"]["mean_ratio"] for row in result["tasks"]}
    keys = ("value", "low", "high")
    found = {
        "name": method.model_id,
        "method": side["method"],
        "acceptance": side["acceptance"],
        "lossy": method.lossy,
        **{name: shared.get(name) for name in SHARED},
        "commit": side["commit"],
        "date": method.meta["started"][:10],
        "questions": result["questions"],
        "bench_questions": None if kept is None else len(kept),
        "tokens_per_s": overall["tokens_per_s"],
        "base_name": base.model_id,
        "base_tokens_per_s": overall["base_tokens_per_s"],
        "speedup": {name: {key: ratio[key] for key in keys} for name, ratio in ratios.items()},
        "accepted": (overall["mean_accepted"] or {}).get("over_steps"),
        "price": result["profile"]["price"],
        "bound": {name: result["roofline"][name] for name in ("share", "label", "no_bound")},
        "drift": drift_numbers(result["drift"]),
        **{name: (overall["energy"] or {}).get(name) for name in JOULES},
        "recompiled_turns": side["recompiled_turns"],
        "runtime_ran": side["runtime_ran"],
    }
    return rounded(found)


def drift_numbers(found):
    """What a row keeps of a drift: its state, pairs, and the part that moved furthest."""
    names = ("state", "pairs", "marked", "named")
    return {name: found[name] for name in names} | {"moved": drift.furthest(found)}


def rounded(value):
    """A document whose floats have DIGITS digits, so that it prints alike on all machines."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def differences(row, found, name=""):
    """Where two documents differ: 'price: 1.05, from the files 1.10', a line each."""
    if isinstance(row, dict) and isinstance(found, dict):
        for key in dict.fromkeys((*row, *found)):
            dotted = f"{name}.{key}" if name else key
            yield from differences(row.get(key), found.get(key), dotted)
    elif both_numbers(row, found):
        if not math.isclose(row, found, rel_tol=TOLERANCE, abs_tol=1e-12):
            yield f"{name}: {row:g}, from the files {found:g}"
    elif row != found:
        yield f"{name}: {row!r}, from the files {found!r}"


def both_numbers(*values):
    """Whether all are numbers, and one of them is none that is counted."""
    return all(type(v) in (int, float) for v in values) and any(type(v) is float for v in values)
