"""Which questions a method's run decodes with the baseline too, and when (--paired N)."""

from __future__ import annotations

USUAL = 8  # every eighth question: the run takes an eighth longer
METHOD, BASELINE = 0, 1  # places in a run's list of files


def usual(method: str) -> int:
    """--paired where it is not given: vanilla's own answers are the baseline's already."""
    return 0 if method == "vanilla" else USUAL


def recorded(meta: dict) -> int:
    """--paired of a meta's run; metas that are older than the number say true or false."""
    found = (meta.get("arguments") or {}).get("paired")
    return int(found) if isinstance(found, int) else 0


def remaining(questions: list[dict], files, every: int) -> list[dict]:
    """Questions that have no answer yet, or of --paired 1 no pair, whose answer is made anew, too.

    Of a larger N a lost pair stays lost: decoded later, it would tell of another time.
    """
    needed = files if every == 1 else files[:1]
    return [q for q in questions if not all(f.is_done(q["question_id"]) for f in needed)]


def plan(questions: list[dict], every: int, slots: int) -> list[tuple[int, list[dict]]]:
    """[(METHOD or BASELINE, questions)] in the order in which they are decoded.

    every   N: of the questions that are left, the first, the one N later, ... have a pair beside
            them, now before and now after the method's answer; 0 = none
    slots   B: questions that are decoded at a time

    Questions 1 .. 5, every second one, B = 1 (m method, b baseline): m1 b1 m2 b3 m3 m4 m5 b5. With
    N = 1 a pair has B questions. With larger N and B > 1 pairs in the middle would empty the slots,
    and the throughput would not be that of a run without: some are decoded ahead of the method's
    and as many behind, B each if that is no more than one question in N, else B / 2.
    """
    if not every or not questions:
        return [(METHOD, questions)] if questions else []
    if every > 1 and slots > 1:
        size = slots if len(questions) >= 2 * slots * every else max(slots // 2, 1)
        behind = questions[size:][-size:]
        ends = (BASELINE, questions[:size]), (METHOD, questions), (BASELINE, behind)
        return [(side, group) for side, group in ends if group]
    work, size = [], every * slots
    for begin in range(0, len(questions), size):
        group = questions[begin : begin + size]
        sides = [(METHOD, group[:slots]), (BASELINE, group[:slots])]
        work += sides if begin // size % 2 == 0 else sides[::-1]
        if group[slots:]:
            work.append((METHOD, group[slots:]))
    return work
