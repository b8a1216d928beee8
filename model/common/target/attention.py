"""Attention over a cache: what writes keys and values, masks for tree rows, grouped heads.

transformers calls cached_attention() through its AttentionInterface; the forward's further
arguments (cache_columns, cache_slots) reach it through the model's **kwargs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.errors import Unsupported, one_line

NAME = "specgauge"  # in transformers' attention registry


def cached_attention(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    cache_columns: Tensor | None = None,
    cache_slots: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs,
):
    """Write the rows' keys and values, then attend to as many columns as the mask has.

    query [S, H, r, D], key and value [S, Hkv, r, D], attention_mask additive [S, 1, r, width];
    cache_columns [S, r], cache_slots as in write(), None = nothing is kept. Returns [S, r, H, D].
    softcap, s_aux: what Gemma 2 and gpt-oss ask for.
    """
    if cache_columns is not None:
        width = attention_mask.shape[-1]
        key, value = write(module.kv, key, value, cache_columns, cache_slots, width)
    return grouped_attention(query, key, value, attention_mask, scaling, softcap, s_aux), None


def write(kv: tuple, key: Tensor, value: Tensor, columns: Tensor, slots: Tensor | None, width: int):
    """Put rows [S, Hkv, r, D] into a layer's cache; its first `width` columns of those slots.

    kv       (keys, values) of the layer, [B, Hkv, capacity, D] each
    columns  [S, r] where the rows go; slots [S] whose they are, None = all B in order
    """
    columns = columns.to(key.device)
    for cache, rows in zip(kv, (key, value)):
        if len(cache) == 1:
            cache.index_copy_(2, columns[0], rows)
            continue
        owner = torch.arange(len(cache), device=key.device) if slots is None else slots
        heads = torch.arange(rows.shape[1], device=key.device)
        index = (owner.to(key.device)[:, None, None], heads[:, None], columns.unsqueeze(1))
        cache.index_put_(index, rows)
    if slots is None or len(kv[0]) == 1:
        return tuple(cache[:, :, :width] for cache in kv)
    return tuple(cache[slots.to(key.device), :, :width] for cache in kv)


def grouped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
) -> Tensor:
    """Attention with the query heads of a key-value head folded into rows: [B, H, r, D] -> [B, r,
    H, D].

    transformers' own repeats K and V for every group when there is a mask. mask [B, 1, r, K].
    """
    batch, heads, num_rows, dim = query.shape
    groups = heads // key.shape[1]
    if groups > 1:
        query = query.reshape(batch, key.shape[1], groups * num_rows, dim)
        mask = mask.repeat(1, 1, groups, 1) if num_rows > 1 else mask
    if softcap is None and s_aux is None:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling
        )
    else:
        out = plain_attention(query, key, value, mask, scaling or dim**-0.5, softcap, s_aux)
    return out.reshape(batch, heads, num_rows, -1).transpose(1, 2).contiguous()


def plain_attention(query, key, value, mask, scaling: float, softcap, s_aux) -> Tensor:
    """What SDPA cannot say: scores capped at +-softcap, and a sink per head, s_aux [H]."""
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores + mask
    if s_aux is not None:  # a column that takes weight and gives nothing
        groups = s_aux.numel() // key.shape[1]
        rows = scores.shape[2] // groups
        sink = s_aux.view(1, key.shape[1], groups, 1, 1).expand(len(scores), -1, -1, rows, 1)
        scores = torch.cat([scores, sink.reshape(*scores.shape[:3], 1).to(scores.dtype)], -1)
    weights = scores.float().softmax(-1) if scores.dtype != torch.float64 else scores.softmax(-1)
    return weights[..., : value.shape[2]].to(value.dtype) @ value


def register() -> None:
    """Make cached_attention known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, cached_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def own_attention(model) -> None:
    """Let a model use transformers' attention again: SDPA, or eager where SDPA cannot say it."""
    text = model.config.get_text_config()
    capped = getattr(text, "attn_logit_softcapping", None) or text.model_type == "gpt_oss"
    model.set_attn_implementation("eager" if capped or not model._supports_sdpa else "sdpa")


