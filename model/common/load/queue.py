"""Requests that reach the loop when a schedule has them arrive, and what became of each."""

from __future__ import annotations

from collections import deque

from model.common.load.schedule import Schedule
from model.common.loop.clock import HostTime
from model.common.question_queue import QuestionQueue


class LoadQueue(QuestionQueue):
    """The requests of a load run, each a question of one turn.

    A request that arrives while the loop is inside a step or a prefill enters the queue at that
    moment, as it would from a client beside the loop: it is handed over (sent_s) when it arrives,
    and waits for a free slot from then on. Only where no slot was running and the loop slept until
    it came, it is handed over when the loop woke, which is later by what the system's timer makes
    it. All prompts are rendered before the first one arrives.

    schedule   when they arrive; the run begins when the loop first asks for a request
    host       the time of schedule and loop
    began      of host's time, None before; idle_s: seconds that the loop has slept
    client_s   seconds that were spent here: handing over requests, taking answers, writing records
    """

    def __init__(self, bench, questions, model_id, record, schedule: Schedule, host=None):
        super().__init__(bench, questions, model_id, record)
        self.schedule, self.host = schedule, host or HostTime()
        self.coming, self.waiting = self.waiting, deque()
        render = super()._request
        self.rendered = {c.question["question_id"]: render(c) for c in self.coming}
        self.began: float | None = None
        self.due: deque[float] = deque()  # when the first of those that are coming arrive
        self.times: dict[int | str, dict[str, float]] = {}  # arrival and sending of each
        self.idle_s = self.client_s = 0.0

    @property
    def unfinished(self):
        return bool(self.coming) or super().unfinished

    def notes(self):
        began = {} if self.began is None else {"began_s": self._unix(self.began)}
        return {"load": self.schedule.meta() | began}

    def seconds(self):
        """Of decoding, of sleeping, and those that were spent here."""
        return super().seconds() | {"idle": self.idle_s, "client": self.client_s}

    def take(self, slot):
        begin = self._begun()
        self._arrive(begin)
        request = super().take(slot)
        self.client_s += self.host.now() - begin
        return request

    def wait(self):
        begin = self._begun()
        if not (self.coming and self.due):
            return False
        if self.due[0] > begin:
            self.host.sleep(self.due[0] - begin)
            woken = self.host.now()
            self.idle_s += woken - begin
            self._arrive(woken, woken)
        return True

    def done(self, request, turn):
        begin = self.host.now()
        super().done(request, turn)
        self.client_s += self.host.now() - begin

    def failed(self, request, slot, reason):
        begin = self.host.now()
        super().failed(request, slot, reason)
        self.client_s += self.host.now() - begin

    def _request(self, conversation):
        return self.rendered.pop(conversation.question["question_id"])

    def _close(self, slot):
        if self.schedule.clients:  # whose next request is sent when the last one has ended
            ended = [t.begin_s - self.host.unix + t.wall_s for t in self.open[slot].results]
            self.due.append(ended[0] if ended else self.host.now())
        super()._close(slot)

    def _begun(self) -> float:
        """The time, which the first call makes the beginning of the run."""
        time = self.host.now()
        if self.began is None:
            self.began = time
            self.due.extend(time + arrival for arrival in self.schedule.first_arrivals())
        return time

    def _arrive(self, until: float, sent: float | None = None) -> None:
        """Let in what has arrived; sent: when it was handed over, None = when it arrived."""
        while self.coming and self.due and self.due[0] <= until:
            conversation, arrival = self.coming.popleft(), self.due.popleft()
            name = conversation.question["question_id"]
            self.times[name] = {"arrival_s": arrival, "sent_s": arrival if sent is None else sent}
            self.waiting.append(conversation)

    def _next(self):
        if not self.waiting:
            self._arrive(max(self._begun(), self.due[0]))
        return super()._next()

    def _facts(self, conversation):
        times = self.times.pop(conversation.question["question_id"])
        facts = {"request": {name: self._unix(time) for name, time in times.items()}}
        if conversation.error is not None:
            facts["failed_s"] = self._unix(self.host.now())
        return facts

    def _unix(self, time: float) -> float:
        return round(time + self.host.unix, 6)
