"""attention.py: masks of tree rows against a slow reference, grouped heads, what is written."""

import pytest
import torch
from conftest import FAMILIES, SHAPE, make_model
from slow_trees import random_parents, slow_lines
from transformers import AutoConfig, AutoModelForCausalLM

from model.common.contract.trees import Tree
from model.common.errors import BadInput
from model.common.target.attention import (
    NAME,
    additive,
    attention_modules,
    grouped_attention,
    mask_kinds,
    register,
    rows_mask,
    write,
)


def slow_mask(lengths, lines, width, window):
    """[B][r][width]: committed columns, and of the rows' own columns those on the row's line.

    lines[b][i] are the rows from the root to row i; a row's position is the committed length plus
    its depth, and row j stands in column length + j.
    """
    masks = []
    for length, own in zip(lengths, lines):
        position = [column for column in range(length)] + [length + len(line) - 1 for line in own]
        mask = [[False] * width for _ in own]
        for row, line in enumerate(own):
            for column in range(min(width, length + len(own))):
                seen = column < length or column - length in line
                near = window is None or position[length + row] - position[column] < window
                mask[row][column] = seen and near
        masks.append(mask)
    return masks


def fast_mask(lengths, parents, num_rows, width, window):
    """rows_mask as the target calls it; parents None = a chain."""
    length = torch.tensor(lengths)
    columns = length.unsqueeze(1) + torch.arange(num_rows)
    ancestors, positions = None, columns
    if parents is not None:
        tree = Tree(torch.as_tensor(parents).long(), 99)
        ancestors, positions = tree.ancestors, length.unsqueeze(1) + tree.depths
    return rows_mask(length, columns, positions, ancestors, width, window)


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


CHAIN, TREE = [-1, 0, 1, 2, 3], [-1, -1, 0, 0, 1, 2, 4, 5]
DRAFTS = {  # committed lengths of the slots, parents of all or of each; None = no ancestors given
    "chain": ([0, 5, 11], None),
    "chain as a tree": ([0, 5, 11], CHAIN),
    "static tree": ([0, 3, 9], TREE),
    "tree a slot": ([1, 17, 6, 0, 30], [random_parents(12, seed) for seed in range(5)]),
}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", DRAFTS)
def test_masks_against_a_slow_reference(name, window):
    lengths, parents = DRAFTS[name]
    own = [parents or CHAIN] * len(lengths) if name != "tree a slot" else parents
    wanted = slow_mask(lengths, [slow_lines(each) for each in own], 48, window)
    assert fast_mask(lengths, parents, 1 + len(own[0]), 48, window).tolist() == wanted


def test_root_alone():
    for parents in (None, []):
        mask = fast_mask([4], parents, 1, 8, 3)
        assert mask[0, 0].int().tolist() == [0, 0, 1, 1, 1, 0, 0, 0]


def test_every_row_reads_itself():
    """A row that reads nothing would be NaN in a softmax; here the last one fills the width."""
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


@pytest.mark.parametrize("num_rows", [1, 5])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_attention_written_out(groups, num_rows):
    """With keys and values repeated for each query head; Gemma 2's capped scores; gpt-oss' column
    that takes weight and gives nothing."""
    generator = torch.Generator().manual_seed(num_rows)
    heads = 2 * groups
    query = torch.randn(2, heads, num_rows, 8, generator=generator) * 5
    key, value = torch.randn(2, 2, 2, 11, 8, generator=generator).unbind(0)
    allowed = torch.rand(2, num_rows, 11, generator=generator) < 0.5
    allowed[..., 0] = True
    sink, mask = torch.randn(heads, generator=generator), additive(allowed, torch.float32)
    for cap, aux in ((None, None), (3.0, None), (None, sink), (3.0, sink)):
        found = grouped_attention(query, key, value, mask, 0.3, cap, aux)
        assert found.shape == (2, num_rows, heads, 8)
        for head in range(heads):
            own_key, own_value = key[:, head // groups], value[:, head // groups]
            scores = query[:, head] @ own_key.transpose(1, 2) * 0.3
            scores = scores if cap is None else cap * (scores / cap).tanh()
            weights = scores.masked_fill(~allowed, float("-inf")).exp()
            total = weights.sum(-1, keepdim=True)
            total = total if aux is None else total + aux[head].exp()
            torch.testing.assert_close(
                found[:, :, head], weights / total @ own_value, atol=1e-5, rtol=1e-4
            )


def test_rows_are_written_where_they_belong():
    """Two rows into columns 3 and 4 of slot 2, 0 and 1 of slot 0; slot 1 is left alone."""
    keys, values = torch.zeros(3, 1, 8, 2), torch.zeros(3, 1, 8, 2)
    rows = torch.arange(1.0, 9).view(2, 1, 2, 2)
    columns, slots = torch.tensor([[3, 4], [0, 1]]), torch.tensor([2, 0])
    read = write((keys, values), rows, -rows, columns, slots, 6)
    assert keys[2, 0, 3:5].tolist() == [[1, 2], [3, 4]]
    assert keys[0, 0, :2].tolist() == [[5, 6], [7, 8]]
    assert not keys[1].any() and keys.count_nonzero() == 8 and torch.equal(values, -keys)
    for part, whole in zip(read, (keys, values)):
        assert torch.equal(part, whole[[2, 0], :, :6])
    read = write((keys, values), rows[[1, 0, 1]], rows[[1, 0, 1]], columns[[1, 0, 1]], None, 5)
    assert torch.equal(read[0], keys[:, :, :5]) and keys[1, 0, 3:5].tolist() == [[1, 2], [3, 4]]


def test_rows_read_what_earlier_reads_of_the_draft_have_written():
    """ancestors wider than the rows: three committed, two rows of an earlier read, then two."""
    ancestors = torch.tensor([[True, False, True, False], [True, True, False, True]])
    mask = rows_mask(
        torch.tensor([3]), torch.tensor([[5, 6]]), torch.tensor([[4, 5]]), ancestors, 9
    )
    assert mask[0].int().tolist() == [[1, 1, 1, 1, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 1, 0, 0]]


def test_a_model_that_keeps_its_attention_is_refused():
    """One that does not call the registered function cannot be given a cache."""
    model = make_model()
    model.set_attn_implementation("eager")
    with pytest.raises(BadInput, match="model type llama: its attention cannot be given a cache"):
        attention_modules(model)


def test_a_model_that_trips_over_the_probe_is_refused():
    """MPT asks the cache that it is not given for its length."""
    shape = {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 64, "max_seq_len": 64}
    config = AutoConfig.for_model("mpt", **shape)
    register()
    model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME)
    with pytest.raises(BadInput, match="model type mpt: it cannot be read without a cache"):
        attention_modules(model)
