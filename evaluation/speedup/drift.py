"""How far the machine moved between two files that are compared, and what that does to a row.

A method's run decodes the baseline on a share of the questions, beside its own answers
(NAME-paired-baseline.jsonl). Where such a question stands in the baseline's own file too, the same
work was timed twice on the same settings, at two points in time:

move     of a question: log(tokens/s beside the method / tokens/s in the baseline's file); with
         several slots, where a turn's time holds the prefills of others, of 1 / its median step
moved    of a part of the run: exp(mean of its questions' moves); the parts are the whole, its two
         halves, and of 24 questions or more as many parts of at least eight, eight at most
noise    of a part: half the 95 % interval of that mean, Student's, by the spread of all moves
marked   a part whose `moved` is above 1.10 or below 1 / 1.10; such a row is no leaderboard row

Nothing is corrected. An interval of the row, whose logarithm is a below and b above its value,
becomes s + hypot(a, n) below and s + hypot(b, n) above, where s = |log moved| and n = noise are of
the part with the largest s + n: it is never narrower than the drift.

A vanilla row is a baseline at another time by itself: all its questions are pairs. Of a baseline
that drafts, its own pairs take its place.

Where a method is compared with its own pairs (--paired 1), both were decoded at one time, and there
is no drift between them. Where more than MOST_APART of the pairs were decoded at another time after
all, further from their questions than a minute and the longest answer, it is unknown.
"""

import math
from pathlib import Path
from statistics import fmean, median, stdev

from evaluation.answers.meta import AnswerError, check_shared, find_field
from evaluation.answers.reader import read_answers
from evaluation.speedup.intervals import student

ENDING = "-paired-baseline"  # of a method's name, for its pairs
BOUND = 1.10  # a row that moved further is marked
BANDWIDTHS = 1.20  # read bandwidths that differ by more are named
LARGE_PART, MOST_PARTS = 8, 8  # pairs of a part where there are more than two; parts
APART_S = 60.0  # a pair decoded further from all of the method's answers is not beside them
MOST_APART = 0.05  # of the pairs of --paired 1, that may be so
CHEAP = 0.995  # a price of verification below it prints as less than 1.00
ASKED = ("questions_sha256", "prompts_sha256")  # of shared: which questions, not how they are timed
NOT_MEASURED = {"pairs": 0, "moves": [], "parts": [], "shift": None, "noise": None, "marked": False}


def pairs_path(path):
    """The baseline's file beside a method's, as its run names it."""
    path = Path(path)
    return path.with_name(f"{path.name.removesuffix('.jsonl')}{ENDING}.jsonl")


def is_pairs(path):
    """Whether a file is named as the pairs of another one."""
    return Path(path).name.endswith(f"{ENDING}.jsonl")


def measure(method, base, profile=None):
    """The drift of a row: {"state", "reason", "pairs", "parts", "shift", "noise", "marked", ...}.

    state   "measured"; "none": method and baseline were decoded at one time; "unknown": reason says
            why
    moves   [[begin_s, moved]] of the pairs in the order of their time, Unix seconds
    parts   [{"part", "pairs", "moved", "noise"}], the whole first; noise is a logarithm
    named   lines about a price of verification below 1, read bandwidths and products that differ
    """
    named = [*cheap(profile), *bandwidths(method, base), *products(method, base)]
    state, reason, moves, left_out = "measured", None, [], 0
    try:
        times = [times_of(method, "the method's file"), times_of(base, "the baseline's file")]
        if times[0].path.resolve() == times[1].path.resolve():
            state, left_out = "none", num_apart(method, times[0])
            if left_out > MOST_APART * len(times[0].questions):
                state, reason = "unknown", f"{left_out} of its pairs were decoded at another time"
        else:
            check_shared(*times, harmless=lambda dotted: dotted in ASKED)
            moves, left_out = moves_of(*times, span_of(method.questions.values()))
    except AnswerError as error:
        state, reason = "unknown", str(error)
    if state == "measured" and len(moves) < 2:
        state = "unknown"
        reason = f"{len(moves)} of its pairs stand in the baseline's file, two are the least"
    found = {"state": state, "reason": reason, "left_out": left_out, "named": named}
    found["moves"] = [[begin, math.exp(move)] for begin, move in moves]
    return NOT_MEASURED | found | (summary([move for _, move in moves]) if moves else {})


