"""One method against one baseline, as a plain dict that holds every number speed.py prints."""

from dataclasses import replace

import numpy as np

from evaluation.answers.meta import AnswerError, check_shared, find_field
from evaluation.speedup import drift, metrics
from evaluation.speedup.pairing import pair_questions
from evaluation.speedup.roofline import roofline
from evaluation.speedup.step_profile import harness_share, profile, recompiled_turns

TASK_NAMES = {
    "mt_bench": "Multi-turn",
    "translation": "Translation",
    "summarization": "Summarization",
    "qa": "QA",
    "math_reasoning": "Math",
    "rag": "RAG",
}
SETTINGS = ("target", "scale_to", "bench_name", "dtype", "temperature", "top_p", "device")
SETTINGS += ("num_threads", "runtime", "batch_size", "commit")  # fields of a meta
AGGREGATES = {
    "mean_ratio": "mean ratio",
    "total_ratio": "total ratio",
    "geometric_mean": "geometric mean",
}


def compare(method, base, resamples, seed, allow=(), common=False, count_tokens=None, compat=False):
    """Compare two AnswerFiles; refuses (AnswerError) what cannot be compared.

    count_tokens: text -> number of input ids of the target's tokenizer, special tokens included.
    compat: compute Spec-Bench's published formula, too, for which it is needed.
    Intervals are widened by the drift between the two files.
    """
    allowed = check_shared(method, base, allow, asked_alike(method, base) if common else no_field)
    pairing = pair_questions(method, base, common, count_tokens)
    tasks = [
        task_row(task, name, pairs, resamples, seed)
        for task, name, pairs in tasks_of(pairing.pairs)
    ]
    ours, theirs = zip(*pairing.pairs)
    columns, base_columns = metrics.question_columns(ours), metrics.question_columns(theirs)
    identity = metrics.time_identity(columns, base_columns)
    spent = profile(identity, ours, theirs)
    moved = drift.measure(method, base, spent)
    drift.settle(spent, moved)
    alike = same_meters(method, base)
    for row in tasks:
        ratios = row["energy"] and row["energy"]["ratio"]
        if ratios and not alike:
            row["energy"]["ratio"] = ratios = None
        for found in (row["speedup"], row["decode_speedup"], ratios):
            for entry in (found or {}).values():
                drift.widen(entry, moved)
    result = {
        "method": describe_file(method)
        | {"recompiled_turns": recompiled_turns(ours), "moved": moved["marked"]},
        "baseline": describe_file(base) | {"recompiled_turns": recompiled_turns(theirs)},
        "questions": len(pairing.pairs),
        "left_out": pairing.left_out,
        "notes": [
            *pairing.notes,
            *baseline_notes(base, base_columns),
            *([] if alike else ["energy: of other meters than the baseline's, so it has no ratio"]),
        ],
        "allowed": allowed,
        "bootstrap": {"resamples": resamples, "seed": seed, "level": 0.95},
        "tasks": tasks,
        "time_identity": identity,
        "roofline": roofline(base, theirs),
        "profile": spent,
        "drift": moved,
        "throughput": throughput(method, ours, theirs),
    }
    if compat:
        result["spec_bench_compat"] = published(pairing.pairs, count_tokens)
    return result


def no_field(dotted):
    """No difference in a shared setting is harmless."""
    return False


def asked_alike(method, base):
    """Which field may differ where questions are left out: the hashes over all of them.

    But not where a question that both files were asked has other words or another prompt.
    """
    ours, theirs = ((answers.meta or {}).get("questions") or {} for answers in (method, base))
    both = ours.keys() & theirs.keys()
    alike = bool(both) and all(ours[name] == theirs[name] for name in both)
    return lambda dotted: alike and dotted in ("questions_sha256", "prompts_sha256")


def describe_file(answers):
    """What identifies an answer file in a report."""
    meta = answers.meta or {}
    return {
        "label": answers.label,
        "model_id": answers.model_id,
        "method": meta.get("method"),
        "acceptance": meta.get("acceptance"),
        "lossy": answers.lossy,
        "file": str(answers.path),
        "sha256": answers.sha256,
        **{name: find_field(meta, name) for name in SETTINGS},
        "facts": meta.get("method_facts") or {},
        "energy": metered(meta),
        "runtime_ran": meta.get("runtime_ran"),
        "placement": meta.get("placement"),
        "harness_share": harness_share(meta.get("run_s")),
    }


def metered(meta):
    """{"meters": [...], "idle_w": of the last process}; None where nothing was metered."""
    entries = meta.get("energy") or []
    if not entries:
        return None
    devices = [device for entry in entries for device in entry["devices"]]
    meters = sorted({f"{device['device']} ({device['meter']})" for device in devices})
    return {"meters": meters, "idle_w": entries[-1].get("idle_w")}


