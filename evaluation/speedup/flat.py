"""A comparison as flat rows, one a task of a method, for spreadsheets and data frames.

Figures of a file as a whole (price, break-even, share of the bound) stand in the rows of "overall"
alone; what is not known is empty in csv and null in jsonl.
"""

import csv
import io
import json

from evaluation.cli import finite
from evaluation.speedup.comparison import SETTINGS
from evaluation.speedup.drift import furthest


def flat_rows(results):
    """[{column: value}] of results of comparison.compare(), all with the same columns."""
    return [flat_row(result, row) for result in results for row in result["tasks"]]


def flat_row(result, row):
    """One task of one method."""
    method, base, accepted = result["method"], result["baseline"], row["mean_accepted"] or {}
    overall = row["task"] == "overall"
    profile, bound = (result[name] if overall else {} for name in ("profile", "roofline"))
    energy = row["energy"] or {}
    return {
        "method": method["label"],
        "baseline": base["label"],
        "task": row["task"],
        "questions": row["questions"],
        **ratio_columns("speedup", row["speedup"], "mean_ratio"),
        **ratio_columns("decode_speedup", row["decode_speedup"], "mean_ratio"),
        "tokens_per_s": row["tokens_per_s"],
        "base_tokens_per_s": row["base_tokens_per_s"],
        "accepted_over_steps": accepted.get("over_steps"),
        "accepted_over_questions": accepted.get("over_questions"),
        "new_tokens": row["new_tokens"],
        "wall_s": row["wall_s"],
        "base_wall_s": row["base_wall_s"],
        "joules_per_token": energy.get("joules_per_token"),
        "base_joules_per_token": energy.get("base_joules_per_token"),
        **ratio_columns("energy_ratio", energy.get("ratio"), "total_ratio"),
        "price": profile.get("price"),
        "break_even": profile.get("break_even"),
        "baseline_step_ms": bound.get("step_ms"),
        "baseline_share_of_bound": bound.get("share"),
        "baseline_label": bound.get("label"),
        "drift": result["drift"]["state"],
        "moved": furthest(result["drift"]),
        "marked": result["drift"]["marked"],
        "lossy": method["lossy"],
        **{name: method[name] for name in SETTINGS},
        "file": method["file"],
        "sha256": method["sha256"],
        "base_file": base["file"],
        "base_sha256": base["sha256"],
    }


def ratio_columns(name, ratios, aggregate):
    """NAME, NAME_low and NAME_high of one aggregate of a ratio."""
    entry = (ratios or {}).get(aggregate) or {}
    columns = {name: "value", f"{name}_low": "low", f"{name}_high": "high"}
    return {column: entry.get(key) for column, key in columns.items()}


def csv_text(results):
    """The rows as csv with a header line."""
    rows, out = finite(flat_rows(results)), io.StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def jsonl_text(results):
    """The rows as one JSON object a line."""
    return "".join(f"{json.dumps(row, allow_nan=False)}\n" for row in finite(flat_rows(results)))
