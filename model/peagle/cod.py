"""Which rows P-EAGLE learns from, and what each of them reads.

A row (a, d) stands d mask rows behind the row at position a, its anchor: (a, 0) reads the
target's states at a, rows of d > 0 are mask rows. It sits at position a + d and says which token
is at a + d + 2. All rows of a sequence are read in one pass: row (a, d) sees the anchors up to
its own and the mask rows between that and itself, as in drafting from a.
Source: Hui et al., arXiv 2602.01469 (conditional-on-distribution sampling)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Rows(NamedTuple):
    """Rows of B sequences: first all T anchors (0, 0), (1, 0), ..., then mask rows.

    anchor, depth  [B, R] long; shorter lists end in rows (-1, 1), which see each other alone
    """

    anchor: Tensor
    depth: Tensor

    @property
    def position(self) -> Tensor:
        """[B, R]; 0 where there is no row."""
        return (self.anchor + self.depth).clamp(min=0)

    @property
    def real(self) -> Tensor:
        """[B, R] bool: not one that fills up."""
        return self.anchor >= 0

    def visible(self) -> Tensor:
        """[B, R, R] bool: whether row i sees row j.

        Rows (0,0) (1,0) (0,1): the last one sees (0,0) and itself.
        """
        own, other = self.anchor.unsqueeze(2), self.anchor.unsqueeze(1)
        deep, above = self.depth.unsqueeze(2), self.depth.unsqueeze(1)
        return ((above == 0) & (other <= own)) | ((other == own) & (above <= deep))


def num_kept(num_learned: int, depth: int, ratio: float, floor: float) -> int:
    """Rows of a depth that are kept at most, of a sequence with so many learned positions.

    >>> [num_kept(100, depth, 0.7, 0.2) for depth in (1, 2, 7)]
    [69, 48, 18]
    """
    return int(max(num_learned - depth, 0) * max(ratio**depth, floor))


def sampled_rows(learned: Tensor, num_depths: int, ratio: float, floor: float) -> Rows:
    """Rows of a training step; learned [B, T] bool: positions whose row predicts an answer's token.

    Of a depth d as many as num_kept() says, drawn from the learned positions whose predecessor was
    kept at depth d - 1; of depth 1 from all.
    """
    masks = []
    for line in learned.cpu():
        (places,) = line.nonzero(as_tuple=True)
        pool, kept = places, []
        for depth in range(1, num_depths):
            pool = pool[pool >= depth]
            size = num_kept(len(places), depth, ratio, floor)
            chosen = pool[torch.randperm(len(pool))[:size]].sort().values
            kept.append(torch.stack([chosen - depth, torch.full_like(chosen, depth)]))
            pool = (chosen + 1)[torch.isin(chosen + 1, places)]
        masks.append(torch.cat(kept, 1) if kept else places.new_empty(2, 0))
    return _behind_anchors(masks, learned)


def chain_rows(anchors: Tensor, num_depths: int) -> Rows:
    """Rows of whole drafts behind anchors [B, T] bool: depth by depth, then by anchor."""
    masks = []
    for line in anchors.cpu():
        (places,) = line.nonzero(as_tuple=True)
        depth = torch.arange(1, num_depths).repeat_interleave(len(places))
        masks.append(torch.stack([places.repeat(num_depths - 1), depth]))
    return _behind_anchors(masks, anchors)


def _behind_anchors(masks: list[Tensor], like: Tensor) -> Rows:
    """Rows of each sequence's mask rows, (anchors, depths) [2, M]; like: [B, T]."""
    batch, length = like.shape
    anchors = torch.arange(length, device=like.device).expand(batch, -1)
    parts = []
    for part, first, fill in ((0, anchors, -1), (1, torch.zeros_like(anchors), 1)):
        lines = [pair[part] for pair in masks]
        padded = pad_sequence(lines, batch_first=True, padding_value=fill)
        parts.append(torch.cat([first, padded.to(like.device)], 1))
    return Rows(*parts)
