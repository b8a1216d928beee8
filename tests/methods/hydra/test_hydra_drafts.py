"""Hydra's drafts: the tree, the prefix layer's cache, a slow reference, heads that know."""

import pytest
import torch
from conftest import make_model, make_prompts
from head_dirs import hydra_heads
from oracle import decode, outputs
from oracle_heads import OracleHydra
from recording import Recording

from model.common.contract.sequence import EmptyDrafter
from model.common.contract.static_tree import StaticTree, read_tree
from model.common.heads.head import CachedHead, row_of
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.hydra.drafter import HydraDrafter
from model.hydra.heads import state_to_save
from model.medusa.flags import TREES

PREFIX = "prefix_embeding_layer."
CHAIN = [(0,), (0, 0), (0, 0, 0), (0, 0, 0, 0)]


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


def published_tree():
    return read_tree("mc_sim_7b_63", TREES, 97)


def heads_for(target, **more):
    return hydra_heads(target.config, target.vocab_size, **more).to(target.dtype)


def hydra(target, heads=None, nodes=None, **more):
    return HydraDrafter(heads or heads_for(target, **more), nodes or published_tree(), target)


def test_published_tree_asks_1_10_10_1_rows():
    static = StaticTree(published_tree(), "cpu")
    assert [len(rows) for rows in static.inner] == [1, 10, 10, 1]
    rows = {path: 1 + node for node, path in enumerate(static.paths)}
    wanted = {(0, 0, 0): 39, (2, 0): 28, (9, 0): 38, (0, 0, 0, 1): 63}
    assert {path: rows[path] for path in wanted} == wanted
    children = {node: n for node, n in enumerate(static.num_children) if n}
    assert [children[row] for row in range(11)] == [10, 10, 7, 3, 2, 1, 1, 1, 1, 1, 1]


@torch.inference_mode()
def test_prefix_in_pieces_equals_one_pass(target):
    """Behind a prompt, over the border of a capacity, beside a slot that begins anew."""
    heads = heads_for(target)
    features = torch.randn(2, 280, 64)
    wanted = heads.states(features)
    prefix = CachedHead(heads.prefix, heads.config, "cpu", torch.float32, target.runtime)
    prefix.reserve(2, 200)
    count = torch.tensor([249, 11])
    last = prefix.read_prompt([0, 1], (features[:, :249],), count)
    assert torch.allclose(last, row_of(wanted, count - 1), atol=1e-5)
    for step in ([1, 5], [3, 4], None, [5, 1], [4, 5]):
        lengths = prefix.cache.length
        if step is None:
            last = prefix.read_prompt([1], (features[1:, :7],), torch.tensor([7]))
            assert torch.allclose(last, wanted[1:, 6], atol=1e-5)
            assert lengths.tolist() == [253, 7]
            continue
        rows, count = torch.randn(2, 5, 64), torch.tensor(step)  # behind the new rows is padding
        for slot, begin in enumerate(lengths.tolist()):
            rows[slot, : step[slot]] = features[slot, begin : begin + step[slot]]
        states = prefix.read((rows,), int(lengths.max()))
        prefix.cache.advance(count)
        found, own = row_of(states, count - 1), row_of(wanted, prefix.cache.length - 1)
        assert torch.allclose(found, own, atol=1e-5)
    assert prefix.cache.length.tolist() == [262, 13] and prefix.cache.capacity == 512


class SlowHydra:
    """The method path by path, from a plain forward and a full pass of transformers' own layer."""

    def __init__(self, model, heads, nodes):
        self.model, self.nodes = model, nodes
        self.state = state_to_save(heads)
        self.body = None
        if heads.prefix is not None:
            from transformers import AutoModel

            self.body = AutoModel.from_config(heads.config).eval().double()
            self.body.set_attn_implementation("eager")
            own = {n[len(PREFIX) :]: t for n, t in self.state.items() if n.startswith(PREFIX)}
            table = {"embed_tokens.weight": self.body.embed_tokens.weight}
            self.body.load_state_dict(own | table)

    def linear(self, name, rows):
        return self.state[f"{name}.weight"] @ rows + self.state[f"{name}.bias"]

    def top(self, i, state, tokens):
        """Best tokens of head i after the tokens of a path, root first."""
        silu = torch.nn.functional.silu
        table = self.model.get_input_embeddings().weight
        rows = torch.cat([state, *(table[token] for token in tokens)])
        gap = self.body is not None
        name = f"hydra_mlp.{i}.{1 if gap else 0}"
        out = self.linear(f"{name}.res_connection", rows) + silu(
            self.linear(f"{name}.linear", rows)
        )
        for place in (3, 5, 7) if gap else (1, 2, 3):
            out = out + silu(self.linear(f"hydra_mlp.{i}.{place}.linear", out))
        logits = self.linear(f"hydra_lm_head.{i}" + (".1" if gap else ""), out)
        return logits.argsort(descending=True).tolist()

    def draft(self, committed):
        """Tokens of the nodes after committed ids, the root included."""
        ids = torch.tensor([committed[:-1]])
        hidden = self.model(ids, output_hidden_states=True).hidden_states[-1]
        if self.body is not None:
            hidden = self.body(inputs_embeds=hidden).last_hidden_state
        token, best = {(): committed[-1]}, {}
        for path in self.nodes:
            above = path[:-1]
            if above not in best:
                line = [token[above[:end]] for end in range(len(above) + 1)]
                best[above] = self.top(len(above), hidden[0, -1], line)
            token[path] = best[above][path[-1]]
        return [token[path] for path in self.nodes]


@pytest.mark.parametrize("arch", ["mlp", "prefix-mlp"])
@pytest.mark.parametrize(
    "num_slots, nodes", [(1, None), (2, None), (3, None), (2, [(0,)]), (2, CHAIN)]
)
@torch.inference_mode()
def test_drafts_equal_a_slow_reference(arch, num_slots, nodes):
    shape = {"dtype": torch.float64, "vocab_size": 11}  # few tokens, so that some come true
    target, model = Target(make_model(**shape)), make_model(**shape)
    model.set_attn_implementation("sdpa")
    heads, prompts = heads_for(target, arch=arch), make_prompts(3, vocab_size=11)
    recording = Recording(hydra(target, heads, nodes))
    turns = decode(target, recording, prompts, 20, num_slots=num_slots)
    assert outputs(turns) == outputs(decode(target, EmptyDrafter(), prompts, 20))
    accepted = [turn.accept_lengths for turn in turns]
    assert len(recording.drafts) == sum(map(len, accepted))
    assert nodes or max(map(max, accepted)) > 1
    slow = SlowHydra(model, heads, nodes or published_tree())
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
    drafter = hydra(target, OracleHydra(plain, sequences, 4, sign))
    turns = decode(target, drafter, prompts, 26, num_slots=num_slots)
    assert outputs(turns) == [answer[:26] for answer in expected]
    assert [turn.accept_lengths for turn in turns] == [[committed] * (25 // committed)] * 4


def test_typical_acceptance_is_deterministic(target):
    def facts():
        given = target, hydra(target), make_prompts(4), Sampler(0.7), [0, 1, 2, 3], StopRules()
        turns = generate(*given, 24, (0.0, 0.3))
        return [(turn.output_ids, turn.accept_lengths) for turn in turns]

    first = facts()
    assert facts() == first and max(max(lengths) for _, lengths in first) == 5
