"""Keys and values of all layers of a model, for B slots.

A step writes its rows behind the committed ones; committing a path is one gather a storage, and
none where the path is a prefix of the rows. Only this file writes `length`.
"""

from __future__ import annotations

import torch
from torch import Tensor

BUCKET = 256  # columns: capacities are multiples of it


class KVCache:
    """Storage for the layers of attention_modules(), each of which is given its own as module.kv.

    length   [B] committed rows of each slot, on `device`
    storage  [layers, B, heads, capacity + 1, D] of layers that are alike, keys and values apart;
             the spare column keeps attended widths below the size: where both are equal,
             torch.compile makes a graph of its own
    """

    def __init__(self, layers: list[tuple], num_slots: int, capacity: int, device):
        self.num_slots, self.device = num_slots, torch.device(device)
        self.capacity = -(-capacity // BUCKET) * BUCKET
        self.length = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.modules: list[list] = []  # of each pair of storages
        groups: dict[tuple, list] = {}
        for module, *kind in layers:
            groups.setdefault(tuple(kind), []).append(module)
        self.storage: list[tuple[Tensor, Tensor]] = []
        for (heads, key_size, value_size, dtype, where), modules in groups.items():
            shape = (len(modules), num_slots, heads, self.capacity + 1)
            sizes = (key_size, value_size)
            pair = [torch.zeros(*shape, size, dtype=dtype, device=where) for size in sizes]
            self.storage.append(tuple(pair))
            self.modules.append(modules)
        self.hand_out()

    def hand_out(self) -> None:
        """Give every module its own; another target of the same model may have given it others."""
        for (keys, values), modules in zip(self.storage, self.modules):
            for module, *own in zip(modules, keys, values):
                module.kv = tuple(own)

    def rewind(self, lengths: Tensor, slots: list[int] | None = None) -> None:
        """Set the committed lengths, [B] or those of some slots."""
        lengths = lengths.to(self.device)
        if slots is None:
            self.length.copy_(lengths)
        else:
            self.length[slots] = lengths

    def advance(self, count) -> None:
        """The next rows stay: an int or [B]."""
        self.length += count

    def keep(self, path: Tensor | None, count: Tensor) -> None:
        """Keep the rows of path [B, m] (-1 padded) behind the committed ones; count [B] of them.

        path None: it is 0, 1, 2, ..., whose rows stand where they belong. Path [0, 3, 5] at length
        10 copies column 13 -> 11 and 15 -> 12.
        """
        if path is not None:
            first = self.length.unsqueeze(1)
            target = first + torch.arange(path.shape[1], device=path.device)
            self.move(torch.where(path >= 0, first + path, target), target)
        self.advance(count)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy the rows in columns source [B, m] of all layers to columns target [B, m]."""
        for pair in self.storage:
            for tensor in pair:
                _move(tensor, source.to(tensor.device), target.to(tensor.device))

    def clear(self, slots: list[int]) -> None:
        """Empty some slots. Zeroed: a NaN behind the mask would leak through 0 * NaN."""
        self.length[slots] = 0
        for pair in self.storage:
            for tensor in pair:
                if len(slots) == self.num_slots:
                    tensor.zero_()
                else:
                    tensor[:, slots] = 0

    def grow(self, capacity: int) -> None:
        """Make room for at least `capacity` columns, keeping what is there."""
        self.capacity = -(-capacity // BUCKET) * BUCKET
        self.storage = [
            tuple(
                torch.nn.functional.pad(tensor, (0, 0, 0, self.capacity + 1 - tensor.shape[3]))
                for tensor in pair
            )
            for pair in self.storage
        ]
        self.hand_out()


def _move(storage: Tensor, source: Tensor, target: Tensor) -> None:
    if storage.shape[1] == 1:
        storage.index_copy_(3, target[0], storage.index_select(3, source[0]))
        return
    slots = torch.arange(storage.shape[1], device=storage.device).unsqueeze(1)
    by_slot = storage.permute(1, 3, 0, 2, 4)  # [B, capacity, ...]
    by_slot[slots, target] = by_slot[slots, source]


class CachedModel:
    """A model that reads rows behind what its slots have committed.

    runtime  a runtime.Runtime; layers: as KVCache takes them
    """

    def __init__(self, layers: list[tuple], device, dtype: torch.dtype, runtime):
        self.layers, self.device, self.dtype = layers, torch.device(device), dtype
        self.runtime = runtime
        self.cache: KVCache | None = None

    @torch.inference_mode()
    def reserve(self, num_slots: int, capacity: int) -> None:
        """Have an empty cache of at least this size; one that is there already is kept."""
        cache = self.cache
        if cache is None or cache.num_slots != num_slots or cache.capacity < capacity:
            self.cache = None  # free before allocating
            self.cache = KVCache(self.layers, num_slots, capacity, self.device)
            self.runtime.forget()
        else:
            cache.hand_out()
            cache.clear(list(range(num_slots)))

    def make_room(self, needed: int) -> None:
        """Grow the cache to at least `needed` columns."""
        if needed > self.cache.capacity:
            self.cache.grow(needed)
            self.runtime.forget()

    def width(self, needed: int) -> int:
        """Columns to attend to when `needed` are in use, for which room is made."""
        self.make_room(needed)
        return min(self.runtime.width(needed), self.cache.capacity)

    def columns(self, num_rows: int, offset=0, slots: Tensor | None = None) -> Tensor:
        """Columns [S, r] of rows `offset` behind the committed ones; slots [S], None = all B."""
        length = self.cache.length if slots is None else self.cache.length[slots]
        return length.unsqueeze(1) + torch.arange(num_rows, device=self.device) + offset
