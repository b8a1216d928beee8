"""static_tree.py: index tensors of a small tree by hand (refusals: Token Recycling's tests)."""

from model.common.contract.static_tree import StaticTree, check_tree


def test_a_small_tree_by_hand():
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
