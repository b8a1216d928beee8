"""Medusa's drafts: the published trees, a slow reference, heads that know the answers."""

from collections import Counter

import pytest
import torch
from conftest import make_model, make_prompts
from head_dirs import medusa_heads
from oracle import decode, outputs
from oracle_heads import Oracle
from recording import Recording

from model.common.contract import trees
from model.common.contract.drafter import Draft, Step
from model.common.contract.sequence import EmptyDrafter
from model.common.contract.static_tree import StaticTree, read_tree
from model.common.contract.trees import Tree
from model.common.loop import verify
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.medusa.drafter import MedusaDrafter
from model.medusa.flags import TREES
from model.medusa.heads import state_to_save

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
CHAIN = [(0,), (0, 0), (0, 0, 0)]


def published_tree(name="mc_sim_7b_63"):
    return read_tree(name, TREES, 97)


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


def medusa(target, heads=None, nodes=None):
    heads = heads or medusa_heads(vocab_size=target.vocab_size, num_heads=4).to(target.dtype)
    return MedusaDrafter(heads, nodes or published_tree(), target)


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
    drafter = medusa(target, nodes=nodes)
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


class SlowMedusa:
    """The heads by their definition, on the hidden states of a plain forward of the sequence."""

    def __init__(self, model, state, nodes):
        self.model, self.state, self.nodes = model, state, nodes

    def draft(self, committed):
        """Tokens of the nodes after committed ids, the root included; each path by itself."""
        ids = torch.tensor([committed[:-1]])
        hidden = self.model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        tokens = []
        for path in self.nodes:
            k = len(path) - 1
            inner = self.state[f"{k}.0.linear.weight"] @ hidden + self.state[f"{k}.0.linear.bias"]
            logits = self.state[f"{k}.1.weight"] @ (hidden + inner * inner.sigmoid())
            tokens.append(logits.argsort(descending=True)[path[-1]].item())
        return tokens


@pytest.mark.parametrize(
    "num_slots, nodes", [(1, None), (2, None), (3, None), (2, [(0,)]), (2, CHAIN)]
)
@torch.inference_mode()
def test_drafts_equal_a_slow_reference(num_slots, nodes):
    shape, prompts = {"dtype": torch.float64}, make_prompts(3)
    target, model = Target(make_model(**shape)), make_model(**shape)
    model.set_attn_implementation("sdpa")
    heads = medusa_heads(num_heads=4).double()
    heads.get_submodule("0.1").weight.copy_(model.lm_head.weight)  # some guesses come true
    recording = Recording(medusa(target, heads, nodes))
    turns = decode(target, recording, prompts, 10, num_slots=num_slots)
    assert outputs(turns) == outputs(decode(target, EmptyDrafter(), prompts, 10))
    accepted = [turn.accept_lengths for turn in turns]
    assert len(recording.drafts) == sum(map(len, accepted)) and max(map(max, accepted)) > 1
    slow = SlowMedusa(model, state_to_save(heads), nodes or published_tree())
    for one in recording.drafts:
        assert one.tokens == slow.draft(one.ids)


@pytest.mark.parametrize("num_slots", [1, 4])
@pytest.mark.parametrize("sign, committed", [(1.0, 5), (-1.0, 1)])
def test_oracle_and_wrong_heads(target, num_slots, sign, committed):
    prompts = make_prompts(4)
    expected = outputs(decode(target, EmptyDrafter(), prompts, 40))
    plain = make_model()
    plain.set_attn_implementation("sdpa")
    sequences = [prompt + ids for prompt, ids in zip(prompts, expected)]
    drafter = medusa(target, Oracle(plain, sequences, 4, sign))
    turns = decode(target, drafter, prompts, 26, num_slots=num_slots)
    assert outputs(turns) == [answer[:26] for answer in expected]
    assert [turn.accept_lengths for turn in turns] == [[committed] * (25 // committed)] * 4


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
