"""Text of a comparison (see comparison.py): tables, the time identity, leaderboard rows."""

from evaluation.answers.meta import describe, placement_text
from evaluation.speedup.comparison import AGGREGATES, TASK_NAMES
from evaluation.speedup.drift import drift_lines, moved_text
from evaluation.speedup.metrics import identity_product
from evaluation.speedup.roofline import bound_line, share_text

NO_VALUE = "-"


def table(header, rows):
    """Lines of a text table: first column left, the others right aligned."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join(cells).rstrip())
    return lines


def ratio_text(entry):
    """'2.184 [2.144, 2.225]' for {"value", "low", "high"}."""
    if entry is None or entry["value"] is None:
        return NO_VALUE
    if entry["low"] is None:
        return f"{entry['value']:.3f} [{NO_VALUE}]"
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def fixed(value, digits=3):
    """A number with a fixed number of digits, or '-' for None."""
    return NO_VALUE if value is None else f"{value:.{digits}f}"


def accepted_text(row, kind):
    """Mean accepted tokens of a task row, 'over_steps' or 'over_questions'."""
    return fixed((row["mean_accepted"] or {}).get(kind))


def definition_lines(bootstrap):
    """What the columns of the tables mean, once for all methods of a report."""
    return [
        "speedup   mean ratio: mean over questions of tokens/s, method / baseline;"
        " tokens are new_tokens on both sides",
        "decode    the same without the prefill's token and time",
        f"[ , ]     {bootstrap['level']:.0%} paired bootstrap over questions (percentile,"
        f" {bootstrap['resamples']} resamples, seed {bootstrap['seed']}), widened for few questions"
        " and by the drift",
        "drift     the baseline's speed beside the method, as a multiple of that in its own file;"
        " moved: by more than 10 % in a part of the run",
        "accepted  mean tokens per step, bonus included: over all steps | over questions",
        "bound     least time of a baseline's step: bytes of weights and KV / measured read"
        " bandwidth; launch-bound: more than twice that",
        "",
    ]


def row_label(side):
    """A side's name, marked where compilations fell into its times or the machine moved."""
    turns = side["recompiled_turns"]
    noun = "turn" if turns == 1 else "turns"
    label = side["label"] + (f" (recompiled in {turns} {noun})" if turns else "")
    return label + (" (moved)" if side.get("moved") else "")


def runtime_text(side):
    """'compile', or 'cudagraph (ran eager)' where the runtime asked for could not be had."""
    asked, ran = side["runtime"], side["runtime_ran"]
    return (asked or NO_VALUE) + (f" (ran {ran})" if ran not in (None, asked) else "")


def heading_lines(result):
    """What is compared, and what a reader must know of it."""
    plural = "question" if result["questions"] == 1 else "questions"
    lines = [
        f"{result['method']['label']} against {result['baseline']['label']}:"
        f" {result['questions']} {plural} paired by question_id"
    ]
    if result["method"]["lossy"]:
        rule = result["method"]["acceptance"]
        lines.append(f"  lossy: acceptance {rule}: the output may differ from the target's")
    lines += [f"  note: {note}" for note in result["notes"]]
    for side in (result["method"], result["baseline"]):
        if side["recompiled_turns"]:
            lines.append(f"  note: {row_label(side)}: compiling stands inside the times of these")
        if side["runtime_ran"] not in (None, side["runtime"]):
            lines.append(f"  note: {side['label']}: runtime {runtime_text(side)}")
        if placed := placement_text(side.get("placement")):
            lines.append(f"  note: {side['label']}: placement {placed}")
    return lines + [f"  differs in {describe(field)}" for field in result["allowed"]]


def task_lines(result):
    """The main table, a row a task."""
    header = ["task", "questions", "tokens/s", "baseline", "speedup (mean ratio)"]
    header += ["decode (mean ratio)", "accepted/step", "| question"]
    metered = any(row["energy"] for row in result["tasks"])
    header += ["joules/token", "baseline", "energy (total ratio)"] if metered else []
    rows = []
    for row in result["tasks"]:
        decode = row["decode_speedup"]
        rows.append(
            [
                row["name"],
                str(row["questions"]),
                fixed(row["tokens_per_s"], 1),
                fixed(row["base_tokens_per_s"], 1),
                ratio_text(row["speedup"]["mean_ratio"]),
                ratio_text(decode and decode["mean_ratio"]),
                accepted_text(row, "over_steps"),
                accepted_text(row, "over_questions"),
                *(energy_cells(row["energy"] or {}) if metered else ()),
            ]
        )
    return table(header, rows)


