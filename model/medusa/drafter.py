"""Medusa: the heads' best tokens at the last committed position, laid out as one static tree."""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter, Needs, Step, committed_rows, end_of_prompt
from model.common.contract.static_tree import StaticTree
from model.common.heads.head import module_bytes
from model.common.loop.ranking import top_ids
from model.common.target.devices import all_on, on
from model.common.target.runtime import make_runtime
from model.medusa.heads import MedusaHeads


class MedusaDrafter(Drafter):
    """A node of depth d and last rank r is the token of rank r of head d, whatever its parent.

    All heads read the hidden state of the last committed position, so nodes of the same depth and
    last rank carry the same token.
    """

    needs = Needs(hidden=("last",))
    ahead = True

    def __init__(self, heads: MedusaHeads, tree, target, runtime: str):
        self.heads = heads
        self.device = target.device  # of tokens; the heads sit where the target's last layer is
        self.tree = tree = StaticTree(tree, self.device)
        self.num_best = 1 + max(max(path) for path in tree.paths)
        self.head_device = next(heads.parameters()).device
        depths = torch.tensor(tree.depths)
        self.columns = ((depths - 1) * self.num_best + tree.ranks.cpu()).to(self.head_device)
        self.runtime = make_runtime(runtime, self._tokens, self.head_device)
        self.seen = None

    def shapes(self):
        return [self.tree.shape]

    def facts(self):
        return {"head_bytes": module_bytes(self.heads)}

    @torch.inference_mode()
    def warm(self, capacity):
        if self.seen is not None:
            self.runtime(*self.seen)

    def start(self, prefill, max_lengths, sampler):
        self.seen = first_step(prefill, self.tree)

    def propose(self):
        tokens = on(self.device, self.runtime(*self.seen))
        return Draft(tokens, self.tree.parents, self.tree.depth)

    def observe(self, step):
        self.seen = step.hidden["last"], *all_on(self.head_device, (step.path, step.count))

    def _tokens(self, hidden: Tensor, path: Tensor, count: Tensor) -> Tensor:
        """Tokens of the nodes [B, n], from what last_committed() reads."""
        best = top_ids(self.heads(last_committed(hidden, path, count)), self.num_best)  # [K, B, k]
        return best.transpose(0, 1).flatten(1)[:, self.columns]


def last_committed(hidden: Tensor, path: Tensor, count: Tensor) -> Tensor:
    """State [B, H] of the last row that a step committed, of its hidden states [B, 1+n, H].

    path [B, 1+depth]; any row where count [B] is 0. It is the row whose successor became the new
    root.
    """
    place = (count - 1).clamp(min=0).unsqueeze(1)
    return committed_rows(hidden, path.gather(1, place)).squeeze(1)


def first_step(prefill: Step, tree: StaticTree) -> tuple[Tensor, Tensor, Tensor]:
    """A prompt's last row as what last_committed() reads of a step of the tree."""
    hidden = end_of_prompt(prefill.hidden["last"], prefill.count, len(tree))
    count = prefill.count.to(hidden.device).clamp(max=1)
    return hidden, count.new_zeros(len(count), 1 + tree.depth), count
