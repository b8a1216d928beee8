"""trees.py: ancestors, depths, parent rows, paths, pruning, padding and static trees, against
slow references (refused trees: Token Recycling's tests)."""

import pytest
import torch
from slow_trees import random_parents, slow_lines

from model.common.contract import trees
from model.common.contract.drafter import Draft
from model.common.contract.sequence import Guess, PerSequence, SequenceDrafter, draft_of
from model.common.contract.static_tree import StaticTree, check_tree
from model.common.contract.trees import Tree, best_nodes, chain_tree


def assert_tree(tree, lines, row=0):
    """One of a Tree's trees against its lines of rows."""
    parts = tree.parent_rows, tree.ancestors, tree.depths
    parent_rows, known, depths = (part[row] for part in parts)
    assert parent_rows.tolist() == [line[-2] if len(line) > 1 else 0 for line in lines]
    assert depths.tolist() == [len(line) - 1 for line in lines]
    assert known.dtype == torch.bool
    assert known.tolist() == [[column in line for column in range(len(lines))] for line in lines]


def test_docstring_example_by_hand():
    tree = Tree(torch.tensor([-1, 0, -1]), 2)
    assert tree.parent_rows.tolist() == [[0, 0, 1, 0]]
    assert tree.depths.tolist() == [[0, 1, 2, 1]]
    assert tree.ancestors[0].int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 0, 0, 1],
    ]


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
    lines, parents = slow_lines(parents), torch.tensor(parents, dtype=torch.long)
    assert_tree(Tree(parents, len(parents)), lines)
    assert trees.ancestors(parents).shape == (len(lines), len(lines))


def test_trees_of_several_slots_against_reference():
    parents = [random_parents(21, seed) for seed in range(10)] + [list(range(-1, 20)), [-1] * 21]
    tree = Tree(torch.tensor(parents), 21)
    assert tree.ancestors.shape == (12, 22, 22)
    for row, own in enumerate(parents):
        assert_tree(tree, slow_lines(own), row)


@pytest.mark.parametrize("per_slot", [False, True])
def test_paths_against_reference(per_slot):
    """Every row of random trees; a shallower bound than the row's depth cuts, a deeper one pads."""
    for seed in range(4):
        parents = [random_parents(12, 100 * seed + row) for row in range(13)]
        if not per_slot:
            parents = parents[:1] * 13
        tree = Tree(torch.tensor(parents if per_slot else parents[0]), 12)
        ends = torch.arange(13)
        for depth in (12, int(tree.depths.max()), 1, 0):
            found = trees.path_to(ends, tree.ancestors, tree.depths, depth)
            for end, (own, path) in enumerate(zip(parents, found.tolist())):
                line = slow_lines(own)[end]
                assert path == (line + [-1] * (depth + 1))[: depth + 1]


def test_only_plain_chains_are_chains():
    tokens = torch.zeros(2, 3).long()
    chain = Draft(tokens)
    assert chain.is_chain and chain.depth == 3 and chain.layout.parents.tolist() == [[-1, 0, 1]]
    assert Draft(tokens[:, :0]).is_chain and Draft(tokens[:, :0]).depth == 0
    assert not Draft(tokens, Tree(torch.tensor([-1, 0, 0]), 2)).is_chain
    assert not Draft(tokens, chain_tree(3, tokens.device)).is_chain
    assert not Draft(tokens, probe=torch.tensor([False, False, True])).is_chain


def test_the_tree_of_a_chain_is_worked_out_once():
    chain = Draft(torch.zeros(1, 9).long())
    assert_tree(chain.layout, slow_lines(list(range(-1, 8))))
    assert Draft(torch.ones(3, 9).long()).layout is chain.layout


def test_padding_adds_children_of_the_root():
    """Rows and paths get a width of their own; what was there is what it was."""
    tree = Tree(torch.tensor([[-1, 0], [-1, -1]]), 2)
    padded = tree.padded(4, 3)
    assert padded.parents.tolist() == [[-1, 0, -1, -1], [-1, -1, -1, -1]] and padded.depth == 3
    assert torch.equal(padded.ancestors[:, :3, :3], tree.ancestors)
    assert tree.padded(4, 3) is padded and tree.padded(2, 2) is tree


