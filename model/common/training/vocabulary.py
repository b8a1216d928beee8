"""The ids that a head is trained to draft: the most frequent of the training answers."""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.errors import BadInput
from model.common.heads.vocabulary import frequent_ids


class DraftVocabulary:
    """Some of the target's ids.

    ids   [N] long, ascending
    head  the target's LM head of these ids alone, H -> N, without gradients; some of them in
          float32, all of them in the target's precision
    """

    def __init__(self, flag: str, data, target, num_ids: int):
        """flag: that asks for num_ids, for messages; data: a templates.TrainingData."""
        vocab_size = target.lm_head.weight.shape[0]
        if num_ids > vocab_size:
            raise BadInput(f"{flag} {num_ids}: the target has {vocab_size} ids")
        self.ids = frequent_ids(data.count_answers(vocab_size), num_ids).to(target.device)
        self.head = target.lm_head if num_ids == vocab_size else target.some_ids(self.ids)
        self._places = self.ids.new_full((vocab_size,), -1)
        self._places[self.ids] = torch.arange(num_ids, device=target.device)

    def places(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Of target ids [M]: which are among them, [M] bool, and the places of those, [K, 1]."""
        found = self._places[ids]
        inside = found >= 0
        return inside, found[inside].unsqueeze(1)
