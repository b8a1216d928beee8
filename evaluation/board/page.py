"""Leaderboard.md from the stored rows: a table for each target, device and setting, best first."""

import re

from evaluation.answers.meta import AnswerError
from evaluation.board.verdicts import AUDIT, TARGET
from evaluation.speedup.drift import CHEAP, ENDING
from evaluation.speedup.report import short_commit
from evaluation.summary.layout import NO_VALUE, SETTINGS, USUAL, number, speedup_text
from evaluation.summary.rows import shortened
from model.common.visible import visible

NAME = "Leaderboard.md"
MINI = "mini_bench"
HEADING = "# Leaderboard\n"
HEAD = f"""{HEADING}
Written by `python evaluation/leaderboard.py write` from the rows under `data/leaderboard/`, never
by hand. Beside every row lie the answer files that it is computed from, and `python
evaluation/leaderboard.py check` computes all of them again. Rows of different tables are not
comparable. How to add a row: README.md, Contributing a row; which are refused:
evaluation/README.md, Leaderboard.
"""
NONE = "No row has been added yet.\n"
MINI_LINE = "The mini models are a check of the machinery; their rows say nothing of real models."
# a row of one table has these in common
ALIKE = ("bench_name", "target", "scale_to", "device", "num_threads", "dtype", "temperature")
ALIKE += ("top_p", "batch_size", "runtime", "max_new_tokens", "weights_sha256", "questions_sha256")
LINE = ("dtype", "temperature", "top_p", "runtime", "batch_size", "num_threads")
MARKUP = re.compile(r"[\\`*#~|<>\[\]]")


def no_page(path):
    """Why a page cannot be written there, or is not to be; None: it can."""
    if not path.parent.is_dir():
        return f"{path}: no such folder"
    if not path.exists():
        return None
    if not path.is_file():
        return f"{path}: no file"
    begins = path.read_bytes()[: len(HEADING)]
    return None if begins == HEADING.encode() else f"{path}: another file than a leaderboard's page"


def text(rows):
    """The whole page. rows: documents of the store; AnswerError where one has other numbers."""
    try:
        return text_of(rows)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise AnswerError(f"{NAME}: a row has no numbers to print: {error!r}") from error


def text_of(rows):
    """text() of rows whose numbers are whole."""
    sections = {}
    for row in rows:
        found = row["numbers"]
        place = tuple(found[name] for name in ("bench_name", "target", "scale_to", "device"))
        table = tuple(map(str, (found[name] for name in ALIKE)))
        sections.setdefault(place, {}).setdefault(table, []).append(row)
    order = sorted(sections, key=lambda place: (place[0] == MINI, *map(str, place)))
    parts = [HEAD] if rows else [HEAD, NONE]
    for place in order:
        parts.append("\n".join(section_lines(place, sections[place])))
    return "\n".join(parts)


def shown(value):
    r"""A value of a row as text of one line, which is no markup of Markdown or HTML.

    >>> print(shown("A | <b>\n# B"))
    A \| \<b\>\\n\# B
    """
    return MARKUP.sub(r"\\\g<0>", visible(str(value), kept=""))


def section_lines(place, tables):
    """The lines of one target on one device."""
    bench, target, size, device = place
    twin = f"twin of {target} at {size}" if size else target
    lines = ["## " + shown(f"{twin} on {device}: {bench}"), ""]
    lines += [MINI_LINE, ""] if bench == MINI else []
    if size:
        lines += ["A twin has a large model's times and the acceptance of the small one in it.", ""]
    for table in sorted(tables):
        rows = sorted(tables[table], key=lambda row: -row["numbers"]["speedup"]["Overall"]["value"])
        lines += [*heading_lines(rows), "", *table_lines(rows), "", *mark_lines(rows)]
    return lines


