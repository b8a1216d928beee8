"""Blocked argmax and top-k: PyTorch's answers, on both sides of the size where blocks begin."""

import pytest
import torch

from model.common.loop.ranking import SMALL, best_id, top_ids

WIDTHS = [1, 5, 97, 2048, 32000, 32001, 50272]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [1, 3, 81])
def test_same_as_torch(width, rows):
    logits = torch.randn(2, rows, width, generator=torch.Generator().manual_seed(width + rows))
    assert torch.equal(best_id(logits), logits.argmax(-1))
    for k in {1, min(8, width), min(30, width)}:
        assert torch.equal(top_ids(logits, k), logits.topk(k, dim=-1).indices)


def test_the_first_of_equals_wins():
    """Across blocks and inside one, in exactly the sizes that are read in blocks."""
    logits = torch.randint(0, 4, (64, 2048), generator=torch.Generator().manual_seed(0)).float()
    assert logits.numel() > SMALL
    for row, best in zip(logits, best_id(logits).tolist()):
        assert best == (row == row.max()).nonzero()[0].item()


def test_ties_of_the_best_k_are_distinct_and_of_the_right_values():
    logits = torch.randint(0, 4, (64, 2048), generator=torch.Generator().manual_seed(1)).float()
    ids = top_ids(logits, 8)
    assert torch.equal(logits.gather(1, ids), logits.topk(8, dim=-1).values)
    assert all(len(set(row)) == 8 for row in ids.tolist())


def test_half_precision_and_minus_infinity():
    logits = torch.full((40, 2048), float("-inf"), dtype=torch.bfloat16)
    logits[:, 1234] = 1.0
    assert best_id(logits).tolist() == [1234] * 40
    assert top_ids(logits, 4)[:, 0].tolist() == [1234] * 40
