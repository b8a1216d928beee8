"""EAGLE-2's dynamic tree: grow by products of draft probabilities, keep the best nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.drafter import Draft
from model.common.errors import BadInput
from model.common.ranking import top_logp
from model.eagle.drafter import EagleDrafter


def check_size(total_token: int, depth: int, top_k: int, num_ids: int) -> int:
    """Draft nodes of a tree (total_token counts the root); a pool too small is bad input.

    num_ids: tokens that the head can draft.
    """
    if top_k > num_ids:
        raise BadInput(f"--draft-top-k {top_k}: the head drafts {num_ids} tokens")
    pool = top_k + depth * top_k**2
    if total_token < 2 or total_token - 1 > pool:
        raise BadInput(
            f"--total-token {total_token}: --draft-top-k {top_k} and --depth {depth} allow "
            f"2 to {pool + 1}"
        )
    return total_token - 1


class DynamicEagleDrafter(EagleDrafter):
    """EAGLE-2 and EAGLE-3 (arXiv 2406.16858, 2503.01840): a beam of top_k, `depth` passes deep.

    A node's score is the sum of log probabilities along its path, at temperature 1 and in float32,
    whatever the sampling settings. Of all nodes the num_nodes best are kept: with a child never
    above its parent and ties to the earlier node, their parents are kept as well. Candidates are
    point guesses, so that token matching is exact. top_k 1 drafts a chain.
    """

    def __init__(self, head, num_nodes: int, depth: int, top_k: int):
        super().__init__(head, 2 + depth, depth * top_k)
        self.num_nodes, self.depth, self.top_k = num_nodes, depth, top_k
        self.self_known = torch.eye(top_k, dtype=torch.bool, device=head.device).unsqueeze(0)

    def start(self, prefill, max_lengths, sampler):
        super().start(prefill, max_lengths, sampler)
        batch = len(self.blank[0])
        self.any_parents = torch.full((batch, self.num_nodes), -1, device=self.device)

    def shapes(self):
        return [(self.num_nodes, self.any_parents)]

    def warm_passes(self, capacity):
        batch, width = len(self.blank[0]), self.top_k
        rows = self.last[0].new_zeros(batch, width, self.last[0].shape[-1])
        tokens = self.blank[0].new_zeros(batch, width)
        for depth in range(self.depth):
            known = self.self_known.repeat(batch, 1, 1 + depth)
            self.head.warm(capacity, (tokens, None, rows), known, depth * width, depth)

    def propose(self):
        features, logits = self.catch_up()
        batch, width = logits.shape[0], self.top_k
        tokens, logp = self._best(logits[:, 0])  # [B, k]
        pool = _Pool(tokens, logp)
        alone = self.self_known.repeat(batch, 1, 1)  # no views: compiled graphs know their strides
        known, features = alone, features.repeat(1, width, 1)
        own = torch.arange(width, device=tokens.device).expand(batch, -1)  # pool index of each row
        for depth in range(self.depth):
            features, logits = self.head.read(
                (tokens, None, features), self.committed, known, depth * width, depth
            )
            children, logp = self._best(logits)  # [B, k, k]
            scores = (pool.scores.gather(1, own).unsqueeze(-1) + logp).flatten(1)
            first = pool.add(children.flatten(1), scores, own.repeat_interleave(width, 1))
            if depth + 1 == self.depth:
                break
            chosen = scores.topk(width, dim=1).indices
            parent = chosen // width
            own, tokens = first + chosen, children.flatten(1).gather(1, chosen)
            features = features.gather(1, parent.unsqueeze(-1).expand_as(features))
            lines = known.gather(1, parent.unsqueeze(-1).expand_as(known))
            known = torch.cat([lines, alone], 2)
        tokens, parents = (part.to(self.device) for part in pool.best(self.num_nodes))
        return Draft(tokens, parents, 1 + self.depth)

    def _best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(target ids, log probabilities) of the top_k candidates of each row, [.., V_d]."""
        ids, logp = top_logp(logits, self.top_k)
        return self.head.target_ids(ids), logp


class _Pool:
    """All nodes of a step, parents before children: tokens, scores and parents [B, size]."""

    def __init__(self, tokens: Tensor, scores: Tensor):
        self.tokens, self.scores, self.parents = tokens, scores, torch.full_like(tokens, -1)

    def add(self, tokens: Tensor, scores: Tensor, parents: Tensor) -> int:
        """Append nodes; returns the first one's index."""
        first = self.tokens.shape[1]
        self.tokens = torch.cat([self.tokens, tokens], 1)
        self.scores = torch.cat([self.scores, scores], 1)
        self.parents = torch.cat([self.parents, parents], 1)
        return first

    def best(self, num: int) -> tuple[Tensor, Tensor]:
        """(tokens, parents) of the nodes with the best scores, in the pool's order."""
        order = self.scores.sort(dim=1, descending=True, stable=True).indices
        kept = order[:, :num].sort(dim=1).values
        place = torch.full_like(self.tokens, -1)
        place.scatter_(1, kept, torch.arange(num, device=kept.device).expand_as(kept))
        above = self.parents.gather(1, kept)
        parents = torch.where(above < 0, -1, place.gather(1, above.clamp(min=0)))
        return self.tokens.gather(1, kept), parents