def attention_modules(model) -> list[tuple]:
    """(module, key-value heads, head sizes of keys and values, dtype, device) of every layer.

    Found by reading one token; a model that does not call the AttentionInterface, or calls it
    without the forward's further arguments, is refused.
    """
    from transformers import AttentionInterface

    found = []

    def listen(module, query, key, value, attention_mask, scaling=None, cache_columns=None, **rest):
        if cache_columns is not None:
            sizes = key.shape[1], key.shape[3], value.shape[3]
            found.append((module, *sizes, key.dtype, key.device))
        mask = query.new_zeros(len(query), 1, 1, 1)
        return grouped_attention(query, key, value, mask, scaling), None

    AttentionInterface.register(NAME, listen)
    try:
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        with torch.inference_mode():
            model(token, position_ids=token, use_cache=False, cache_columns=token)
    except Exception as error:  # an old model's own forward may trip over anything
        raise Unsupported(
            f"model type {model.config.model_type}: it cannot be read without a cache of its own: "
            f"{one_line(error)}"
        ) from error
    finally:
        AttentionInterface.register(NAME, cached_attention)
    if not found:
        raise Unsupported(
            f"model type {model.config.model_type}: its attention cannot be given a cache; "
            "it is not supported"
        )
    return found


def rows_mask(
    length: Tensor,
    columns: Tensor,
    positions: Tensor,
    ancestors: Tensor | None,
    width: int,
    window: int | None = None,
) -> Tensor:
    """Which columns each row may read, [S, r, width] bool: the committed ones, its ancestors and
    itself.

    length [S] committed columns; columns [S, r] of the rows; positions [S, r];
    ancestors [.., r, w]: which of the w columns after the committed ones a row reads, None = a
    chain; window: sliding attention, measured in positions, for which w must be r.
    Example: 3 committed, the tree of trees.py: row 3 reads columns 0, 1, 2, 3 (the root) and 6.
    """
    every = torch.arange(width, device=length.device)
    if ancestors is None:
        allowed = every <= columns.unsqueeze(-1)
        column_positions = every.expand(length.shape[0], width)
    else:
        num_rows, num_nodes = columns.shape[1], ancestors.shape[-1]
        before = every < length.unsqueeze(-1)  # [S, width]
        node = every - length.unsqueeze(-1)
        inside = (node >= 0) & (node < num_nodes)
        node = node.clamp(0, num_nodes - 1)
        index = node.unsqueeze(1).expand(-1, num_rows, -1)
        above = ancestors.expand(length.shape[0], num_rows, num_nodes).gather(2, index)
        allowed = before.unsqueeze(1) | (inside.unsqueeze(1) & above)
        if window is not None:
            column_positions = torch.where(before, every, positions.gather(1, node))
    if window is not None:
        distance = positions.unsqueeze(-1) - column_positions.unsqueeze(1)
        allowed = allowed & (distance < window)
    return allowed


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """[S, r, width] bool -> [S, 1, r, width] additive in the model's dtype.

    SDPA would convert a boolean mask again in every layer.
    """
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~allowed, float("-inf")).unsqueeze(1)


def mask_kinds(config) -> dict[str, int | None]:
    """Attention kinds of a model and their windows: {"full_attention": None, "sliding_attention":
    512}.

    A single entry is passed as one tensor, several as the dict that hybrid models take.
    """
    kinds = set(getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None)
    unknown = kinds - {"full_attention", "sliding_attention"}
    if unknown:
        raise Unsupported(
            f"model type {config.model_type}: {', '.join(sorted(unknown))} is not supported"
        )
    if "sliding_attention" in kinds:
        return {"full_attention": None, "sliding_attention": window}
    if kinds or window is None:
        return {"full_attention": None}
    return {"sliding_attention": window}
