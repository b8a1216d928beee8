"""The page's figures by matplotlib, for papers: one view of one group of files.

Each function draws on a new figure `width` inches wide and returns it, or None where the files do
not hold what it needs. Colours are Okabe and Ito's; methods differ by shape, too.
"""

import math

from evaluation.pictures.steps import EDGES
from evaluation.speedup.drift import BOUND
from model.common.visible import visible

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5578f", "#c98500", "#3d9bd1", "#333333")
SHAPES = ("o", "s", "^", "D", "P", "v")
PHASES = {
    "draft": "#e69f00",
    "verify": "#0072b2",
    "commit": "#009e73",
    "rest": "#999999",
    "step": "#999999",
}
STYLE = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6,
    "font.family": "sans-serif",
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a $ of a name, too
    "svg.hashsalt": "specgauge",  # the same files give the same picture
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "figure.constrained_layout.use": True,
}
ROW, REST = 0.155, 0.5  # inches of a row, and of a figure around its rows
BAR, MUTED = "#4c86b8", "#777777"
FEW, MOST_POSITIONS = 20, 16  # steps of a cell that is shown, columns
KEYS = 3  # names in a line of a legend


class Picture:
    """A view of a group, and the task that is drawn of it."""

    def __init__(self, group, baseline, task, width):
        self.group, self.view, self.task, self.width = group, group["views"][baseline], task, width
        own = baseline.isdigit()
        self.base_name = self.name(int(baseline)) if own else "baseline (own pairs)"
        by_file = {row["file"]: row for row in self.view["rows"]}
        ranked = self.view["ranked"].get(task, [])
        self.places = [[by_file[number] for number in place] for place in ranked]
        self.rows = [row for place in self.places for row in place]
        base = self.view["base"]
        has_base = base is not None and task in base["tasks"]
        self.with_base = [*([base] if has_base else []), *self.rows]

    def name(self, number):
        """What a file is called, its control characters as escapes."""
        return visible(self.group["files"][number]["name"], kept="")

    def numbers(self, row):
        """The task's numbers of a row."""
        return row["tasks"][self.task]

    def axes(self, height):
        """(figure, axes) of the picture's width, `height` inches high."""
        import matplotlib.pyplot as plt

        return plt.subplots(figsize=(self.width, height))

    def plane(self, height, keys):
        """(figure, axes) of a plane, with room for a legend of so many names below it."""
        return self.axes(height + ROW * 0.8 * math.ceil(keys / KEYS))

    def bars(self, rows):
        """(figure, axes) with a named place a row, the first on top."""
        figure, axes = self.axes(REST + ROW * len(rows))
        axes.set_yticks(range(len(rows)), [self.name(row["file"]) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", linewidth=0.3, color="#cccccc")
        axes.set_axisbelow(True)
        return figure, axes

    def mark(self, row):
        """Colour and shape of a file."""
        number = row["file"]
        return {
            "color": COLOURS[number % len(COLOURS)],
            "marker": SHAPES[number % len(SHAPES)],
            "linestyle": "none",
        }


def speedup(picture):
    """Bars with intervals; a thin line where a method is told from the first above it."""
    rows = [row for row in picture.rows if picture.numbers(row)["speedup"]["value"] is not None]
    if not rows:
        return None
    figure, axes = picture.bars(rows)
    for place, row in enumerate(rows):
        entry, lossy = (
            picture.numbers(row)["speedup"],
            picture.group["files"][row["file"]]["lossy"],
        )
        look = {"facecolor": "none", "edgecolor": BAR, "hatch": "////"} if lossy else {"color": BAR}
        axes.barh(place, entry["value"], height=0.72, linewidth=0.6, **look)
        if entry["low"] is not None:
            error = [[entry["value"] - entry["low"]], [entry["high"] - entry["value"]]]
            axes.errorbar(
                entry["value"], place, xerr=error, color="black", linewidth=0.7, capsize=1.6
            )
        if row["drift"]["marked"]:
            axes.annotate(" moved", (0, place), va="center", fontsize=5.5, color="white")
    edge = 0
    for members in picture.places[:-1]:
        edge += len(members)
        axes.axhline(edge - 0.5, color=MUTED, linewidth=0.4)
    axes.axvline(1, color="black", linewidth=0.7, linestyle="--")
    axes.set_xlim(left=0)
    axes.set_xlabel(f"speedup over {picture.base_name}, 95 % intervals")
    return figure


def price(picture):
    """Accept length against the cost of a step, with lines of equal decode speedup."""
    points = [(row, picture.numbers(row)["profile"]) for row in picture.rows]
    points = [(row, p) for row, p in points if p["break_even"] and p["accepted"]]
    if not points:
        return None
    figure, axes = picture.plane(picture.width * 0.8, len(points))
    costs = [c for _, p in points for c in (p["break_even"], p["price"] or p["break_even"])]
    right, top = 1.25 * max(1.5, *costs), 1.25 * max(2.0, *(p["accepted"] for _, p in points))
    left, bottom = 0.85 * min(1.0, *costs), 0.9
    for ratio in (0.125, 0.25, 0.5, 1, 2, 4, 8):
        begin, end = max(left, bottom / ratio), min(right, top / ratio)
        if begin < end:
            dashes = "--" if ratio == 1 else ":"
            axes.plot(
                [begin, end], [begin * ratio, end * ratio], dashes, color=MUTED, linewidth=0.6
            )
            axes.annotate(
                f"{ratio:g}x", (end, end * ratio), fontsize=5.5, color=MUTED, ha="right", va="top"
            )
    axes.plot(1, 1, "ko", markersize=2.5)
    for row, p in points:
        look, label = picture.mark(row), picture.name(row["file"])
        axes.plot(p["break_even"], p["accepted"], markersize=4.5, label=label, **look)
        if p["price"]:
            ends = [p["price"], p["break_even"]], [p["accepted"]] * 2
            axes.plot(*ends, color=look["color"], linewidth=0.7)
            axes.plot(
                p["price"], p["accepted"], markersize=3, markerfacecolor="white", **look, zorder=3
            )
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, top))
    plain_ticks(axes)
    axes.set_xlabel("cost of a step in baseline steps (hollow: verification alone)")
    axes.set_ylabel("tokens a step")
    figure.legend(loc="outside lower center", ncols=KEYS, frameon=False, handletextpad=0.2)
    return figure


