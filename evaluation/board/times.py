"""Times of a run that do not fit each other, as they do where somebody has edited some of them.

A time that is missing is named like one that does not fit: what it would have been held to could
say anything. Nothing here can tell a run that was invented as a whole: only running it again can.
"""

import math
from datetime import datetime

from evaluation.speedup.metrics import covered_s

LATE_S, LATE_SHARE = 5e-3, 0.02  # by how much times of one turn, or of two in a slot, may differ
ROUNDED_S, ROUNDED_SHARE = 5e-3, 1e-3  # by how much sums over a run may
# what every choice has to say: {attribute of Choice: its fields}
NEEDED = {"begin_s": "begin_s", "slot": "slot", "prefill_s": "prefill_s"}
STEPS = {"step_end_s": "step_end_s", "stage_s": "draft_s, verify_s and commit_s"}
CHUNKS = {"chunk_end_s": "chunk_end_s"}  # of a server, in the place of STEPS


def problems(answers, pairs=None):
    """Lines about one AnswerFile. pairs: the AnswerFile of its pairs, of the same process."""
    lost, odd = list(missing(answers)), list(turn_problems(answers))
    if pairs is not None:
        lost += [f"pairs: {line}" for line in missing(pairs)]
        odd += [f"pairs: {line}" for line in turn_problems(pairs)]
    return lost + odd + ([] if lost else list(run_problems(answers, pairs)))


def missing(answers):
    """A line for each time that a run writes and some of these answers lack."""
    served = answers.meta["method"] == "engine"
    for name, fields in (NEEDED | (CHUNKS if served else STEPS)).items():
        lost = [
            question.question_id
            for question in answers.questions.values()
            if any(getattr(choice, name) is None for choice in question.choices)
        ]
        if lost:
            more = f" (and of {len(lost) - 1} more)" if len(lost) > 1 else ""
            yield f"times are missing: {fields} of question {lost[0]}{more}"


def turns_of(answers):
    """(question id, choice, turn) of every answered turn."""
    for question in answers.questions.values():
        for choice in question.choices:
            for turn in range(len(choice.wall_s)):
                yield question.question_id, choice, turn


def turn_problems(answers):
    """Turns whose wall_time is not the end of their last step, the first one named."""
    odd = []
    for question_id, choice, turn in turns_of(answers):
        ends, wall_s = (choice.step_end_s or choice.chunk_end_s or [[]])[turn:], choice.wall_s[turn]
        if ends and ends[0] and wall_s - ends[0][-1] > LATE_S + LATE_SHARE * wall_s:
            odd.append(
                (question_id, f"wall_time {wall_s:g} s, its last step ends at {ends[0][-1]:g} s")
            )
        elif choice.prefill_s and ends and ends[0] and ends[0][0] < choice.prefill_s[turn]:
            odd.append((question_id, "a step ends before the prefill"))
    odd += [
        (question_id, "its phases take longer than its steps")
        for question_id in odd_phases(answers)
    ]
    if odd:
        more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
        yield f"times do not fit: question {odd[0][0]}: {odd[0][1]}{more}"


def odd_phases(answers):
    """Ids of questions whose draft, verify and commit take longer than their steps."""
    for question in answers.questions.values():
        for choice in question.choices:
            if choice.stage_s is None or choice.prefill_s is None:
                continue
            decode_s = math.fsum(choice.wall_s) - math.fsum(choice.prefill_s)
            if math.fsum(choice.stage_s.values()) > decode_s + LATE_S + LATE_SHARE * decode_s:
                yield question.question_id


def run_problems(answers, pairs):
    """Where the turns of a run are not what its process says that it decoded (a meta's run_s).

    run_s is of the process that wrote last. Its turns are the last ones; they cover run_s.decode
    seconds, and lie within decode + harness. They are those that began after `started`; where none
    did, the command was repeated with nothing left to do, and their number is not known.
    """
    if answers.is_share:  # its process also decoded the method's answers, beside which it is held
        return
    meta, run_s = answers.meta, seconds_of(answers.meta)
    if run_s is None:
        yield "times are missing: run_s of its meta"
        return
    turns = sorted(span for side in (answers, pairs) if side is not None for span in spans_of(side))
    if overlap(turns):
        yield from worker_problems(meta, turns, run_s)
        return
    started_s = datetime.strptime(meta["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    since = [place for place, (begin, *_) in enumerate(turns) if begin >= started_s]
    first = since[:1] or range(len(turns))
    if not any(fit(turns[place:], *run_s) for place in first):
        decode_s, harness_s = run_s
        covered, within = lengths(turns[first[0] :])
        yield (
            f"times do not fit: its turns take {covered:.3f} s within {within:.3f} s, the run"
            f" decoded {decode_s:.3f} s within {decode_s + harness_s:.3f} s"
        )


def seconds_of(meta):
    """[decode, harness] of a meta's run_s, None where it does not say both."""
    found = [(meta.get("run_s") or {}).get(name) for name in ("decode", "harness")]
    known = all(type(value) in (int, float) and 0 <= value < math.inf for value in found)
    return found if known else None


def spans_of(answers):
    """(begin, end, slot) of every turn, Unix seconds."""
    for _, choice, turn in turns_of(answers):
        begin = choice.begin_s[turn]
        yield begin, begin + choice.wall_s[turn], choice.slot[turn]


def overlap(turns):
    """Whether a slot's turn begins before its last one has ended. turns: of spans_of(), in order.

    >>> overlap([(0, 2, 0), (1, 3, 1), (2, 4, 0)]), overlap([(0, 2, 0), (1, 3, 0)])
    (False, True)
    """
    last = {}
    for begin, end, slot in turns:
        before, until = last.get(slot, (begin, begin))
        if until - begin > LATE_S + LATE_SHARE * (until - before):
            return True
        last[slot] = begin, end
    return False


def worker_problems(meta, turns, run_s):
    """run_problems() where turns of one slot overlap, as those of several workers do.

    run_s is then of one of them.
    """
    arguments = meta.get("arguments") or {}
    decode_s, total_s = run_s[0], math.fsum(end - begin for begin, end, _ in turns)
    if arguments.get("num_gpus_total") == arguments.get("num_gpus_per_model"):
        yield "times do not fit: a turn begins before the last one in its slot has ended"
    elif total_s < decode_s - ROUNDED_S - ROUNDED_SHARE * decode_s:
        yield f"times do not fit: its turns take {total_s:.3f} s, a worker decoded {decode_s:.3f} s"


def lengths(turns):
    """(seconds that turns cover, from the first begin to the last end)."""
    spans = [(begin, end) for begin, end, _ in turns]
    return covered_s(spans), max(end for _, end in spans) - spans[0][0]


def fit(turns, decode_s, harness_s):
    """Whether turns are all that a process decoded."""
    covered, within = lengths(turns)
    slack = ROUNDED_S + ROUNDED_SHARE * decode_s
    return abs(covered - decode_s) <= slack and within <= decode_s + harness_s + slack
