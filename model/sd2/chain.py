"""A chain of a sorted draft: every token starts in the shallowest exit (S2D)."""

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
        self.in_calls = False  # an exit is chosen before a token is
        self.guess = guess
        self.reads_per_step = num_draft * draft.reads_per_row
        self.forget()

    def forget(self):
        self.draft.forget()
        self.counts = [0] * len(self.draft.exits)

    def start(self, prefill, max_lengths, sampler):
        super().start(prefill, max_lengths, sampler)
        self.running = (prefill.count > 0).tolist()
        lengths = zip(prefill.host_ids, self.running)
        self.lengths_now = [len(ids) if runs else 2 for ids, runs in lengths]
        self.draft.keep(self.lengths_now, self.lengths_now)

    def warm(self, capacity):
        self.draft.warm(capacity + self.num_draft, [(2, 1), (1, 1)])

    def propose(self):
        self.left = []  # [node][sequence] exit, None where it drafts no more
        return super().propose()

    def _read(self, unread, node):
        live = [runs and length > node for runs, length in zip(self.running, self.lengths)]
        logits, left = self.draft.read(unread, live)
        self.left.append([block if drafts else None for block, drafts in zip(left, live)])
        return logits[:, -1]

    def _choose(self, logits, node):
        if self.guess == "argmax":
            return logits[..., : self.vocab_size].argmax(-1), None, None
        return super()._choose(logits, node)

    def observe(self, step):
        super().observe(step)
        before = self.lengths_now
        self.running = [bool(ids) for ids in step.host_ids]
        for blocks in self.left:
            for block, runs in zip(blocks, self.running):
                if runs and block is not None:
                    self.counts[block] += 1
        self.lengths_now = [
            length + len(ids) if ids else 2 for length, ids in zip(before, step.host_ids)
        ]
        self.draft.keep(self.lengths_now, before)
        self.reads_per_step = max(self.planned) * self.draft.reads_per_row

    def facts(self):
        by_exit = zip(self.draft.exits, self.counts)
        return {f"drafted_at_exit_{layer}": count for layer, count in by_exit} | self.draft.facts()
