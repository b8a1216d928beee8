"""Requests of a run as facts: when each arrived, began, brought its tokens and ended.

records/schema.py says what an answer file holds; imports.py makes the same Requests of other tools'
files. A run of ordinary answers is read too: every turn is a request that arrived when it began.
"""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.answers.meta import AnswerError, find_field
from evaluation.answers.reader import read_answers

ORDINARY = "no load run: every turn is a request that arrived when it began, so no queue"


@dataclass
class Request:
    """One prompt and its answer. Times are seconds after the run's origin; None: not known."""

    request_id: object
    error: str | None = None
    arrival_s: float | None = None
    sent_s: float | None = None  # handed over by the client
    begin_s: float | None = None  # its prefill began; of a server: it was sent
    first_s: float | None = None  # its first token was there
    last_s: float | None = None
    end_s: float | None = None  # the end of its wall_time, or its failure
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    chunk_gaps: list | None = None  # seconds between steps, or chunks, that brought tokens
    token_gaps: list | None = None  # the same, shared equally among the tokens of each
    accept_lengths: list | None = None  # [steps]
    accepted: tuple | None = None  # (tokens committed by steps, steps)
    drafted: list | None = None  # [steps] drafted candidates
    finish_reason: str | None = None
    slot: int | None = None
    energy_j: float | None = None
    text: str | None = None

    @property
    def start_s(self):
        """When it was sent, or arrived where there was no client."""
        return self.arrival_s if self.sent_s is None else self.sent_s

    @property
    def span(self):
        """(arrival, end), or None where one is not known."""
        return None if None in (self.arrival_s, self.end_s) else (self.arrival_s, self.end_s)

    def figures(self):
        """{name of schema.SERVING: seconds, None where it is not known or not defined}."""
        several = self.new_tokens is not None and self.new_tokens > 1
        decode_s = less(self.last_s, self.first_s)
        return {
            "ttft": less(self.first_s, self.arrival_s),
            "tpot": decode_s / (self.new_tokens - 1) if several and decode_s is not None else None,
            "e2e": less(self.last_s, self.arrival_s),
            "queue": less(self.begin_s, self.sent_s) if self.error is None else None,
            "lag": less(self.sent_s, self.arrival_s),
        }


def less(later, earlier):
    """The difference of two moments, None where one of them is not known."""
    return None if later is None or earlier is None else later - earlier


@dataclass
class Run:
    """All requests of one file, and what is known of the run as a whole."""

    path: Path
    label: str
    source: str  # "answers", or the tool that wrote the file
    requests: list
    origin_s: float = 0.0  # what the requests' times are counted from, Unix time where known
    slots: int | None = None  # sequences that a loop decodes together
    load: dict | None = None  # the meta's schedule
    answers: object = None  # the AnswerFile
    rate: float | None = None  # requests a second that were scheduled
    system: str | None = None  # what another tool's file says was measured
    notes: list = field(default_factory=list)
    given: dict = field(default_factory=dict)  # figures that another tool's file states as such

    @property
    def answered(self):
        """The requests that did not fail."""
        return [request for request in self.requests if request.error is None]


def of_answers(path):
    """The Run of an answer file of this project."""
    answers = read_answers(path)
    questions = list(answers.questions.values())
    loaded = [question.request is not None for question in questions]
    if any(loaded) and not all(loaded):
        lacking = questions[loaded.index(False)].question_id
        raise AnswerError(f"{answers.path}: question {lacking} has no request, others have one")
    meta = answers.meta or {}
    load = meta.get("load")
    if load is not None and not isinstance(load, dict):
        raise AnswerError(f"{answers.path}: its meta's load is no JSON object")
    requests = [request for question in questions for request in requests_of(question, answers)]
    starts = [r.arrival_s for r in requests if r.arrival_s is not None]
    origin_s = min(starts, default=0.0)
    for request in requests:
        shift(request, origin_s)
    server = any(c.chunk_tokens is not None for q in questions for c in q.choices)
    return Run(
        path=answers.path,
        label=answers.label,
        source="answers",
        requests=sorted(requests, key=lambda r: (r.arrival_s is None, r.arrival_s or 0.0)),
        origin_s=origin_s,
        slots=None if server else find_field(answers.meta, "batch_size"),
        load=load,
        answers=answers,
        rate=rate_of((load or {}).get("rate")),
        notes=[*([] if any(loaded) else [ORDINARY]), *cut_off(load, requests)],
    )


def cut_off(load, requests):
    """A line where a load run did not come to all requests of its schedule."""
    wanted = (load or {}).get("num_requests")
    if isinstance(wanted, int) and len(requests) < wanted:
        yield f"{len(requests)} of {wanted} requests of the schedule: the run was cut off"