def test_the_best_nodes_keep_their_parents():
    """The published pruning: best scores, ties to the earlier node, in the nodes' order."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(30):
        parents = random_parents(20, seed)
        own = (torch.randint(0, 4, (20,), generator=generator) / 4 + 0.1).tolist()
        scores = []
        for parent, factor in zip(parents, own):  # never above the parent's
            scores.append(factor * (1.0 if parent < 0 else scores[parent]))
        tokens = torch.randint(0, 50, (1, 20), generator=generator)
        kept_tokens, kept_parents, kept = best_nodes(
            tokens, torch.tensor([scores]), torch.tensor([parents]), 8
        )
        wanted = sorted(sorted(range(20), key=lambda node: (-scores[node], node))[:8])
        assert kept[0].tolist() == wanted and kept_tokens[0].tolist() == tokens[0][kept[0]].tolist()
        place = {node: at for at, node in enumerate(wanted)} | {-1: -1}
        assert kept_parents[0].tolist() == [place[parents[node]] for node in wanted]


class Echo(SequenceDrafter):
    """Repeats what it was told last."""

    def start(self, ids):
        self.ids = list(ids)

    def propose(self):
        return self.ids[-2:]

    def observe(self, ids):
        self.ids += ids


class Heard:
    """What PerSequence reads of a Step."""

    def __init__(self, host_ids, slots=None):
        self.host_ids, self.slots, self.tokens = host_ids, slots, torch.zeros(1, 1).long()


def test_lists_are_lifted_to_slots():
    """Slots begin and end one by one; an idle one drafts nothing, another goes on untouched."""
    lifted = PerSequence(Echo, 2)
    lifted.reserve(3, 100, None)
    lifted.start(Heard([[1, 2], [3, 4]], [0, 2]))
    assert lifted.propose().tokens.tolist() == [[1, 2], [-1, -1], [3, 4]]
    lifted.observe(Heard([[5], [], [6, 7]]))
    lifted.end([0])
    assert lifted.propose().tokens.tolist() == [[-1, -1], [-1, -1], [6, 7]]
    lifted.start(Heard([[8, 9]], [1]))
    assert lifted.propose().tokens.tolist() == [[-1, -1], [8, 9], [6, 7]]
    lifted.reserve(2, 100, None)
    lifted.start(Heard([[1, 1]], [1]))
    assert lifted.propose().tokens.tolist() == [[-1, -1], [1, 1]]


def test_drafts_of_lists():
    """Chains and trees together; shorter ones end in inert nodes."""
    assert draft_of([[], []], "cpu").tokens.shape == (2, 0)
    chains = draft_of([[5, 6], [7]], "cpu")
    assert chains.is_chain and chains.tokens.tolist() == [[5, 6], [7, -1]]
    mixed = draft_of([[5, 6], Guess([7, 8, 9], [-1, -1, 1], 2)], "cpu")
    assert mixed.tokens.tolist() == [[5, 6, -1], [7, 8, 9]] and mixed.depth == 2
    assert mixed.tree.parents.tolist() == [[-1, 0, -1], [-1, -1, 1]]


def test_a_static_tree_by_hand():
    """Nodes 0, 1, 2 of depth 1, then 3 and 4 below node 0, 5 below node 2, and 6 below 3."""
    paths = [[0], [1], [2], [0, 0], [0, 1], [2, 0], [0, 0, 0]]
    nodes = check_tree(paths[::-1], "small", 3)
    assert nodes == [tuple(path) for path in paths]
    static = StaticTree(nodes, "cpu")
    assert len(static) == 7 and static.depth == static.tree.depth == 3
    assert static.parents.tolist() == [-1, -1, -1, 0, 0, 2, 3]
    assert static.tree.parents.tolist() == [static.parents.tolist()]
    assert static.ranks.tolist() == [0, 1, 2, 0, 1, 0, 0]
    assert static.depths == [1, 1, 1, 2, 2, 2, 3]
    assert static.levels == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert static.num_children == [3, 2, 0, 1, 1, 0, 0, 0]
    assert static.inner == [[-1], [0, 2], [3]]
    assert static.is_sibling_closed
    assert not StaticTree([(0,), (0, 1)], "cpu").is_sibling_closed


def test_digits_are_paths_too():
    assert check_tree(["1", "0", "01"], "digits", 2) == [(0,), (1,), (0, 1)]
