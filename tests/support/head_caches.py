"""What an EAGLE head has read of every sequence, against one that reads it at once."""

import torch

from model.common.contract.drafter import Needs
from model.common.target.model import Target


class FreshCaches:
    """Compares a head's cache, when a draft is made, with one that reads the sequence at once."""

    def __init__(self, model, fresh_head):
        self.target, self.fresh, self.checked = Target(model), fresh_head, 0
        self.target.reserve(1, 256)
        self.fresh.reserve(1, 256)

    def __call__(self, drafter, one):
        ids, length = one.ids, len(one.ids) - 1
        assert drafter.head.cache.length[one.slot] == length
        needs = Needs(hidden=tuple(self.fresh.needs))
        found = self.target.prefill([0], torch.tensor([ids[:-1]]), [length], needs)
        inputs = torch.tensor([ids[1:]]), self.fresh.features(found.hidden)
        self.fresh.read_prompt([0], inputs, torch.tensor([length]))
        held = cached(drafter.head, one.slot, length)
        assert torch.allclose(held, cached(self.fresh, 0, length), atol=1e-4)
        self.checked += 1


def cached(head, slot, num):
    """Keys and values of a slot's first columns."""
    return torch.cat([part[:, slot, :, :num] for pair in head.cache.storage for part in pair])