def summary(moves):
    """What is said of the moves [N >= 1] of pairs in the order in which they were decoded."""
    spread = student(len(moves) - 1) * stdev(moves) if len(moves) > 1 else None
    parts = [part("all", moves, spread)]
    number = max(2, min(len(moves) // LARGE_PART, MOST_PARTS))
    for index in range(number if len(moves) > 1 else 0):
        begin, end = (len(moves) * (index + more) // number for more in (0, 1))
        name = ("first half", "second half")[index] if number == 2 else f"{index + 1} of {number}"
        parts.append(part(name, moves[begin:end], spread))
    worst = max(parts, key=lambda one: abs(math.log(one["moved"])) + (one["noise"] or 0))
    return {
        "pairs": len(moves),
        "parts": parts,
        "shift": abs(math.log(worst["moved"])) if len(moves) > 1 else None,
        "noise": worst["noise"],
        "marked": len(moves) > 1
        and any(abs(math.log(one["moved"])) > math.log(BOUND) for one in parts),
    }


def part(name, moves, spread):
    """One entry of `parts`; spread: half an interval of a single move, None where it is unknown."""
    noise = None if spread is None else spread / math.sqrt(len(moves))
    return {"part": name, "pairs": len(moves), "moved": math.exp(fmean(moves)), "noise": noise}


def times_of(answers, name):
    """The AnswerFile of the baseline's times at the time of `answers`: itself, or its pairs."""
    if answers.meta is None:
        raise AnswerError(f"{name} has no meta, and so no pairs that are known")
    engine = (answers.meta.get("method_args") or {}).get("engine", "loop")
    if answers.meta["method"] == "vanilla" and engine == "loop":
        return answers
    path = pairs_path(answers.path)
    if not path.is_file():
        raise AnswerError(f"{name} has no pairs beside it (--paired 0, or an older run)")
    pairs = read_answers(path)
    if (pairs.meta or {}).get("pairs_of") not in (None, answers.meta.get("model_id")):
        raise AnswerError(f"{path.name}: pairs of {pairs.meta['pairs_of']}, not of {name}")
    return pairs


def span_of(questions):
    """(begin, end) in Unix seconds of the turns of Questions, None where one does not say."""
    questions = list(questions)
    if any(choice.begin_s is None for question in questions for choice in question.choices):
        return None
    turns = [
        (begin, begin + wall)
        for question in questions
        for choice in question.choices
        for begin, wall in zip(choice.begin_s, choice.wall_s)
    ]
    return (min(turns)[0], max(end for _, end in turns)) if turns else None


def num_apart(method, pairs):
    """How many questions' pairs were decoded at another time, as far as the files say when.

    Slots are filled with one side's questions and then with the other's, so that a pair may have to
    wait for the longest answer of its group.
    """
    sides = [
        (span_of([question]), span_of([pairs.questions[name]]))
        for name, question in method.questions.items()
        if name in pairs.questions
    ]
    sides = [both for both in sides if None not in both]
    longest = max((end - begin for both in sides for begin, end in both), default=0.0)
    gaps = [max(begin for begin, _ in both) - min(end for _, end in both) for both in sides]
    return sum(gap > APART_S + longest for gap in gaps)


def moves_of(ours, theirs, span):
    """([(begin_s, move)] of the questions of both AnswerFiles by their time, those left out).

    span: of the method's answers. Left out are pairs of another time, as of an older run, and those
    with a compilation inside.
    """
    by_step = find_field(ours.meta, "batch_size") not in (None, 1)
    found, left_out = [], 0
    for place, (question_id, question) in enumerate(ours.questions.items()):
        other = theirs.questions.get(question_id)
        speeds = [pace(side, by_step) for side in (question, other) if side is not None]
        if len(speeds) < 2 or None in speeds:
            continue
        own = span_of([question])
        apart = span and own and (own[1] < span[0] - APART_S or own[0] > span[1] + APART_S)
        if apart or compiled(question) or compiled(other):
            left_out += 1
            continue
        found.append((own[0] if own else 0, place, math.log(speeds[0] / speeds[1])))
    return [(begin, move) for begin, _, move in sorted(found)], left_out


def pace(question, by_step):
    """Tokens/s of a Question, or steps/s at its median step; None where it has none."""
    if question.error:
        return None
    if not by_step:
        tokens = sum(sum(choice.new_tokens) for choice in question.choices)
        return tokens / math.fsum(s for c in question.choices for s in c.wall_s) if tokens else None
    if any(choice.step_end_s is None for choice in question.choices):
        return None
    turns = [(c.prefill_s, ends) for c in question.choices for ends in [c.step_end_s]]
    steps = [
        end - begin
        for prefills, ends_of in turns
        for prefill, ends in zip(prefills, ends_of)
        for begin, end in zip([prefill, *ends], ends)
    ]
    return 1 / median(steps) if steps and median(steps) > 0 else None


def compiled(question):
    """Whether a compilation or a capture fell into a Question's times."""
    return any(number for choice in question.choices for number in choice.recompiled or ())


def cheap(profile):
    """A line where many rows cost less than the baseline's one: the machine was another."""
    price = profile and profile["price"]
    if price is not None and price < CHEAP:
        yield f"price of verification {price:.2f}, below 1"


def environments(method, base):
    """What the metas of two AnswerFiles say of their machines, {} where they say nothing."""
    return [(side.meta or {}).get("environment") or {} for side in (method, base)]


def bandwidths(method, base):
    """A line where the two runs measured read bandwidths that differ by more than 20 %."""
    sides = [side.get("bandwidth") or {} for side in environments(method, base)]
    for name, what in (("read", "read bandwidth"), ("read_weights", "of the weights' bytes")):
        rates = [side.get(name) for side in sides]
        if all(isinstance(rate, int | float) and rate > 0 for rate in rates):
            if max(rates) / min(rates) > BANDWIDTHS:
                yield f"{what} {rates[0]:.1f} GB/s, baseline's {rates[1]:.1f}"


def products(method, base):
    """A line where the two runs chose another form of products (target/products.py)."""
    sides = environments(method, base)
    chosen = [side["turned_rows"] or "none" for side in sides if "turned_rows" in side]
    if len(set(chosen)) > 1:
        yield f"products of rows {chosen[0]} turned, the baseline's {chosen[1]}"


def widen(entry, drift):
    """A ratio {"value", "low", "high"} whose interval is widened by the drift, in place.

    The bootstrap's own stays as "bootstrap_low" and "bootstrap_high".
    """
    value, ends = entry["value"], (entry["low"], entry["high"])
    if drift["state"] != "measured" or not value or None in ends or drift["shift"] is None:
        return
    entry["bootstrap_low"], entry["bootstrap_high"] = ends
    for name, end, sign in zip(("low", "high"), ends, (-1, 1)):
        half = abs(math.log(end / value)) if end > 0 else math.inf
        entry[name] = value * math.exp(sign * (drift["shift"] + math.hypot(half, drift["noise"])))


def suspected(drift):
    """Whether nobody knows that the machine stood still, and something says that it did not."""
    return drift["state"] == "unknown" and bool(drift["named"])


def settle(profile, drift):
    """Take back that a method pays, or does not, where the drift could turn it round."""
    if profile["pays"] is None or not profile["break_even"] or not profile["accepted"]:
        return
    margin = abs(math.log(profile["accepted"] / profile["break_even"]))
    width = (drift["shift"] or 0) + (drift["noise"] or 0)
    unsure = suspected(drift) or (drift["state"] == "measured" and margin <= width)
    if drift["marked"] or unsure:
        profile["pays"] = None


def furthest(drift):
    """`moved` of the part that moved furthest, None where it is not known."""
    moves = (part["moved"] for part in drift["parts"])
    return max(moves, key=lambda value: abs(math.log(value)), default=None)


def moved_text(drift):
    """'0.71x' of the part that moved furthest, 'none' or 'unknown': a table's cell."""
    if drift["state"] != "measured" and not drift["marked"]:
        return drift["state"]
    return f"{furthest(drift):.2f}x" + (" MOVED" if drift["marked"] else "")


def drift_lines(label, drift):
    """The line of a row below its table, and what is named beside it."""
    lines = [f"drift: {label}: {'; '.join(drift['named'])}"] if drift["named"] else []
    if drift["state"] == "none":
        if drift["left_out"]:
            lines.append(f"drift: {label}: {drift['left_out']} pairs decoded at another time")
        return lines
    text = f"unknown: {drift['reason']}"
    if drift["parts"]:
        whole, *parts = drift["parts"]
        moved = f"beside it the baseline ran at {whole['moved']:.3f}x of its file's speed"
        moved += f" ({drift['pairs']} pair{'s' * (drift['pairs'] != 1)}"
        moved += "" if whole["noise"] is None else f", +- {100 * whole['noise']:.1f} %"
        listed = ", ".join(f"{one['moved']:.3f}x" for one in parts)
        where = "halves" if len(parts) == 2 else "parts"
        moved += f"; {where} {listed})" if parts else ")"
        text = moved if drift["state"] == "measured" else f"{text}: {moved}"
    if drift["left_out"]:
        text += f"; {drift['left_out']} pairs of another time, or with compilations, left out"
    if drift["marked"]:
        return [f"drift: {label}: MOVED by more than 10 %: {text}: no leaderboard row", *lines]
    if drift["state"] == "measured":
        text += ": its intervals are widened by that"
    return [f"drift: {label}: {text}", *lines]
