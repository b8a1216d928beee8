"""EAGLE-2's dynamic tree: grow by products of draft probabilities, keep the best nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, DraftShape
from model.common.contract.trees import parent_rows
from model.common.errors import BadInput
from model.common.loop.ranking import top_logp
from model.common.target.attention import additive
from model.common.target.devices import all_on
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
        super().__init__(head, num_nodes, 2 + depth)
        self.depth, self.top_k = depth, top_k
        itself = torch.eye(top_k, dtype=torch.bool, device=head.device)
        self.alone = additive(itself.unsqueeze(0), head.dtype)  # [1, 1, k, k]

    def start(self, prefill, max_lengths, sampler):
        super().start(prefill, max_lengths, sampler)
        batch = len(prefill.tokens)
        self.any_parents = torch.full((batch, self.num_nodes), -1, device=self.device)

    def shapes(self):
        return [DraftShape(self.num_nodes, self.any_parents, 1 + self.depth)]

    def propose(self):
        tokens, parents, *places = all_on(self.device, self._read(*self.drafting()))
        return Draft(tokens, parents, 1 + self.depth, layout=(parents, tuple(places)))

    def drafting(self):
        return self._grown, ()

    def _grown(self, out) -> tuple:
        """The tree's tokens and parents [B, n] and its layout(), from the head's output for the
        last committed token, ([B, 1, H], [B, 1, V_d])."""
        features, logits = out
        width, rows = self.top_k, self.head.tree()
        tokens, scores = self._best(logits[:, 0])  # [B, k], of the whole pool from here on
        parents = torch.full_like(tokens, -1)
        level, features = tokens, features.repeat(1, width, 1)
        own = torch.arange(width, device=tokens.device).repeat(len(tokens), 1)  # places in the pool
        lines = self.alone.repeat(len(tokens), 1, 1, 1)  # what of the tree each row reads
        for depth in range(self.depth):
            features, logits = self.head.read_below((level, None, features), lines, depth, rows)
            children, logp = self._best(logits)  # [B, k, k]
            new = (scores.gather(1, own).unsqueeze(-1) + logp).flatten(1)
            first = tokens.shape[1]
            tokens = torch.cat([tokens, children.flatten(1)], 1)
            scores = torch.cat([scores, new], 1)
            parents = torch.cat([parents, own.repeat_interleave(width, 1)], 1)
            if depth + 1 < self.depth:
                chosen = new.topk(width, dim=1).indices
                parent = (chosen // width).unsqueeze(-1)
                features = features.gather(1, parent.expand_as(features))
                above = lines.gather(2, parent.unsqueeze(1).expand_as(lines))
                lines = torch.cat([above, self.alone.expand(len(lines), -1, -1, -1)], 3)
                own = first + chosen
                level = tokens.gather(1, own)
        kept = best_nodes(tokens, scores, parents, self.num_nodes)
        return *kept, *layout(kept[1], 1 + self.depth)

    def _best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(target ids, log probabilities) of the top_k candidates of each row, [.., V_d]."""
        ids, logp = top_logp(logits, self.top_k)
        return self.head.target_ids(ids), logp


def best_nodes(tokens: Tensor, scores: Tensor, parents: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """(tokens, parents) [B, num] of the nodes with the best scores, in their order.

    tokens, scores, parents [B, size]: parents before children, and no child above its parent.
    """
    order = scores.sort(dim=1, descending=True, stable=True).indices
    kept = order[:, :num].sort(dim=1).values
    place = torch.full_like(tokens, -1)
    place.scatter_(1, kept, torch.arange(num, device=kept.device).expand_as(kept))
    above = parents.gather(1, kept)
    parents = torch.where(above < 0, -1, place.gather(1, above.clamp(min=0)))
    return tokens.gather(1, kept), parents


def layout(parents: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """tree.layout() of parents [B, n] whose deepest node is at most `depth` below the root.

    One generation at a time: in a compiled call a look-up per row costs less than one per row and
    column.
    """
    rows = parent_rows(parents)
    place = torch.arange(rows.shape[1], device=rows.device)
    above, known = rows, place == place.unsqueeze(1)
    for _ in range(depth):
        known = known | (above.unsqueeze(-1) == place)
        above = rows.gather(1, above)
    return rows, known, known.sum(-1) - 1