def energy_cells(energy):
    """Joules a token of both sides, and their ratio, as texts."""
    ratio = energy.get("ratio")
    both = (energy.get(name) for name in ("joules_per_token", "base_joules_per_token"))
    return [*(fixed(joules, 4) for joules in both), ratio_text(ratio and ratio["total_ratio"])]


def energy_lines(result):
    """What was metered, of a side that has an energy."""
    sides = (result["method"], result["baseline"])
    texts = [
        f"{side['label']}: {', '.join(side['energy']['meters'])}, idle"
        f" {fixed(side['energy']['idle_w'], 1)} W (not subtracted)"
        for side in sides
        if side["energy"]
    ]
    if not texts:
        return []
    return [f"energy (sum of energy_j / sum of new_tokens): {'; '.join(dict.fromkeys(texts))}"]


def detail_lines(result):
    """Every aggregate of the speedup, with its interval; they differ, so each is named."""
    rows = []
    for row in result["tasks"]:
        for kind, key in (("speedup", "speedup"), ("decode", "decode_speedup")):
            if row[key] is not None:
                cells = [ratio_text(row[key][name]) for name in AGGREGATES]
                rows.append([row["name"], kind, *cells])
    return [
        "detail: total ratio = total tokens / total time, method / baseline;"
        " geometric mean = of paired ratios",
        *table(["task", "", *AGGREGATES.values()], rows),
    ]


def identity_line(result):
    """The time identity of a method with its numbers, from totals."""
    identity = result["time_identity"]
    name = result["method"]["label"]
    if identity is None:
        return f"time identity: {name}: {NO_VALUE} (a side has no step, or hides its steps)"
    decode = identity["time"] == "decode"
    what = "decode speedup (total ratio)" if decode else "speedup (total ratio, prefill inside)"
    gain = f"{'accept length' if decode else 'tokens per step'} {identity['tokens_per_step']:.3f}"
    if abs(identity["base_tokens_per_step"] - 1) > 1e-12:
        gain = f"({gain} / baseline's {identity['base_tokens_per_step']:.3f})"
    parts = " + ".join(f"{part} {ms:.3f}" for part, ms in identity["parts_ms"].items())
    return (
        f"time identity: {name}: {what} {identity_product(identity):.3f} ="
        f" {gain} x baseline step {identity['base_step_ms']:.3f} ms / ({parts}) ms"
    )


def throughput_lines(result):
    """Tokens per second of turns that are decoded together, where the batch size is above 1."""
    entry = result["throughput"]
    if entry is None:
        return []
    size = f"batch size {entry['batch_size']}"
    if entry["tokens_per_s"] is None:
        return [f"throughput: {size}, but neither begin_s nor batch ids are recorded"]
    seconds = "sum over batches and turns of the longest wall_time"
    if entry["busy_s"] is not None:
        seconds = "time in which at least one turn was in the loop"
    return [
        f"throughput (total new_tokens / {seconds}),"
        f" {size}: {entry['tokens_per_s']:.1f} tokens/s, baseline"
        f" {fixed(entry['base_tokens_per_s'], 1)}, ratio {fixed(entry['ratio'])}"
    ]


def compat_lines(result):
    """Spec-Bench's formula as published, beside ours."""
    published = result.get("spec_bench_compat")
    if published is None:
        return []
    rows = [
        [row["name"], fixed(published[row["task"]]), fixed(row["speedup"]["mean_ratio"]["value"])]
        for row in result["tasks"]
    ]
    return [
        "spec-bench-compat: as published, the method's tokens are new_tokens, the baseline's are"
        " its texts re-tokenised - 1 a turn (first choice only)",
        *table(["task", "as published", "mean ratio"], rows),
    ]


def report_lines(result, detail=False):
    """Everything about one method."""
    lines = [*heading_lines(result), *task_lines(result)]
    if detail:
        lines += detail_lines(result)
    lines += [identity_line(result), bound_line(result["baseline"]["label"], result["roofline"])]
    lines += drift_lines(result["method"]["label"], result["drift"])
    lines += [*energy_lines(result), *throughput_lines(result), *compat_lines(result)]
    return lines + facts_lines(result)


def facts_lines(result):
    """What the method says of itself: sizes of its data, times outside the answers."""
    facts = result["method"]["facts"]
    if not facts:
        return []
    shown = ", ".join(f"{name} {value}" for name, value in facts.items())
    return [f"facts: {result['method']['label']}: {shown}"]


def task_columns(results):
    """(task, name) of the known tasks and of every unknown one that a result has."""
    names = dict(TASK_NAMES)
    for result in results:
        names.update((row["task"], row["name"]) for row in result["tasks"])
    names.pop("overall")
    return list(names.items())


