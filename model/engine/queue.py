"""Questions on their way to a server: the harness' queue, with a server's turns and times."""

from __future__ import annotations

from model.common.question_queue import QuestionQueue
from model.engine.answer import ServedTurn, served_choice


class ServedQueue(QuestionQueue):
    """As QuestionQueue; a slot is a request in flight.

    In a load run every question is a request of one turn: its prompt is rendered before the run
    begins, and its line says when it arrived and when it was sent.

    schedule       a load.schedule.Schedule, None = no load
    host           the HostTime of the client too: a system clock that is set moves no time
    began_s        Unix time of the load's beginning
    ended_s        Unix time at which the last request of a slot has ended, by slot
    num_counted    tokens of all answers, as the server counts them
    accepted       of all turns, evidence.Finding.accepted
    cached_tokens  of their prompts, taken from earlier requests; None = the server does not say
    """

    def __init__(self, bench, questions: list[dict], model_id: str, record, schedule=None):
        super().__init__(bench, questions, model_id, record)
        self.schedule, self.host, self.began_s = schedule, bench.host, 0.0
        self.times: dict[int | str, dict[str, float]] = {}
        self.ended_s: dict[int, float] = {}
        self.num_counted, self.cached_tokens = 0, None
        self.accepted: list[int | None] = []
        if schedule is not None:
            render = super()._request
            self.rendered = {c.question["question_id"]: render(c) for c in self.waiting}

    def now(self) -> float:
        """Unix time that never goes back."""
        return self.host.unix + self.host.now()

    def arrived(self, slot: int, arrival_s: float):
        """Take the next request of a load, which arrived at a Unix time; None: it has failed."""
        self.times[self.waiting[0].question["question_id"]] = {
            "arrival_s": arrival_s,
            "sent_s": arrival_s,
        }
        self.open[slot] = conversation = self._next()
        request = self.rendered.pop(conversation.question["question_id"])
        if request is None:
            self._close(slot)
        return request

    def sent(self, request, begin_s: float) -> None:
        """When a request was handed to the network; Unix time."""
        if self.schedule is not None:
            self.times[request.owner.question["question_id"]]["sent_s"] = begin_s

    def done(self, request, turn: ServedTurn):
        conversation = request.owner
        self.spans.append((turn.begin_s, turn.begin_s + turn.wall_s))
        self.num_counted += turn.num_counted
        self.accepted.append(turn.finding.accepted)
        if turn.cached is not None:
            self.cached_tokens = (self.cached_tokens or 0) + turn.cached
        if turn.prompt_tokens is not None:
            conversation.prompt_tokens[-1] = turn.prompt_tokens
        text = turn.text
        if turn.output_ids is not None:
            text = self.bench.prompter.text(turn.output_ids, self.bench.stop)
        conversation.add(turn, text)
        if len(conversation.texts) == len(conversation.turns):
            self._close(turn.slot)

    def notes(self):
        if self.schedule is None:
            return {}
        return {"load": self.schedule.meta() | {"began_s": round(self.began_s, 6)}}

    def _close(self, slot):
        ends = [turn.begin_s + turn.wall_s for turn in self.open[slot].results]
        self.ended_s[slot] = ends[-1] if ends else self.now()
        super()._close(slot)

    def _choice(self, c):
        return served_choice(c.index, c.texts, c.results, c.prompt_tokens)

    def _facts(self, conversation):
        times = self.times.pop(conversation.question["question_id"], None)
        if times is None:
            return {}
        facts = {"request": {name: round(value, 6) for name, value in times.items()}}
        if conversation.error is not None:
            facts["failed_s"] = round(self.now(), 6)
        return facts
