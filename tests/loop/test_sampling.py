"""sampling.py: warping against transformers' processors, draws, uniforms indexed by position."""

import pytest
import torch
from laws import LEVEL, detectable, p_value, transformers_probs

from model.common.loop.sampling import DRAFT, TARGET, Sampler, draw, seed_of, warp

SETTINGS = [
    (1.0, 0, 1.0),
    (0.7, 0, 1.0),
    (2.5, 3, 1.0),
    (1.0, 1, 1.0),
    (1.0, 500, 1.0),
    (1.0, 0, 0.8),
    (1.0, 0, 0.05),
    (0.3, 0, 0.999),
    (0.7, 20, 0.9),
    (1.3, 5, 0.5),
    (1.0, 0, 1.0, 0.1),
    (1.6, 0, 1.0, 0.02),
    (0.8, 40, 0.95, 0.05),
    (1.0, 0, 1.0, 1.0),
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_warp_is_transformers(settings, spread):
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(64, 211, dtype=torch.float64, generator=generator) * spread
    found = warp(logits, *settings)
    wanted = transformers_probs(logits, *settings)
    assert torch.equal(found > 0, wanted > 0)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-9)
    single = warp(logits.float(), *settings)
    assert single.dtype == torch.float32
    kept = (single > 0) != (wanted > 0)  # a float32 sum may put a border token on the other side
    assert kept.sum() <= 2
    torch.testing.assert_close(
        single[~kept.any(1)].double(), wanted[~kept.any(1)], atol=1e-6, rtol=1e-4
    )


def test_warp_takes_any_leading_shape_and_half_precision():
    logits = torch.randn(2, 3, 5, 17, generator=torch.Generator().manual_seed(0))
    whole = warp(logits, 0.8, 6, 0.7)
    for part, own in zip(whole.view(30, 17), logits.view(30, 17)):
        torch.testing.assert_close(part, warp(own, 0.8, 6, 0.7))
    assert warp(logits.bfloat16(), 0.8, 6, 0.7).dtype == torch.float32


