"""Typed access to the fields of one choice in an answer file."""

import math

from evaluation.answers.meta import AnswerError
from model.common.records.schema import EVIDENCE

STAGES = ("draft", "verify", "commit")  # the timed parts of a step; what is left of it is "rest"


class Fields:
    """Typed access to the fields of one choice, each per turn [T]."""

    def __init__(self, record, where, num_turns):
        self.record, self.where, self.num_turns = record, where, num_turns

    def refuse(self, name, reason):
        """Say in one line what is wrong with a field, and where."""
        raise AnswerError(f"{self.where}: {name} {reason}")

    def index(self, default):
        """The choice's number; its place in the list where it is not written."""
        value = self.record.get("index", default)
        if type(value) is not int:
            self.refuse("index", "is no whole number")
        return value

    def turns(self, name):
        """A list with an entry a turn, or None where the field is absent."""
        values = self.record.get(name)
        if values is None:
            return None
        if not isinstance(values, list) or len(values) != self.num_turns:
            self.refuse(name, f"is no list of {self.num_turns} turns")
        return values

    def labels(self, name):
        """A string or whole number a turn, or None where the field is absent."""
        values = self.turns(name)
        if values is not None and not set(map(type, values)) <= {int, str}:
            self.refuse(name, "is no list of names or numbers")
        return values

    def counts(self, name):
        """[T] whole numbers, zero or more."""
        values = self.turns(name)
        if values is None:
            self.refuse(name, "is missing")
        if set(map(type, values)) != {int} or min(values) < 0:
            self.refuse(name, "is no list of counts")
        return values

    def step_counts(self, name):
        """[T][steps] whole numbers, zero or more, or None where the field is absent."""
        turns = self.turns(name)
        for values in turns or ():
            if not isinstance(values, list) or not set(map(type, values)) <= {int}:
                self.refuse(name, "is no list of counts a turn")
            if min(values, default=0) < 0:
                self.refuse(name, "holds a negative number")
        return turns

    def seconds(self, name):
        """[T] finite times in seconds, zero or more."""
        values = self.turns(name)
        if values is None:
            self.refuse(name, "is missing")
        self.total_s(values, name)
        return values

    def first_tokens(self):
        """[T] seconds until the first token; of files that do not say it, the prefill_s, if any."""
        name = "first_s" if "first_s" in self.record else "prefill_s"
        return self.seconds(name) if name in self.record else None

    def total_s(self, values, name):
        """The sum of a list of times in seconds, each finite and not negative."""
        if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
            self.refuse(name, "is no list of times")
        try:
            total = math.fsum(values)
        except OverflowError:
            total = math.inf
        if not math.isfinite(total) or min(values, default=0) < 0:
            self.refuse(name, "holds a negative or infinite time")
        return total

    def accept_lengths(self):
        """The flat list of accept lengths; one script of Spec-Bench writes its key with a colon."""
        values = self.record.get("accept_lengths", self.record.get("accept_lengths:"))
        if values is None:
            return None
        if not isinstance(values, list) or not set(map(type, values)) <= {int}:
            self.refuse("accept_lengths", "is no flat list of whole numbers")
        if min(values, default=0) < 0:
            self.refuse("accept_lengths", "holds a negative number")
        return values

    def stages(self):
        """Stage -> seconds over all steps, or None where the file has no per-step times."""
        names = [f"{stage}_s" for stage in STAGES]
        if not any(name in self.record for name in names):
            return None
        totals = {}
        for stage, name in zip(STAGES, names):
            turns = self.turns(name)
            if turns is None:
                self.refuse(name, "is missing, where other stages of a step are timed")
            totals[stage] = math.fsum(self.total_s(values, name) for values in turns)
            self.check_lengths(turns, name)
        return totals

    def step_ends(self, name):
        """[T][steps] seconds that never fall within a turn, or None where the field is absent."""
        turns = self.turns(name)
        for values in turns or ():
            self.total_s(values, name)
            if values != sorted(values):
                self.refuse(name, "falls from a step to the next")
        if turns is not None:
            self.check_lengths(turns, name)
        return turns

    def amounts(self, name):
        """[T] finite numbers, zero or more, or None where the field is absent."""
        values = self.turns(name)
        for value in values or ():
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                self.refuse(name, f"holds {value!r}, no number of zero or more")
        return values

    def chunks(self):
        """(chunk_end_s [T][C], chunk_tokens [T][1 + C]) of a server's answers, or (None, None).

        An answer without a token has no chunk: its lists are empty.
        """
        tokens, ends = self.step_counts("chunk_tokens"), self.turns("chunk_end_s")
        if tokens is None and ends is None:
            return None, None
        if tokens is None or ends is None:
            self.refuse("chunk_tokens" if tokens is None else "chunk_end_s", "is missing")
        if self.record.get("prefill_s") is None:
            self.refuse("prefill_s", "is missing, where chunks are timed")
        facts = zip(tokens, ends, self.counts("new_tokens"), self.seconds("prefill_s"))
        for turn, (counts, times, new_tokens, prefill_s) in enumerate(facts):
            self.total_s(times, "chunk_end_s")
            if times != sorted(times) or (times and times[0] < prefill_s):
                self.refuse("chunk_end_s", f"falls from a chunk to the next in turn {turn}")
            if len(times) != max(0, len(counts) - 1):
                self.refuse("chunk_end_s", f"of turn {turn} is not one a chunk behind the first")
            if sum(counts) != new_tokens or (new_tokens and not counts[0]):
                self.refuse("chunk_tokens", f"of turn {turn} are not its {new_tokens} new_tokens")
        return ends, tokens

    def evidence(self):
        """accept_evidence: {"source", "checked", "disagree"}, or None where the field is absent."""
        value = self.record.get("accept_evidence")
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse("accept_evidence", "is no JSON object")
        checked = value.get("checked") or []
        names = [value.get("source"), *(checked if isinstance(checked, list) else [checked])]
        if any(name is not None and name not in EVIDENCE for name in names):
            self.refuse("accept_evidence", f"names another source than {', '.join(EVIDENCE)}")
        if not isinstance(value.get("disagree"), str | None):
            self.refuse("accept_evidence", "has no sentence in disagree")
        return value

    def check_lengths(self, turns, name):
        """Refuse [T][n] times that are not one for each decoding step."""
        lengths = [len(values) for values in turns]
        if lengths != self.record.get("decoding_steps"):
            self.refuse(name, f"has {lengths} times a turn, not one for each decoding step")
