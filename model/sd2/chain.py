"""A chain of a sorted draft: every token starts in the shallowest exit (S2D).

The first token of a turn is no exception: it leaves at the first exit that is sure enough, where
the authors' code takes it from the last one, with which it reads the prompt.
"""

from __future__ import annotations

from model.sd2.exits import SortedDraft
from model.sps.drafter import SpSDrafter


class SortedChainDrafter(SpSDrafter):
    """SpS's chain, of which every token comes from the first exit that is sure enough.

    The exit is chosen from the distribution, before a token of it is drawn, so that whatever the
    exits say, the token is a sample of a known law.

    guess  sample: tokens are drawn with the target's settings, and rejected or kept; argmax: the
           best token, matched with the target's draw
    """

    def __init__(self, draft: SortedDraft, target, schedule: str, num_draft: int, guess: str):
        super().__init__(draft, target, schedule, num_draft, 0.0)
        self.model, self.guess = draft, guess
        self.reads_per_step = self.max_nodes * draft.reads_per_row
        self.forget()

    def forget(self):
        self.model.forget()
        self.counts = [0] * len(self.model.exits)

    def propose(self):
        self.left = []  # [node][slot] exit, None where it drafts no more
        return super().propose()

    def _read(self, node, token):
        rows = self.draft.unread() if node == 0 else token.unsqueeze(1)
        live = [length > node for length in self.lengths]
        logits, left = self.model.read(rows.clamp(max=self.draft.last_id), live)
        self.left.append([block if drafts else None for block, drafts in zip(left, live)])
        return logits[:, -1]

    def _choose(self, logits, node):
        if self.guess == "argmax":
            return logits.argmax(-1), None
        return super()._choose(logits, node)

    def observe(self, step):
        before = self.draft.committed[:]
        super().observe(step)
        for block in sum(self.left, []):
            if block is not None:
                self.counts[block] += 1
        self.model.keep(self.draft.committed, before)

    def end(self, slots):
        super().end(slots)
        self.model.keep(self.draft.committed, self.draft.committed)

    def facts(self):
        by_exit = zip(self.model.exits, self.counts)
        return {f"drafted_at_exit_{layer}": count for layer, count in by_exit} | self.model.facts()
