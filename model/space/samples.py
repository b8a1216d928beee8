"""Training samples of SPACE: rows of text with groups of masks, and what each place has to predict.

A group after a cut s (the first s tokens are visible) stands where the tokens s, s + 1, ... would:
mask j, from 1, is at position s + j - 1 and predicts the token s + j. The token s itself is the
prediction of the last visible token, as ever.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Sample(NamedTuple):
    """Inputs and labels of a batch, padded on the right.

    ids        [B, L] long
    labels     [B, L] long: the token to predict there, -1 = none
    places     [B, L] long: 0 = text, j = the j-th mask of a group
    positions  [B, L] long, or None: 0, 1, 2, ...
    allowed    [B, L, L] bool: which inputs a place reads, or None: itself and all before it
    """

    ids: Tensor
    labels: Tensor
    places: Tensor
    positions: Tensor | None = None
    allowed: Tensor | None = None


def next_ids(ids: Tensor, mask: Tensor) -> Tensor:
    """The next token where it belongs to an answer, else -1: [B, T] of ids and mask [B, T].

    >>> next_ids(torch.tensor([[5, 6, 7, 8]]), torch.tensor([[False, True, True, False]]))
    tensor([[ 6,  7, -1, -1]])
    """
    following = ids.roll(-1, 1).masked_fill(~mask.roll(-1, 1), -1)
    following[:, -1] = -1
    return following


def answer_spans(mask: Tensor) -> list[tuple[int, int]]:
    """Where answers begin and end: [0, 1, 1, 0, 1] -> [(1, 3), (4, 5)]."""
    edges = torch.nn.functional.pad(mask.long(), (1, 1)).diff()
    begins, ends = ((edges == sign).nonzero().flatten().tolist() for sign in (1, -1))
    return list(zip(begins, ends))


def draw_cut(mask: Tensor, num_masks: int, share: float) -> int | None:
    """The published draw for one row, mask [T]: each answer, in order, is cut with chance `share`.

    Returns the first cut, uniform over those with num_masks + 1 tokens of that answer behind it.
    """
    for begin, end in answer_spans(mask):
        num_cuts = end - begin - num_masks
        if num_cuts > 0 and torch.rand(()) < share:
            return begin + int(torch.randint(num_cuts, ()))
    return None


def cut_rows(ids: Tensor, mask: Tensor, masks: Tensor, cuts: list[int | None]) -> Sample:
    """Rows [B, T] that end in a group at their cut; those without a cut stay as they are.

    masks: the group's ids [k]. Published rows end in one more mask, which predicts nothing.
    """
    k = len(masks)
    labels = next_ids(ids, mask)
    group = torch.arange(1, k + 1, device=ids.device)
    rows = []
    for own, wanted, cut in zip(ids, labels, cuts):
        text = torch.zeros_like(own)
        if cut is None:
            rows.append((own, wanted, text))
        else:
            guesses = own[cut + 1 : cut + 1 + k]
            parts = ((own, masks), (wanted, guesses), (text, group))
            rows.append([torch.cat([before[:cut], after]) for before, after in parts])
    padded = zip(zip(*rows), (0, -1, 0))
    return Sample(*(pad_sequence(column, True, value) for column, value in padded))


def draw_cuts(mask: Tensor, num_masks: int, num_groups: int, share: float) -> Tensor:
    """Distinct cuts of every row of mask [B, T], [B, G] long; -1 where there are no more.

    A row is cut at all with chance `share`.
    """
    if mask.shape[1] <= num_masks:
        return torch.full((len(mask), 0), -1)
    fits = mask.cpu().unfold(1, num_masks + 1, 1).all(-1)  # [B, T - k]
    fits &= torch.rand(len(mask), 1) < share
    scores = torch.rand(fits.shape).masked_fill(~fits, -1.0)
    best = scores.topk(min(num_groups, fits.shape[1]), dim=1)
    return best.indices.masked_fill(best.values < 0, -1)


def append_groups(ids: Tensor, mask: Tensor, masks: Tensor, cuts: Tensor) -> Sample:
    """Whole rows [B, T] with a group behind them for each cut [B, G], -1 = an idle group.

    masks: the group's ids [k]. A group reads what is before its cut and itself, as at inference.
    """
    (batch, length), k, num_groups = ids.shape, len(masks), cuts.shape[1]
    places = torch.arange(1, k + 1, device=ids.device).repeat(num_groups).expand(batch, -1)
    cuts = cuts.to(ids.device).repeat_interleave(k, 1)  # [B, G k]
    seen = cuts.clamp(min=0)
    guesses = ids.gather(1, seen + places).masked_fill(cuts < 0, -1) if num_groups else places
    columns = torch.arange(length, device=ids.device)
    text = torch.zeros_like(ids)
    group = torch.ones(k, k, dtype=torch.bool, device=ids.device).tril()
    own = torch.block_diag(*[group] * num_groups) if num_groups else group[:0, :0]
    allowed = torch.zeros(batch, length + own.shape[0], length + own.shape[0], dtype=torch.bool)
    allowed = allowed.to(ids.device)
    allowed[:, :length, :length] = columns <= columns.unsqueeze(1)
    allowed[:, length:, :length] = columns < seen.unsqueeze(-1)
    allowed[:, length:, length:] = own
    return Sample(
        torch.cat([ids, masks.repeat(num_groups).expand(batch, -1)], 1),
        torch.cat([next_ids(ids, mask), guesses], 1),
        torch.cat([text, places], 1),
        torch.cat([columns.expand(batch, -1), seen + places - 1], 1),
        allowed,
    )
