"""EAGLE-2's dynamic tree: grow by products of draft probabilities, keep the best nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft
from model.common.contract.trees import Tree, best_nodes
from model.common.draft_flags import AUTO
from model.common.errors import BadInput
from model.common.loop.ranking import top_logp
from model.eagle.drafter import EagleDrafter

MOST_ROWS = 64  # of a tree that is cut to what pays


def check_size(total_token: int | str, depth: int, top_k: int, num_ids: int) -> int:
    """Draft nodes of a tree (total_token counts the root); a pool too small is bad input.

    num_ids: tokens that the head can draft. Of "auto" the tree from which nodes are cut.
    """
    if top_k > num_ids:
        raise BadInput(f"--draft-top-k {top_k}: the head drafts {num_ids} tokens")
    pool = top_k + depth * top_k**2
    if total_token == AUTO:
        return min(MOST_ROWS - 1, pool)
    if total_token < 2 or total_token - 1 > pool:
        raise BadInput(
            f"--total-token {total_token}: --draft-top-k {top_k} and --depth {depth} allow "
            f"2 to {pool + 1}"
        )
    return total_token - 1


class DynamicEagleDrafter(EagleDrafter):
    """EAGLE-2 and EAGLE-3 (arXiv 2406.16858, 2503.01840): a beam of top_k, `depth` passes deep.

    A node's score is the sum of log probabilities along its path, at temperature 1 and in float32,
    whatever the sampling settings. Of all nodes the num_nodes best are kept. Candidates are point
    guesses, so that token matching is exact. top_k 1 drafts a chain.
    """

    def __init__(self, head, num_nodes: int, depth: int, top_k: int, fits_tree: bool = False):
        super().__init__(head, num_nodes, 1 + depth, depth * top_k)
        self.widest, self.fits_tree = top_k, fits_tree
        self._grow(depth, top_k)

    def _grow(self, depth: int, top_k: int) -> None:
        """Plan passes beyond the first."""
        device = self.head.device
        self.depth, self.top_k, self.head_rows = depth, top_k, depth * top_k
        self.itself = torch.eye(top_k, dtype=torch.bool, device=device).unsqueeze(0)
        self.depths = [torch.full((1, top_k), d, device=device) for d in range(depth)]

    def resize(self, num_nodes, depth, paths=None):
        self.max_nodes, self.max_depth = num_nodes, depth
        self._grow(depth - 1, min(self.widest, num_nodes))  # a wider beam would change nothing

    def propose(self):
        head, width = self.head, self.top_k
        features = self.features.unsqueeze(1)
        tokens, scores = self._best(head.logits(features)[:, 0])  # [B, k], of the whole pool later
        batch = len(tokens)
        parents = torch.full_like(tokens, -1)
        level, features = tokens, features.expand(-1, width, -1)
        own = torch.arange(width, device=tokens.device).expand(batch, -1)  # places in the pool
        ancestors = self.itself.expand(batch, -1, -1)  # of the draft's rows so far, [B, k, w]
        for depth in range(self.depth):
            where = self.longest, depth * width, ancestors, self.depths[depth]
            features = head.read((level, features), *where)
            children, logp = self._best(head.logits(features))  # [B, k, k]
            new = (scores.gather(1, own).unsqueeze(-1) + logp).flatten(1)
            first = tokens.shape[1]
            tokens = torch.cat([tokens, children.flatten(1)], 1)
            scores = torch.cat([scores, new], 1)
            parents = torch.cat([parents, own.repeat_interleave(width, 1)], 1)
            if depth + 1 < self.depth:
                chosen = new.topk(width, dim=1).indices
                parent = (chosen // width).unsqueeze(-1)
                features = features.gather(1, parent.expand_as(features))
                above = ancestors.gather(1, parent.expand_as(ancestors))
                ancestors = torch.cat([above, self.itself.expand(batch, -1, -1)], 2)
                own = first + chosen
                level = tokens.gather(1, own)
        sound = ~scores.isnan().any(1)  # logits that are not finite give them NaN
        tokens, parents, kept = best_nodes(tokens, scores, parents, self.max_nodes)
        tree = Tree(parents, self.max_depth)
        return Draft(tokens, tree, sound=sound, scores=scores.gather(1, kept))

    def _best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(target ids, log probabilities) of the top_k candidates of each row, [.., V_d]."""
        ids, logp = top_logp(logits, self.top_k)
        return self.head.target_ids(ids), logp