def summary_lines(results):
    """One row a method: speedup (mean ratio) by task."""
    columns = task_columns(results)
    columns = [c for c in columns if any(c[0] == r["task"] for x in results for r in x["tasks"])]
    metered = any(result["tasks"][-1]["energy"] for result in results)
    header = ["speedup (mean ratio)", "questions", *(name for _, name in columns)]
    header += ["accepted/step", "Overall", "drift", "baseline of its bound"]
    header += ["joules/token", "energy (total ratio)"] if metered else []
    rows = []
    for result in results:
        by_task = {row["task"]: row for row in result["tasks"]}
        overall = by_task["overall"]
        cells = [row_label(result["method"]), str(result["questions"])]
        cells += [fixed(mean_ratio(by_task.get(task))) for task, _ in columns]
        cells += [accepted_text(overall, "over_steps")]
        cells += [ratio_text(overall["speedup"]["mean_ratio"]), moved_text(result["drift"])]
        cells += [share_text(result["roofline"])]
        cells += energy_cells(overall["energy"] or {})[::2] if metered else []
        rows.append(cells)
    return table(header, rows)


def profile_lines(results):
    """One row a method: where its time goes, the price of verification, the break-even."""
    header = ["profile", "draft", "verify", "commit", "rest", "rows", "verify ms", "price"]
    header += ["break-even", "accepted", "above it", "harness"]
    rows = []
    for result in results:
        found, shares = result["profile"], result["profile"]["shares"] or {}
        cells = [row_label(result["method"])]
        cells += [percent(shares.get(name)) for name in header[1:5]]
        cells += [fixed(found["rows"], 1), fixed(found["verify_ms"]), fixed(found["price"], 2)]
        cells += [fixed(found["break_even"], 2), fixed(found["accepted"], 2)]
        cells += [NO_VALUE if found["pays"] is None else "yes" if found["pays"] else "no"]
        rows.append([*cells, percent(result["method"]["harness_share"])])
    return [
        "draft ... rest: shares of the decode time; rows, verify ms: means of a step; price:"
        " verify ms / the baseline's, which reads one row",
        "break-even: accept length at which the method is as fast as the baseline, prefill left"
        " out; harness: share of the run outside timed regions",
        *table(header, rows),
    ]


def percent(share):
    """'12.3 %' of 0.123."""
    return NO_VALUE if share is None else f"{100 * share:.1f} %"


def mean_ratio(row):
    """The headline speedup of a task row, None where there is no such row."""
    return row and row["speedup"]["mean_ratio"]["value"]


def markdown_lines(results):
    """Rows of Leaderboard.md; the file names and sha256 say from what they can be recomputed.

    Rows that moved are the caller's to leave out.
    """
    columns = task_columns(results)
    header = ["Method", *(name for _, name in columns), "#Mean accepted tokens (over steps)"]
    header += ["Overall (mean ratio, 95 % interval)", "Questions", "Target", "Device", "Dtype"]
    header += ["Temperature", "Batch", "Drift", "Baseline of its bound"]
    header += ["Commit", "Answers (sha256)", "Baseline (sha256)"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for result in results:
        by_task = {row["task"]: row for row in result["tasks"]}
        method, base, overall = result["method"], result["baseline"], by_task["overall"]
        ratios = (mean_ratio(by_task.get(task)) for task, _ in columns)
        cells = [row_label(method), *(NO_VALUE if r is None else f"{r:.2f}x" for r in ratios)]
        cells += [accepted_text(overall, "over_steps")]
        cells += [ratio_text(overall["speedup"]["mean_ratio"]), result["questions"]]
        cells += [method[key] for key in ("target", "device", "dtype", "temperature", "batch_size")]
        cells += [moved_text(result["drift"]), share_text(result["roofline"])]
        cells += [short_commit(method["commit"]), file_cell(method), file_cell(base)]
        texts = (NO_VALUE if cell is None else str(cell) for cell in cells)
        lines.append("| " + " | ".join(text.replace("|", "/") for text in texts) + " |")
    return lines


def markdown_text(results):
    """The rows of those results that did not move; empty where all did."""
    steady = [result for result in results if not result["drift"]["marked"]]
    return "".join(f"{line}\n" for line in markdown_lines(steady)) if steady else ""


def short_commit(commit):
    """Twelve digits of a commit; a working tree that differed from it stays marked."""
    if not commit:
        return NO_VALUE
    return commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


def file_cell(side):
    """'NAME.jsonl (4b6d33e79484)' of one side of a comparison."""
    return f"{side['file'].replace(chr(92), '/').rsplit('/', 1)[-1]} ({side['sha256'][:12]})"
