"""Blocks of whole conversations at once, for training: anchors, attention, labels and weights.

A block's rows read the context rows before their anchor, and each other. Indices: s is an anchor, a
token that is known and that no state is known of; slot k of its block drafts token s + k.
Source: Chen et al., arXiv 2602.06036; weights by D-PACE: arXiv 2605.18810
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor


def choose_anchors(mask: Tensor, num: int | None) -> tuple[Tensor, Tensor]:
    """(anchors [B, A], valid [B, A] bool): of answers' tokens that an answer's token follows.

    mask [B, T] bool: a Batch's; num: at most so many of a sequence, drawn by torch's global
    generator; None = all
    """
    possible = mask & torch.nn.functional.pad(mask[:, 1:], (0, 1))
    order = torch.rand(mask.shape, device=mask.device) if num else torch.ones(mask.shape)
    width = max(int(possible.sum(1).max()), 1)
    width = min(width, num or width)
    place = order.to(mask.device).masked_fill(~possible, -1.0)
    anchors = place.sort(dim=1, descending=True, stable=True).indices[:, :width]
    return anchors, possible.gather(1, anchors)


def block_labels(ids: Tensor, mask: Tensor, anchors: Tensor, valid: Tensor, num: int):
    """(labels, counted [B, A, n]) of n slots: token s + k; all slots up to the answer's end."""
    batch, length = ids.shape
    places = anchors.unsqueeze(-1) + torch.arange(1, num + 1, device=ids.device)
    inside = places.clamp(max=length - 1).flatten(1)
    labels = ids.gather(1, inside).view(places.shape)
    counted = mask.gather(1, inside).view(places.shape) & (places < length) & valid.unsqueeze(-1)
    return labels, counted.cumprod(-1).bool()


class Blocks(NamedTuple):
    """Some blocks of S sequences; of their slots N count.

    states   [S, A, n, H] of slots 1 .. n
    before   [S, A, n] the token before a slot's own, the root's first
    labels   [S, A, n] a slot's own token
    counted  [S, A, n] bool: slots that learn, see block_labels()
    target   [N, H] states of the target that foretell the counted slots' tokens
    """

    states: Tensor
    before: Tensor
    labels: Tensor
    counted: Tensor
    target: Tensor


