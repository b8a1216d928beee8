"""tree.py: ancestors, depths, parent rows and paths against a slow reference; the static memo."""

import random

import pytest
import torch

from model.common.contract import trees as tree
from model.common.contract.drafter import Draft, chain_parents


def slow_lines(parents):
    """The rows from the root to each row, as lists: row 0 is the root, node i is row i + 1."""
    lines = [[0]]
    for node, parent in enumerate(parents):
        lines.append(lines[parent + 1] + [node + 1])
    return lines


def random_parents(num_nodes, seed):
    chance = random.Random(seed)
    return [chance.randint(-1, node - 1) for node in range(num_nodes)]


def make_draft(parents, batch=1, **more):
    """A draft of any tokens with these parents: a list, or one list a row."""
    parents = torch.tensor(parents, dtype=torch.long)
    tokens = torch.zeros(batch, parents.shape[-1], dtype=torch.long)
    return Draft(tokens, parents, parents.shape[-1], **more)


def assert_layout(found, lines):
    rows, known, depths = found
    assert rows.tolist() == [line[-2] if len(line) > 1 else 0 for line in lines]
    assert depths.tolist() == [len(line) - 1 for line in lines]
    wanted = [[column in line for column in range(len(lines))] for line in lines]
    assert known.dtype == torch.bool
    assert known.tolist() == wanted


def test_docstring_example_by_hand():
    rows, known, depths = tree.layout(make_draft([-1, 0, -1]))
    assert rows.tolist() == [0, 0, 1, 0]
    assert depths.tolist() == [0, 1, 2, 1]
    assert known.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]


@pytest.mark.parametrize(
    "parents",
    [
        [],
        [-1],
        [-1, -1, -1],
        list(range(-1, 16)),
        list(range(-1, 31)),
        [-1, -1, 0, 1, 1, 4],
        *[random_parents(size, seed) for seed, size in enumerate([2, 3, 5, 8, 13, 33, 64, 100])],
    ],
    ids=lambda parents: f"{len(parents)} nodes",
)
def test_one_tree_against_reference(parents):
    lines = slow_lines(parents)
    assert_layout(tree.layout(make_draft(parents)), lines)
    assert tree.ancestors(torch.tensor(parents, dtype=torch.long)).shape == (len(lines), len(lines))


def test_batched_trees_against_reference():
    parents = [random_parents(21, seed) for seed in range(10)] + [list(range(-1, 20)), [-1] * 21]
    rows, known, depths = tree.layout(make_draft(parents, len(parents)))
    assert known.shape == (12, 22, 22)
    for row, own in enumerate(parents):
        assert_layout((rows[row], known[row], depths[row]), slow_lines(own))


@pytest.mark.parametrize("batched", [False, True])
def test_paths_against_reference(batched):
    """Every row of random trees; a shallower bound than the row's depth cuts, a deeper one pads."""
    for seed in range(4):
        trees = [random_parents(12, 100 * seed + row) for row in range(13)]
        if not batched:
            trees = trees[:1] * 13
        parents = torch.tensor(trees if batched else trees[0])
        _, known, depths = tree.layout(Draft(torch.zeros(13, 12).long(), parents, 12))
        ends = torch.arange(13)
        for depth in (12, int(depths.max()), 1, 0):
            found = tree.path_to(ends, known, depths, depth)
            for end, (own, path) in enumerate(zip(trees, found.tolist())):
                line = slow_lines(own)[end]
                assert path == (line + [-1] * (depth + 1))[: depth + 1]


def test_static_tree_is_worked_out_once():
    parents = torch.tensor([-1, 0, 0, 1])
    first = tree.layout(Draft(torch.zeros(1, 4).long(), parents, 2))
    again = tree.layout(Draft(torch.ones(3, 4).long(), parents, 2))
    assert all(a is b for a, b in zip(first, again))
    equal = tree.layout(Draft(torch.zeros(1, 4).long(), parents.clone(), 2))
    assert equal[1] is not first[1] and torch.equal(equal[1], first[1])


def test_memo_is_bounded_and_never_answers_for_another_tree():
    """Trees made and dropped by the hundred: a new tensor may get the address of an old one."""
    for seed in range(700):
        parents = random_parents(5, seed)
        assert_layout(tree.layout(make_draft(parents)), slow_lines(parents))
        assert len(tree._static) <= 256


def test_batched_parents_are_remembered_by_their_draft_alone():
    parents = torch.tensor([[-1, 0], [-1, -1]])
    draft = Draft(torch.zeros(2, 2).long(), parents, 2)
    first = tree.layout(draft)
    assert tree.layout(draft) is first
    parents[0, 1] = -1  # a drafter may write its next tree into the same tensor
    assert tree.layout(Draft(draft.tokens, parents, 2))[2].tolist() == [[0, 1, 1], [0, 1, 1]]
    draft.parents = torch.tensor([[-1, 0], [-1, 0]])
    assert tree.layout(draft)[2].tolist() == [[0, 1, 2], [0, 1, 2]]


def test_only_plain_chains_are_chains():
    tokens = torch.zeros(2, 3).long()
    chain = Draft.chain(tokens)
    assert chain.is_chain and chain.depth == 3 and chain.parents.tolist() == [-1, 0, 1]
    assert Draft.chain(tokens[:, :0]).is_chain
    assert not Draft(tokens, torch.tensor([-1, 0, 0]), 2).is_chain
    assert not Draft(tokens, chain_parents(3, tokens.device).expand(2, 3), 3).is_chain
    probe = torch.tensor([False, False, True])
    assert not Draft(tokens, chain_parents(3, tokens.device), 3, probe=probe).is_chain


def test_chain_layout_equals_the_general_one():
    chain = Draft.chain(torch.zeros(1, 9).long())
    assert_layout(tree.layout(chain), slow_lines(list(range(-1, 8))))
