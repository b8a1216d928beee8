"""What every model with a cache of its own has: room, bucketed views, a runtime for its steps."""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.target.attention import SuffixMasks, additive, rows_mask
from model.common.target.cache import KVCache
from model.common.target.runtime import make_runtime

EAGER_BUCKET = 64  # columns: views are multiples of it
STATIC_BUCKET = 256  # columns: views are powers of two from it


def static_bucket(needed: int, capacity: int) -> range:
    """Columns in use that have one view where shapes are static; it is the last of them, a power
    of two, or all there are."""
    top = max(STATIC_BUCKET, 1 << (needed - 1).bit_length())
    return range(top // 2 + 1 if top > STATIC_BUCKET else 0, min(top, capacity) + 1)


class CachedModel:
    """A model that reads rows after a cached prefix. Subclasses define _rows, the forward itself.

    layer_devices  where each layer's keys and values sit
    """

    def __init__(self, layer_devices: list, dtype: torch.dtype, runtime: str):
        self.layer_devices, self.dtype, self.device = layer_devices, dtype, layer_devices[0]
        self.runtime = make_runtime(runtime, self._rows, self.device)
        self.cache: KVCache | None = None
        self.bucket = range(0)  # that of the last columns() where shapes are static
        self.suffix_masks = SuffixMasks(dtype, EAGER_BUCKET)

    @property
    def static_shapes(self) -> bool:
        """Whether a new row count or view costs a compilation or capture."""
        return self.runtime.static_shapes

    def view(self, needed: int) -> int:
        """Columns to attend to when `needed` are in use: the bucket above."""
        if not self.static_shapes:
            return min(-(-needed // EAGER_BUCKET) * EAGER_BUCKET, self.cache.capacity)
        return static_bucket(needed, self.cache.capacity).stop - 1

    def views(self, capacity: int) -> list[int]:
        """Every view up to `capacity` columns, for warm()."""
        found = [self.view(1)]
        while found[-1] < self.view(capacity):
            found.append(self.view(found[-1] + 1))
        return found

    def reserve(self, batch: int, capacity: int) -> None:
        """Have a cache of at least this size; kept between questions: a new one recompiles."""
        capacity = -(-capacity // STATIC_BUCKET) * STATIC_BUCKET
        if self.cache is None or self.cache.batch != batch or self.cache.capacity < capacity:
            self.cache = None  # free before allocating
            self.cache = KVCache(self.layer_devices, batch, capacity)
            self.bucket = range(0)
            self.runtime.forget()

    def make_room(self, needed: int) -> None:
        """Grow the cache to at least `needed` columns."""
        if needed > self.cache.capacity:
            self.cache.grow(-(-needed // STATIC_BUCKET) * STATIC_BUCKET)
            self.bucket = range(0)
            self.runtime.forget()

    def columns(self, needed: int, committed: int | None) -> tuple[int, int | None]:
        """(view, known start) of rows that need so many columns, for which room is made.

        committed: columns, None where shapes are static, which never ask for it.
        """
        if needed in self.bucket:  # the usual case between two calls of compiled code
            return self.bucket.stop - 1, None
        if needed > self.cache.capacity:
            self.make_room(needed)
        if not self.static_shapes:
            return self.view(needed), self.known_start(committed)
        self.bucket = static_bucket(needed, self.cache.capacity)
        return self.bucket.stop - 1, None

    def known_start(self, committed: int) -> int | None:
        """Committed columns where the host knows them: one sequence, eager."""
        return committed if self.cache.batch == 1 and not self.static_shapes else None

    def place(self, num_rows: int, view: int, start: int | None, offset=0) -> Tensor:
        """Columns [B, r], the cache's slots, of rows `offset` after the committed ones.

        offset: an int, or a tensor [] where start is None.
        """
        cache = self.cache
        cache.view = view
        if start is None:
            ahead = torch.arange(num_rows, device=self.device) + offset
            cache.slots = cache.length.unsqueeze(1) + ahead
        else:
            first = start + offset
            cache.slots = torch.arange(first, first + num_rows, device=self.device)[None]
        return cache.slots

    def mask(self, positions, known, window: int | None, start: int | None) -> Tensor:
        """The additive mask of the placed rows, [B, 1, r, view].

        known [.., r, w]: which of the w columns after the committed ones a row reads, None = a
        chain; window: sliding attention, measured in positions.
        """
        cache = self.cache
        if start is not None and window is None:
            num_rows = positions.shape[1]
            return self.suffix_masks(known, num_rows, start, cache.view, positions.device)
        allowed = rows_mask(cache.length, cache.slots, positions, known, cache.view, window)
        return additive(allowed, self.dtype)
