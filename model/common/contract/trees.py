"""Draft trees: from parents to ancestors, depths and paths, as tensor operations.

Rows are numbered with the root first: node i is row i + 1 and parent -1 is row 0.
Example: parents [-1, 0, -1] (a chain of two and a rival of its first) has

    depths     [0, 1, 2, 1]
    ancestors  row 0: 1 0 0 0    row 1: 1 1 0 0    row 2: 1 1 1 0    row 3: 1 0 0 1
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad


class Tree:
    """Which node continues which. What follows from it is worked out once per object.

    parents  [1, n] (one tree for all slots) or [B, n] long; -1 = the root. Parents stand before
             their children
    depth    host int, bound on the deepest node that can be committed
    """

    def __init__(self, parents: Tensor, depth: int):
        self.parents = parents if parents.dim() == 2 else parents.unsqueeze(0)
        self.depth = depth
        self._padded: dict = {}

    @cached_property
    def parent_rows(self) -> Tensor:
        """Row of each row's parent, [1 or B, 1+n]; the root is its own."""
        return pad(self.parents + 1, (1, 0))

    @cached_property
    def ancestors(self) -> Tensor:
        """[1 or B, 1+n, 1+n] bool: row i is, or descends from, row j."""
        return ancestors(self.parents)

    @cached_property
    def depths(self) -> Tensor:
        """[1 or B, 1+n], the root's is 0."""
        return self.ancestors.sum(-1) - 1

    def padded(self, num_nodes: int, depth: int) -> Tree:
        """The same with further nodes, children of the root, and another bound of the depth."""
        if (num_nodes, depth) == (self.parents.shape[1], self.depth):
            return self
        if (num_nodes, depth) not in self._padded:
            parents = pad(self.parents, (0, num_nodes - self.parents.shape[1]), value=-1)
            self._padded[num_nodes, depth] = Tree(parents, depth)
        return self._padded[num_nodes, depth]


@lru_cache(maxsize=512)
def chain_tree(num_nodes: int, device: torch.device) -> Tree:
    """The tree of a chain: parents [-1, 0, 1, ...]."""
    return Tree(torch.arange(-1, num_nodes - 1, device=device), num_nodes)


def ancestors(parents: Tensor) -> Tensor:
    """[.., n] parents -> [.., 1+n, 1+n] bool: row i is, or descends from, row j.

    Pointer jumping: after k rounds a row knows 2^k generations, so a tree of depth d takes log2(d)
    rounds.
    """
    jump = pad(parents + 1, (1, 0))
    num_rows = jump.shape[-1]
    known = torch.eye(num_rows, dtype=torch.bool, device=parents.device)
    known = known.expand(jump.shape[:-1] + (num_rows, num_rows))
    for _ in range((num_rows - 1).bit_length()):
        rows = jump.unsqueeze(-1).expand(known.shape)
        known = known | known.gather(-2, rows)
        jump = jump.gather(-1, jump)
    return known


def best_nodes(tokens: Tensor, scores: Tensor, parents: Tensor, num: int):
    """The nodes with the best scores, in their order: (tokens, parents [B, num], kept [B, num]).

    tokens, scores, parents [B, size]: parents before children, no child above its parent, so that
    a kept node's parent is kept (ties go to the earlier node). kept: their places among the size.
    """
    order = scores.sort(dim=1, descending=True, stable=True).indices
    kept = order[:, :num].sort(dim=1).values
    place = torch.full_like(tokens, -1)
    place.scatter_(1, kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept))
    above = parents.gather(1, kept)
    parents = torch.where(above < 0, -1, place.gather(1, above.clamp(min=0)))
    return tokens.gather(1, kept), parents, kept


def path_to(row: Tensor, ancestors: Tensor, depths: Tensor, depth: int) -> Tensor:
    """Rows from the root to `row` [B], as [B, 1+depth] padded with -1."""
    batch = row.shape[0]
    num_rows = ancestors.shape[-1]
    ancestors = ancestors.expand(batch, num_rows, num_rows)
    line = ancestors.gather(1, row.view(batch, 1, 1).expand(batch, 1, num_rows)).squeeze(1)
    place = torch.where(line, depths.expand(batch, num_rows), depth + 1).clamp(max=depth + 1)
    path = torch.full((batch, depth + 2), -1, dtype=torch.long, device=row.device)
    rows = torch.arange(num_rows, device=row.device).expand(batch, num_rows)
    path = path.scatter(1, place, rows)[:, : depth + 1]
    return path


