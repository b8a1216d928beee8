"""Medusa: the heads' best tokens at the last committed position, laid out as one static tree."""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter, Needs
from model.common.contract.static_tree import StaticTree
from model.common.heads.head import module_bytes, runtime_for
from model.common.loop.ranking import finite_rows, top_ids
from model.medusa.heads import MedusaHeads


class MedusaDrafter(Drafter):
    """A node of depth d and last rank r is the token of rank r of head d, whatever its parent.

    All heads read the hidden state of the last committed position, so nodes of the same depth and
    last rank carry the same token.

    states  [B, H] those hidden states; columns [n]: of every node among the heads' best tokens
    """

    needs = Needs(hidden=("last",))

    def __init__(self, heads: MedusaHeads, tree, target):
        self.heads = heads
        self.tree = tree = StaticTree(tree, target.device)
        self.max_nodes, self.max_depth = len(tree), tree.depth
        self.num_best = 1 + max(max(path) for path in tree.paths)
        self.hidden_size = target.config.hidden_size
        head_device = next(heads.parameters()).device  # where the target's last layer is
        depths = torch.tensor(tree.depths)
        self.columns = ((depths - 1) * self.num_best + tree.ranks.cpu()).to(head_device)
        runtime = runtime_for(heads, target)
        self.guess = runtime.captured(runtime.compiled(self._guesses))

    def facts(self):
        return {"head_bytes": module_bytes(self.heads)}

    def reserve(self, num_slots, capacity, sampler):
        weight = next(self.heads.parameters())
        self.states = weight.new_zeros(num_slots, self.hidden_size)

    def start(self, prompt):
        self.states[prompt.slots] = prompt.last("last")

    def propose(self):
        tokens, sound = (part.to(self.tree.device) for part in self.guess(self.states))
        return Draft(tokens, self.tree.tree, sound=sound)

    def observe(self, step):
        self.states = step.last("last")

    def _guesses(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens of the nodes [B, n], Draft.sound [B]), from hidden states [B, H]."""
        logits = self.heads(states)  # [K, B, V]
        best = top_ids(logits, self.num_best)  # [K, B, k]
        return best.transpose(0, 1).flatten(1)[:, self.columns], finite_rows(logits).all(0)
