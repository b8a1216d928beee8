"""Masks for tree rows, and attention that does not copy grouped keys and values."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

GROUPED = "specgauge_grouped"  # name in transformers' attention registry


def grouped_attention(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask,
    scaling=None,
    dropout=0.0,
    **kwargs,
):
    """SDPA with the query heads of a key-value group folded into rows: [B, H, r, D] -> [B, Hkv, G
    r, D].

    transformers' own repeats K and V for every group when there is a mask. Masks are per row, [B,
    1, r, K].
    """
    batch, heads, num_rows, dim = query.shape
    groups = heads // key.shape[1]
    if groups > 1:
        query = query.reshape(batch, key.shape[1], groups * num_rows, dim)
        attention_mask = attention_mask.repeat(1, 1, groups, 1) if num_rows > 1 else attention_mask
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return out.reshape(batch, heads, num_rows, -1).transpose(1, 2).contiguous(), None


def split_attention(query: Tensor, parts: list[tuple], scaling: float) -> Tensor:
    """Attention over keys in several pieces, which are not joined: [B, H, r, D] -> [B, r, H, D].

    parts: (keys, values [B, Hkv, K, D], additive mask [.., 1, r or 1, K]) of each piece.
    """
    batch, heads, num_rows, dim = query.shape
    groups = heads // parts[0][0].shape[1]
    query = query.reshape(batch, -1, groups * num_rows, dim)
    scores = []
    for keys, _, mask in parts:
        repeated = mask.repeat(1, 1, groups, 1) if mask.shape[2] > 1 else mask
        scores.append(query @ keys.transpose(2, 3) * scaling + repeated)
    exact = torch.promote_types(query.dtype, torch.float32)
    weights = torch.cat(scores, -1).softmax(-1, dtype=exact).to(query.dtype)
    pieces = weights.split([keys.shape[2] for keys, *_ in parts], -1)
    products = [piece @ values for piece, (_, values, _) in zip(pieces, parts)]
    out = reduce(torch.add, products)
    return out.reshape(batch, heads, num_rows, -1).transpose(1, 2)


def register() -> None:
    """Make GROUPED known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(GROUPED, grouped_attention)
    AttentionMaskInterface.register(GROUPED, sdpa_mask)


def rows_mask(
    length: Tensor,
    slots: Tensor,
    positions: Tensor,
    known: Tensor | None,
    view: int,
    window: int | None,
) -> Tensor:
    """Which columns each row may read, [B, r, view] bool: the committed ones, its ancestors and
    itself.

    length [B] committed columns; slots [B, r] columns of the rows; positions [B, r];
    known [.., r, w]: which of the w columns after the committed ones a row reads (its ancestors),
    None = a chain; window: sliding attention, measured in positions, for which w must be r.
    """
    columns = torch.arange(view, device=length.device)
    if known is None:
        allowed = columns <= slots.unsqueeze(-1)
        column_positions = columns.expand(length.shape[0], view)
    else:
        num_rows, width = slots.shape[1], known.shape[-1]
        before = columns < length.unsqueeze(-1)  # [B, view]
        node = columns - length.unsqueeze(-1)
        inside = (node >= 0) & (node < width)
        node = node.clamp(0, width - 1)
        index = node.unsqueeze(1).expand(-1, num_rows, -1)
        ancestor = known.expand(length.shape[0], num_rows, width).gather(2, index)
        allowed = before.unsqueeze(1) | (inside.unsqueeze(1) & ancestor)
        if window is not None:
            column_positions = torch.where(before, columns, positions.gather(1, node))
    if window is not None:
        distance = positions.unsqueeze(-1) - column_positions.unsqueeze(1)
        allowed = allowed & (distance < window)
    return allowed


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, r, view] bool -> [B, 1, r, view] additive in the model's dtype.

    Eager attention adds its mask, and SDPA would convert a boolean one again in every layer.
    """
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~allowed, float("-inf")).unsqueeze(1)


class SuffixMasks:
    """Masks of one sequence whose length the host knows: zeros, then the rows' own block.

    Chains of few rows and static trees are kept behind a stretch of zeros, of which a step's mask
    is a view on a CPU: no operation at all. slack: most columns that a view has beyond the rows.
    """

    KEPT_ROWS = 64  # of chains; longer ones are prompts, each of another length

    def __init__(self, dtype: torch.dtype, slack: int):
        self.dtype, self.slack = dtype, slack
        self.kept: dict = {}  # id of a static tree's ancestors, or "chain" -> (those, zeros, mask)

    def __call__(self, known, num_rows: int, start: int, view: int, device) -> Tensor:
        """Mask [1, 1, r, view] of rows from column start on; known as in rows_mask."""
        chain = known is None
        if known.dim() == 3 if not chain else num_rows > self.KEPT_ROWS:
            block = self._block(known, num_rows, device)[..., : view - start]
            return torch.nn.functional.pad(block, (start, 0))
        key = "chain" if chain else id(known)
        found = self.kept.get(key)
        if found is None or found[0] is not known or found[1] < start:
            zeros = max(256, 1 << start.bit_length())
            block = self._block(known, self.KEPT_ROWS if chain else num_rows, device)
            found = (known, zeros, torch.nn.functional.pad(block, (zeros, 0)))
            if len(self.kept) >= 64:
                self.kept.clear()
            self.kept[key] = found
        skipped = found[1] - start
        mask = found[2][:, :, :num_rows, skipped : skipped + view]
        if mask.device.type == "cpu":
            return mask
        return mask.clone(memory_format=torch.contiguous_format)  # SDPA's kernels want it aligned

    def _block(self, known, num_rows: int, device) -> Tensor:
        if known is None:
            known = torch.ones(num_rows, num_rows, dtype=torch.bool, device=device).tril()
        allowed = known.reshape(1, num_rows, -1)
        return additive(torch.nn.functional.pad(allowed, (0, self.slack)), self.dtype)


def mask_kinds(config) -> dict[str, int | None]:
    """Attention kinds of a model and their windows: {"full_attention": None, "sliding_attention":
    512}.

    A single entry is passed as one tensor, several as the dict that hybrid models take.
    """
    from model.common.errors import BadInput

    kinds = set(getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None)
    unknown = kinds - {"full_attention", "sliding_attention"}
    if unknown:
        raise BadInput(
            f"model type {config.model_type}: {', '.join(sorted(unknown))} is not supported"
        )
    if "sliding_attention" in kinds:
        return {"full_attention": None, "sliding_attention": window}
    if kinds or window is None:
        return {"full_attention": None}
    return {"sliding_attention": window}
