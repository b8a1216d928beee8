"""Warping of logits and the uniforms that every draw of a run is made from.

One uniform per sequence position and purpose, seeded from (seed, question, choice, turn): what is
drawn at a position does not depend on the batch, the order of questions, the draft's shape or a
resumed run. Under token matching the sampled answer is therefore the baseline's own, id for id,
whatever the draft was.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from model.common.loop.ranking import best_id

TARGET, DRAFT = 0, 1  # purposes: the acceptance rule's and the drafter's uniform of a position


def warp(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits [.., V] -> probabilities after temperature, top-k and top-p, in that order (float32 or
    64).

    top-k keeps every token that ties with the k-th; top-p keeps the smallest set of best tokens
    whose mass reaches top_p. The same settings warp target, draft and bonus.
    """
    scores = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    if 0 < top_k < scores.shape[-1]:
        kth = scores.topk(top_k, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < kth, float("-inf"))
    probs = scores.softmax(-1)
    if top_p < 1.0:
        ordered, index = probs.sort(dim=-1, descending=True, stable=True)
        outside = ordered.cumsum(-1) - ordered >= top_p
        probs = probs.masked_fill(outside.scatter(-1, index, outside), 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """The token where cumulative probability [.., V] passes uniform [..]; never one of mass 0."""
    cdf = probs.double().cumsum(-1)
    threshold = cdf[..., -1:] * uniform.clamp(max=1 - 2**-40).unsqueeze(-1)
    return torch.searchsorted(cdf, threshold, right=True).squeeze(-1)


_MIX = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # SplitMix64's


def hashed_uniforms(keys: Tensor, num: int) -> Tensor:
    """[B, num] float64 uniforms that depend on keys [B] (int64) alone: SplitMix64, wrapping.

    Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators (2014).
    """
    counter = torch.arange(1, num + 1, device=keys.device)
    z = _mixed(keys.unsqueeze(1) + _MIX[0] * counter)
    return (z >> 11 & (1 << 53) - 1).double() * 2.0**-53


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's outputs for its states, both int64."""
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * _MIX[1]
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * _MIX[2]
    return z ^ (z >> 31 & (1 << 33) - 1)


def seed_of(seed: int, question_id: int, choice: int, turn: int) -> int:
    """A 63-bit seed for one answer turn."""
    text = f"{seed}/{question_id}/{choice}/{turn}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


class Sampler:
    """Warping settings and the position-indexed uniforms of the sequences being decoded.

    temperature 0 is greedy: nothing is drawn. seeds: one per row (seed_of). length: positions per
    row.
    """

    def __init__(self, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0):
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def start(self, seeds: list[int], length: int, device) -> None:
        """Fill the table of uniforms, [purpose, B, length]; position 0 is the prefill's token."""
        if self.greedy:
            return
        rows = [
            torch.rand(
                2, length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
            )
            for seed in seeds
        ]
        self.table = torch.stack(rows, dim=1).to(device)
        self.seeds = torch.tensor(seeds, device=device)
        self.position = torch.zeros(len(seeds), dtype=torch.long, device=device)

    def uniform(self, num: int, purpose: int, first: int = 0) -> Tensor:
        """Uniforms [B, num] of the positions from the next one + first on."""
        columns = self.position.unsqueeze(1) + torch.arange(
            first, first + num, device=self.position.device
        )
        return self.table[purpose].gather(1, columns.clamp(max=self.table.shape[-1] - 1))

    def spread(self, num: int) -> Tensor:
        """[B, num] further uniforms of the next position, for a drafter that needs many a step.

        Keys are mixed: the keys of neighbouring positions would share all but one of their numbers.
        """
        return hashed_uniforms(_mixed(self.seeds + _MIX[0] * (1 + self.position)), num)

    def advance(self, count: Tensor) -> None:
        """Move on by the committed tokens, count [B]."""
        if not self.greedy:
            self.position = self.position + count

    def warp(self, logits: Tensor) -> Tensor:
        return warp(logits, self.temperature, self.top_k, self.top_p)

    def first_token(self, logits: Tensor) -> Tensor:
        """The prefill's token, [B] from [B, V]."""
        if self.greedy:
            return best_id(logits)
        return draw(self.warp(logits), self.uniform(1, TARGET).squeeze(1))
