"""What an answer has to say with one voice: its counts, its times, the request of a load run."""

import math

from evaluation.answers.meta import AnswerError

LATE_S = 1e-3  # by how much two clock readings may come in the wrong order


def check_times(question, where):
    """Refuse a turn that took no time, or less than its prefill or steps: it has no speed."""
    for number, choice in enumerate(question.choices):
        if min(choice.wall_s) <= 0:
            raise AnswerError(f"{where}: choice {number}: wall_time of {min(choice.wall_s)} s")
        if choice.prefill_s and any(p > w for p, w in zip(choice.prefill_s, choice.wall_s)):
            raise AnswerError(f"{where}: choice {number}: prefill_s is longer than wall_time")
        firsts = zip(choice.first_s or (), choice.prefill_s or ())
        if any(first > prefill for first, prefill in firsts):
            raise AnswerError(f"{where}: choice {number}: first_s is later than prefill_s")
        for name in ("step_end_s", "chunk_end_s"):
            for ends, wall_s in zip(getattr(choice, name) or (), choice.wall_s):
                if ends and ends[-1] > wall_s + LATE_S:
                    raise AnswerError(f"{where}: choice {number}: {name} is later than wall_time")
        begins = choice.begin_s if question.request and choice.begin_s else ()
        if any(begin < question.request["sent_s"] - LATE_S for begin in begins):
            raise AnswerError(f"{where}: choice {number}: begin_s is before the request's sent_s")


def parse_request(record, where):
    """({"arrival_s", "sent_s"}, failed_s) of a line, None each where the line has none."""
    request, failed_s = record.get("request"), record.get("failed_s")
    if request is not None:
        if not isinstance(request, dict):
            raise AnswerError(f"{where}: request is no JSON object")
        request = {name: request.get(name) for name in ("arrival_s", "sent_s")}
        for name, value in request.items():
            check_moment(value, f"{where}: request.{name}")
        if request["sent_s"] < request["arrival_s"] - LATE_S:
            raise AnswerError(f"{where}: request.sent_s is before request.arrival_s")
    if failed_s is not None:
        check_moment(failed_s, f"{where}: failed_s")
        if request and failed_s < request["arrival_s"] - LATE_S:
            raise AnswerError(f"{where}: failed_s is before request.arrival_s")
    return request, failed_s


def failed_joules(record, where):
    """energy_j of a question that failed, None where the line has none."""
    joules = record.get("energy_j")
    if joules is not None and (type(joules) not in (int, float) or not 0 <= joules < math.inf):
        raise AnswerError(f"{where}: energy_j is no number of zero or more")
    return joules


def check_moment(value, where):
    """Refuse what is no Unix time in seconds."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise AnswerError(f"{where} is missing or no Unix time")


def count_ids(choice):
    """Put the number of a turn's ids where its new_tokens is 0; {"ids"} where that was so."""
    empty = [i for i, ids in enumerate(choice.output_ids) if ids and not choice.new_tokens[i]]
    for turn in empty:
        choice.new_tokens[turn] = len(choice.output_ids[turn])
    return {"ids"} if empty else set()


def check_counts(choice, where):
    """Hold our own counts to their definitions: a turn has 1 + sum(accept_lengths) new tokens."""
    if choice.accept_lengths is None or len(choice.accept_lengths) != sum(choice.steps):
        raise AnswerError(f"{where}: accept_lengths has not one entry for each decoding step")
    start = 0
    for turn, steps in enumerate(choice.steps):
        accepted = sum(choice.accept_lengths[start : start + steps])
        start += steps
        new_tokens = choice.new_tokens[turn]
        if new_tokens != 1 + accepted:
            raise AnswerError(
                f"{where}: turn {turn}: new_tokens is {new_tokens}, but the prefill's token and"
                f" the accept_lengths make {1 + accepted}"
            )


def check_drafts(choice, where):
    """Hold what a file says of its drafts to its steps; it need not say it."""
    for name in ("drafted", "depth"):
        for turn, counts in enumerate(getattr(choice, name) or ()):
            if choice.steps is not None and len(counts) != choice.steps[turn]:
                raise AnswerError(f"{where}: {name} has not one entry for each decoding step")
    for drafted, depth in zip(choice.drafted or (), choice.depth or ()):
        if any(deep > nodes for nodes, deep in zip(drafted, depth)):
            raise AnswerError(f"{where}: depth is above drafted, the nodes of the whole draft")


def check_ids_counted(choice, where):
    """Refuse output_ids that are not new_tokens whole numbers a turn."""
    for turn, (ids, new_tokens) in enumerate(zip(choice.output_ids, choice.new_tokens)):
        if not isinstance(ids, list) or len(ids) != new_tokens or set(map(type, ids)) - {int}:
            raise AnswerError(f"{where}: turn {turn}: output_ids is no list of {new_tokens} ids")