def heading_lines(rows):
    """What the rows of a table share."""
    found = rows[0]["numbers"]
    parts = [
        SETTINGS[name].format(found[name])
        for name in LINE
        if found[name] is not None and found[name] != USUAL.get(name)
    ]
    parts.append(f"at most {found['max_new_tokens']} new tokens")
    asked, of_bench = found["questions"], found["bench_questions"]
    parts.append(f"{asked} of {of_bench} questions" if asked != of_bench else f"{asked} questions")
    bases = {(row["numbers"]["base_name"], row["numbers"]["base_tokens_per_s"]) for row in rows}
    if len(bases) == 1:
        ((_, speed),) = bases
        parts.append(f"baseline {speed:.1f} tokens/s")
    return [" | ".join(map(shown, parts))]


def table_lines(rows):
    """The table itself."""
    tasks = [name for name in rows[0]["numbers"]["speedup"] if name != "Overall"]
    energy = any(row["numbers"]["joules_per_token"] is not None for row in rows)
    header = ["method", "speedup [95 %]", *map(shown, tasks), "accepted", "price", "of bound"]
    header += ["verdict", "drift", *["J/token (baseline)"] * energy, "commit", "date"]
    lines = [header, ["---"] * len(header)]
    found = [row["numbers"] for row in rows]
    runs = {one[name] for one in found for name in ("name", "base_name")}
    names = shortened({run for run in runs if not run.endswith(ENDING)})
    lines += [cells(row, tasks, energy, names) for row in rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def cells(row, tasks, energy, names):
    """The texts of a row."""
    found, verdict = row["numbers"], row["verdict"]
    judged = "+" if verdict["by"] in (TARGET, AUDIT) else ""
    share, price = found["bound"]["share"], found["price"]
    cheap = "!" if price is not None and price < CHEAP else ""
    bound = NO_VALUE if share is None else f"{100 * share:.1f} %"
    return [
        shown(name_text(found, names)),
        speedup_text(found["speedup"]["Overall"]),
        *(number((found["speedup"].get(task) or {"value": None})["value"]) for task in tasks),
        number(found["accepted"]),
        number(price) + cheap,
        bound + "*" * (found["bound"]["label"] is not None),
        shown(verdict["verdict"]) + judged,
        shown(drift_text(found["drift"])),
        *[energy_text(found)] * energy,
        shown(short_commit(found["commit"])),
        shown(found["date"]),
    ]


def name_text(found, names):
    """'medusa (lossy)', 'sps: sps-long': the method and, if it is called otherwise, its run."""
    run, method = names[found["name"]], found["method"]
    turns, ran = found["recompiled_turns"], found["runtime_ran"]
    notes = ["lossy"] if found["lossy"] else []
    notes += [f"compiling within {turns} turns"] if turns else []
    notes += [f"ran {ran}"] if ran not in (None, found["runtime"]) else []
    text = method if run == method else f"{method}: {run}"
    return text + "".join(f" ({note})" for note in notes)


def drift_text(found):
    """'+1.2 %', or '-' of a baseline that was decoded beside every answer."""
    if found["moved"] is None:
        return NO_VALUE if found["state"] == "none" else found["state"]
    return f"{100 * (found['moved'] - 1):+.1f} %"


def energy_text(found):
    """'0.41 (0.78)': joules a token, of the baseline in brackets."""
    return f"{digits(found['joules_per_token'])} ({digits(found['base_joules_per_token'])})"


def digits(value):
    """Three significant digits."""
    return NO_VALUE if value is None else f"{value:.3g}"


def mark_lines(rows):
    """What the marks in the cells of a table mean."""
    found = [row["numbers"] for row in rows]
    lines = []
    if any(numbers["bound"]["label"] for numbers in found):
        lines.append(
            "\\* launch-bound: the baseline's step takes more than twice its bound; a draft's rows"
            " seem cheap"
        )
    if any((numbers["price"] or 1) < CHEAP for numbers in found):
        lines.append("! price below 1: many rows cost less than one, so the machine was another")
    if any(row["verdict"]["by"] in (TARGET, AUDIT) for row in rows):
        lines.append(
            "\\+ given by the target itself; `check` holds the kept report to the files, and does"
            " not run the target again"
        )
    return ["  \n".join(lines), ""] if lines else []
