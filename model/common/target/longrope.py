"""Rotary factors that depend on a sequence's length (longrope: Phi-3, Phi-MoE), chosen per slot.

transformers chooses between the short and the long factors by the largest position of a call, for
all of its rows. A draft that reaches beyond the boundary, or a long neighbour in a batch, would so
change what a short sequence is read with. Here a sequence keeps the factors that its prompt is read
with; one that would have to change them in the middle is refused (Target.fitting), because every
key in the cache would have to be read again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.errors import Unsupported
from model.common.target.placement import output_device


class LongRope:
    """The choice of factors of a model's rotary modules, whose forward it takes the place of.

    boundary  longest sequence that is read with the short factors, in tokens
    long      [B] bool: slots whose sequence is read with the long ones
    """

    def __init__(self, model, boundary: int):
        self.boundary = boundary
        self.long = torch.zeros(1, dtype=torch.bool, device=output_device(model))
        self.chosen = self.long  # of the rows that are read now, [S]
        modules = [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]
        self.given = [(module, module.forward) for module in modules]
        for module, forward in self.given:
            module.forward = self._per_slot(forward)
        if not modules:
            raise Unsupported(
                f"model type {model.config.model_type}: its longrope factors cannot be chosen by "
                "the length of a sequence; it is not supported"
            )

    def reserve(self, num_slots: int) -> None:
        """All slots are empty. A recorded step reads the tensor that it has seen."""
        if len(self.long) != num_slots:
            self.long = torch.zeros(num_slots, dtype=torch.bool, device=self.long.device)
        self.long.zero_()
        self.chosen = self.long

    def remove(self) -> None:
        """Let the model choose as transformers does."""
        for module, forward in self.given:
            module.forward = forward

    def start(self, slots: list[int], lengths: list[int]) -> None:
        """Prompts of these lengths are read into these slots."""
        beyond = [length > self.boundary for length in lengths]
        self.long[slots] = torch.tensor(beyond, device=self.long.device)

    def choose(self, slots: Tensor | None) -> None:
        """The next rows are those of these slots [S], None = all."""
        self.chosen = self.long if slots is None else self.long[slots]

    def _per_slot(self, forward):
        """forward(x, position_ids [S, r], ...) -> (cos, sin [S, r, D]), called once a choice."""
        last = self.boundary - 1

        def chosen(x, position_ids, *more, **named):
            short = forward(x, position_ids.clamp(max=last), *more, **named)
            beyond = torch.full_like(position_ids[:, :1], self.boundary)
            long = forward(x, torch.cat([position_ids, beyond], 1), *more, **named)
            pick = self.chosen.to(position_ids.device).view(-1, 1, 1)
            return tuple(torch.where(pick, b[:, :-1], a) for a, b in zip(short, long))

        return chosen


def rope_boundary(config) -> int | None:
    """Tokens from which on a config's longrope takes its long factors; None where it has none."""
    found = getattr(config, "rope_parameters", None) or {}
    kinds = [found, *(value for value in found.values() if isinstance(value, dict))]
    limits = {kind["original_max_position_embeddings"] for kind in kinds if _changes(kind, config)}
    return min(limits) if limits else None


def _changes(parameters: dict, config) -> bool:
    kind = parameters.get("rope_type", parameters.get("type"))
    longest = getattr(config, "max_position_embeddings", None) or float("inf")
    return kind == "longrope" and parameters["original_max_position_embeddings"] < longest
