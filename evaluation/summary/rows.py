"""Rows of the compact table, from reports of speed.py, equal.py and audit_sampling.py."""

import os
from dataclasses import dataclass
from pathlib import Path

from evaluation.answers.meta import placement_text
from evaluation.speedup.drift import cheap

ABOVE_BOUND = "launch-bound"  # label of a baseline that takes more than twice its bound


@dataclass
class Asked:
    """A row as eval.sh ran it: its name, its command's exit status, its answer file and its log."""

    name: str
    status: int
    file: Path
    log: Path

    @property
    def ran(self):
        """Whether its answers are there; 1: all but some questions."""
        return self.status <= 1


@dataclass
class Row:
    """One line of the table; what is not known is None.

    speedup   {"value", "low", "high"}; of the baseline itself, and of a method in a table of its
              own, low and high are None
    share     of the bound that the row's baseline runs at
    best      speedup against the best of several baselines
    joules    of a token, of files that were metered
    notes     what has to be said of it below the table
    """

    name: str
    accepted: float | None = None
    speedup: dict | None = None
    price: float | None = None
    share: float | None = None
    launch_bound: bool = False
    verdict: str = "not run"
    drift: dict | None = None
    best: float | None = None
    joules: float | None = None
    lossy: bool = False
    notes: tuple = ()
    baseline: bool = False


class Names:
    """Row names by answer file; of a file that eval.sh did not ask for its label, shortened.

    sides: of all comparisons of the reports
    """

    def __init__(self, asked=(), sides=()):
        self.by_file = {row.file.resolve(): row.name for row in asked}
        self.by_label = shortened({side["label"] for side in sides})

    def of(self, side):
        """The name of a side of a comparison, or of a rung."""
        label = side["label"]
        return self.by_file.get(Path(side["file"]).resolve()) or self.by_label.get(label, label)


def shortened(labels):
    """{label: what is its own}, without the parts that all have: mini-pld-float32 -> pld.

    Labels of which one would be empty stay as they are.
    """
    parts = {label: label.removesuffix(" (lossy)").split("-") for label in labels}
    begin = len(os.path.commonprefix([*parts.values()]))
    end = len(os.path.commonprefix([words[::-1] for words in parts.values()]))
    if any(begin + end >= len(words) for words in parts.values()):
        begin = end = 0
    return {label: "-".join(words[begin : len(words) - end]) for label, words in parts.items()}


def table_rows(speed, verdicts, names):
    """All rows of one report of speed.py: baseline, further baselines, methods.

    verdicts: {resolved answer file: words}, of verdicts_of()
    """
    results, ladder = speed["results"], speed.get("ladder") or {"rungs": [], "speedups": ()}
    rows = [baseline_row(results, names)] if one_baseline(results) else []
    rows += [rung_row(rung, names) for rung in ladder["rungs"] if not rung["is_tables_baseline"]]
    best = [entry["mean_ratio"]["value"] for entry in ladder["speedups"]] or [None] * len(results)
    for result, against_best in zip(results, best):
        if result["method"]["file"] != result["baseline"]["file"]:
            rows.append(method_row(result, verdicts, names, against_best))
    return rows


def one_baseline(results):
    """Whether all results are against one file, which then has a row."""
    return len({result["baseline"]["file"] for result in results}) == 1


def baseline_row(results, names):
    """The baseline's own row."""
    result = results[0]
    side, identity = result["baseline"], result["time_identity"]
    energy = result["tasks"][-1].get("energy") or {}
    accepted = identity and identity["base_tokens_per_step"]
    if accepted is None and result["method"]["file"] == side["file"]:  # a server, by itself
        accepted = (result["tasks"][-1]["mean_accepted"] or {}).get("over_steps")
    return Row(
        names.of(side),
        accepted=accepted,
        speedup={"value": 1.0, "low": None, "high": None},
        price=1.0 if result["profile"]["base_verify_ms"] else None,
        **bound_of(result["roofline"]),
        verdict=with_failed("baseline", result["left_out"]["failed_in_baseline"]),
        notes=(*notes_of(side),),
        joules=energy.get("base_joules_per_token"),
        baseline=True,
    )


def rung_row(rung, names):
    """A further baseline of --ladder."""
    return Row(
        names.of(rung),
        accepted=1.0,  # ladder.py refuses others
        speedup=rung["speedup"],
        **bound_of(rung["roofline"]),
        verdict="baseline",
        notes=(*notes_of(rung), *named_of(rung["drift"])),
        drift=rung["drift"],
        baseline=True,
    )


def method_row(result, verdicts, names, against_best):
    """One method."""
    side, overall = result["method"], result["tasks"][-1]
    verdict = verdicts.get(Path(side["file"]).resolve(), "not compared")
    return Row(
        names.of(side),
        accepted=(overall["mean_accepted"] or {}).get("over_steps"),
        speedup=overall["speedup"]["mean_ratio"],
        price=result["profile"]["price"],
        **bound_of(result["roofline"]),
        verdict=with_failed(verdict, result["left_out"]["failed_in_method"]),
        drift=result["drift"],
        best=against_best,
        joules=(overall.get("energy") or {}).get("joules_per_token"),
        lossy=side["lossy"],
        notes=(*notes_of(side), *named_of(result["drift"], result["profile"])),
    )


def not_compared_rows(speed, names):
    """Methods that speed.py refused to compare, with the reason below the table."""
    for lost in speed.get("not_compared", ()):
        name = names.by_file.get(Path(lost["file"]).resolve(), Path(lost["file"]).stem)
        yield Row(name, verdict="not compared", notes=(lost["reason"],))


def bound_of(roofline):
    """The fields of a Row about the baseline's bound."""
    return {"share": roofline["share"], "launch_bound": roofline["label"] == ABOVE_BOUND}


def notes_of(side):
    """Lines about a side's times that are not what was asked for."""
    turns, ran = side.get("recompiled_turns"), side["runtime_ran"]
    if turns:
        yield f"compiling stands inside the times of {turns} turn{'s' * (turns > 1)}"
    if ran not in (None, side["runtime"]):
        yield f"runtime {side['runtime']} could not be had, it ran {ran}"
    if placed := placement_text(side.get("placement")):
        yield f"placement {placed}"


def named_of(drift, profile=None):
    """What differs between the two runs of a comparison; a price below 1 has a mark of its own."""
    marked = [*cheap(profile)]
    return [line for line in (drift or {}).get("named", ()) if line not in marked]


def with_failed(verdict, failed):
    """'equal, 2 failed' where questions failed."""
    return f"{verdict}, {len(failed)} failed" if failed else verdict


def verdicts_of(documents):
    """{resolved answer file: words} of reports of equal.py and audit_sampling.py.

    Where answers were sampled the audit's verdict stands, since their ids differ rightly.
    """
    found = {}
    for document in sorted(documents, key=lambda one: one["tool"] == "audit_sampling"):
        for result in document["results"]:
            words = result["verdict"] if "verdict" in result else equal_words(result)
            found[Path(result["file"]).resolve()] = words
    return found


def equal_words(result):
    """'equal', '2 of 24 differ', or the verdict of the target itself, of one file of equal.py."""
    if "judgement" in result:
        return result["judgement"]["verdict"]
    differing = {d["question_id"] for d in result["differences"] if d["kind"] != "error"}
    return f"{len(differing)} of {result['questions']} differ" if differing else "equal"