def same_meters(method, base):
    """Whether two AnswerFiles' energy is of like devices, as far as their metas say."""
    ours, theirs = metered(method.meta or {}), metered(base.meta or {})
    return not (ours and theirs) or ours["meters"] == theirs["meters"]


def baseline_notes(base, columns):
    """A line where the baseline is not what a baseline should be."""
    accepted = metrics.mean_accepted(columns)
    if accepted is None or abs(accepted["over_steps"] - 1) < 1e-12:
        return []
    return [
        f"the baseline {base.label} commits {accepted['over_steps']:.3f} tokens per step:"
        " no plain baseline (1.000)"
    ]


def tasks_of(pairs):
    """[(task, display name, its pairs)]: known tasks, then unknown ones by name, then overall."""
    found = {}
    for ours, theirs in pairs:
        found.setdefault(theirs.task, []).append((ours, theirs))
    order = [task for task in TASK_NAMES if task in found]
    order += sorted(task for task in found if task not in TASK_NAMES)
    rows = [(task, TASK_NAMES.get(task, task), found[task]) for task in order]
    return [*rows, ("overall", "Overall", pairs)]


def number(value):
    """A float for JSON, or None where it is not finite (a mean over nothing, a ratio to zero)."""
    return float(value) if value is not None and abs(value) < float("inf") else None


def task_row(task, name, pairs, resamples, seed):
    """The numbers of one table row from its (method, baseline) question pairs."""
    method, base = (metrics.question_columns(side) for side in zip(*pairs))
    row = {
        "task": task,
        "name": name,
        "questions": len(pairs),
        "tokens_per_s": float(method.speed.mean()),
        "base_tokens_per_s": float(base.speed.mean()),
        "mean_accepted": metrics.mean_accepted(method),
        "new_tokens": int(method.tokens.sum()),
        "base_new_tokens": int(base.tokens.sum()),
        "wall_s": float(method.wall_s.sum()),
        "base_wall_s": float(base.wall_s.sum()),
    }
    if row["mean_accepted"]:
        row["mean_accepted"] = {key: float(v) for key, v in row["mean_accepted"].items()}
    for key, ratios in (
        ("speedup", metrics.wall_ratios),
        ("decode_speedup", metrics.decode_ratios),
    ):
        row[key] = with_intervals(ratios, method, base, resamples, seed)
    joules, base_joules = map(metrics.joules_per_token, (method, base))
    row["energy"] = None
    if joules is not None or base_joules is not None:
        row["energy"] = {
            "joules_per_token": number(joules),
            "base_joules_per_token": number(base_joules),
            "ratio": with_intervals(metrics.energy_ratios, method, base, resamples, seed),
        }
    return row


def with_intervals(ratios, method, base, resamples, seed):
    """{aggregate: {"value", "low", "high"}} of a function of metrics.py; None where it is."""
    values = ratios(method, base)
    if values is None:
        return None
    intervals = metrics.bootstrap_intervals(ratios, method, base, resamples, seed)
    return {
        aggregate: {
            "value": number(value),
            "low": number(intervals[aggregate][0]),
            "high": number(intervals[aggregate][1]),
        }
        for aggregate, value in values.items()
    }


def throughput(method, ours, theirs):
    """tokens/s of turns decoded together where the method's batch size is above 1, else None."""
    batch_size = find_field(method.meta, "batch_size")
    if not isinstance(batch_size, int) or batch_size <= 1:
        return None
    value, base = metrics.batch_throughput(ours), metrics.batch_throughput(theirs)
    return {
        "batch_size": batch_size,
        "tokens_per_s": value,
        "base_tokens_per_s": base,
        "ratio": value / base if value and base else None,
        "busy_s": metrics.busy_s(ours),
        "base_busy_s": metrics.busy_s(theirs),
    }


def published(pairs, count_tokens):
    """Spec-Bench's published speedup per task, first choice only, as its script counts.

    The method's tokens are new_tokens; the baseline's are its texts tokenised again, less one a
    turn for the begin-of-sequence token (subtracted whether or not the tokenizer adds one).
    """
    counts = {}
    for _, theirs in pairs:
        lengths = [count_tokens(text) - 1 for text in theirs.choices[0].texts]
        counts[theirs.question_id] = sum(lengths)
    if not any(count > 0 for count in counts.values()):
        raise AnswerError("--spec-bench-compat: the baseline's texts have no tokens to count")
    values = {}
    for task, _, members in tasks_of(pairs):
        ours, theirs = (
            metrics.question_columns([replace(q, choices=q.choices[:1]) for q in side])
            for side in zip(*members)
        )
        retokenised = np.array([counts[question.question_id] for _, question in members])
        values[task] = number(
            metrics.published_ratio(ours.tokens, ours.wall_s, retokenised, theirs.wall_s)
        )
    return values