def plain_ticks(axes):
    """Numbers like 1, 2, 5 on logarithmic axes."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def phases(picture):
    """Milliseconds of a step, stacked by phase."""
    rows = [row for row in picture.with_base if picture.numbers(row)["identity"]]
    if not rows:
        return None
    figure, axes = picture.bars(rows)
    named = set()
    for place, row in enumerate(rows):
        begin = 0.0
        parts = picture.numbers(row)["identity"]["parts_ms"]
        for phase in (phase for phase in PHASES if phase in parts):
            look = {"color": PHASES[phase], "label": None if phase in named else phase}
            axes.barh(place, parts[phase], left=begin, height=0.72, **look)
            begin += parts[phase]
            named.add(phase)
    axes.set_xlabel("ms a step")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, handlelength=1)
    return figure


def bound(picture):
    """Milliseconds a token, and the least that the baseline's step could take.

    Each row has a tick at the bound of its own baseline where there is no common one.
    """
    rows = [row for row in picture.with_base if picture.numbers(row)["identity"]]
    if not rows:
        return None
    base = picture.view["base"]
    figure, axes = picture.bars(rows)
    for place, row in enumerate(rows):
        identity = picture.numbers(row)["identity"]
        cost = sum(identity["parts_ms"].values()) / identity["tokens_per_step"]
        axes.barh(place, cost, height=0.72, color=BAR)
        least = row["roofline"]["bound_ms"]
        if base is None and least:
            axes.plot([least, least], [place - 0.36, place + 0.36], color="black", linewidth=0.9)
    least = base and base["roofline"]["bound_ms"]
    if least:
        axes.axvline(least, color="black", linewidth=0.7, linestyle="--")
        axes.annotate("bound", (least, -0.6), fontsize=5.5, va="bottom")
    own = "ms a token without prefill; tick: its bound"
    axes.set_xlabel(own if base is None else "ms a token, prefill left out")
    return figure


def heat(picture, kind, value, columns, names, label):
    """A heat map of counts by file: `value` of a pair of counts, None where it is not shown."""
    counts = {
        row["file"]: picture.group["files"][row["file"]]["acceptance"].get(picture.task, {})
        for row in picture.rows
    }
    rows = [(number, found[kind]) for number, found in counts.items() if found.get(kind)]
    cells = [
        [value(*pairs[i]) if i < len(pairs) else None for i in range(columns(rows))]
        for _, pairs in rows
    ]
    shown = [cell for line in cells for cell in line if cell is not None]
    if not shown:
        return None
    low, high = min(shown), max(shown)
    figure, axes = picture.axes(REST + ROW * len(rows))
    grid = [[float("nan") if cell is None else cell for cell in line] for line in cells]
    axes.imshow(grid, cmap="Blues", aspect="auto", vmin=low, vmax=high)
    for y, line in enumerate(cells):
        for x, cell in enumerate(line):
            if cell is not None:
                dark = cell - low > 0.6 * (high - low)
                text = f"{100 * cell:.0f}" if kind == "position" else f"{cell:.1f}"
                colour = "white" if dark else "black"
                axes.annotate(text, (x, y), ha="center", va="center", fontsize=5, color=colour)
    axes.set_yticks(range(len(rows)), [picture.name(number) for number, _ in rows])
    axes.set_xticks(range(len(cells[0])), names[: len(cells[0])])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(label)
    return figure


def position(picture):
    """Share of drafts that deep whose token at a position was accepted, in per cent."""

    def share(accepted, deep):
        return accepted / deep if deep >= FEW else None

    def columns(rows):
        return min(MOST_POSITIONS, max((len(pairs) for _, pairs in rows), default=0))

    names = [str(i + 1) for i in range(MOST_POSITIONS)]
    return heat(picture, "position", share, columns, names, "draft position (per cent accepted)")


def output(picture):
    """Mean tokens a step by the number of tokens before it."""

    def mean(tokens, steps):
        return tokens / steps if steps >= FEW else None

    def columns(rows):
        return max((len(pairs) for _, pairs in rows), default=0)

    names = [f"{edge}-" for edge in EDGES]
    return heat(picture, "output", mean, columns, names, "tokens before the step (tokens a step)")


def drift(picture):
    """The baseline's speed beside the methods' answers over that in its own file."""
    moves = sorted(
        (begin, moved, row["file"]) for row in picture.rows for begin, moved in row["moves"]
    )
    if not moves:
        return None
    figure, axes = picture.plane(picture.width * 0.55, len({number for *_, number in moves}))
    axes.axhspan(1 / BOUND, BOUND, color="#009e73", alpha=0.13, linewidth=0)
    axes.axhline(1, color="black", linewidth=0.6, linestyle="--")
    for row in picture.rows:
        places = [(i, moved) for i, (_, moved, number) in enumerate(moves) if number == row["file"]]
        if places:
            label = picture.name(row["file"])
            axes.plot(*zip(*places), markersize=2.5, label=label, **picture.mark(row))
    axes.set(yscale="log", xlabel="pairs in the order of their time", ylabel="baseline's speed")
    plain_y(axes)
    figure.legend(loc="outside lower center", ncols=KEYS, frameon=False, handletextpad=0.2)
    return figure


def plain_y(axes):
    """Plain numbers on a logarithmic axis of a small range."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def energy(picture):
    """Joules a token of baseline and methods, where a meter was read."""
    rows = [row for row in picture.with_base if picture.numbers(row)["joules"] is not None]
    if not rows:
        return None
    figure, axes = picture.bars(rows)
    axes.barh(range(len(rows)), [picture.numbers(row)["joules"] for row in rows], 0.72, color=BAR)
    axes.set_xlabel("joules a token")
    return figure


FIGURES = {
    "speedup": speedup,
    "price": price,
    "bound": bound,
    "phases": phases,
    "position": position,
    "output": output,
    "drift": drift,
    "energy": energy,
}
