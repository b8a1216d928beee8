"""Times of a run that do not fit each other, as they do where somebody has edited some of them.

Nothing here can tell a run that was invented as a whole: only running it again can.
"""

import math
from datetime import datetime

LATE_S, LATE_SHARE = 5e-3, 0.02  # by how much times of one turn may differ
ROUNDED_S, ROUNDED_SHARE = 5e-3, 1e-3  # by how much sums over a run may


def problems(answers, pairs=None):
    """Lines about one AnswerFile. pairs: the AnswerFile of its pairs, of the same process."""
    return [*turn_problems(answers), *run_problems(answers, pairs)]


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
    """Where the wall_times of a run do not sum to what its process says that it decoded.

    run_s.decode is of the process that wrote last: it decoded what began after `started`, and no
    more than all. Of one slot; turns of several overlap.
    """
    meta = answers.meta
    decode_s = (meta.get("run_s") or {}).get("decode")
    if decode_s is None or meta["shared"].get("batch_size") != 1 or answers.is_share:
        return
    arguments = meta.get("arguments") or {}
    if arguments.get("num_gpus_total") != arguments.get("num_gpus_per_model"):
        return  # run_s is of one of several workers
    started_s = datetime.strptime(meta["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    turns = [
        (choice.begin_s[turn] if choice.begin_s else math.inf, choice.wall_s[turn])
        for side in filter(None, (answers, pairs))
        for _, choice, turn in turns_of(side)
    ]
    total_s = math.fsum(wall_s for _, wall_s in turns)
    since_s = math.fsum(wall_s for begin_s, wall_s in turns if started_s <= begin_s < math.inf)
    slack = ROUNDED_S + ROUNDED_SHARE * decode_s
    if total_s < decode_s - slack or since_s > decode_s + slack:
        yield f"times do not fit: its turns take {total_s:.3f} s, the run decoded {decode_s:.3f} s"
