"""cache.py by hand: which rows are kept, moved, cleared, and what grows."""

import pytest
import torch

from model.common.target.cache import KVCache


class Layer:
    """What a cache gives keys and values to."""


def small_cache(num_slots=2):
    """A cache of two layers whose every row holds its column, its slot and its layer."""
    layers = [(Layer(), 1, 3, 3, torch.float32, torch.device("cpu")) for _ in range(2)]
    cache = KVCache(layers, num_slots, 20, "cpu")
    for keys, values in cache.storage:
        for tensor in (keys, values):
            tensor[..., 0] = torch.arange(257)
            tensor[..., 1] = torch.arange(num_slots).view(-1, 1, 1)
            tensor[..., 2] = torch.arange(2).view(-1, 1, 1, 1)
    return cache, [module for module, *_ in layers]


@pytest.mark.parametrize("num_slots", [1, 2])
def test_paths_are_kept_behind_the_committed_rows(num_slots):
    """The docstring's: path [0, 3, 5] at length 10 copies column 13 -> 11 and 15 -> 12."""
    cache, modules = small_cache(num_slots)
    cache.rewind(torch.tensor([10, 4][:num_slots]))
    path = torch.tensor([[0, 3, 5, -1], [0, -1, -1, -1]])[:num_slots]
    cache.keep(path, torch.tensor([3, 1])[:num_slots])
    assert cache.length.tolist() == [13, 5][:num_slots]
    moved = [*range(11), 13, 15, *range(13, 257)]
    for layer, module in enumerate(modules):
        for part in module.kv:
            assert part[0, 0, :, 0].tolist() == moved
            assert part[-1, 0, :, 0].tolist() == (moved if num_slots == 1 else list(range(257)))
            assert set(part[0, 0, :, 1].tolist()) == {0} and set(
                part[..., 2].flatten().tolist()
            ) == {layer}


def test_lengths_and_slots_of_a_cache():
    cache, modules = small_cache()
    cache.keep(None, torch.tensor([3, 0]))  # a chain: nothing moves
    assert cache.length.tolist() == [3, 0]
    cache.advance(2)
    cache.rewind(torch.tensor([7]), [1])
    assert cache.length.tolist() == [5, 7]
    cache.grow(300)
    assert cache.capacity == 512 and cache.length.tolist() == [5, 7]
    assert modules[1].kv[0].shape == (2, 1, 513, 3) and modules[1].kv[0][1, 0, 255, 0] == 255
    cache.clear([1])
    assert cache.length.tolist() == [5, 0]
    for part in modules[0].kv:
        assert not part[1].any() and part[0, 0, 200, 0] == 200
