"""Penalties on tokens that a sequence already holds, exact under speculation.

    repetition  of tokens of prompt and answer: a logit above 0 is divided by it, one below 0
                multiplied (CTRL, arXiv 1909.05858; the two cases as in transformers)
    presence    subtracted from the logits of tokens that the answer holds
    frequency   subtracted as many times as the answer holds the token
                (both: OpenAI's API; repetition comes first, as in vLLM)

They make the law of a row depend on the row's own prefix: what its slot has committed, and the
nodes of the draft on the path to it. Example: behind the answer "a b" the chain "c c" is drafted.
The root's row counts a 1, b 1; the row of the first c counts c 1 as well, that of the second c 2.
So a draft is judged by the laws that plain decoding has at the same places, and every exact rule
stays exact. Drafters see the target's logits as they are and guess without penalties: that costs
them guesses, never exactness.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.common.contract.drafter import Draft

KINDS = ("repetition", "presence", "frequency")


@dataclass(frozen=True)
class Penalties:
    """The settings; false where they change nothing."""

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0

    @classmethod
    def of(cls, arguments: dict) -> Penalties:
        """As the flags of a command line say, or those that a meta records."""
        found = {kind: arguments.get(f"{kind}_penalty") for kind in KINDS}
        return cls(**{kind: value for kind, value in found.items() if value is not None})

    def __bool__(self) -> bool:
        return self != NO_PENALTIES

    @property
    def scale(self) -> float:
        """How many times larger an error of a logit can get."""
        return max(self.repetition, 1 / self.repetition)

    def apply(self, logits: Tensor, counts: Tensor, in_prompt: Tensor) -> Tensor:
        """Logits [..] of tokens that the answer holds counts [..] times and the prompt holds where
        in_prompt [..]; in float32, or float64 where they came so."""
        scores = logits if logits.dtype == torch.float64 else logits.float()
        held = counts > 0
        if self.repetition != 1:
            weaker = torch.where(scores > 0, scores / self.repetition, scores * self.repetition)
            scores = torch.where(held | in_prompt, weaker, scores)
        if self.presence or self.frequency:
            counts, held = counts.to(scores.dtype), held.to(scores.dtype)
            scores = scores - (self.presence * held + self.frequency * counts)
        return scores


NO_PENALTIES = Penalties()


class PenalisedSlots:
    """Penalised logits of B slots. Without penalties nothing is kept and logits pass as they are.

    counts [B, V] int32: how often each token stands in the slot's answer
    in_prompt [B, V] bool: whether it stands in the slot's prompt
    every [B] long: all slots' numbers, so that a step copies none to the device
    They are made with the first prompt, on its device.
    """

    def __init__(self, penalties: Penalties, num_slots: int):
        self.penalties, self.num_slots = penalties, num_slots
        self.counts: Tensor | None = None

    def begin(self, slots: list[int], ids: Tensor, lengths: list[int], logits: Tensor) -> Tensor:
        """Right-padded prompts ids [S, P] begin in these slots: the logits [S, V] after them."""
        if not self.penalties:
            return logits
        device, width = logits.device, logits.shape[-1]
        if self.counts is None:
            size = (self.num_slots, width)
            self.counts = torch.zeros(size, dtype=torch.int32, device=device)
            self.in_prompt = torch.zeros(size, dtype=torch.bool, device=device)
            self.every = torch.arange(self.num_slots, device=device)
        owner = torch.tensor(slots, device=device)
        place = torch.arange(ids.shape[1], device=device)
        own = place < torch.tensor(lengths, device=device).unsqueeze(1)
        held = self.counts.new_zeros(len(slots), width).scatter_add_(1, ids, own.int())
        self.counts[owner], self.in_prompt[owner] = 0, held > 0
        return self.penalties.apply(logits, self.counts[owner], self.in_prompt[owner])

    def add(self, tokens: Tensor, slots: list[int] | None = None) -> None:
        """Tokens [S, m] are committed to these slots (default: all B); -1 = none."""
        if not self.penalties:
            return
        owner = self.every if slots is None else torch.tensor(slots, device=tokens.device)
        place = owner.unsqueeze(1).expand_as(tokens), tokens.clamp(min=0)
        self.counts.index_put_(place, (tokens >= 0).int(), accumulate=True)

    def rows(self, logits: Tensor, draft: Draft) -> Tensor:
        """Logits [B, 1+n, V] of root and draft, each row penalised for its own prefix.

        All rows of a slot share the committed tokens; only at the draft's own tokens do they
        differ, so that these n entries of a row are worked out anew. Inert and probe rows are
        nobody's prefix: nothing below them can be committed.
        """
        if not self.penalties:
            return logits
        scores = self.penalties.apply(logits, self.counts.unsqueeze(1), self.in_prompt.unsqueeze(1))
        if draft.tokens.shape[1] == 0:
            return scores
        valid, tokens = draft.candidates >= 0, draft.candidates.clamp(min=0)  # [B, n]
        above = draft.layout.ancestors[..., 1:] & valid.unsqueeze(1)  # [B, 1+n, n]
        same = tokens.unsqueeze(2) == tokens.unsqueeze(1)  # [B, n, n]
        drafted = (above.float() @ same.float()).int()  # node j's token on the path to row i
        counts = self.counts.gather(1, tokens).unsqueeze(1) + drafted
        in_prompt = self.in_prompt.gather(1, tokens).unsqueeze(1)
        places = tokens.unsqueeze(1).expand_as(drafted)
        own = self.penalties.apply(logits.gather(2, places), counts, in_prompt)
        return scores.scatter_(2, places, own)


def forced(
    penalties: Penalties, logits: Tensor, prompt: list[int], answer: list[int], begin: int = 0
) -> Tensor:
    """Logits [r, V] that score answer[begin : begin + r], each penalised for all that precedes it.

    For those who read a finished answer: row i comes after prompt and answer[: begin + i].
    """
    if not penalties:
        return logits
    slot, device = PenalisedSlots(penalties, 1), logits.device
    slot.begin([0], torch.tensor([prompt], device=device), [len(prompt)], logits[:1])
    slot.add(torch.tensor([answer[:begin]], dtype=torch.long, device=device))
    read = answer[begin : begin + len(logits) - 1]
    chain = Draft(torch.tensor([read], dtype=torch.long, device=device))
    return slot.rows(logits.unsqueeze(0), chain).squeeze(0)
