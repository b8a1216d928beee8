"""llama.cpp's ngram-mod: a table from the hash of the last n tokens to the one that came next.

No n-gram is kept, so that two of one hash answer for each other, and only the last successor is.
The published code inserts new n-grams some 32 tokens late; here each is there with its successor.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.common.contract.sequence import PerSequence, SequenceDrafter

MULTIPLIER, MASK = 6364136223846793005, 2**64 - 1  # of the hash, which wraps around
NUM_SLOTS = 4 * 1024 * 1024
FULL = 0.25  # share of used slots from which on the next sequence begins with an empty table
LOW, NUM_LOW = 0.25, 5  # a shared table is emptied after so many drafts with fewer accepted


@dataclass(frozen=True)
class Settings:
    """Published names: n_match tokens are hashed; drafts have n_min to n_max tokens or none."""

    n_match: int = 24
    n_min: int = 48
    n_max: int = 64


class NGramTable:
    """The token that came last after each hash of n tokens; used slots alone take memory."""

    def __init__(self, n: int, num_slots: int = NUM_SLOTS):
        self.n, self.num_slots = n, num_slots
        self.oldest = pow(MULTIPLIER, n, MASK + 1)  # weight of what leaves a window of n tokens
        self.slots: dict[int, int] = {}

    def rolled(self, state: int, token: int, left: int = 0) -> int:
        """The hash state after one more token; left: the token n places before it, if any."""
        return (state * MULTIPLIER + token - left * self.oldest) & MASK

    def put(self, state: int, token: int) -> None:
        """Note the successor of the n tokens of a hash state."""
        self.slots[state % self.num_slots] = token

    def get(self, state: int) -> int | None:
        """The successor, None where the slot is empty."""
        return self.slots.get(state % self.num_slots)

    def facts(self) -> dict:
        """How full it is."""
        return {"table_slots": self.num_slots, "table_used": len(self.slots)}


class NGramModSequence(SequenceDrafter):
    """One sequence and its table; a table that is given is shared and kept.

    >>> sequence = NGramModSequence(Settings(n_match=3, n_min=0, n_max=6))
    >>> sequence.start([1, 2, 3, 4, 5, 1, 2, 3])
    >>> sequence.propose()
    [4, 5, 1, 2, 3, 4]
    """

    def __init__(self, settings: Settings, table: NGramTable | None = None):
        self.settings, self.shared = settings, table

    def start(self, ids):
        self.table = self.shared or NGramTable(self.settings.n_match)
        if len(self.table.slots) > FULL * self.table.num_slots:
            self.table.slots.clear()
        self.ids, self.state = [], 0
        self.num_drafted, self.num_accepted, self.num_low = 0, None, 0
        self._read(ids)

    def observe(self, ids):
        self.num_accepted = len(ids) - 1
        self._read(ids)

    def _judge(self) -> None:
        """Empty a shared table after a streak of bad drafts; all of this text is put back.

        Asked when the next draft is due: the ids of an answer's last step may have been cut. The
        table of one text alone would be what it was.
        """
        if self.num_drafted and self.shared:
            low = self.num_accepted / self.num_drafted < LOW
            self.num_low = self.num_low + 1 if low else 0
            if self.num_low == NUM_LOW:
                self.table.slots.clear()
                self.num_low, read = 0, self.ids
                self.ids, self.state = [], 0
                self._read(read)

    def _read(self, tokens):
        table, n = self.table, self.settings.n_match
        for token in tokens:
            left = 0
            if len(self.ids) >= n:
                table.put(self.state, token)
                left = self.ids[-n]
            self.state = table.rolled(self.state, token, left)
            self.ids.append(token)

    def propose(self):
        """A chain, each guess read as text by the next."""
        if self.num_accepted is not None:
            self._judge()
            self.num_accepted = None
        table, n, draft = self.table, self.settings.n_match, []
        window, state = self.ids[-n:], self.state
        while len(window) >= n and len(draft) < self.settings.n_max:
            token = table.get(state)
            if token is None:
                break
            state = table.rolled(state, token, window[len(draft)])
            draft.append(token)
            window.append(token)
        draft = draft if len(draft) >= self.settings.n_min else []
        self.num_drafted = len(draft)
        return draft


class NGramModDrafter(PerSequence):
    """The sequences of all slots; warm: one table for all of them and for all questions."""

    def __init__(self, settings: Settings, warm: bool = False):
        self.table = NGramTable(settings.n_match) if warm else None
        super().__init__(
            lambda: NGramModSequence(settings, self.table),
            settings.n_max,
            facts=self.table.facts if warm else dict,
        )

    def forget(self):
        if self.table:
            self.table.slots.clear()