def test_warp_by_hand():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    near = {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(warp(logits, 1.0, 2), torch.tensor([0.625, 0.375, 0.0, 0.0]), **near)
    torch.testing.assert_close(warp(logits, 1.0, 0, 0.81), torch.tensor([10, 6, 3, 0]) / 19, **near)
    torch.testing.assert_close(warp(logits, 1.0, 0, 0.49), torch.tensor([1.0, 0, 0, 0]), **near)
    torch.testing.assert_close(
        warp(logits, 1.0, min_p=0.3), torch.tensor([10, 6, 3, 0]) / 19, **near
    )
    torch.testing.assert_close(
        warp(logits, 1.0, 0, 0.81, 0.5), torch.tensor([5, 3, 0, 0]) / 8, **near
    )
    torch.testing.assert_close(
        warp(logits, 0.5, min_p=0.3), torch.tensor([25, 9, 0, 0]) / 34, **near
    )
    squared = torch.tensor([0.25, 0.09, 0.0225, 0.0025])
    torch.testing.assert_close(warp(logits, 0.5), squared / squared.sum(), **near)


def test_top_k_keeps_ties_and_top_p_keeps_one():
    assert (warp(torch.tensor([1.0, 2, 2, 2, 0]), 1.0, 2) > 0).tolist() == [0, 1, 1, 1, 0]
    assert (warp(torch.zeros(5), 1.0, 0, 1e-6) > 0).sum() == 1
    assert warp(torch.tensor([float("-inf"), 0.0, 0.0]), 1.0).tolist() == [0, 0.5, 0.5]


def test_draw_never_returns_a_token_without_mass():
    """Zeros at the front, inside and at the end, with uniforms at both borders."""
    below_one = 1 - 2.0**-53
    uniforms = [0.0, 5e-324, 1e-300, 2.0**-60, 0.5, 1 - 2.0**-30, below_one, 1.0]
    rows = [
        [0, 0, 0.25, 0, 0.75, 0, 0],
        [0, 0, 0, 0, 0, 0, 1],
        [1, 0, 0, 0, 0, 0, 0],
        [0, 1e-38, 0, 1, 0, 1e-30, 0],
        [1e-7, 0, 0, 0, 1 - 1e-7, 0, 0],
    ]
    for dtype in (torch.float32, torch.float64):
        probs = torch.tensor(rows, dtype=dtype)
        for uniform in uniforms:
            tokens = draw(probs, torch.full((len(rows),), uniform, dtype=torch.float64))
            assert (probs.gather(1, tokens.unsqueeze(1)) > 0).all(), (uniform, tokens)
    generator = torch.Generator().manual_seed(1)
    probs = warp(torch.randn(500, 1000, generator=generator) * 3, 1.0, 40, 0.9)
    for uniform in uniforms:
        tokens = draw(probs, torch.full((500,), uniform, dtype=torch.float64))
        assert (probs.gather(1, tokens.unsqueeze(1)) > 0).all()


def test_draw_is_the_inverse_of_the_cumulative_sum():
    probs = torch.tensor([0.125, 0.5, 0.0, 0.375])
    uniforms = torch.tensor([0.0, 0.1249, 0.125, 0.3, 0.6249, 0.625, 0.999], dtype=torch.float64)
    assert draw(probs.expand(7, 4), uniforms).tolist() == [0, 0, 1, 1, 1, 3, 3]
    assert draw(3 * probs.expand(7, 4), uniforms).tolist() == [0, 0, 1, 1, 1, 3, 3]  # any scale
    assert draw(probs.expand(2, 3, 4), torch.full((2, 3), 0.7)).tolist() == [[3] * 3] * 2


def test_draws_of_a_large_vocabulary_are_exact():
    """100,003 equal tokens: a cumulative sum in float32 would be off by several of them."""
    num = 100_003
    uniforms = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tokens = draw(torch.full((20, num), 1 / num), uniforms)
    assert tokens.tolist() == (uniforms * num).long().tolist()


def test_law_of_draws():
    """250,000 draws: chi-square, finds a total variation of 1 %; a wrong temperature is found."""
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    num = 250_000
    assert detectable(num, 12) < 0.01
    uniforms = torch.rand(num, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for temperature, top_k, top_p in [(1.0, 0, 1.0), (0.7, 0, 0.9), (1.5, 7, 1.0)]:
        law = warp(logits, temperature, top_k, top_p)
        counts = torch.bincount(draw(law.expand(num, 12), uniforms), minlength=12)
        assert p_value(counts, law) > LEVEL
        assert p_value(counts, warp(logits, 1.1 * temperature, top_k, top_p)) < LEVEL


def started(seeds, length=40, sampler=None):
    """A sampler whose slots begin all at once."""
    sampler = sampler or Sampler(0.8)
    sampler.reserve(len(seeds), torch.device("cpu"))
    sampler.begin(list(range(len(seeds))), seeds, [length] * len(seeds))
    return sampler


def test_uniforms_do_not_depend_on_the_batch_or_its_order():
    seeds = [seed_of(0, question, 0, 0) for question in range(6)]
    whole = started(seeds)
    turned = started(seeds[::-1])
    for purpose in (TARGET, DRAFT):
        together = whole.uniform(9, purpose)
        assert torch.equal(turned.uniform(9, purpose).flip(0), together)
        for row, seed in enumerate(seeds):
            assert torch.equal(started([seed]).uniform(9, purpose)[0], together[row])


def test_uniforms_belong_to_positions():
    """However many are asked for, and however the steps fall, a position keeps its number."""
    sampler = started([5, 6])
    every = {purpose: sampler.uniform(40, purpose) for purpose in (TARGET, DRAFT)}
    position = torch.zeros(2).long()
    for count in ([1, 1], [3, 1], [0, 7], [5, 0]):
        sampler.advance(torch.tensor(count))
        position += torch.tensor(count)
        for num, first in [(1, 0), (4, 0), (0, 0), (2, 3)]:
            for purpose in (TARGET, DRAFT):
                found = sampler.uniform(num, purpose, first)
                wanted = position.unsqueeze(1) + torch.arange(first, first + num)
                assert torch.equal(found, every[purpose].gather(1, wanted))


def test_slots_that_begin_leave_the_others_alone():
    """A longer sequence in slot 1: the table grows, slot 0 keeps its numbers and its position."""
    sampler = started([5, 6], length=10)
    sampler.advance(torch.tensor([3, 2]))
    before = sampler.uniform(4, TARGET)[0]
    sampler.begin([1], [seed_of(0, 7, 0, 0)], [30])
    assert torch.equal(sampler.uniform(4, TARGET)[0], before)
    fresh = started([seed_of(0, 7, 0, 0)], length=30)
    for _ in range(3):
        assert torch.equal(sampler.uniform(9, DRAFT)[1], fresh.uniform(9, DRAFT)[0])
        assert torch.equal(sampler.spread(7)[1], fresh.spread(7)[0])
        sampler.advance(torch.tensor([1, 8]))
        fresh.advance(torch.tensor([8]))


def test_positions_behind_the_table_are_answered():
    """Drafts reach beyond the last position that can be kept; what is drawn there is cut."""
    sampler = started([1], length=5)
    sampler.advance(torch.tensor([4]))
    assert torch.isfinite(sampler.uniform(6, TARGET)).all()


def test_uniforms_are_uniform_and_independent():
    """Of positions, purposes and neighbouring seeds: chi-square of 16 x 16 cells."""
    sampler = started([seed_of(0, question, 0, 0) for question in range(4000)], 30)
    target, draft = sampler.uniform(30, TARGET), sampler.uniform(30, DRAFT)
    assert target.dtype == torch.float64 and target.min() >= 0 and target.max() < 1
    pairs = [
        (target, draft),
        (target[:, :-1], target[:, 1:]),
        (target[:, :-1], draft[:, 1:]),
        (target[:-1], target[1:]),
    ]
    assert detectable(116_000, 256) < 0.025
    for left, right in pairs:
        cells = (left * 16).long() * 16 + (right * 16).long()
        counts = torch.bincount(cells.flatten(), minlength=256)
        assert p_value(counts, torch.full((256,), 1 / 256)) > LEVEL


def test_seeds_differ_by_every_field():
    grid = [
        seed_of(seed, question, choice, turn)
        for seed in range(4)
        for question in range(30)
        for choice in range(4)
        for turn in range(4)
    ]
    assert len(set(grid)) == len(grid)
    assert all(0 <= seed < 2**63 for seed in grid)
    low = {seed % 2**32 for seed in grid}  # what the generator makes of it
    assert len(low) == len(grid)
    assert seed_of(1, 12, 0, 0) != seed_of(11, 2, 0, 0)
    assert seed_of(0, 81, 0, 1) == seed_of(0, 81, 0, 1)
    firsts = {started([seed]).uniform(1, TARGET).item() for seed in grid[:200]}
    assert len(firsts) == 200


def test_greedy_draws_nothing():
    sampler = Sampler()
    assert sampler.greedy
    started([1, 2], 10, sampler)
    sampler.advance(torch.tensor([1, 1]))
    assert sampler.table.shape[-1] == 1  # no table is made
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 2.0, 1.0]])
    assert sampler.first_tokens([0, 1], logits).tolist() == [1, 0]
    assert sampler.first_tokens([1], logits[:1]).tolist() == [1]
    assert sampler.position.tolist() == [2, 3]


def test_first_token_has_the_warped_law():
    """Drawn at position 0: its law over seeds, and none outside the nucleus."""
    logits = torch.tensor([1.2, 0.3, -0.5, 0.9, -4.0, 0.0])
    num = 20_000
    seeds = [seed_of(0, i, 0, 0) for i in range(num)]
    sampler = started(seeds, 1, Sampler(0.9, top_p=0.9))
    tokens = sampler.first_tokens(list(range(num)), logits.expand(num, 6))
    law = warp(logits, 0.9, 0, 0.9)
    assert law[4] == 0 and detectable(num, 5) < 0.03
    assert p_value(torch.bincount(tokens, minlength=6), law) > LEVEL
    assert p_value(torch.bincount(tokens, minlength=6), warp(logits, 0.7)) < LEVEL
