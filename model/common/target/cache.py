"""Keys and values of all layers in one preallocated tensor.

A step writes its rows after the committed ones; committing a path is one gather over the whole
tensor, and none where the path is a prefix of the rows. Where shapes are static the next forward
moves them together with its own rows. Views have bucketed lengths so that shapes repeat.
"""

from __future__ import annotations

import collections

import torch
from torch import Tensor

from model.common.errors import BadInput
from model.common.target.devices import on


class KVCache:
    """What a transformers model sees as past_key_values: it calls update() once per layer.

    length   [B] committed rows per sequence, on the device
    slots    [B, r] where the forward in progress writes
    view     how many columns it attends to
    moves    [2, B, m] or None: columns (from, to) of rows that it moves with them
    pending  moves that are still to be made before the cache is read
    """

    def __init__(self, layer_devices: list, batch: int, capacity: int):
        self.batch, self.capacity = batch, capacity
        self.layer_devices = layer_devices
        self.storage: list[Tensor] = []  # one per device, [layers there, 2, B, H, capacity, D]
        self.layers: list[tuple] = []  # keys and values of every layer, views of the storage
        self.length = torch.zeros(batch, dtype=torch.long, device=layer_devices[0])
        self.slots, self.view, self.moves = None, 0, None
        self.pending: Tensor | None = None
        self.no_moves: dict = {}  # m -> moves of nothing

    def _allocate(self, key: Tensor, value: Tensor, layer: int) -> None:
        if key.shape != value.shape:
            raise BadInput(
                f"layer {layer}: keys {tuple(key.shape)} and values {tuple(value.shape)} differ in "
                "shape; such attention is not supported"
            )
        counts = collections.Counter(self.layer_devices)
        _, heads, _, dim = key.shape
        shape = (2, self.batch, heads, self.capacity, dim)
        self.storage = [
            torch.zeros((count, *shape), dtype=key.dtype, device=device)
            for device, count in counts.items()
        ]
        self._view_layers()

    def _view_layers(self) -> None:
        """Give every layer views of its own; made once, so that a compiler takes them for inputs.

        It keeps a single write to an input in place. Of a tensor that all layers write to, one
        after another, it makes a copy before the first and copies it back after the last.
        """
        left = dict(zip(dict.fromkeys(self.layer_devices), map(iter, self.storage)))
        self.layers = [tuple(next(left[device]).unbind(0)) for device in self.layer_devices]

    def update(self, key: Tensor, value: Tensor, layer: int, *_, **__) -> tuple[Tensor, Tensor]:
        """Write rows [B, H, r, D] at their slots; return the layer's viewed keys and values."""
        if not self.storage:
            self._allocate(key, value, layer)
        keys, values = self.layers[layer]
        slots = on(key.device, self.slots)
        if self.moves is not None:
            origin, slots = self._joined(slots)
            key = torch.cat([self._rows_at(keys, origin), key], 2)
            value = torch.cat([self._rows_at(values, origin), value], 2)
        if self.batch == 1:
            keys.index_copy_(2, slots[0], key)
            values.index_copy_(2, slots[0], value)
        else:
            batch = torch.arange(self.batch, device=key.device).view(-1, 1, 1)
            heads = torch.arange(key.shape[1], device=key.device).view(1, -1, 1)
            place = (batch, heads, slots.unsqueeze(1))
            keys.index_put_(place, key)
            values.index_put_(place, value)
        return keys[:, :, : self.view], values[:, :, : self.view]

    def _joined(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Columns that rows come from [B, m], and all that are written, theirs first [B, m+r]."""
        origin, place = on(slots.device, self.moves)
        return origin, torch.cat([place, slots], 1)

    def _rows_at(self, layer: Tensor, columns: Tensor) -> Tensor:
        """Rows [B, H, m, D] of a layer's keys or values in columns [B, m]."""
        if self.batch == 1:
            return layer.index_select(2, columns[0])
        index = columns[:, None, :, None].expand(-1, layer.shape[1], -1, layer.shape[3])
        return layer.gather(2, index)

    def get_seq_length(self, layer: int = 0) -> int:
        """Unused by what we compute (masks and positions are given), but asked for."""
        return 0

    def get_query_offset(self, layer: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer: int = 0) -> tuple[int, int]:
        return self.view, 0

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self.layer_devices)

    def commit(self, path: Tensor | None, count: Tensor) -> None:
        """Keep the rows of path [B, m] (-1 padded) behind the committed ones; count [B] of them.

        path None: it is 0, 1, 2, ..., whose rows stand where they belong.
        """
        if path is not None:
            first = self.length.unsqueeze(1)
            target = first + torch.arange(path.shape[1], device=path.device)
            source = torch.where(path >= 0, first + path, target)
            self._move(source, target)
        self.length.add_(count)

    def due(self, num: int) -> Tensor:
        """Moves [2, B, num] for the next forward to make: the pending ones, or of nothing."""
        moves = self.pending
        if moves is None or moves.shape[2] != num:
            self.settle()
            if num not in self.no_moves:
                self.no_moves[num] = self.length.new_zeros(2, self.batch, num)
            return self.no_moves[num]
        self.pending = None
        return moves

    def settle(self) -> None:
        """Make the pending moves now."""
        moves, self.pending = self.pending, None
        if moves is not None:
            self._move(*moves)

    def _move(self, source: Tensor, target: Tensor) -> None:
        """Copy the rows in columns source [B, m] of all layers to columns target [B, m]."""
        for storage in self.storage:
            self._move_in(storage, on(storage.device, source), on(storage.device, target))

    def _move_in(self, storage: Tensor, source: Tensor, target: Tensor) -> None:
        if self.batch == 1:
            storage.index_copy_(4, target[0], storage.index_select(4, source[0]))
            return
        rows = torch.arange(self.batch, device=storage.device).unsqueeze(1)
        by_slot = storage.permute(2, 4, 0, 1, 3, 5)  # [B, capacity, ...]
        by_slot[rows, target] = by_slot[rows, source]

    def reset(self) -> None:
        """Forget everything; zeroed, because a NaN behind the mask would leak through 0 * NaN."""
        self.length.zero_()
        self.pending = None
        for storage in self.storage:
            storage.zero_()

    def grow(self, capacity: int) -> None:
        """Make room for at least `capacity` columns, keeping what is there."""
        old, self.capacity = self.capacity, capacity
        for i, storage in enumerate(self.storage):
            grown = storage.new_zeros((*storage.shape[:4], capacity, storage.shape[5]))
            grown[..., :old, :] = storage
            self.storage[i] = grown
        if self.storage:
            self._view_layers()


def moves_of(length: Tensor, path: Tensor) -> Tensor:
    """Columns [2, B, depth] (from, to) of rows path [B, 1+depth], root first, -1 padded, behind
    `length` [B] committed ones.

    The root stands where it belongs, and is its own origin where a path has ended: no other row
    that the next forward writes goes there.
    """
    inner = path[:, 1:]
    ended = inner < 0
    ahead = torch.arange(1, path.shape[1], device=path.device).expand_as(inner)
    moves = torch.stack([inner.masked_fill(ended, 0), ahead.masked_fill(ended, 0)])
    return length.unsqueeze(1) + moves
