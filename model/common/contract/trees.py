"""Draft trees: from parents to ancestors, depths, attention masks, paths and what is accepted of
them, all as tensor operations.

Rows are numbered with the root first: node i is row i + 1 and parent -1 is row 0.
Example: parents [-1, 0, -1] (a chain of two and a rival of its first) has

    depths     [0, 1, 2, 1]
    ancestors  row 0: 1 0 0 0    row 1: 1 1 0 0    row 2: 1 1 1 0    row 3: 1 0 0 1
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft

_static: dict[int, tuple] = {}  # id of a static tree's parents -> (parents, layout)


def parent_rows(parents: Tensor) -> Tensor:
    """Row of each row's parent, [.., 1+n]; the root is its own."""
    root = parents.new_zeros(parents.shape[:-1] + (1,))
    return torch.cat([root, parents + 1], dim=-1)


def ancestors(parents: Tensor) -> Tensor:
    """[.., n] parents -> [.., 1+n, 1+n] bool: row i is, or descends from, row j.

    Pointer jumping: after k rounds a row knows 2^k generations, so a tree of depth d takes log2(d)
    rounds.
    """
    jump = parent_rows(parents)
    num_rows = jump.shape[-1]
    known = torch.eye(num_rows, dtype=torch.bool, device=parents.device)
    known = known.expand(jump.shape[:-1] + (num_rows, num_rows))
    for _ in range((num_rows - 1).bit_length()):
        rows = jump.unsqueeze(-1).expand(known.shape)
        known = known | known.gather(-2, rows)
        jump = jump.gather(-1, jump)
    return known


def layout(draft: Draft) -> tuple[Tensor, Tensor, Tensor]:
    """(parent rows [.., 1+n], ancestors [.., 1+n, 1+n], depths [.., 1+n]) of a draft.

    A static tree (1-D parents) is worked out once per tensor object, so drafters pass the same one;
    any other once per draft: the forward and the acceptance rule both ask.
    """
    parents = draft.parents
    is_static = parents.dim() == 1
    found = _static.get(id(parents)) if is_static else draft.layout
    if found is not None and found[0] is parents:
        return found[1]
    known = ancestors(parents)
    result = (parent_rows(parents), known, known.sum(-1) - 1)
    if not is_static:
        draft.layout = (parents, result)
        return result
    if len(_static) >= 256:
        _static.clear()
    _static[id(parents)] = (parents, result)
    return result


def path_to(row: Tensor, known: Tensor, depths: Tensor, depth: int) -> Tensor:
    """Rows from the root to `row` [B], as [B, 1+depth] padded with -1."""
    batch = row.shape[0]
    num_rows = known.shape[-1]
    known = known.expand(batch, num_rows, num_rows)
    line = known.gather(1, row.view(batch, 1, 1).expand(batch, 1, num_rows)).squeeze(1)
    place = torch.where(line, depths.expand(batch, num_rows), depth + 1).clamp(max=depth + 1)
    path = torch.full((batch, depth + 2), -1, dtype=torch.long, device=row.device)
    rows = torch.arange(num_rows, device=row.device).expand(batch, num_rows)
    path = path.scatter(1, place, rows)[:, : depth + 1]
    return path.clone(memory_format=torch.contiguous_format)  # one row's own strides vary, too


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

    def for_host(self, candidates: Tensor) -> Tensor:
        """All that the host reads, side by side: count, how many of the candidates [B, n] were
        guesses (not -1), successors."""
        drafted = (candidates >= 0).sum(1)
        return torch.cat([torch.stack([self.count, drafted], 1), self.successors], 1)


def _pad(values: Tensor, count: Tensor) -> Tensor:
    """[B, m] with -1 from count on."""
    beyond = torch.arange(values.shape[1], device=values.device) >= count.unsqueeze(1)
    return values.masked_fill(beyond, -1)


def deepest(match: Tensor, known: Tensor, depths: Tensor, score: Tensor | None = None) -> Tensor:
    """The deepest row [B] whose whole line matches, match [B, n]; ties: score, then first."""
    good = torch.cat([match.new_ones(match.shape[0], 1), match], dim=1)
    line = ~(known & ~good.unsqueeze(1)).any(-1)  # [B, 1+n]
    rank = torch.where(line, depths + 1, 0)
    if score is not None:
        highest = rank == rank.max(1, keepdim=True).values
        rank = torch.where(highest, score, float("-inf"))
    return rank.argmax(1)


def line_to(
    row: Tensor, bonus: Tensor, tokens: Tensor, known: Tensor, depths: Tensor, depth: int
) -> Accepted:
    """What is committed where a walk ends on `row` [B].

    The successor of a row is the node after it, tokens [B, n]; of the last one bonus [B].
    """
    path = path_to(row, known, depths, depth)
    count = (path >= 0).sum(1)
    root = tokens.new_full((row.shape[0], 1), -1)
    rows = torch.cat([root, tokens], dim=1)
    following = path.roll(-1, 1).clamp(min=0)
    successors = rows.gather(1, following).scatter(1, count.unsqueeze(1) - 1, bonus.unsqueeze(1))
    return Accepted(count, successors, path)
