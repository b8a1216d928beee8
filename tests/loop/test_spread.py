"""Sampler.spread(): hashed uniforms that depend on seed and position alone."""

import itertools

import torch
from laws import LEVEL, detectable, p_value
from scipy import stats

from model.common.loop.sampling import Sampler, hashed_uniforms, seed_of


def splitmix(state):
    """SplitMix64 in Python's integers: its outputs, one after another."""
    mask = 2**64 - 1
    while True:
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        yield z ^ (z >> 31)


def test_splitmix64():
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert list(itertools.islice(splitmix(0), 3)) == first
    found = hashed_uniforms(torch.tensor([0]), 3)
    assert found.dtype == torch.float64
    assert found.tolist() == [[(z >> 11) * 2.0**-53 for z in first]]
    keys = [1, -1, 2**63 - 1, -(2**63), 123456789012345678]
    for key, line in zip(keys, hashed_uniforms(torch.tensor(keys), 50).tolist()):
        wanted = itertools.islice(splitmix(key % 2**64), 50)
        assert line == [(z >> 11) * 2.0**-53 for z in wanted]


def started(seeds, position=0):
    sampler, num = Sampler(1.0), len(seeds)
    sampler.reserve(num, torch.device("cpu"))
    sampler.begin(list(range(num)), seeds, [4] * num)
    sampler.advance(torch.full((num,), position))
    return sampler


def test_spread_depends_on_seed_and_position_alone():
    seeds = [seed_of(0, question, 0, 0) for question in range(5)]
    together = started(seeds, 7).spread(40)
    assert together.shape == (5, 40) and together.min() >= 0 and together.max() < 1
    for row, seed in enumerate(seeds):
        assert torch.equal(started([seed], 7).spread(40)[0], together[row])
        assert torch.equal(started([seed], 7).spread(9)[0], together[row, :9])
    uneven = started(seeds)
    uneven.advance(torch.tensor([7, 0, 3, 7, 1]))
    assert torch.equal(uneven.spread(40)[[0, 3]], together[[0, 3]])


def test_no_number_of_a_position_is_anothers():
    """Not even shifted: what a position drew decided which position came next."""
    seeds = [seed_of(0, question, 0, 0) for question in range(20)]
    numbers = torch.cat([started(seeds, position).spread(60) for position in range(40)])
    assert len(numbers.unique()) == numbers.numel()


def test_spread_is_uniform_and_independent():
    """Of indices, positions, neighbouring seeds and the rule's own numbers: 16 x 16 cells."""
    num = 4000
    seeds = [seed_of(0, question, 0, 0) for question in range(num)]
    here, after = started(seeds, 3).spread(30), started(seeds, 4).spread(30)
    near = started([seed + 1 for seed in seeds], 3).spread(30)
    rule = started(seeds, 3).uniform(1, 0).expand(-1, 30)
    assert stats.kstest(here.flatten().numpy(), "uniform").pvalue > LEVEL
    assert detectable(116_000, 256) < 0.025
    pairs = [(here, after), (here, near), (here[:, :-1], here[:, 1:]), (here[:-1], here[1:])]
    pairs += [(here[:, lag:], after[:, : 30 - lag]) for lag in (1, 2, 3)]
    pairs += [(here[:, :1], rule[:, :1]), (here[:, 5:6], rule[:, 5:6])]
    for left, right in pairs:
        cells = ((left * 16).long() * 16 + (right * 16).long()).flatten()
        counts = torch.bincount(cells, minlength=256)
        assert p_value(counts, torch.full((256,), 1 / 256)) > LEVEL
