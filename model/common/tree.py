"""Draft trees: from parents to ancestors, depths, attention masks and paths, all as tensor
operations.

Rows are numbered with the root first: node i is row i + 1 and parent -1 is row 0.
Example: parents [-1, 0, -1] (a chain of two and a rival of its first) has

    depths     [0, 1, 2, 1]
    ancestors  row 0: 1 0 0 0    row 1: 1 1 0 0    row 2: 1 1 1 0    row 3: 1 0 0 1
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.drafter import Draft

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
    return path.scatter(1, place, rows)[:, : depth + 1]
