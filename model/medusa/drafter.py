"""Medusa: the heads' best tokens at the last committed position, laid out as one static tree."""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.drafter import Draft, Drafter, Needs, Step, committed_rows
from model.common.heads import module_bytes
from model.common.ranking import top_ids
from model.common.runtime import make_runtime
from model.common.static_tree import StaticTree
from model.medusa.heads import MedusaHeads


class MedusaDrafter(Drafter):
    """A node of depth d and last rank r is the token of rank r of head d, whatever its parent.

    All heads read the hidden state of the last committed position, so nodes of the same depth and
    last rank carry the same token.
    """

    needs = Needs(hidden=("last",))

    def __init__(self, heads: MedusaHeads, tree, target, runtime: str):
        self.heads = heads
        self.device = target.device  # of tokens; the heads sit where the target's last layer is
        self.tree = tree = StaticTree(tree, self.device)
        self.num_best = 1 + max(max(path) for path in tree.paths)
        self.head_device = next(heads.parameters()).device
        depths = torch.tensor(tree.depths)
        self.columns = ((depths - 1) * self.num_best + tree.ranks.cpu()).to(self.head_device)
        self.runtime = make_runtime(runtime, self._tokens, self.head_device)
        self.hidden = None

    def shapes(self):
        return [(len(self.tree), self.tree.parents)]

    def facts(self):
        return {"head_bytes": module_bytes(self.heads)}

    @torch.inference_mode()
    def warm(self, capacity):
        if self.hidden is not None:
            self.runtime(self.hidden)

    def start(self, prefill, max_lengths, sampler):
        self.observe(prefill)

    def propose(self):
        tokens = self.runtime(self.hidden).to(self.device)
        return Draft(tokens, self.tree.parents, self.tree.depth)

    def observe(self, step):
        self.hidden = last_committed(step)

    def _tokens(self, hidden: Tensor) -> Tensor:
        """Tokens of the nodes [B, n], from hidden states [B, H]."""
        best = top_ids(self.heads(hidden), self.num_best)  # [K, B, k]
        return best.transpose(0, 1).flatten(1)[:, self.columns]


def last_committed(step: Step) -> Tensor:
    """Hidden state [B, H] of the last row that a step committed; any row where it committed none.

    It is the one whose successor became the new root.
    """
    place = (step.count - 1).clamp(min=0).unsqueeze(1)
    return committed_rows(step.hidden["last"], step.path.gather(1, place)).squeeze(1)