def pieces(num_sequences: int, num_anchors: int, most: int) -> list[tuple[slice, slice]]:
    """(sequences, anchors) of at most `most` blocks each; whole sequences where they fit.

    >>> pieces(3, 4, 8)
    [(slice(0, 2, None), slice(0, 4, None)), (slice(2, 4, None), slice(0, 4, None))]
    >>> pieces(1, 4, 3)
    [(slice(0, 1, None), slice(0, 3, None)), (slice(0, 1, None), slice(3, 6, None))]
    """
    height, width = max(most // num_anchors, 1), min(most, num_anchors)
    return [
        (slice(top, top + height), slice(left, left + width))
        for top in range(0, num_sequences, height)
        for left in range(0, num_anchors, width)
    ]


def positions_of(anchors: Tensor, size: int) -> Tensor:
    """Positions [S, A * b] of the rows of blocks of b behind anchors [S, A]."""
    steps = torch.arange(size, device=anchors.device)
    return (anchors.unsqueeze(-1) + steps).flatten(1)


def visible(anchors: Tensor, length: int, size: int, window: int | None, causal: bool):
    """Which columns blocks' rows read: of a text of T tokens [S, A * b, T], of their block [b, b].

    anchors [S, A]; window, causal: of a layer, as Design has them
    """
    every = torch.arange(length, device=anchors.device)
    before = every < anchors.repeat_interleave(size, 1).unsqueeze(-1)
    inside = torch.ones(size, size, dtype=torch.bool, device=anchors.device)
    if window is not None:
        before = before & (positions_of(anchors, size).unsqueeze(-1) - every < window)
        inside = inside.triu(1 - window)
    return before, inside.tril() if causal else inside


class BlockRows:
    """What blocks know of a batch's texts, and their rows.

    rotary_at  RoPE of rows and positions, as head.CausalRows gives it
    states     [B, T, K H_t] of the target
    known      keys and values [B, g, T, D] of the texts in every layer
    """

    def __init__(self, module, rotary_at, states: Tensor):
        self.module, self.rotary_at, self.length = module, rotary_at, states.shape[1]
        rows, every = module.context(states), torch.arange(self.length, device=states.device)
        rotary = rotary_at(rows, every.unsqueeze(0))
        self.known = [layer.self_attn.known(rows, rotary) for layer in module.layers]

    def states(self, anchors: Tensor, roots: Tensor, some: slice = slice(None)) -> Tensor:
        """The module's states [S, A, n, H] of slots 1 .. n of blocks behind anchors [S, A] with
        these roots, in some S of the sequences."""
        module, design = self.module, self.module.design
        size, rows = design.block_size, module.embed(roots)
        rotary = self.rotary_at(rows, positions_of(anchors, size))
        kinds = list(zip(design.windows, design.causal))
        masks = {kind: visible(anchors, self.length, size, *kind) for kind in set(kinds)}
        for layer, known, kind in zip(module.layers, self.known, kinds):
            key, value = (part[some] for part in known)
            rows = layer(rows, partial(attended, key, value, rotary), masks[kind])
        return module.norm(rows)[:, :, size - design.num_drafts :]


def attended(key: Tensor, value: Tensor, rotary, attention, rows: Tensor, masks: tuple) -> Tensor:
    """A layer's attention for normed rows [S, A, b, H] -> the same shape.

    key, value [S, g, T, D] of the texts; rotary: of the rows; masks: see visible()
    """
    before, inside = masks
    query, own_key, own_value = attention.project(rows.flatten(1, 2), rotary)
    batch, _, num, dim = query.shape
    blocks = (batch, key.shape[1], 1, -1, rows.shape[2], dim)
    query = query.view(batch, key.shape[1], -1, num, dim) * attention.scaling
    far = float("-inf")  # no row is without all: it reads itself
    scores = query @ key.unsqueeze(2).transpose(-1, -2)  # [S, g, group, A * b, T]
    scores = scores.masked_fill(~before[:, None, None], far)
    split = query.unflatten(3, (-1, rows.shape[2]))  # [S, g, group, A, b, D]
    near = split @ own_key.reshape(blocks).transpose(-1, -2)
    near = near.masked_fill(~inside, far).flatten(3, 4)  # [S, g, group, A * b, b]
    weights = torch.cat([scores, near], -1).float().softmax(-1).to(value.dtype)
    out = weights[..., : key.shape[2]] @ value.unsqueeze(2)
    near = weights[..., key.shape[2] :].unflatten(3, (-1, rows.shape[2]))
    out = out + (near @ own_value.reshape(blocks)).flatten(3, 4)
    out = out.flatten(1, 2).transpose(1, 2).flatten(2)  # [S, A * b, heads D]
    return attention.o_proj(out).view(rows.shape)


def usual_decay(block_size: int) -> float:
    """Slots over which a slot's weight falls to 1 / e.

    >>> usual_decay(16), usual_decay(10), usual_decay(8)
    (7.0, 5.0, 4.0)
    """
    return {16: 7.0, 10: 5.0}.get(block_size, 4.0)


def decayed(num: int, decay: float) -> Tensor:
    """Weights [n] of the slots 1 .. n: exp(-(k - 1) / decay)."""
    return torch.exp(-torch.arange(num) / decay)


def paced(losses: Tensor, counted: Tensor, alpha: float = 0.5) -> Tensor:
    """D-PACE's weights of slots, from their cross-entropies [.., n]: how often decoding gets to
    them, and what follows. Slots that do not count have 0.

    >>> losses = -torch.tensor([0.8, 0.5, 0.25]).log()
    >>> [round(weight, 6) for weight in paced(losses, torch.ones(3).bool()).tolist()]
    [1.996875, 1.096875, 0.421875]
    """
    chance = (1 - alpha) * torch.exp(-losses.detach()) + alpha
    reached = chance.masked_fill(~counted, 0.0).cumprod(-1)
    return reached.flip(-1).cumsum(-1).flip(-1)
