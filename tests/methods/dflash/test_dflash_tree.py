"""DDTree: the known tree of three slots, brute force, budgets."""

import itertools
import math

import pytest
import torch
from dflash_slow import best_first

from model.common.loop.ranking import top_logp
from model.dflash.tree import likeliest_prefixes

SLOTS = [[0.17, 0.5, 0.05, 0.28], [0.25, 0.1, 0.6, 0.05], [0.1, 0.2, 0.3, 0.4]]
KNOWN = {  # path: its probability
    (1,): 0.5,
    (1, 2): 0.3,
    (3,): 0.28,
    (0,): 0.17,
    (3, 2): 0.168,
    (1, 0): 0.125,
    (1, 2, 3): 0.12,
    (0, 2): 0.102,
    (1, 2, 2): 0.09,
    (3, 0): 0.07,
}
EXPECTED = {1: 0.5, 2: 0.8, 3: 1.08, 4: 1.25, 8: 1.765, 10: 1.925}  # accepted, by budget


def tree_of(logits, num):
    """({path: probability}, parents) of the tree of slots' logits [n, V]."""
    ids, logp = top_logp(logits.unsqueeze(0), min(num, logits.shape[-1]))
    tokens, parents, scores = (part[0].tolist() for part in likeliest_prefixes(ids, logp, num))
    paths = []
    for node, parent in enumerate(parents):
        assert parent < node
        paths.append((*(paths[parent] if parent >= 0 else ()), tokens[node]))
    assert len(set(paths)) == len(paths)
    return dict(zip(paths, map(math.exp, scores))), parents


def test_the_known_tree():
    logits = torch.tensor(SLOTS).log() + 3  # any scale of logits says the same
    for budget in range(1, 11):
        found, _ = tree_of(logits, budget)
        wanted = dict(list(KNOWN.items())[:budget])
        assert found == pytest.approx(wanted, abs=1e-6)
        if budget in EXPECTED:
            assert sum(found.values()) == pytest.approx(EXPECTED[budget], abs=1e-6)


def test_the_slow_search_finds_it_in_order():
    logp = torch.tensor(SLOTS).log().tolist()
    paths, scores = best_first(logp, 10)
    assert paths == list(KNOWN) and scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num", [1, 3, 7, 20, 60])
def test_random_tables_by_brute_force(seed, num):
    """The best of all prefixes, prefix-closed, as the best-first search finds them."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 5, generator=generator, dtype=torch.float64) * (1 + seed)
    found, _ = tree_of(logits, num)
    logp = logits.log_softmax(-1)
    every = {
        path: sum(float(logp[slot, token]) for slot, token in enumerate(path))
        for depth in range(1, 5)
        for path in itertools.product(range(5), repeat=depth)
    }
    best = sorted(every, key=every.get, reverse=True)[:num]
    assert set(found) == set(best) == set(best_first(logp.tolist(), num)[0])
    assert all(path[:-1] in found for path in found if len(path) > 1)


def test_a_sure_slot_is_no_tie_that_separates():
    """A child of probability 1 scores as its parent does: the parent is kept first."""
    logits = torch.full((3, 4), -1e9)
    logits[:, 2] = 0.0
    found, parents = tree_of(logits, 2)
    assert list(found) == [(2,), (2, 2)] and parents == [-1, 0]


def test_more_nodes_than_prefixes():
    found, _ = tree_of(torch.tensor(SLOTS[:1]).log(), 10)
    assert len(found) == 4
