"""Medusa: the heads' best tokens at the last committed position, laid out as one static tree."""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter, Needs
from model.common.contract.static_tree import StaticTree
from model.common.heads.head import module_bytes
from model.common.loop.ranking import finite_rows, top_ids
from model.common.target.products import choose_products
from model.medusa.heads import MedusaHeads


class MedusaDrafter(Drafter):
    """A node of depth d and last rank r is the token of rank r of head d, whatever its parent.

    All heads read the hidden state of the last committed position, so nodes of the same depth and
    last rank carry the same token.

    states  [B, H] those hidden states; columns [n]: of every node among the heads' best tokens
    """

    needs = Needs(hidden=("last",))

    def __init__(self, heads: MedusaHeads, paths, target, fits_tree: bool = False):
        self.heads, self.fits_tree = heads, fits_tree
        self.device, self.hidden_size = target.device, target.config.hidden_size
        self.num_heads = heads.num_heads
        choose_products(heads, self.device)
        self.runtime = target.runtime
        self._lay_out(paths)

    def _lay_out(self, paths) -> None:
        """Plan the tree of these paths."""
        self.paths, self.tree = paths, StaticTree(paths, self.device)
        self.max_nodes, self.max_depth = len(self.tree), self.tree.depth
        self.num_best = 1 + max(map(max, paths))
        depths, ranks = torch.tensor(self.tree.depths), self.tree.ranks.cpu()
        self.columns = ((depths - 1) * self.num_best + ranks).to(self.device)
        self.guess = self.runtime.captured(self.runtime.compiled(self._guesses))

    def resize(self, num_nodes, depth, paths=None):
        self.num_heads = depth
        self._lay_out(paths)

    def facts(self):
        return {"head_bytes": module_bytes(self.heads), **self.heads.draft_ids.facts()}

    def reserve(self, num_slots, capacity, sampler):
        weight = next(self.heads.parameters())
        self.states = weight.new_zeros(num_slots, self.hidden_size)

    def start(self, prompt):
        self.states[prompt.slots] = prompt.last("last")

    def propose(self):
        tokens, sound = self.guess(self.states)
        return Draft(tokens, self.tree.tree, sound=sound)

    def observe(self, step):
        self.states = step.last("last")

    def _guesses(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens of the nodes [B, n], Draft.sound [B]), from hidden states [B, H]."""
        logits = self.heads(states, self.num_heads)  # [K, B, V]
        best = self.heads.draft_ids.of_target(top_ids(logits, self.num_best))  # [K, B, k]
        return best.transpose(0, 1).flatten(1)[:, self.columns], finite_rows(logits).all(0)
