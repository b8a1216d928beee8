"""SuffixDecoding: what most often followed the end of the text, in it or in earlier answers."""

from __future__ import annotations

import sys

from model.common.contract.sequence import Guess, PerSequence, SequenceDrafter
from model.suffix.tree import Limits, SuffixTree

TEXT = "text"  # the one sequence of a local tree


class AnswerTree(SuffixTree):
    """The global tree: answers of earlier sequences and of those that run, never prompts.

    max_cached  answers kept; the one that began first goes first, even if it still grows. Once in
                about as many answers begin() has the tree read anew (SuffixTree.remove), and with
                it the prefill of that request takes longer, while the other slots wait
    """

    def __init__(self, limits: Limits, max_cached: int):
        super().__init__(limits)
        self.max_cached, self.num_begun = max_cached, 0

    def begin(self) -> int:
        """The name of a new answer, which is empty."""
        self.num_begun += 1
        self.extend(self.num_begun, [])
        if len(self.sequences) > self.max_cached:
            self.remove(next(iter(self.sequences)))
        return self.num_begun

    def facts(self) -> dict:
        """Sizes; bytes are those of the tables, without the numbers in them."""
        tables = self.next, self.link, self.length, self.counts
        num_bytes = sum(map(sys.getsizeof, tables)) + sum(map(sys.getsizeof, self.next))
        return {
            "global_answers": len(self.sequences),
            "global_tokens": self.counts[0],
            "global_states": len(self.link),
            "global_bytes": num_bytes,
        }


class SuffixSequence(SequenceDrafter):
    """One sequence: the tree of its prompt and answer, and the one that all share, if any.

    The tree begins anew with every prompt, also that of a question's second turn, which holds the
    first turn; in the shared one every turn's answer is a sequence of its own, as published.
    """

    def __init__(self, limits: Limits, answers: AnswerTree | None = None):
        self.limits, self.answers = limits, answers

    def start(self, ids):
        self.local, self.end_of_text = SuffixTree(self.limits), []
        self._read(ids)
        if self.answers:
            self.name = self.answers.begin()
            self.answers.extend(self.name, ids[-1:])

    def observe(self, ids):
        self._read(ids)
        if self.answers and self.name in self.answers.sequences:
            self.answers.extend(self.name, ids)

    def _read(self, ids):
        self.local.extend(TEXT, ids)
        self.end_of_text = (self.end_of_text + ids)[-self.limits.max_depth :]

    def propose(self):
        """The draft that expects more accepted tokens; of equal ones the local tree's."""
        best = self.local.draft(self.end_of_text, TEXT)
        if self.answers:
            other = self.answers.draft(self.end_of_text, self.name)
            best = other if other.score > best.score else best
        if not self.limits.as_tree:
            return best.tokens
        return Guess(best.tokens, best.parents, best.depth)

    def end(self):
        """Drop the text; its answer stays in the shared tree."""
        self.local = None


class SuffixDrafter(PerSequence):
    """The sequences of all slots and, if it is warm, the tree of answers that they share.

    max_cached  answers in that tree; 0 = cold: there is none
    """

    def __init__(self, limits: Limits, max_cached: int = 0):
        self.answers = AnswerTree(limits, max_cached) if max_cached else None
        super().__init__(
            lambda: SuffixSequence(limits, self.answers),
            limits.max_nodes,
            limits.longest_path if limits.as_tree else None,
            self.answers.facts if self.answers else dict,
        )

    def forget(self):
        if self.answers:
            self.answers.clear()

    def end(self, slots):
        super().end(slots)
        for slot in slots:
            self.sequences[slot].end()
