"""The host's side of B answers being written: ids, stop rules, what every step cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from model.common.loop.clock import now
from model.common.target.runtime import compilations


@dataclass
class Turn:
    """One decoded answer turn; per-step lists are as long as the number of steps (target forwards).

    accept_lengths  tokens committed by each step, bonus included, after the stop cut
    drafted         candidate nodes of each step (inert and probe rows not counted); depth their
                    bound
    wall_s          prefill + steps, the device synchronised at both ends
    recompiled      graphs compiled or captured within wall_s; 0 where the warm-up met every shape
    """

    output_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    prefill_s: float = 0.0
    wall_s: float = 0.0
    accept_lengths: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    phase_s: dict[str, list[float]] = field(default_factory=dict)
    recompiled: int = 0


@dataclass
class StopRules:
    """When an answer ends: one of eos_ids, a stop string in the decoded text, or max_new_tokens.

    decode: ids -> text, needed for stop strings only.
    """

    eos_ids: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()
    decode: object = None

    def cut(self, ids: list[int], new: int, limit: int) -> tuple[int, str]:
        """How many of the last `new` ids are kept, and why the answer ends there ("" if it goes
        on).

        >>> StopRules(frozenset({2})).cut([5, 7, 2, 9], new=3, limit=100)
        (2, 'stop')
        """
        first = len(ids) - new
        for position in range(first, len(ids)):
            if ids[position] in self.eos_ids:
                return position + 1 - first, "stop"
            if self.strings and self._has_string(ids[: position + 1]):
                return position + 1 - first, "stop"
            if position + 1 == limit:
                return position + 1 - first, "length"
        return new, ""

    def _has_string(self, ids: list[int]) -> bool:
        """Whether the text's tail holds a stop string; ids, since a string may span tokens."""
        reach = max(len(text) for text in self.strings) + 4  # a token has at least one byte
        tail = self.decode(ids[-reach:])
        return any(text in tail for text in self.strings)


class Rows:
    """Host-side state of the B answers being written."""

    def __init__(self, prompts, limits, stop: StopRules):
        self.prompts, self.limits, self.stop = prompts, limits, stop
        self.max_lengths = [len(ids) + limit for ids, limit in zip(prompts, limits)]
        self.turns = [Turn() for _ in prompts]
        self.lengths = [len(ids) for ids in prompts]  # committed
        self.longest = max(self.lengths)  # of the unfinished ones, after every measure()
        self.alive = [True] * len(prompts)
        self.compiled = compilations()

    def add(self, row: int, ids: list[int]) -> int:
        """Append committed ids, cut at the stop; returns how many were kept."""
        turn = self.turns[row]
        turn.output_ids.extend(ids)
        kept, reason = self.stop.cut(turn.output_ids, len(ids), self.limits[row])
        if kept < len(ids):
            del turn.output_ids[kept - len(ids) :]
        self.lengths[row] += kept
        if reason:
            turn.finish_reason = reason
            self.alive[row] = False
        return kept

    def finish(self, running: list[bool], begin: float, device) -> None:
        """Wall time of the rows that have just ended; the last one waits for the device."""
        end = time.perf_counter() if any(self.alive) else now(device)
        for turn, before, after in zip(self.turns, running, self.alive):
            if before and not after:
                turn.wall_s = end - begin
                turn.recompiled = compilations() - self.compiled

    def measure(self) -> None:
        """Note the committed length of the longest unfinished sequence."""
        if len(self.lengths) == 1:
            self.longest = self.lengths[0] * self.alive[0]
        else:
            lengths = zip(self.lengths, self.alive)
            self.longest = max([length for length, alive in lengths if alive], default=0)
