"""P-EAGLE's drafting: all tokens of a chain from one pass of the head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from model.common.contract.drafter import Draft, Drafter, Needs
from model.common.heads.head import module_bytes
from model.common.loop.ranking import best_id, finite_rows
from model.common.loop.sampling import DRAFT, draw
from model.peagle.head import PEagleHead


class PEagleDrafter(Drafter):
    """Chains of num_draft tokens, each from what its own row says of the committed text alone.

    Row 0 of a draft is the last committed row, which reads the target's states; behind it stand
    num_draft - 1 mask rows. Their keys and values are never committed: the next step's rows
    overwrite them. Greedy: the best token of every row. Sampling: every row's token is drawn from
    its own warped distribution, which does not depend on the tokens before it, so that the draft's
    law is the product of the rows' and rejection is exact.

    states   [B, num_draft, H] the head's output at those rows
    longest  host int: rows of the longest running sequence in the head's cache
    """

    def __init__(self, head: PEagleHead, num_draft: int):
        self.head, self.max_nodes = head, num_draft
        self.needs = Needs(hidden=tuple(head.needs))

    def facts(self):
        return {"head_bytes": module_bytes(self.head.module), **self.head.facts()}

    def reserve(self, num_slots, capacity, sampler):
        head, self.sampler = self.head, sampler
        head.reserve(num_slots, capacity + 2 * self.max_nodes)  # committed rows, then masks
        shape = num_slots, self.max_nodes, head.config.hidden_size
        self.states = torch.zeros(shape, dtype=head.dtype, device=head.device)

    def start(self, prompt):
        head, slots = self.head, prompt.slots
        inputs = prompt.new_tokens.clamp(min=0), head.features(prompt.hidden)
        last = head.read_prompt(slots, inputs, prompt.count)
        self.longest = prompt.max_committed - 1
        self.states = self.states.clone()
        self.states[slots, 0] = last
        if self.max_nodes > 1:  # behind the other slots' rows they are read for nothing
            masks = head.read(self._mask_rows(len(self.states)), self.longest)
            self.states[slots, 1:] = masks[slots]

    def observe(self, step):
        if step.max_committed == 0:
            return
        states = {name: step.committed(name) for name in self.head.needs}
        inputs = step.new_tokens.clamp(min=0), self.head.features(states)
        out = self.head.read(self._followed(inputs, step.count), self.longest)
        self.head.cache.advance(step.count)
        first = (step.count - 1).clamp(min=0).unsqueeze(1)
        rows = first + torch.arange(self.max_nodes, device=first.device)  # [B, K]
        self.states = out.gather(1, rows.unsqueeze(-1).expand(-1, -1, out.shape[-1]))
        self.longest = step.max_committed - 1

    def _followed(self, inputs: tuple[Tensor, Tensor], count: Tensor) -> tuple[Tensor, Tensor]:
        """Committed rows (tokens [B, m], states [B, m, ..]), count [B] of them real, with mask rows
        from there on: [B, m + K - 1].

        Example: count 2, m 3, K 3 -> the rows 0, 1, then three mask rows, of which two are drafts.
        """
        more, head = self.max_nodes - 1, self.head
        tokens, states = pad(inputs[0], (0, more)), pad(inputs[1], (0, 0, 0, more))
        is_mask = torch.arange(tokens.shape[1], device=tokens.device) >= count.unsqueeze(1)
        tokens = tokens.masked_fill(is_mask, head.mask_id)
        return tokens, torch.where(is_mask.unsqueeze(-1), head.mask_state, states)

    def _mask_rows(self, num_slots: int) -> tuple[Tensor, Tensor]:
        """The mask rows of a draft alone: (tokens [B, K - 1], states [B, K - 1, n H_t])."""
        shape = num_slots, self.max_nodes - 1
        tokens = torch.full(shape, self.head.mask_id, device=self.head.device)
        return tokens, self.head.mask_state.expand(*shape, -1)

    def propose(self):
        head, sampler, probs = self.head, self.sampler, None
        logits = head.logits(self.states)  # [B, K, V_d]
        if sampler.greedy:
            ids = best_id(logits)
        else:
            laws = sampler.warp(logits)
            uniforms = sampler.uniform(self.max_nodes, DRAFT).to(laws.device)
            ids, probs = draw(laws, uniforms), head.target_laws(laws)
        sound = finite_rows(logits).all(1)
        return Draft(head.target_ids(ids), probs=probs, sound=sound)

    def end(self, slots):
        self.head.cache.clear(slots)
