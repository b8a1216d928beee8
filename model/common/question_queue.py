"""Questions on their way through the loop's slots: prompts in, answer records out."""

from __future__ import annotations

from collections import deque

from model.common.errors import BadInput, one_line
from model.common.loop.source import Request, Source
from model.common.prompts.conversation import Conversation, render
from model.common.records.energy.log import EnergyLog, union
from model.common.records.writer import answer_record, choice_record


class QuestionQueue(Source):
    """The questions of one answer file, in order; a conversation keeps its slot until it is over.

    bench      the eval.Bench: target, prompter, stop rules, arguments
    record     called with every finished question's record
    spans      (begin, end) of every answered turn, seconds
    energy     the file's EnergyLog; a record waits until its energy is known
    """

    def __init__(self, bench, questions: list[dict], model_id: str, record):
        self.bench, self.model_id, self.record = bench, model_id, record
        self.waiting = deque(
            Conversation(question, bench.history.get(question["question_id"]), index)
            for question in questions
            for index in range(bench.args.num_choices)
        )
        self.choices: dict = {question["question_id"]: [] for question in questions}
        self.open: dict[int, Conversation] = {}  # by slot
        self.spans: list[tuple[float, float]] = []
        self.energy = EnergyLog(None)

    @property
    def unfinished(self) -> bool:
        """Whether any question has no answer yet, and no error."""
        return bool(self.waiting or self.open)

    def take(self, slot):
        while slot in self.open or self.waiting:
            conversation = self.open.get(slot) or self._next()
            self.open[slot] = conversation
            request = self._request(conversation)
            if request is not None:
                self.energy.ready()
                return request
            self._close(slot)
        return None

    def _request(self, conversation: Conversation) -> Request | None:
        """The next turn's; None where the conversation is over or its prompt cannot be read."""
        turn = len(conversation.texts)
        if conversation.error is not None or turn == len(conversation.turns):
            return None
        bench = self.bench
        try:
            ids = render(bench.prompter, conversation.question, conversation.past)
        except Exception as error:  # a template may raise anything; it is this question's error
            conversation.error = str(error) if isinstance(error, BadInput) else one_line(error)
            return None
        conversation.prompt_tokens.append(len(ids))
        seed = conversation.seed(bench.args.seed, turn)
        # of an answer that its prompt's own token ended, the drafter may never have been told
        continues = any(earlier.accept_lengths for earlier in conversation.results)
        limit = bench.args.max_new_tokens
        return Request(ids, limit, seed, continues, owner=conversation)

    def begun(self, request, slot, begin):
        self.energy.begun(slot, begin)

    def done(self, request, turn):
        conversation = request.owner
        conversation.shares.append(self.energy.ended(turn.slot, turn))
        self.spans.append((turn.begin_s, turn.begin_s + turn.wall_s))
        conversation.add(turn, self.bench.prompter.text(turn.output_ids, self.bench.stop))
        if len(conversation.texts) == len(conversation.turns):
            self._close(turn.slot)

    def failed(self, request, slot, reason):
        request.owner.error = reason
        request.owner.shares.append(self.energy.failed(slot))
        self._close(slot)

    def notes(self) -> dict:
        """What the meta is to say of a run that has ended."""
        return {}

    def seconds(self) -> dict[str, float]:
        """decode: in which at least one turn was being answered."""
        return {"decode": sum(end - begin for begin, end in union(self.spans))}

    def fail(self, reason: str) -> None:
        """The loop has broken: an error for every question in its slots, or for the next one."""
        if not self.open:
            self.open[0] = self._next()
        for slot in list(self.open):
            self.open[slot].error = reason
            self.open[slot].shares.append(self.energy.failed(slot))
            self._close(slot)

    def _close(self, slot: int) -> None:
        """A conversation is over; with a question's last one its record is written."""
        conversation = self.open.pop(slot)
        question = conversation.question
        choices = self.choices[question["question_id"]]
        choices.append(conversation)
        if len(choices) < self.bench.args.num_choices:
            return
        del self.choices[question["question_id"]]
        error = next((c.error for c in choices if c.error is not None), None)
        choices.sort(key=lambda choice: choice.index)
        facts = self._facts(conversation)
        self.energy.when_known(lambda: self._write(question, choices, error, facts))

    def _write(self, question: dict, choices: list[Conversation], error, facts: dict) -> None:
        """Make the record of an answered question, and hand it over."""
        made = [] if error else [self._choice(choice) for choice in choices]
        if error:
            joules = self.energy.joules(*(share for c in choices for share in c.shares))
            facts = facts if joules is None else facts | {"energy_j": round(joules, 6)}
        self.record(answer_record(question, self.model_id, made, error) | facts)

    def _choice(self, c: Conversation) -> dict:
        joules = [self.energy.joules(share) for share in c.shares]
        energy_j = None if None in joules else joules
        return choice_record(c.index, c.texts, c.results, c.prompt_tokens, energy_j)

    def _next(self) -> Conversation:
        """The one that would be taken next."""
        return self.waiting.popleft()

    def _facts(self, conversation: Conversation) -> dict:
        """What stands in a question's record beside its answer; conversation: the last to end."""
        return {}
