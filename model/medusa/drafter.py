"""Medusa: the heads' best tokens at the last committed position, laid out as one static tree."""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.devices import all_on, on
from model.common.drafter import Draft, Drafter, Needs, committed_rows
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
        last = last_committed(prefill.hidden["last"], prefill.path, prefill.count)
        self.seen = first_step(last, prefill.count, self.tree)

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


def first_step(last: Tensor, count: Tensor, tree: StaticTree) -> tuple[Tensor, Tensor, Tensor]:
    """A prefill's last states [B, H] as what last_committed() reads of a step of the tree.

    count: the prefill's; 0 stays 0, 1 is what is left of others.
    """
    batch, width = last.shape
    hidden = last.new_zeros(batch, 1 + len(tree), width)
    hidden[:, 0] = last
    path = torch.zeros(batch, 1 + tree.depth, dtype=torch.long, device=last.device)
    return hidden, path, count.clamp(max=1).to(last.device)
