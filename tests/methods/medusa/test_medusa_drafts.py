"""Medusa's trees, the state that its heads read, typical acceptance."""

from collections import Counter

import pytest
import torch
from conftest import make_model, make_prompts
from head_dirs import medusa_heads

from model.common.contract import trees
from model.common.contract.drafter import Draft, Step
from model.common.contract.static_tree import StaticTree, read_tree
from model.common.contract.trees import Tree
from model.common.loop import verify
from model.common.loop.decode import generate
from model.common.loop.penalties import NO_PENALTIES, Penalties
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.medusa.drafter import MedusaDrafter
from model.medusa.flags import TREES

# published: nodes by depth, leaves, ones in the mask
PUBLISHED = {
    "mc_sim_7b_63": ([10, 28, 23, 2], 42, 207),
    "vicuna_7b_stage1": ([10, 32, 20, 1], 44, 202),
    "vicuna_7b_stage2": ([10, 23, 23, 7], 42, 217),
    "vicuna_7b_stage1_ablation": ([10, 21, 25, 7], 42, 219),
    "vicuna_13b_stage1": ([10, 29, 23, 1], 44, 205),
    "vicuna_13b_stage2": ([10, 19, 25, 9], 42, 223),
    "vicuna_33b_stage1": ([10, 34, 19], 46, 199),
    "vicuna_33b_stage2": ([10, 24, 24, 5], 43, 214),
    "zephyr_stage2": ([10, 27, 23, 3], 44, 209),
}


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


def medusa(target, nodes=None):
    nodes = nodes or read_tree("mc_sim_7b_63", TREES, 97)
    return MedusaDrafter(medusa_heads(num_heads=4), nodes, target)


# --- trees ---


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_trees(name):
    by_depth, leaves, ones = PUBLISHED[name]
    nodes = read_tree(name, TREES, 10)
    counts = Counter(map(len, nodes))
    assert [counts[depth] for depth in sorted(counts)] == by_depth and len(nodes) == 63
    static = StaticTree(nodes, "cpu")
    assert static.is_sibling_closed and static.num_children[1:].count(0) == leaves
    known = trees.ancestors(static.parents)
    assert known.sum() == ones and known.diagonal().all() and known[:, 0].all()
    assert not known.triu(1).any()
    assert known.sum(-1).tolist() == [1, *(depth + 1 for depth in static.depths)]


def test_toy_layout(target):
    nodes = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    drafter = medusa(target, nodes)
    assert drafter.columns.tolist() == [0, 1, 2, 3, 2, 4]  # two ranks a head
    known = trees.ancestors(drafter.tree.parents)
    lines = [set(row.nonzero().flatten().tolist()) for row in known]
    assert lines == [{0}, {0, 1}, {0, 2}, {0, 1, 3}, {0, 1, 4}, {0, 2, 5}, {0, 1, 3, 6}]


def test_the_published_tree_reads_ten_ranks_of_four_heads(target):
    drafter = medusa(target)
    assert drafter.columns.max() + 1 == 32 and drafter.num_best == 10  # the flat list has a root
    assert (drafter.max_nodes, drafter.max_depth) == (63, 4)
    assert drafter.facts() == {"head_bytes": 4 * (64 * 64 + 64 + 97 * 64) * 4}


# --- drafts ---


def test_the_state_of_the_last_committed_row_is_read(target):
    """Path 0, 2 commits rows 0 and 2; a slot that begins leaves the others' states alone."""
    drafter = medusa(target)
    drafter.reserve(2, 64, Sampler())
    rows = torch.arange(6.0).view(2, 3, 1).expand(2, 3, 64)
    tokens = torch.zeros(2, 3, dtype=torch.long)

    def step(slots, path, count):
        some = tokens[: len(slots)]
        given = {"hidden": {"last": rows[: len(slots)]}, "host_ids": [], "max_committed": 9}
        path, count = torch.tensor(path), torch.tensor(count)
        return Step(slots, some, path, count, some, some[:, 0], **given)

    drafter.observe(step([0, 1], [[0, 2, -1], [-1, -1, -1]], [2, 0]))
    assert drafter.states[:, 0].tolist() == [2, 3]  # an idle slot has any row's
    drafter.start(step([1], [[0, 1, -1]], [2]))
    assert drafter.states[:, 0].tolist() == [2, 1]


# --- typical acceptance ---


def typical_draft(*tokens):
    return Draft(torch.tensor([tokens]), Tree(torch.tensor([-1] * len(tokens)), 1))


def test_typical_thresholds():
    sure = torch.full((1, 3, 97), -1e4)
    sure[:, :, 3] = 0
    sure[:, :, 5] = torch.tensor(0.0891).log()  # below 0.09 of a nearly certain step
    accepted = verify.typical_acceptance(sure, typical_draft(5, 3), 1.0, 0.09, 10.0)
    assert accepted.successors[0, 0] == 3 and accepted.count == 2
    flat = torch.zeros(1, 3, 32000)
    flat[:, :, 7] += torch.tensor(1.1e-5 * 32000).log()  # the threshold is 1.24e-5
    flat[:, :, 8] += torch.tensor(1.4e-5 * 32000).log()
    count = [
        verify.typical_acceptance(flat, typical_draft(token, token), 1.0).count.item()
        for token in (7, 8)
    ]
    assert count == [1, 2]


def test_typical_acceptance_is_deterministic_and_bounded(target):
    def facts(limit, typical):
        given = target, medusa(target), make_prompts(4), Sampler(0.7), [0, 1, 2, 3], StopRules()
        turns = generate(*given, limit, typical)
        return [(turn.output_ids, turn.accept_lengths) for turn in turns]

    assert facts(24, (0.09, 0.3)) == facts(24, (0.09, 0.3))
    assert [lengths for _, lengths in facts(26, (0.0, 0.3))] == [[5] * 5] * 4
    assert [lengths for _, lengths in facts(9, (2.0, 1e9))] == [[1] * 8] * 4


@pytest.mark.parametrize("penalties", [NO_PENALTIES, Penalties(1.5, 0.5, 0.25)], ids=str)
def test_typical_acceptance_draws_nothing(target, penalties):
    """Not even an answer's first token, which is the best one, penalised or not."""
    prompts, rule = make_prompts(4), (0.09, 0.3)

    def ids(sampler, seeds, typical=None):
        turns = generate(
            target, medusa(target), prompts, sampler, seeds, StopRules(), 12, typical, num_slots=3
        )
        return [turn.output_ids for turn in turns]

    hot, greedy = Sampler(5.0, penalties=penalties), Sampler(penalties=penalties)
    found = ids(hot, [0, 1, 2, 3], rule)
    assert found == ids(hot, [4, 5, 6, 7], rule)
    best = ids(greedy, [0] * 4)
    assert [row[0] for row in found] == [row[0] for row in best]
    assert [row[0] for row in ids(hot, [0, 1, 2, 3])] != [row[0] for row in best]  # drawn
