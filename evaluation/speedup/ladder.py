"""Several baselines in one ladder: a speedup is worth what the baseline below it is worth.

Rungs are the same target on the same questions without drafting: the loop's eager baseline, the
same compiled or as CUDA graphs, transformers' generate. They may differ in `runtime`, and in
nothing else that files must share; the report says so. The best rung is the one with the most
tokens/s (mean over questions), and every method's speedup is given against it, too.
"""

from pathlib import Path

from evaluation.answers.meta import AnswerError, check_shared, describe
from evaluation.answers.reader import read_answers
from evaluation.speedup import drift, metrics
from evaluation.speedup.comparison import describe_file, number
from evaluation.speedup.pairing import pair_questions
from evaluation.speedup.report import NO_VALUE, fixed, ratio_text, runtime_text, table
from evaluation.speedup.roofline import bound_line, roofline, share_text

RUNG_FIELDS = ("label", "file", "sha256", "runtime", "runtime_ran")


def is_runtime(dotted):
    """The one shared setting that rungs may differ in."""
    return dotted == "runtime"


def read_rungs(paths, base):
    """The AnswerFiles of --ladder, the tables' baseline first; warnings are the caller's to say."""
    files = {base.path.resolve(): base}
    for path in paths:
        where = Path(path).resolve()
        if where not in files:
            files[where] = read_answers(path)
    return list(files.values())


def build(rungs, methods, base, args):
    """The ladder as a plain dict: its rungs in the order given, the best one, all speedups.

    args: allow, common, resamples, seed of the command line, and count_tokens of pair_questions.
    """
    rows = [rung_row(rung, base, args) for rung in rungs]
    best = max(range(len(rungs)), key=lambda i: rows[i]["tokens_per_s"])
    return {
        "rungs": rows,
        "tables_against": base.label,
        "best": rungs[best].label,
        "speedups": [speedup(method, rungs[best], args) for method in methods],
    }


def rung_row(rung, base, args):
    """The numbers of one rung; a file that commits more than a token a step is refused."""
    differs = check_shared(rung, base, args.allow, is_runtime)
    ours, _ = zip(*pair_questions(rung, base, args.common, args.count_tokens).pairs)
    columns = metrics.question_columns(ours)
    accepted = metrics.mean_accepted(columns)
    if accepted is None or abs(accepted["over_steps"] - 1) > 1e-12:
        found = "no accept_lengths" if accepted is None else f"{accepted['over_steps']:.3f} tokens"
        raise AnswerError(f"--ladder {rung.path}: {found} a step: no baseline (1.000)")
    described, meta = describe_file(rung), rung.meta or {}
    against = speedup(rung, base, args)
    return {
        **{name: described[name] for name in RUNG_FIELDS},
        "engine": (meta.get("method_args") or {}).get("engine"),
        "is_tables_baseline": rung is base,
        "questions": len(ours),
        "tokens_per_s": float(columns.speed.mean()),
        "roofline": roofline(rung, ours),
        "speedup": against["mean_ratio"],
        "drift": against["drift"],
        "differs": differs,
    }


def speedup(method, best, args):
    """The headline speedup of a method against the best rung, with its interval and drift."""
    differs = check_shared(method, best, args.allow, is_runtime)
    sides = zip(*pair_questions(method, best, args.common, args.count_tokens).pairs)
    columns = [metrics.question_columns(side) for side in sides]
    value = metrics.wall_ratios(*columns)["mean_ratio"]
    intervals = metrics.bootstrap_intervals(
        metrics.wall_ratios, *columns, args.resamples, args.seed
    )
    low, high = intervals["mean_ratio"]
    ratio = {"value": number(value), "low": number(low), "high": number(high)}
    moved = drift.measure(method, best)
    drift.widen(ratio, moved)
    return {"method": method.label, "mean_ratio": ratio, "differs": differs, "drift": moved}


def ladder_lines(ladder, results):
    """The ladder's table, and a row a method: speedup against the tables' baseline and the best."""
    rows = []
    for rung in ladder["rungs"]:
        bound = rung["roofline"]
        cells = [rung["label"] + (" *" if rung["is_tables_baseline"] else "")]
        cells += [rung["engine"] or NO_VALUE, runtime_text(rung)]
        cells += [fixed(rung["tokens_per_s"], 1), fixed(bound["step_ms"])]
        rows.append([*cells, fixed(bound["bound_ms"]), share_text(bound)])
    header = ["baseline", "engine", "runtime", "tokens/s", "step ms", "bound ms", "of its bound"]
    lines = [
        "baseline ladder: rungs may differ in runtime, by design; * is the tables' baseline,"
        f" {ladder['best']} the best rung",
        *table(header, rows),
        *(f"  {bound_line(rung['label'], rung['roofline'])}" for rung in ladder["rungs"]),
    ]
    against = [result["tasks"][-1] for result in results]
    rows = [
        [
            entry["method"],
            ratio_text(row["speedup"]["mean_ratio"]),
            ratio_text(entry["mean_ratio"]),
            drift.moved_text(entry["drift"]),
        ]
        for entry, row in zip(ladder["speedups"], against)
    ]
    header = ["speedup (mean ratio)", f"against {ladder['tables_against']}"]
    lines += table([*header, f"against the best rung, {ladder['best']}", "its drift"], rows)
    seen = [(entry["method"], d) for entry in ladder["speedups"] for d in entry["differs"]]
    return lines + [f"  {method} differs in {describe(d)}" for method, d in seen]
