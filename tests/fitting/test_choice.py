"""Which part of a tree pays: planted prices, planted acceptance, slow references."""

import itertools
import random

import pytest
import torch

from model.common.fitting.choice import (
    Seen,
    best_cut,
    by_confidence,
    by_rank,
    rank_shares,
    rising,
)

TREE = [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (2, 0), (0, 0, 0), (0, 0, 1), (1, 0, 0)]
PARENTS = [TREE.index(path[:-1]) if path[:-1] else -1 for path in TREE]


def no_cost(num_nodes, depth):
    """A drafter that takes no time."""
    return 0.0


# --- isotonic regression ---


@pytest.mark.parametrize("seed", range(20))
def test_rising_is_isotonic_regression(seed):
    """Against the min-max formula: max over j <= i of min over k >= i of the mean of j .. k."""
    draw = random.Random(seed)
    values = [draw.choice([0.0, 1.0, draw.random()]) for _ in range(draw.randint(1, 12))]
    weights = [draw.choice([1.0, 3.0]) for _ in values]

    def mean(j, k):
        mass = sum(weights[j : k + 1])
        return sum(v * w for v, w in zip(values[j : k + 1], weights[j : k + 1])) / mass

    num = len(values)
    slow = [max(min(mean(j, k) for k in range(i, num)) for j in range(i + 1)) for i in range(num)]
    assert rising(values, weights) == pytest.approx(slow)


# --- dynamic trees ---


def confident(num_steps, chance, seed=0, levels=3, width=4):
    """Drafts of chains side by side whose nodes are accepted with chance(score); at most one node
    of a level is."""
    draw, seen = random.Random(seed), []
    for _ in range(num_steps):
        scores, depths, parents, accepted = [], [], [], []
        walking = {-1}
        for level in range(1, levels + 1):
            for place in range(width):
                parent = -1 if level == 1 else len(scores) - width
                above = 0.0 if parent < 0 else scores[parent]
                scores.append(above - 0.2 - 0.5 * place - 0.3 * draw.random())
                depths.append(level)
                parents.append(parent)
            first = len(scores) - width
            taken, left = None, draw.random()
            for node in range(first, len(scores)):
                share = chance(scores[node]) if parents[node] in walking else 0.0
                if taken is None and left < share:
                    taken = node
                left -= share
            accepted += [node == taken for node in range(first, len(scores))]
            walking = {taken}
        seen.append(Seen(scores, depths, parents, accepted))
    return seen


def test_confidence_gives_back_what_was_accepted():
    """Isotonic regression moves chances between nodes of a depth, and keeps their sum."""
    seen = confident(200, lambda score: min(0.9, 1.5 * 2.7**score))
    expected = by_confidence(seen, 12, 3)
    for depth in (1, 2, 3):
        counts = [
            sum(hit for hit, level in zip(one.accepted, one.depths) if level <= depth)
            for one in seen
        ]
        assert float(expected[depth - 1, 11]) == pytest.approx(1 + sum(counts) / len(seen))
    assert (expected.diff(dim=1) >= 0).all() and (expected.diff(dim=0)[:, -1] >= 0).all()


def test_uncalibrated_confidence_is_calibrated():
    """A head that is far too sure, and one that is not sure enough: the same expectation."""
    seen = confident(3000, lambda score: 0.6 * 2.7 ** (0.7 * score))
    other = [one._replace(scores=[5 * score for score in one.scores]) for one in seen]
    found, again = by_confidence(seen, 12, 3), by_confidence(other, 12, 3)
    assert torch.equal(found, again)
    first = [
        [one.accepted[node] for node in sorted(range(4), key=lambda node: -one.scores[node])]
        for one in seen
    ]
    direct = torch.tensor(first).double().mean(0).cumsum(0)
    assert torch.allclose(found[0, :4] - 1, direct, atol=0.02)


def test_equal_scores_have_equal_chances():
    """Half of the nodes of one score were accepted: each of them counts a half."""
    seen = [Seen([0.0], [1], [-1], [hit]) for hit in (True, False, False, True)]
    assert by_confidence(seen, 1, 1).tolist() == [[1.5]]


# --- static trees ---

SHARES = {1: [0.6, 0.2, 0.1], 2: [0.5, 0.25], 3: [0.4, 0.3]}


