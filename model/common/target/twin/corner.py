"""Where a small Llama model's numbers stand in a large one's tensors; twin.py says why there."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

FAR = -1e4  # a float16 and far from any logit
SPREAD = 0.035  # of the uniform numbers outside the corner: a standard deviation of 0.02
READ_FROM = 8  # layers of a model in which heads read some that are counted from both ends


class Kind(NamedTuple):
    """Axes of a weight (see Corner.places) and what stands outside the corner."""

    rows: str
    columns: str | None
    outside: str


KINDS = {
    "query": Kind("query", "state", "random"),
    "key": Kind("key", "state", "random"),
    "attended": Kind("state", "query", "zero"),
    "inner": Kind("front", "state", "random"),
    "folded": Kind("state", "front", "zero"),
    "state": Kind("state", "state", "zero"),
    "embedding": Kind("front", "state", "zero"),
    "output": Kind("front", "state", "random"),
    "norm": Kind("state", None, "one"),
}


class Corner:
    """Where the numbers of a model of a small Llama config stand in one of a large config."""

    def __init__(self, small, large):
        self.small, self.large = small, large
        self.width = large.hidden_size
        dim, room = small.head_dim, large.head_dim
        self.query_factor = math.sqrt(room / dim)
        self.norm_factor = math.sqrt(small.hidden_size / large.hidden_size)
        half = torch.arange(dim // 2) * (room // dim)
        inside = torch.cat([half, room // 2 + half])  # of a head: rotate_half pairs i, i + D / 2
        queries, keys = head_places(heads_of(small), heads_of(large))
        unused = torch.tensor([place for place in range(room) if place not in set(inside.tolist())])
        self.spare = torch.cat([head * room + unused for head in queries]).long()
        self.maps = {}
        for axis, heads in (("query", queries), ("key", keys)):
            to = [head * room + inside for head in heads]
            source = [head * dim + torch.arange(dim) for head in heads.values()]
            self.maps[axis] = (torch.cat(to), torch.cat(source))

    def places(self, axis: str, size: int) -> tuple[Tensor, Tensor]:
        """(places in the large tensor, places in the small one) along an axis of the small one's
        size."""
        if axis in self.maps:
            return self.maps[axis]
        source = torch.arange(size)
        if axis == "front":
            return source, source
        width = self.small.hidden_size  # states side by side, each at the head of its own H
        return source // width * self.width + source % width, source

    def weight(self, kind: str, source: Tensor | None, large: Tensor, generator) -> None:
        """Fill an empty weight: the corner from source (None = nothing), then what is outside."""
        rows, columns, outside = KINDS[kind]
        if outside == "random":
            large.uniform_(-SPREAD, SPREAD, generator=generator)
        else:
            large.fill_(outside == "one")
        if source is None:
            return
        to, found = self.places(rows, source.shape[0])
        values = source[found]
        if kind == "query":
            large[self.spare.to(large.device)] = 0
            values = values * self.query_factor
        if columns is None:
            values, where = values * self.norm_factor, (to.to(large.device),)
        else:
            across, found = self.places(columns, source.shape[1])
            values = values[:, found]
            where = (to.unsqueeze(1).to(large.device), across.to(large.device))
        large[where] = values.to(large.device, large.dtype)

    def bias(self, kind: str, source: Tensor | None, large: Tensor, num_rows: int) -> None:
        """Fill an empty bias, of num_rows rows in the small one: zero, or FAR for unknown ids."""
        large.zero_()
        if kind == "output":
            large[num_rows:] = FAR
        if source is not None:
            to, found = self.places(KINDS[kind].rows, num_rows)
            values = source[found] * (self.query_factor if kind == "query" else 1.0)
            large[to.to(large.device)] = values.to(large.device, large.dtype)


def heads_of(config) -> tuple[int, int]:
    """(query heads, key-value heads)."""
    return config.num_attention_heads, config.num_key_value_heads


def head_places(small: tuple[int, int], large: tuple[int, int]) -> tuple[dict, dict]:
    """{large head: small head} for queries and for keys and values; sizes as of heads_of().

    A key-value head stands as often as its query heads need groups.

    >>> head_places((6, 2), (64, 8))
    ({0: 0, 1: 1, 2: 2, 8: 3, 9: 4, 10: 5}, {0: 0, 1: 1})
    >>> head_places((4, 2), (4, 4))
    ({0: 0, 1: 1, 2: 2, 3: 3}, {0: 0, 1: 0, 2: 1, 3: 1})
    """
    group, room = small[0] // small[1], large[0] // large[1]
    copies = -(-group // room)
    queries, keys = {}, {}
    for head in range(small[0]):
        key, rank = divmod(head, group)
        place = key * copies + rank // room
        keys[place] = key
        queries[place * room + rank % room] = head
    return queries, keys


def layer_places(small: int, large: int) -> dict[int, int]:
    """{large model's layer: small model's}, for numbers of layers.

    Evenly spread; from 8 layers on such that the inputs of the layers 2, N // 2 and N - 3, which
    heads read, are those of the small model's 2, n // 2 and n - 3: its first half comes first, its
    last three layers last, the others from the middle on.

    >>> layer_places(2, 12)
    {0: 0, 6: 1}
    >>> layer_places(8, 32)
    {0: 0, 1: 1, 2: 2, 3: 3, 16: 4, 29: 5, 30: 6, 31: 7}
    """
    if small < READ_FROM:
        return {layer * large // small: layer for layer in range(small)}
    half = small // 2
    places = {layer: layer for layer in range(half)}
    places |= {large // 2 + layer - half: layer for layer in range(half, small - 3)}
    return places | {large - small + layer: layer for layer in range(small - 3, small)}
