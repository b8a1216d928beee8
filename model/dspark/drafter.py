"""DSpark's chain: slot after slot, each given the token before, cut where it is unsure."""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft
from model.common.errors import BadInput
from model.common.loop.ranking import finite_rows
from model.dflash.drafter import BlockDrafter
from model.dflash.head import BlockHead
from model.dspark.scheduler import schedule


class DSparkDrafter(BlockDrafter):
    """The corrected logits are what tokens are drawn from, so that rejection is exact.

    A cut before slot k is decided by its confidence, which reads the token before and not its own,
    so that the law of the answer stays; behind a cut the bonus is drawn from the target's own law.

    threshold  of a slot's confidence, below which a draft ends before it; 0 = whole blocks
    cut        mask: slots behind the cut are inert rows; host: they are not read either, which
               costs a copy to the host
    rates      of scheduler.schedule(), which then cuts in place of the threshold; None = none
    """

    def __init__(
        self,
        head: BlockHead,
        threshold: float = 0.0,
        cut: str = "mask",
        rates: list[float] | None = None,
    ):
        super().__init__(head, head.design.num_drafts)
        self.threshold, self.cut, self.rates = threshold, cut, rates
        self.reads_per_step = 1 if self.cuts and (cut == "host" or rates) else 0
        if self.cuts and not head.module.markov.confidence:
            raise BadInput("--confidence and --step-rates: the head has no confidence head")

    @property
    def cuts(self) -> bool:
        """Whether drafts may be shorter than a block."""
        return self.threshold > 0 or self.rates is not None

    def facts(self):
        markov = self.head.module.markov
        kind = f"{markov.kind} of rank {markov.rank}" if markov.rank else "none"
        return {**super().facts(), "markov_head": kind, "confidence_head": markov.confidence}

    def reserve(self, num_slots, capacity, sampler):
        super().reserve(num_slots, capacity, sampler)
        self.running = [False] * num_slots

    def start(self, prompt):
        super().start(prompt)
        for slot in prompt.slots:
            self.running[slot] = True

    def end(self, slots):
        super().end(slots)
        for slot in slots:
            self.running[slot] = False

    def propose(self):
        module, ids = self.head.module, self.head.draft_ids
        states = self.head.draft(self.root, self.longest)  # [B, n, H]
        base = module.logits(states)
        base = base if base.dtype == torch.float64 else base.float()
        before, memory, laws, finite = [self.root.unsqueeze(1)], None, [], []
        for slot, (logits, state) in enumerate(zip(base.split(1, 1), states.split(1, 1))):
            scores, memory = module.corrected(logits, before[-1], state, memory)
            place, law = self.choose(scores, slot)
            before.append(ids.of_target(place))
            laws.append(law)
            finite.append(finite_rows(scores))
        whole = None if self.sampler.greedy else torch.cat(laws, 1)  # [B, n, V_d]
        draft = self.as_chain(torch.cat(before[1:], 1), whole, torch.cat(finite, 1).all(1))
        if not self.cuts:
            return draft
        confidence = module.confidence(torch.cat(before[:-1], 1), states).sigmoid()
        return self._cut(draft, confidence)

    def _cut(self, draft: Draft, confidence: Tensor) -> Draft:
        """The draft up to each slot's length, by confidence [B, n]."""
        places = torch.arange(confidence.shape[1], device=confidence.device)
        if self.rates is not None:
            rows = confidence.tolist()
            running = [slot for slot, runs in enumerate(self.running) if runs]
            found, _ = schedule([rows[slot] for slot in running], self.rates)
            lengths = [0] * len(rows)
            for slot, length in zip(running, found):
                lengths[slot] = length
            longest, kept = max(lengths), torch.tensor(lengths, device=places.device)
            kept = places < kept.unsqueeze(1)
        else:
            kept = (confidence >= self.threshold).cumprod(1).bool()
            longest = int(kept.sum(1).max()) if self.cut == "host" else len(places)
        tokens = draft.tokens.masked_fill(~kept, -1)[:, :longest]
        probs = None if draft.probs is None else draft.probs[:, :longest]
        return Draft(tokens, probs=probs, sound=draft.sound & confidence.isfinite().all(1))
