"""Prompt lookup on an incremental n-gram index."""

from __future__ import annotations

from model.common.contract.sequence import SequenceDrafter


class PLDDrafter(SequenceDrafter):
    """Copies the tokens after an earlier occurrence of the last m tokens, m = max_ngram ... 1.

    An occurrence starting at i gives x[i+m : i+m+K]. Only one whose continuation is K tokens long
    counts (the published rule), unless clamp is set; then what there is before the end is copied.
    match chooses the leftmost (published) or the most recent occurrence.

    Each m-gram's start positions are kept in a dict, ascending; a token costs O(max_ngram) to index
    and a lookup reads one end of a list, so that neither depends on the context's length.

    >>> drafter = PLDDrafter(max_ngram=2, num_draft=1)
    >>> drafter.start([1, 2, 9, 1, 2, 8, 1, 2])
    >>> drafter.propose()
    [9]
    """

    def __init__(
        self, max_ngram: int = 3, num_draft: int = 10, match: str = "first", clamp: bool = False
    ):
        self.max_ngram, self.num_draft = max_ngram, num_draft
        self.match, self.clamp = match, clamp

    def start(self, ids):
        self.ids: list[int] = []
        self.starts: list[dict[tuple, list[int]]] = [{} for _ in range(self.max_ngram)]
        self.observe(ids)

    def observe(self, ids):
        for token in ids:
            self.ids.append(token)
            end = len(self.ids)
            for size in range(1, min(self.max_ngram, end) + 1):
                gram = tuple(self.ids[end - size :])
                self.starts[size - 1].setdefault(gram, []).append(end - size)

    def propose(self):
        end = len(self.ids)
        for size in range(min(self.max_ngram, end - 1), 0, -1):
            starts = self.starts[size - 1][tuple(self.ids[end - size :])]
            if self.clamp:
                last = end - size - 1
            else:  # the continuation is whole and begins before the suffix itself
                last = min(end - size - self.num_draft, end - 2 * size - 1)
            start = self._pick(starts, last)
            if start is not None:
                return self.ids[start + size : start + size + self.num_draft]
        return []

    def _pick(self, starts: list[int], last: int) -> int | None:
        """The leftmost or rightmost of the ascending starts that is at most `last`."""
        if starts[0] > last:
            return None
        if self.match == "first":
            return starts[0]
        position = len(starts) - 1
        while starts[position] > last:  # few steps: starts differ by at least one
            position -= 1
        return starts[position]
