"""MTP's drafting: a chain, of which every token follows from the head's state of the one before."""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft
from model.common.loop.ranking import best_id, finite_rows
from model.common.loop.sampling import DRAFT, draw
from model.eagle.drafter import EagleDrafter


class MtpDrafter(EagleDrafter):
    """The first token follows from the committed rows, which the head has read with the target's
    states; each further one from a pass over the token before it. These rows never stay.

    head  an MtpHead
    """

    def __init__(self, head, num_draft: int):
        super().__init__(head, num_draft, None, num_draft - 1)

    def propose(self):
        head, states = self.head, self.features.unsqueeze(1)  # [B, 1, H]
        tokens, laws, finite = [], [], []
        for node in range(self.max_nodes):
            if node:
                states = head.read((tokens[-1], states), self.longest, node - 1)
            logits = head.logits(states)
            token, law = self._choose(logits, node)
            finite.append(finite_rows(logits))
            tokens.append(token)
            laws.append(law)
        probs = None if self.sampler.greedy else torch.cat(laws, 1)
        return Draft(torch.cat(tokens, 1), None, probs, sound=torch.cat(finite, 1).all(1))

    def _choose(self, logits: Tensor, node: int) -> tuple[Tensor, Tensor | None]:
        """(token [B, 1], the law [B, 1, V] that it is drawn from; greedy: None)."""
        head, sampler = self.head, self.sampler
        if sampler.greedy:
            return head.target_ids(best_id(logits)), None
        law = sampler.warp(logits)
        uniform = sampler.uniform(1, DRAFT, first=node)
        token = draw(law, uniform.to(law.device))
        return head.target_ids(token), head.target_laws(law)
