"""Where a draft model stands whose cache trails the committed sequences by two tokens.

After a full accept it has not read its own last token, else only the new root is unread; so every
proposal begins by reading the last two committed tokens, which keeps the shapes the same.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.common.target.devices import on


class Tails:
    """What the host knows of B committed sequences, from the ids that every step gives it.

    draft    the draft model, a Target
    length   rows that are read and stay read, 0 for a finished sequence
    pairs    the last two ids, an array [B, 2]; ids that the draft model lacks, of a padded target,
             are its last one: a guess may be wrong
    written  the cache's lengths as an array, None where they are not in the host's memory

    Arrays are written in place: between two forwards, which empty the caches, a new tensor of two
    numbers takes 40 microseconds, and torch.tensor() 70.
    """

    def __init__(self, host_ids: list[list[int]], draft):
        self.draft, self.last = draft, draft.vocab_size - 1
        self.length = [len(ids) - 2 for ids in host_ids]
        self.pairs = np.array([ids[-2:] for ids in host_ids], np.int64).clip(max=self.last)
        self.unread = torch.from_numpy(self.pairs)
        place = draft.cache.length
        self.written = place.numpy() if place.device.type == "cpu" else None

    def observe(self, host_ids: list[list[int]]) -> None:
        """Committed ids of a step; none for a finished sequence."""
        pairs, last = self.pairs, self.last
        for row, ids in enumerate(host_ids):
            self.length[row] = self.length[row] + len(ids) if ids else 0
            if ids:
                pairs[row, 0] = min(ids[-2], last) if len(ids) > 1 else pairs[row, 1]
                pairs[row, 1] = min(ids[-1], last)

    def rewind(self, committed: int) -> Tensor:
        """Set the lengths in the draft model's cache; the two ids [B, 2] to be read.

        committed: of the longest unfinished sequence; one that has just ended may be longer than
        what the reads make room for.
        """
        lengths = [min(length, committed - 2) for length in self.length]
        if self.written is None:
            self.draft.cache.length.copy_(torch.tensor(lengths))
        else:
            for row, length in enumerate(lengths):
                self.written[row] = length
        return on(self.draft.device, self.unread)
