"""attention.py: masks of tree rows against a slow reference, grouped SDPA, kinds of attention."""

import pytest
import torch
from conftest import FAMILIES, SHAPE
from test_tree import random_parents, slow_lines

from model.common.contract import trees as tree
from model.common.contract.drafter import Draft
from model.common.errors import BadInput
from model.common.target.attention import (
    SuffixMasks,
    additive,
    grouped_attention,
    mask_kinds,
    rows_mask,
    split_attention,
)


def slow_mask(lengths, lines, view, window):
    """[B][r][view]: committed columns, and of the rows' own columns those on the row's line.

    lines[b][i] are the rows from the root to row i; a row's position is the committed length plus
    its depth, and row j stands in column length + j.
    """
    masks = []
    for length, own in zip(lengths, lines):
        position = [column for column in range(length)] + [length + len(line) - 1 for line in own]
        mask = [[False] * view for _ in own]
        for row, line in enumerate(own):
            for column in range(min(view, length + len(own))):
                seen = column < length or column - length in line
                near = window is None or position[length + row] - position[column] < window
                mask[row][column] = seen and near
        masks.append(mask)
    return masks


def fast_mask(lengths, parents, num_rows, view, window):
    """rows_mask as the target calls it; parents None = a chain."""
    length = torch.tensor(lengths)
    slots = length.unsqueeze(1) + torch.arange(num_rows)
    known, positions = None, slots
    if parents is not None:
        draft = Draft(
            torch.zeros(len(lengths), num_rows - 1).long(), torch.as_tensor(parents).long(), 99
        )
        _, known, depths = tree.layout(draft)
        positions = length.unsqueeze(1) + depths
    return rows_mask(length, slots, positions, known, view, window)


WINDOWS = [None, 1, 2, 4, 7, 64]


def test_docstring_tree_by_hand():
    """Two committed columns, the root in the third; then with a window of three positions."""
    seen = fast_mask([2], [-1, 0, -1], 4, 8, None)[0].int().tolist()
    assert seen == [
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 1, 0, 0],
    ]
    near = fast_mask([2], [-1, 0, -1], 4, 8, 3)[0].int().tolist()
    assert near == [
        [1, 1, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0, 1, 0, 0],  # column 5, but position 3 like row 1
    ]


@pytest.mark.parametrize("window", WINDOWS)
def test_chain(window):
    lengths, num_rows = [0, 5, 11], 6
    lines = [slow_lines(list(range(-1, num_rows - 2)))] * 3
    wanted = slow_mask(lengths, lines, 20, window)
    assert fast_mask(lengths, None, num_rows, 20, window).tolist() == wanted
    as_tree = fast_mask(lengths, list(range(-1, num_rows - 2)), num_rows, 20, window)
    assert as_tree.tolist() == wanted


@pytest.mark.parametrize("window", WINDOWS)
def test_static_tree(window):
    parents = [-1, -1, 0, 0, 1, 2, 4, 5]
    lengths = [0, 3, 9]
    wanted = slow_mask(lengths, [slow_lines(parents)] * 3, 24, window)
    assert fast_mask(lengths, parents, 9, 24, window).tolist() == wanted


@pytest.mark.parametrize("window", WINDOWS)
def test_ragged_batch_of_random_trees(window):
    lengths = [1, 17, 6, 0, 30]
    parents = [random_parents(12, seed) for seed in range(5)]
    wanted = slow_mask(lengths, [slow_lines(own) for own in parents], 48, window)
    assert fast_mask(lengths, parents, 13, 48, window).tolist() == wanted


def test_root_alone():
    for parents in (None, []):
        mask = fast_mask([4], parents, 1, 8, 3)
        assert mask[0, 0].int().tolist() == [0, 0, 1, 1, 1, 0, 0, 0]