class Accepted:
    """What a rule commits. What a step rarely needs is worked out when it is asked for.

    count       [B]          1 + accepted nodes
    successors  [B, 1+depth] successor of each row of the path, the last one the bonus; count are
                valid
    path        [B, 1+depth] rows, root first, -1 padded
    tokens      [B, 1+depth] successors, -1 padded
    """

    def __init__(self, count: Tensor, successors: Tensor, path: Tensor | None = None):
        self.count, self.successors, self._path = count, successors, path

    @property
    def path(self) -> Tensor:
        """The rows 0, 1, 2, ... if the rule left it open, which is a chain's path."""
        if self._path is None:
            rows = torch.arange(self.successors.shape[1], device=self.count.device)
            self._path = _pad(rows.expand_as(self.successors), self.count)
        return self._path

    @property
    def tokens(self) -> Tensor:
        return _pad(self.successors, self.count)

    def only(self, alive: Tensor) -> Accepted:
        """Nothing for the rows that are not alive [B]."""
        path = self.path.masked_fill(~alive.unsqueeze(1), -1)
        return Accepted(torch.where(alive, self.count, 0), self.successors, path)

    @property
    def last(self) -> Tensor:
        """The bonus token, [B]."""
        if self.successors.shape[1] == 1:
            return self.successors.squeeze(1)
        return self.successors.gather(1, (self.count - 1).unsqueeze(1)).squeeze(1)

    def for_host(
        self, candidates: Tensor, depths: Tensor, finite: Tensor, sound: Tensor | None
    ) -> Tensor:
        """All that the host reads, side by side: count, how many of the candidates [B, n] were
        guesses (not -1), the depth of the deepest of these, fault, successors.

        depths [1 or B, 1+n] as in Tree; finite [B, 1+n]: rows whose logits are; sound as in Draft.
        fault: 1 where a committed row's are not, plus 2 where the draft is not sound.
        """
        fault = (~finite.gather(1, self.path.clamp(min=0)).all(1)).long()
        if sound is not None:
            fault = fault + 2 * ~sound
        guessed = candidates >= 0
        depth = (depths * pad(guessed, (1, 0))).amax(1)
        facts = torch.stack([self.count, guessed.sum(1), depth, fault], 1)
        return torch.cat([facts, self.successors], 1)


def _pad(values: Tensor, count: Tensor) -> Tensor:
    """[B, m] with -1 from count on."""
    beyond = torch.arange(values.shape[1], device=values.device) >= count.unsqueeze(1)
    return values.masked_fill(beyond, -1)


def deepest(
    match: Tensor, ancestors: Tensor, depths: Tensor, score: Tensor | None = None
) -> Tensor:
    """The deepest row [B] whose whole line matches, match [B, n]; ties: score, then first."""
    good = torch.cat([match.new_ones(match.shape[0], 1), match], dim=1)
    line = ~(ancestors & ~good.unsqueeze(1)).any(-1)  # [B, 1+n]
    rank = torch.where(line, depths + 1, 0)
    if score is not None:
        highest = rank == rank.max(1, keepdim=True).values
        rank = torch.where(highest, score, float("-inf"))
    return rank.argmax(1)


def line_to(
    row: Tensor, bonus: Tensor, tokens: Tensor, ancestors: Tensor, depths: Tensor, depth: int
) -> Accepted:
    """What is committed where a walk ends on `row` [B].

    The successor of a row is the node after it, tokens [B, n]; of the last one bonus [B].
    """
    path = path_to(row, ancestors, depths, depth)
    count = (path >= 0).sum(1)
    root = tokens.new_full((row.shape[0], 1), -1)
    rows = torch.cat([root, tokens], dim=1)
    following = path.roll(-1, 1).clamp(min=0)
    successors = rows.gather(1, following).scatter(1, count.unsqueeze(1) - 1, bonus.unsqueeze(1))
    return Accepted(count, successors, path)