def judged(num_steps, shares=SHARES, seed=0):
    """Steps of TREE whose nodes are accepted by their depth's rank."""
    draw, seen = random.Random(seed), []
    for _ in range(num_steps):
        accepted, here, left = [False] * len(TREE), -1, draw.random()
        for node, path in enumerate(TREE):
            if PARENTS[node] != here:
                continue
            share = shares[len(path)][path[-1]]
            if left < share:
                accepted[node], here, left = True, node, draw.random()
            else:
                left -= share
        seen.append(Seen([], [len(path) for path in TREE], PARENTS, accepted))
    return seen


def test_shares_of_ranks():
    found = rank_shares(judged(20000), TREE)
    for depth, shares in SHARES.items():
        for rank, share in enumerate(shares):
            assert found[depth, rank] == pytest.approx(share, abs=0.02)


def test_ranks_never_rise():
    """Few looks may find rank 1 better than rank 0; siblings still go from rank 0 on."""
    seen = judged(40, {1: [0.1, 0.5, 0.3], 2: [0.1, 0.6], 3: [0.1, 0.8]})
    found = rank_shares(seen, TREE)
    for depth in (1, 2, 3):
        shares = [found[depth, rank] for rank in range(3)]
        assert shares == sorted(shares, reverse=True)
    _, order = by_rank(seen, TREE)
    for num in range(1, len(TREE) + 1):
        kept = {TREE[node] for node in order[:num]}
        assert all(path[:-1] in kept or len(path) == 1 for path in kept)
        assert all((*path[:-1], path[-1] - 1) in kept for path in kept if path[-1])


def test_the_best_nodes_are_the_best_subtree():
    """Against all subtrees of every size and depth, by the same shares."""
    seen = judged(500)
    shares = rank_shares(seen, TREE)
    value = {(): 1.0}
    for path in TREE:
        value[path] = value[path[:-1]] * shares[len(path), path[-1]]
    expected, _ = by_rank(seen, TREE)
    for depth, num in itertools.product((1, 2, 3), range(1, len(TREE) + 1)):
        allowed = [path for path in TREE if len(path) <= depth]
        trees = itertools.combinations(allowed, min(num, len(allowed)))
        whole = (t for t in trees if all(len(p) == 1 or p[:-1] in t for p in t))
        best = max(sum(value[path] for path in tree) for tree in whole)
        assert float(expected[depth - 1, num - 1]) == pytest.approx(1 + best)


# --- prices ---

ROWS = (1, 2, 4, 8, 16, 32, 64)
EXPECTED = torch.tensor(  # diminishing: 0.7, 0.35, 0.175, ... of a depth; depth 2 adds a half
    [[1 + depth * 0.7 * (1 - 0.5**n) / 0.5 for n in range(1, 64)] for depth in (1.0, 1.5)],
    dtype=torch.float64,
)


def test_flat_price_takes_what_helps():
    """Rows cost nothing: as long as a node adds anything at all, it stays."""
    cut = best_cut(EXPECTED, dict.fromkeys(ROWS, 1.0), no_cost)
    assert cut.num_nodes > 30 and cut.depth == 2


def test_linear_price_takes_few():
    """Every row costs as much as the first: 1.7 / 2, 2.575 / 3 and 2.8375 / 4 tokens a row."""
    cut = best_cut(EXPECTED, {rows: float(rows) for rows in ROWS}, no_cost)
    assert (cut.num_nodes, cut.depth) == (2, 2)
    steep = best_cut(EXPECTED, {rows: 1 + 0.1 * (rows - 1) for rows in ROWS}, no_cost)
    assert 1 < steep.num_nodes < 6
    rates = [float(EXPECTED[1, n - 1]) / (1 + 0.1 * n) for n in range(2, 64)]
    assert steep.num_nodes == 2 + rates.index(max(rates))


def test_step_price_fills_the_step():
    """Up to 8 rows cost as one, more cost ten times as much: 7 nodes beside the root."""
    price = {rows: 1.0 if rows <= 8 else 10.0 for rows in ROWS}
    assert best_cut(EXPECTED, price, no_cost).num_nodes == 7


def test_levels_cost_what_the_drafter_takes():
    price = dict.fromkeys(ROWS, 1.0)
    assert best_cut(EXPECTED, price, lambda nodes, depth: 0.01 * depth).depth == 2
    assert best_cut(EXPECTED, price, lambda nodes, depth: 1.0 * depth).depth == 1


def test_equal_rates_take_the_smaller_tree():
    useless = torch.full((2, 8), 1.5, dtype=torch.float64)
    cut = best_cut(useless, {1: 1.0, 9: 1.0}, no_cost)
    assert (cut.num_nodes, cut.depth) == (1, 1) and cut.tokens_per_s == 1.5
