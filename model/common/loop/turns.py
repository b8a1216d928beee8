"""The host's side of an answer being written: stop rules, ids, what every step cost."""

from __future__ import annotations

from dataclasses import dataclass, field

PHASES = ("draft", "verify", "commit")  # of a step's time; the rest is the loop's own


@dataclass
class Turn:
    """One decoded answer turn; per-step lists are as long as the number of steps (target forwards).

    accept_lengths  tokens committed by each step, bonus included, after the stop cut
    drafted         candidate nodes of each step (inert and probe rows not counted)
    depth           nodes on the path to the deepest of them
    first_s         until the prompt's own token is on the host
    prefill_s       until the drafter has read the prompt, too; devices synchronised at both ends
    wall_s          prefill + steps, likewise
    begin_s         Unix time when the prefill began
    step_end_s      end of each step, counted from there
    slot            which of the loop's slots decoded it
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
    begin_s: float = 0.0
    step_end_s: list[float] = field(default_factory=list)
    slot: int = 0
    first_s: float = 0.0


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
        sizes = [len(text.encode(errors="surrogatepass")) for text in self.strings]
        reach = max(sizes) + 4  # a token has at least one byte
        tail = self.decode(ids[-reach:])
        return any(text in tail for text in self.strings)


def not_finite(whose: str, num_tokens: int, dtype) -> str:
    """That somebody's logits are not finite after so many tokens of an answer, in one line."""
    place = "after the prompt"
    if num_tokens:
        place = f"after {num_tokens} token{'s' * (num_tokens > 1)} of the answer"
    line = f"the {whose}'s logits are not finite {place}"
    if str(dtype) != "torch.float16":
        return line
    return f"{line} (float16 overflows above 65504; try --dtype bfloat16 or float32)"


TARGET_FAULT = 1  # of Accepted.for_host(): the target's logits; without it, the drafter's


class Sequence:
    """A source.Request in its slot: the answer so far, and when it ends.

    error  why it cannot go on, "" where nothing is wrong
    """

    def __init__(self, request, slot: int, limit: int, stop: StopRules, begin, compiled):
        self.request, self.slot, self.limit, self.stop = request, slot, limit, stop
        self.begin, self.compiled = begin, compiled  # host's time, compilations()
        self.turn, self.error = Turn(slot=slot, phase_s={phase: [] for phase in PHASES}), ""
        self.length = len(request.ids)  # committed

    @property
    def max_length(self) -> int:
        """Most tokens that it can have, prompt included."""
        return len(self.request.ids) + self.limit

    @property
    def ended(self) -> bool:
        """Whether its answer is whole, or has failed."""
        return bool(self.turn.finish_reason or self.error)

    def take_step(self, row: list[int], dtype) -> list[int]:
        """A step's row of Accepted.for_host(); the ids that were kept, none where it failed.

        dtype: of the target.
        """
        count, drafted, depth, fault, *ids = row
        if fault:
            self.fail(fault, dtype)
            return []
        kept, turn = self.add(ids[:count]), self.turn
        turn.accept_lengths.append(len(kept))
        turn.drafted.append(drafted)
        turn.depth.append(depth)
        return kept

    def fail(self, fault: int, dtype) -> None:
        """Logits from which nothing can be chosen end the answer."""
        whose = "target" if fault & TARGET_FAULT else "drafter"
        self.error = not_finite(whose, len(self.turn.output_ids), dtype)

    def add_times(self, steps) -> None:
        """Enter those of steps in which it took part, as Clock.read() gives them."""
        for phases, end in steps:
            for phase, seconds in phases.items():
                self.turn.phase_s[phase].append(seconds)
            self.turn.step_end_s.append(end - self.begin)

    def finish(self, end: float, compiled: int) -> None:
        """The answer is whole; end: of host's time, compiled: graphs made so far."""
        turn = self.turn
        turn.wall_s = end - self.begin if turn.accept_lengths else turn.prefill_s
        turn.recompiled = compiled - self.compiled

    def add(self, ids: list[int]) -> list[int]:
        """Append committed ids, cut at the stop; returns those that were kept."""
        turn = self.turn
        turn.output_ids.extend(ids)
        kept, turn.finish_reason = self.stop.cut(turn.output_ids, len(ids), self.limit)
        if kept < len(ids):
            del turn.output_ids[kept - len(ids) :]
        self.length += kept
        return ids[:kept]