def test_every_row_reads_itself():
    """A row that reads nothing would be NaN in a softmax; here the last one fills the view."""
    for window in WINDOWS:
        mask = fast_mask([0, 7], [random_parents(9, 3), random_parents(9, 4)], 10, 17, window)
        own = torch.tensor([[0], [7]]) + torch.arange(10)
        assert mask.gather(2, own.unsqueeze(2)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_additive(dtype):
    allowed = torch.tensor([[[True, False], [True, True]]])
    mask = additive(allowed, dtype)
    assert mask.dtype == dtype and mask.shape == (1, 1, 2, 2)
    assert mask.flatten().tolist() == [0, float("-inf"), 0, 0]


def test_suffix_masks_are_the_general_ones():
    """A quick path for one sequence: chains, static and dynamic trees at any length and view."""
    masks = SuffixMasks(torch.float32, 64)
    static = torch.tensor([-1, -1, 0, 1, 1, 4, 5])
    for start in (0, 1, 37, 57, 64, 101):
        for parents in (None, static, torch.tensor([random_parents(7, start)])):
            known = None
            if parents is not None:
                known = tree.layout(Draft(torch.zeros(1, 7).long(), parents, 7))[1]
            for view in (start + 8, start + 8 + 63):
                wanted = fast_mask([start], parents, 8, view, None)
                found = masks(known, 8, start, view, torch.device("cpu"))
                assert torch.equal(found, additive(wanted, torch.float32))
    assert len(masks.kept) == 2  # the chain's and the static tree's


@pytest.mark.parametrize("num_rows", [1, 5])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_attention_is_attention(groups, num_rows):
    """Against a softmax written out, with keys and values repeated for each query head."""
    generator = torch.Generator().manual_seed(groups)
    heads = 4
    query = torch.randn(3, heads, num_rows, 8, generator=generator)
    key, value = torch.randn(2, 3, heads // groups, 11, 8, generator=generator).unbind(0)
    allowed = torch.rand(3, num_rows, 11, generator=generator) < 0.5
    allowed[..., 0] = True
    found, weights = grouped_attention(
        None, query, key, value, additive(allowed, torch.float32), scaling=0.3
    )
    assert weights is None and found.shape == (3, num_rows, heads, 8)
    for head in range(heads):
        own_key, own_value = key[:, head // groups], value[:, head // groups]
        scores = query[:, head] @ own_key.transpose(1, 2) * 0.3
        scores = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
        torch.testing.assert_close(found[:, :, head], scores @ own_value, atol=1e-6, rtol=1e-5)


def config_of(family, **more):
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **{**SHAPE, **FAMILIES.get(family, {}), **more})


@pytest.mark.parametrize(
    "family, more, kinds",
    [
        ("llama", {}, {"full_attention": None}),
        ("qwen3", {}, {"full_attention": None}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 8}, {"full_attention": None}),
        ("mistral", {}, {"sliding_attention": 12}),
        ("mistral", {"sliding_window": None}, {"full_attention": None}),
        ("gemma2", {}, {"full_attention": None, "sliding_attention": 8}),
        ("gemma3_text", {}, {"full_attention": None, "sliding_attention": 8}),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            {"full_attention": None, "sliding_attention": 8},
        ),
    ],
)
def test_mask_kinds(family, more, kinds):
    assert mask_kinds(config_of(family, **more)) == kinds


def test_unknown_attention_is_refused():
    config = config_of("llama")
    config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    with pytest.raises(BadInput, match="llama: chunked_attention is not supported"):
        mask_kinds(config)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("num_rows", [1, 4])
def test_attention_over_pieces_is_that_over_all(groups, num_rows):
    generator = torch.Generator().manual_seed(num_rows)
    query = torch.randn(2, 2 * groups, num_rows, 8, generator=generator)
    keys, values = torch.randn(2, 2, 2, 7, 8, generator=generator)
    seen = torch.rand(2, 1, num_rows, 7, generator=generator) > 0.5
    seen[:, :, :, -1] = True
    seen[:, :, :, :5] = seen[:, :, :1, :5]  # one mask for all rows
    mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    wanted, _ = grouped_attention(None, query, keys, values, mask, 0.3)
    parts = [(keys[:, :, :5], values[:, :, :5], mask[:, :, :1, :5])]
    parts.append((keys[:, :, 5:], values[:, :, 5:], mask[..., 5:]))
    assert torch.allclose(split_attention(query, parts, 0.3), wanted, atol=1e-6)
