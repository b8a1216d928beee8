"""Rows of the compact table (rows.py) as lines of at most WIDTH columns."""

from evaluation.speedup.drift import BOUND, CHEAP, furthest

WIDTH, LONGEST_NAME, NO_VALUE = 120, 22, "-"
# fields of a side of a comparison that its rows share, as they are printed
SETTINGS = {
    "target": "{}",
    "scale_to": "its twin at {}",
    "bench_name": "{}",
    "dtype": "{}",
    "temperature": "temperature {:g}",
    "top_p": "top-p {:g}",
    "device": "{}",
    "num_threads": "threads {}",
    "runtime": "{}",
    "batch_size": "batch {}",
}
USUAL = {"top_p": 1}  # values that are not worth a word


def shared_lines(results, names):
    """What all rows of a report have in common: target, bench, questions, dtype, device, ..."""
    sides = [side for result in results for side in (result["method"], result["baseline"])]
    parts = []
    for name, form in SETTINGS.items():
        values = {side[name] for side in sides}
        value = values.pop()
        if not values and value is not None and value != USUAL.get(name):
            parts.append(form.format(value))
        if name == "bench_name":
            parts.append(counted({result["questions"] for result in results}))
    result = results[0]
    speed = result["tasks"][-1]["base_tokens_per_s"]
    if len({one["baseline"]["file"] for one in results}) == 1:
        parts.append(f"{names.of(result['baseline'])} {speed:.1f} tokens/s")
    lines = parts[:1]
    for part in parts[1:]:
        joined = f"{lines[-1]} | {part}"
        lines[-1:] = [joined] if len(joined) <= WIDTH else [lines[-1], part]
    return lines


def counted(numbers):
    """'24 questions', or '22 to 24 questions' of rows whose questions failed."""
    low, high = min(numbers), max(numbers)
    return f"{low} question{'s' * (low != 1)}" if low == high else f"{low} to {high} questions"


def table_lines(rows):
    """The table of Rows, and a line for each mark in it."""
    header = ["method", "accepted", "speedup [95 %]", "vs best", "price", "of bound"]
    header += ["J/token", "verdict", "drift"]
    cells = [cells_of(row) for row in rows]
    known = {
        "vs best": any(row.best is not None for row in rows),
        "J/token": any(row.joules is not None for row in rows),
    }
    kept = [known.get(name, True) for name in header]
    header, *cells = ([cell for cell, k in zip(line, kept) if k] for line in (header, *cells))
    right = [name in ("accepted", "price", "vs best", "of bound", "J/token") for name in header]
    widths = [max(map(len, column)) for column in zip(header, *cells)]
    lines = [
        "  ".join(
            cell.rjust(width) if far else cell.ljust(width)
            for cell, width, far in zip(line, widths, right)
        ).rstrip()
        for line in (header, *cells)
    ]
    return [*lines, *mark_lines(rows)]


def cells_of(row):
    """The texts of a Row, in the order of the table's header."""
    price = number(row.price) + "!" * cheap(row)
    share = NO_VALUE if row.share is None else f"{100 * row.share:.1f} %"
    return [
        name_text(row),
        number(row.accepted),
        speedup_text(row.speedup),
        number(row.best),
        price,
        share + "*" * row.launch_bound,
        NO_VALUE if row.joules is None else f"{row.joules:.3g}",
        row.verdict,
        drift_text(row.drift),
    ]


def number(value):
    """Two digits after the point."""
    return NO_VALUE if value is None else f"{value:.2f}"


def name_text(row):
    """'medusa (lossy)'; a long name has its middle left out."""
    mark = " (lossy)" if row.lossy else ""
    longest = LONGEST_NAME - len(mark)
    half = longest // 2
    name = row.name
    return (name if len(name) <= longest else f"{name[: longest - half - 1]}~{name[-half:]}") + mark


def speedup_text(entry):
    """'1.20 [1.08, 1.34]'."""
    if entry is None or entry["value"] is None:
        return NO_VALUE
    if entry["low"] is None:
        return number(entry["value"])
    return f"{entry['value']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def cheap(row):
    """Whether its price of verification is one that no machine has which stood still."""
    return row.price is not None and row.price < CHEAP


def drift_text(drift):
    """'+1.2 %', 'moved 14 %!' beyond the bound of a row that counts, 'unknown', or '-'."""
    if drift is None or drift["state"] == "none":
        return NO_VALUE
    percent = 100 * ((furthest(drift) or 1) - 1)
    if drift["marked"]:
        return f"moved {percent:+.0f} %!"
    return drift["state"] if drift["state"] != "measured" else f"{percent:+.1f} %"


def mark_lines(rows):
    """Notes on rows, and what the marks in the cells mean, where there are any."""
    lines = [f"{row.name}: {note}" for row in rows for note in row.notes]
    if any(row.best is not None for row in rows):
        best = max((row for row in rows if row.baseline), key=lambda row: row.speedup["value"])
        lines.append(f"vs best: against {best.name}, the fastest baseline")
    if any("differ" in row.verdict for row in rows):
        lines.append(
            "differ: equal.py --model-path TARGET (JUDGE=1 ./eval.sh) tells rounding from a bug"
        )
    if any(row.launch_bound for row in rows):
        lines.append(
            "* launch-bound: the baseline's step takes more than twice its bound; a draft's rows"
            " seem cheap"
        )
    if any(cheap(row) for row in rows):
        lines.append("! price below 1: many rows cost less than one, so the machine was another")
    if any(row.drift and row.drift["marked"] for row in rows):
        lines.append(
            f"! moved: the machine changed by more than {100 * (BOUND - 1):.0f} % between the two"
            " files; such a row is none for a leaderboard"
        )
    return lines
