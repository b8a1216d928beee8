"""Training an MTP head over its own outputs: attention of a step, without a cache.

Rows of a step are those of the conversation: row r of step s reads token r + 1 + s at position
r + s, the target's state at r (step 0) or the head's of the step before, and predicts token
r + 2 + s. What it attends to:

own    rows up to r of its own step, as FastMTP trains (arXiv 2509.18362)
first  rows up to r of step 0 and its own row of every step since, as decoding does: later rows of a
       draft stand behind committed rows, which have read the target's states
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.target.attention import additive, grouped_attention

NAME = "specgauge_mtp_steps"  # in transformers' attention registry
KINDS = ("own", "first")


class Steps:
    """Which keys the rows of a batch's steps read.

    kind  of KINDS
    """

    def __init__(self, kind: str):
        self.kind, self.num = kind, 0
        self.past: list[tuple[Tensor, Tensor]] = []  # keys and values [B, heads, T, D] of each step

    def mask(self, rows: Tensor) -> Tensor:
        """The additive mask [1, 1, T, columns] of the next step's rows [B, T, H]."""
        length = rows.shape[1]
        every = torch.ones(1, length, length, dtype=torch.bool, device=rows.device)
        parts = [every.tril()]
        if self.kind == "first":
            own = torch.eye(length, dtype=torch.bool, device=rows.device).unsqueeze(0)
            parts += [own] * self.num
        self.num += 1
        return additive(torch.cat(parts, -1), rows.dtype)

    def columns(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a step [B, heads, T, D] as its rows read them, earlier ones before."""
        if self.kind == "own":
            return key, value
        self.past.append((key, value))
        return tuple(torch.cat(parts, 2) for parts in zip(*self.past))


def steps_attention(module, query, key, value, attention_mask, scaling=None, steps=None, **more):
    """As attention.cached_attention(), for training; steps: a Steps."""
    key, value = steps.columns(key, value)
    mask = attention_mask.to(query.dtype)
    given = {name: more[name] for name in ("softcap", "s_aux") if name in more}
    return grouped_attention(query, key, value, mask, scaling, **given), None


def register() -> None:
    """Make steps_attention known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, steps_attention)


def step_weights(decay: float, num_steps: int) -> list[float]:
    """Weights of the steps' losses, falling by `decay`, with sum 1.

    >>> [round(weight, 6) for weight in step_weights(0.6, 3)]
    [0.510204, 0.306122, 0.183673]
    """
    powers = [decay**step for step in range(num_steps)]
    return [power / sum(powers) for power in powers]