def rate_of(value):
    """Requests a second from a number or its text, also "inf"; None where it is neither.

    >>> rate_of("0.5"), rate_of(None), rate_of("trace")
    (0.5, None, None)
    """
    try:
        rate = float(value)
    except (TypeError, ValueError):
        return None
    return rate if rate > 0 else None


def requests_of(question, answers):
    """The Requests of a Question with Unix times, one a turn."""
    asked = question.request or {}
    if question.error is not None:
        moments = asked.get("arrival_s"), asked.get("sent_s")
        ended = {"end_s": question.failed_s, "energy_j": question.energy_j}
        return [Request(question.question_id, question.error, *moments, **ended)]
    turns = sum(len(choice.texts) for choice in question.choices)
    if asked and turns > 1:
        raise AnswerError(
            f"{answers.path}: question {question.question_id}: a request of {turns} turns"
        )
    found = []
    for choice in question.choices:
        if choice.begin_s is None or choice.first_s is None:
            raise AnswerError(
                f"{answers.path}: question {question.question_id} has no begin_s and prefill_s:"
                " it does not say when it was answered"
            )
        for turn in range(len(choice.texts)):
            name = question.question_id
            name = name if turns == 1 else (name, choice.index, turn)
            found.append(request_of(choice, turn, name, asked))
    return found


def request_of(choice, turn, request_id, asked):
    """The Request of one answered turn, with Unix times."""
    begin_s, new_tokens = choice.begin_s[turn], choice.new_tokens[turn]
    gaps, counts = chunks_of(choice, turn)
    end_s = begin_s + choice.wall_s[turn]
    steps = slice(0)
    if choice.steps is not None:
        before = sum(choice.steps[:turn])
        steps = slice(before, before + choice.steps[turn])
    accepted = None if choice.accepted is None else (new_tokens - 1, choice.steps[turn])
    return Request(
        request_id,
        arrival_s=asked.get("arrival_s", begin_s),
        sent_s=asked.get("sent_s"),
        begin_s=begin_s,
        first_s=begin_s + choice.first_s[turn] if new_tokens else None,
        last_s=last_of(choice, turn) if new_tokens else None,
        end_s=end_s,
        prompt_tokens=choice.prompt_tokens[turn] if choice.prompt_tokens else None,
        new_tokens=new_tokens,
        chunk_gaps=gaps,
        token_gaps=None if gaps is None or choice.estimated else shared(gaps, counts),
        accept_lengths=choice.accept_lengths[steps] if choice.accept_lengths is not None else None,
        accepted=accepted,
        drafted=choice.drafted[turn] if choice.drafted is not None else None,
        finish_reason=choice.finish_reason[turn] if choice.finish_reason else None,
        slot=choice.slot[turn] if choice.slot else None,
        energy_j=choice.energy_j[turn] if choice.energy_j is not None else None,
        text=choice.texts[turn],
    )


def last_of(choice, turn):
    """Unix time of a turn's last token: its last step's or chunk's, the first where it has none."""
    begin_s = choice.begin_s[turn]
    if choice.chunk_tokens is not None:
        ends = [choice.first_s[turn], *choice.chunk_end_s[turn]]
        filled = zip(ends, choice.chunk_tokens[turn])
        return begin_s + max((end for end, tokens in filled if tokens), default=ends[0])
    if choice.step_end_s is not None:
        return begin_s + [choice.first_s[turn], *choice.step_end_s[turn]][-1]
    return begin_s + choice.wall_s[turn]


def chunks_of(choice, turn):
    """(gaps [C], tokens [C]) of a turn's chunks or steps behind its first token's.

    A chunk that brings no token is none: its time is part of the next one's gap. None, None where
    the file does not say when the steps ended, or what they committed.
    """
    first = choice.first_s[turn]
    if choice.chunk_tokens is not None:
        ends, tokens = choice.chunk_end_s[turn], choice.chunk_tokens[turn][1:]
    elif choice.step_end_s is not None and choice.accept_lengths is not None:
        before = sum(choice.steps[:turn])
        ends = choice.step_end_s[turn]
        tokens = choice.accept_lengths[before : before + len(ends)]
    else:
        return None, None
    filled = [(end, number) for end, number in zip(ends, tokens) if number]
    moments = [first, *(end for end, _ in filled)]
    return [b - a for a, b in itertools.pairwise(moments)], [number for _, number in filled]


def shared(gaps, tokens):
    """Gaps between tokens: those of a chunk share its gap equally.

    >>> shared([0.5, 0.25], [2, 1])
    [0.25, 0.25, 0.25]
    """
    return [gap / number for gap, number in zip(gaps, tokens) for _ in range(number)]


def shift(request, origin_s):
    """Count a Request's times from `origin_s` on."""
    for name in ("arrival_s", "sent_s", "begin_s", "first_s", "last_s", "end_s"):
        value = getattr(request, name)
        if value is not None:
            setattr(request, name, value - origin_s)
