"""Blocks of whole conversations at once, for training: anchors, attention, labels and weights.

A block's rows read the context rows before their anchor, and each other. Indices: s is an anchor, a
token that is known and that no state is known of; slot k of its block drafts token s + k.
Source: Chen et al., arXiv 2602.06036; weights by D-PACE: arXiv 2605.18810
"""

from __future__ import annotations

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


class BlockRows:
    """Context and places of a batch's blocks; the attention of their layers.

    rotary_at  RoPE of rows and positions, as head.CausalRows gives it
    anchors    [B, A]
    """

    def __init__(self, module, rotary_at, states: Tensor, anchors: Tensor):
        self.design, self.anchors = module.design, anchors
        rows, size = module.context(states), module.design.block_size
        every = torch.arange(states.shape[1], device=states.device)
        self.known_rotary = rotary_at(rows, every.unsqueeze(0))
        steps = torch.arange(size, device=states.device)
        self.positions = (anchors.unsqueeze(-1) + steps).flatten(1)  # [B, A * b]
        self.own_rotary, self.rows = rotary_at(rows, self.positions), rows

    def masks(self, window: int | None, causal: bool) -> tuple[Tensor, Tensor]:
        """Which columns a block's rows read: of the context [B, A * b, T], of the block [b, b]."""
        every = torch.arange(self.rows.shape[1], device=self.rows.device)
        size = self.design.block_size
        first = self.anchors.repeat_interleave(size, 1).unsqueeze(-1)
        before = every < first
        inside = torch.ones(size, size, dtype=torch.bool, device=every.device)
        if window is not None:
            before = before & (self.positions.unsqueeze(-1) - every < window)
            inside = inside.triu(1 - window)
        return before, inside.tril() if causal else inside

    def attend(self, attention, rows: Tensor, masks: tuple[Tensor, Tensor]) -> Tensor:
        """A layer's attention for normed rows [B, A, b, H] -> the same shape."""
        before, inside = masks
        key, value = attention.known(self.rows, self.known_rotary)  # [B, g, T, D]
        query, own_key, own_value = attention.project(rows.flatten(1, 2), self.own_rotary)
        batch, _, num, dim = query.shape
        blocks = (batch, key.shape[1], 1, -1, rows.shape[2], dim)
        query = query.view(batch, key.shape[1], -1, num, dim) * attention.scaling
        far = torch.finfo(query.dtype).min
        scores = query @ key.unsqueeze(2).transpose(-1, -2)  # [B, g, group, A * b, T]
        scores = scores.masked_fill(~before[:, None, None], far)
        split = query.unflatten(3, (-1, rows.shape[2]))  # [B, g, group, A, b, D]
        near = split @ own_key.reshape(blocks).transpose(-1, -2)
        near = near.masked_fill(~inside, far).flatten(3, 4)  # [B, g, group, A * b, b]
        weights = torch.cat([scores, near], -1).float().softmax(-1).to(value.dtype)
        out = weights[..., : key.shape[2]] @ value.unsqueeze(2)
        near = weights[..., key.shape[2] :].unflatten(3, (-1, rows.shape[2]))
        out = out + (near @ own_value.reshape(blocks)).flatten(3, 4)
        out = out.flatten(1, 2).transpose(1, 2).flatten(2)  # [B, A * b, heads D]
        return attention.o_proj(out).view(rows.shape)

    def states(self, module, roots: Tensor) -> Tensor:
        """The module's states [B, A, n, H] of slots 1 .. n of blocks with these roots [B, A]."""
        rows, design = module.embed(roots), self.design
        kinds = {
            kind: self.masks(*kind) for kind in dict.fromkeys(zip(design.windows, design.causal))
        }
        for layer, *kind in zip(module.layers, design.windows, design.causal):
            rows = layer(rows, self.attend, kinds[tuple(kind)])
        return module.norm(rows)[:, :, design.block_size - design.num_drafts :]


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
