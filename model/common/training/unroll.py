"""A one-layer head unrolled over its own outputs, at chosen rows only; and the chains it drafts.

Row r of step s reads token r + 1 + s, at position r + s, and says what follows: token r + 2 + s. It
attends to the first step's rows up to r, which read the target's states, and of every later step to
its own row alone, which read the head's. Rows of a prompt are keys and values of the first step and
nothing more: they learn nothing, so that no query, MLP or logits of them are computed.
Source: Li et al., arXiv 2503.01840, section 3.2 (training-time test)
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.target.attention import additive


class Places:
    """Where the True ones of a mask [B, T] are: Q of each sequence, padded.

    index  [B, Q] long: row of each, 0 where the sequence has fewer
    valid  [B, Q] bool
    """

    def __init__(self, mask: Tensor):
        counts = mask.sum(1)
        self.length = mask.shape[1]
        width = max(int(counts.max()), 1)
        order = mask.int().argsort(dim=1, descending=True, stable=True)[:, :width]
        self.valid = torch.arange(width, device=mask.device) < counts.unsqueeze(1)
        self.index = order.masked_fill(~self.valid, 0)

    def of(self, rows: Tensor) -> Tensor:
        """[B, T, ..] -> [B, Q, ..]"""
        return rows[torch.arange(len(rows), device=rows.device).unsqueeze(1), self.index]

    def tokens(self, ids: Tensor, step: int) -> Tensor:
        """Ids [B, T] -> [B, Q] tokens that rows read at a step; the last where none is."""
        return ids.gather(1, (self.index + 1 + step).clamp(max=self.length - 1))

    def spread(self, values: Tensor, fill) -> Tensor:
        """[B, Q] -> [B, T], `fill` at other rows."""
        out = values.new_full((len(values), self.length), fill)
        sequence, _ = self.valid.nonzero(as_tuple=True)
        out[sequence, self.index[self.valid]] = values[self.valid]
        return out


class Unrolled:
    """The attention of a head's layer over the steps of a batch.

    rows    head.CausalRows of its config
    places  rows that are queries
    """

    def __init__(self, rows, places: Places):
        self.rows, self.places = rows, places
        self.past: list[tuple[Tensor, Tensor]] = []  # keys and values [B, heads, T or Q, D]

    def attend(self, attention, inputs: Tensor) -> Tensor:
        """One step of a RowAttention -> [B, Q, H].

        inputs: of the first step all rows [B, T, ..], later those at places [B, Q, ..]
        """
        step, places = len(self.past), self.places
        if not step:
            query, key, value = attention.project(inputs, self.rows.rotary(inputs))
            query = places.of(query.transpose(1, 2)).transpose(1, 2)
            columns = torch.arange(places.length, device=inputs.device)
            allowed = columns <= places.index.unsqueeze(2)
            self.mask = additive(allowed, inputs.dtype)  # [B, 1, Q, T]
        else:
            rotary = self.rows.rotary_at(inputs, places.index + step)
            query, key, value = attention.project(inputs, rotary)
        self.past.append((key, value))
        attended = unrolled_attention(query, self.past, attention.scaling, self.mask)
        return attention.o_proj(attended)


def unrolled_attention(query, past: list, scaling: float, mask):
    """Attention of a step: causal over the first step's keys, then each later step's own row.

    query [B, heads, Q, D]; past [(keys, values)]: [B, key heads, T, D], then [B, key heads, Q, D];
    mask [B, 1, Q, T] additive. Returns [B, Q, heads D].
    """
    batch, heads, length, dim = query.shape
    key, value = past[0]
    query = query.reshape(batch, key.shape[1], -1, length, dim)  # [B, key heads, group, Q, D]
    scores = [query @ key.unsqueeze(2).transpose(-1, -2) * scaling + mask.unsqueeze(2)]
    for own, _ in past[1:]:
        scores.append((query * own.unsqueeze(2)).sum(-1, keepdim=True) * scaling)
    weights = torch.cat(scores, -1).float().softmax(-1).to(value.dtype)
    width = key.shape[2]
    out = weights[..., :width] @ value.unsqueeze(2)
    for place, (_, own) in enumerate(past[1:]):
        out = out + weights[..., width + place].unsqueeze(-1) * own.unsqueeze(2)
    return out.reshape(batch, heads, length, dim).transpose(1, 2).flatten(2)


def soft_cross_entropy(goal: Tensor, logits: Tensor) -> Tensor:
    """Sum over rows of the cross-entropy of logits [N, V] with distributions goal [N, V]."""
    return logits.logsumexp(-1).sum() - torch.dot(goal.flatten(), logits.flatten())


def accepted(drafts: Tensor, ids: Tensor, mask: Tensor) -> tuple[int, int]:
    """(tokens, steps) of greedy decoding with a head's chains, over a batch's answers.

    drafts [B, T, D]: at row r the head's tokens for r + 2, r + 3, ..., each given that those before
    it are the answer's. ids, mask: a Batch's. An answer's first token is the prefill's; a step at
    token p verifies the chain of row p - 1 and commits as many tokens as are the answer's, and the
    target's next one.
    """
    length, depth = ids.shape[1], drafts.shape[2]
    right = torch.zeros_like(drafts, dtype=torch.bool)
    for step in range(min(depth, length - 2)):
        count = length - 2 - step
        right[:, :count, step] = (drafts[:, :count, step] == ids[:, 2 + step :]) & mask[
            :, 2 + step :
        ]
    leading = right.cumprod(-1).sum(-1).tolist()  # [B][T]
    tokens = steps = 0
    for row, answer in zip(leading, mask.tolist()):
        place = 0
        while place < length:
            if not answer[place]:
                place += 1
                continue
            end = next((i for i in range(place, length) if not answer[i]), length)
            while place < end - 1:  # token `place` is the root
                taken = min(row[place - 1] + 1, end - 1 - place) if place else 1
                place, tokens, steps = place + taken, tokens + taken, steps + 1
            place = end
    return tokens, steps
