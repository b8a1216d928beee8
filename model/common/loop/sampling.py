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

from model.common.loop.penalties import NO_PENALTIES, Penalties
from model.common.loop.ranking import best_id

TARGET, DRAFT = 0, 1  # purposes: the acceptance rule's and the drafter's uniform of a position


def warp(
    logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """Logits [.., V] -> probabilities after temperature, top-k, top-p and min-p, in that order
    (float32 or 64).

    top-k keeps every token that ties with the k-th; top-p keeps the smallest set of best tokens
    whose mass reaches top_p; min-p keeps tokens of at least min_p times the best one's probability
    (arXiv 2407.01082). The order is transformers'; vLLM cuts by min-p before top-k and top-p, which
    is the same but where top-p stands beside it. The same settings warp target, draft and bonus.
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
    if min_p > 0:
        probs = probs.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """The token where cumulative probability [.., V] passes uniform [..]; never one of mass 0.

    The last one where probabilities are NaN.
    """
    cdf = probs.double().cumsum(-1)
    threshold = cdf[..., -1:] * uniform.clamp(max=1 - 2**-40).unsqueeze(-1)
    place = torch.searchsorted(cdf, threshold, right=True).squeeze(-1)
    return place.clamp(max=probs.shape[-1] - 1)


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


def seed_of(seed: int, question_id: int | str, choice: int, turn: int) -> int:
    """A 63-bit seed for one answer turn."""
    text = f"{seed}/{question_id}/{choice}/{turn}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


class Sampler:
    """Warping settings and the position-indexed uniforms of the sequences in B slots.

    temperature 0 is greedy: nothing is drawn of the target, and there is no table.
    penalties  what the loop does to the target's logits before (penalties.py)
    table     [purpose, B, length] uniforms of the positions; position 0 is the prompt's token
    position  [B] the next position; last [B] the last one of the table
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        penalties: Penalties = NO_PENALTIES,
    ):
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        self.penalties = penalties

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def reserve(self, num_slots: int, device) -> None:
        """Make room for B slots."""
        self.table = torch.zeros(2, num_slots, 1, dtype=torch.float64, device=device)
        self.seeds = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.position, self.last = self.seeds.clone(), self.seeds.clone()

    def begin(self, slots: list[int], seeds: list[int], lengths: list[int]) -> None:
        """Sequences of so many positions begin in these slots; seeds: of seed_of()."""
        missing = max(lengths) - self.table.shape[-1]
        if missing > 0 and not self.greedy:
            self.table = torch.nn.functional.pad(self.table, (0, missing))
        for slot, seed, length in zip(slots, seeds, lengths):
            self.seeds[slot], self.position[slot], self.last[slot] = seed, 0, length - 1
            if not self.greedy:
                generator = torch.Generator().manual_seed(seed)
                uniforms = torch.rand(2, length, dtype=torch.float64, generator=generator)
                self.table[:, slot, :length] = uniforms.to(self.table.device)

    def uniform(self, num: int, purpose: int, first: int = 0) -> Tensor:
        """Uniforms [B, num] of the positions from the next one + first on."""
        ahead = torch.arange(first, first + num, device=self.position.device)
        columns = self.position.unsqueeze(1) + ahead
        return self.table[purpose].gather(1, torch.minimum(columns, self.last.unsqueeze(1)))

    def spread(self, num: int) -> Tensor:
        """[B, num] further uniforms of the next position, for a drafter that needs many a step.

        Keys are mixed: the keys of neighbouring positions would share all but one of their numbers.
        """
        return hashed_uniforms(_mixed(self.seeds + _MIX[0] * (1 + self.position)), num)

    def advance(self, count: Tensor) -> None:
        """Move on by the committed tokens, count [B]."""
        self.position = self.position + count

    def warp(self, logits: Tensor) -> Tensor:
        return warp(logits, self.temperature, self.top_k, self.top_p, self.min_p)

    def first_tokens(self, slots: list[int], logits: Tensor) -> Tensor:
        """The prompts' own tokens [S] from logits [S, V]; moves on by one."""
        if self.greedy:
            tokens = best_id(logits)
        else:
            tokens = draw(self.warp(logits), self.uniform(1, TARGET)[slots].squeeze(1))
        self.position[slots] += 1
        return tokens
