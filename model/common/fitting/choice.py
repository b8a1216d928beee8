"""Which part of a tree gives the most tokens a second.

A tree is cut by two numbers: the depth of its nodes, and how many of the best of these stay. What a
cut accepts follows from a look at the whole tree's drafts, since a node is accepted or not whatever
else the tree holds: the target's own continuation decides. What a cut costs is a forward of its
rows and the drafter's part.

Source: Chen et al., Sequoia, arXiv 2402.12374 (acceptance by rank, trees for a machine's price)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.common.fitting.price import seconds_of

LEAN = 8.0  # looks by which a depth's share of a rank leans on that of all depths


class Seen(NamedTuple):
    """A draft that the target has judged: of every node, lists.

    scores    by which it was chosen, empty where the tree is static
    depths    1 = a child of the root
    parents   -1 = the root
    accepted  whether the target went through it
    """

    scores: list[float]
    depths: list[int]
    parents: list[int]
    accepted: list[bool]


class Cut(NamedTuple):
    """expected: tokens of a step, the bonus included; tokens_per_s: of one slot."""

    num_nodes: int
    depth: int
    expected: float
    tokens_per_s: float


def by_confidence(seen: list[Seen], num_nodes: int, depth: int) -> Tensor:
    """Tokens that a step is expected to commit, [depth, num_nodes], from dynamic drafts.

    Entry [d - 1, n - 1] is of the n best nodes of depth d or less. A node's chance is what its
    score has come to: the share accepted of nodes of its depth, never falling with the score.
    """
    chances = [[0.0] * len(one.scores) for one in seen]
    for level in range(1, depth + 1):
        places = [
            (score, step, node)
            for step, one in enumerate(seen)
            for node, score in enumerate(one.scores)
            if one.depths[node] == level
        ]
        # of equal scores the accepted ones first, so that they become one share
        places.sort(key=lambda place: (place[0], not seen[place[1]].accepted[place[2]]))
        shares = rising([float(seen[step].accepted[node]) for _, step, node in places])
        for share, (_, step, node) in zip(shares, places):
            chances[step][node] = share
    total = torch.zeros(depth, num_nodes, dtype=torch.float64)
    for one, chance in zip(seen, chances):
        order = sorted(range(len(chance)), key=lambda node: -one.scores[node])
        for level in range(1, depth + 1):
            best = [chance[node] for node in order if one.depths[node] <= level][:num_nodes]
            gains = torch.zeros(num_nodes, dtype=torch.float64)
            gains[: len(best)] = torch.tensor(best, dtype=torch.float64)
            total[level - 1] += gains.cumsum(0)
    return 1 + total / len(seen)


def by_rank(seen: list[Seen], paths: list[tuple[int, ...]]) -> tuple[Tensor, list[int]]:
    """(tokens expected [depth, n] as by_confidence(), places of the nodes, best first).

    A node's chance is the product along its path of what its depth's ranks have come to, a rank
    never above the one before it: the best nodes are a tree, siblings from rank 0 on.
    """
    shares = rank_shares(seen, paths)
    value: dict[tuple, float] = {(): 1.0}
    for path in paths:
        value[path] = value[path[:-1]] * shares[len(path), path[-1]]
    order = sorted(range(len(paths)), key=lambda node: -value[paths[node]])  # stable
    chances = torch.tensor([value[paths[node]] for node in order], dtype=torch.float64)
    depths = torch.tensor([len(paths[node]) for node in order])
    total = torch.zeros(int(depths.max()), len(paths), dtype=torch.float64)
    for level in range(1, len(total) + 1):
        gains = chances[depths <= level].cumsum(0)
        total[level - 1] = gains[-1]
        total[level - 1, : len(gains)] = gains
    return 1 + total, order


def rank_shares(seen: list[Seen], paths: list[tuple[int, ...]]) -> dict[tuple[int, int], float]:
    """{(depth, rank): share of the nodes there whose parent was accepted that were, too}.

    A depth with few looks leans on all depths; a rank is never above the one before it.
    """
    ranks = sorted({path[-1] for path in paths})
    levels = sorted({len(path) for path in paths})
    looks = {(level, rank): 0 for level in levels for rank in ranks}
    hits = dict(looks)
    for one in seen:
        for path, parent, accepted in zip(paths, one.parents, one.accepted):
            if parent < 0 or one.accepted[parent]:
                looks[len(path), path[-1]] += 1
                hits[len(path), path[-1]] += accepted
    found = {}
    for rank in ranks:
        all_looks = sum(looks[level, rank] for level in levels)
        usual = sum(hits[level, rank] for level in levels) / max(all_looks, 1)
        for level in levels:
            share = hits[level, rank] + LEAN * usual
            found[level, rank] = share / (looks[level, rank] + LEAN)
    for level in levels:
        worst_first = [(level, rank) for rank in reversed(ranks)]
        weights = [looks[place] + LEAN for place in worst_first]
        risen = rising([found[place] for place in worst_first], weights)
        found |= dict(zip(worst_first, risen))
    return found


def rising(values: list[float], weights: list[float] | None = None) -> list[float]:
    """The closest values that never fall, in weighted squares: neighbours that do are pooled.

    >>> rising([0.0, 3.0, 1.0, 5.0])
    [0.0, 2.0, 2.0, 5.0]
    """
    pools: list[list[float]] = []  # [mean, weight, how many]
    for value, weight in zip(values, weights or [1.0] * len(values)):
        pools.append([value, weight, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, mass, count = pools.pop()
            other = pools[-1]
            other[0] = (other[0] * other[1] + mean * mass) / (other[1] + mass)
            other[1], other[2] = other[1] + mass, other[2] + count
    return [mean for mean, _, count in pools for _ in range(int(count))]


def best_cut(expected: Tensor, price: dict[int, float], beside) -> Cut:
    """The cut of most tokens a second; of equal ones that of fewer nodes, then of less depth.

    expected [depth, n] as by_confidence() gives it; price as price_of_rows(); beside(nodes, depth):
    seconds of a step that are not the target's forward.
    """
    cuts = []
    for num_nodes in range(1, expected.shape[1] + 1):
        verify = seconds_of(price, 1 + num_nodes)
        for depth in range(1, min(num_nodes, expected.shape[0]) + 1):
            tokens = float(expected[depth - 1, num_nodes - 1])
            rate = tokens / (verify + beside(num_nodes, depth))
            cuts.append(Cut(num_nodes, depth, tokens, rate))
    return max(cuts, key=lambda cut: cut.tokens_per_s)  # the first of equals
