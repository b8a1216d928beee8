"""Where a draft model stands whose cache trails the committed sequences by two tokens.

After a full accept it has not read its own last token, else only the new root is unread; so every
proposal begins by reading the last two committed tokens, which keeps the shapes the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.devices import ids_on


class Tails:
    """What the host knows of B committed sequences, from the ids that every step gives it.

    draft   the draft model, a Target
    length  rows that are read and stay read, 0 for a finished sequence
    pairs   the last two ids
    written the cache's lengths as an array, None where they are not in the host's memory
    """

    def __init__(self, host_ids: list[list[int]], draft):
        self.draft = draft
        self.length = [len(ids) - 2 for ids in host_ids]
        self.pairs = [ids[-2:] for ids in host_ids]
        place = draft.cache.length
        self.written = place.numpy() if place.device.type == "cpu" else None

    def observe(self, host_ids: list[list[int]]) -> None:
        """Committed ids of a step; none for a finished sequence."""
        for row, ids in enumerate(host_ids):
            self.length[row] = self.length[row] + len(ids) if ids else 0
            self.pairs[row] = (self.pairs[row] + ids)[-2:]

    def rewind(self, committed: int) -> Tensor:
        """Set the lengths in the draft model's cache; the two ids [B, 2] to be read.

        Ids that it lacks, of a padded target, are its last one: a guess may be wrong.
        committed: of the longest unfinished sequence; one that has just ended may be longer than
        what the reads make room for.
        """
        lengths = [min(length, committed - 2) for length in self.length]
        if self.written is None:
            self.draft.cache.length.copy_(torch.tensor(lengths))
        else:
            self.written[:] = lengths
        last = self.draft.vocab_size - 1
        pairs = [[min(first, last), min(second, last)] for first, second in self.pairs]
        return ids_on(self.draft.device, pairs)
