"""Medusa's and Hydra's drafts: a slow reference, path by path, and heads that know the answers."""

import pytest
import torch
from conftest import make_model, make_prompts
from head_dirs import hydra_heads, medusa_heads
from oracle import decode, outputs
from oracle_heads import Oracle, OracleHydra
from recording import Recording

from model.common.contract.sequence import EmptyDrafter
from model.common.contract.static_tree import read_tree
from model.common.target.model import Target
from model.hydra.drafter import HydraDrafter
from model.hydra.heads import state_to_save
from model.medusa.drafter import MedusaDrafter
from model.medusa.flags import TREES

PREFIX = "prefix_embeding_layer."
TREE = read_tree("mc_sim_7b_63", TREES, 97)
CHAIN = [(0,), (0, 0), (0, 0, 0)]


class SlowMedusa:
    """The heads by their definition, on the hidden states of a plain forward of the sequence."""

    def __init__(self, model, heads, nodes):
        self.model, self.state, self.nodes = model, heads.state_dict(), nodes

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


def new_medusa(target, **more):
    heads = medusa_heads(vocab_size=target.vocab_size, num_heads=4).to(target.dtype)
    heads.get_submodule("0.1").weight.copy_(target.model.lm_head.weight)  # some guesses come true
    return heads


def new_hydra(target, arch):
    return hydra_heads(target.config, target.vocab_size, arch).to(target.dtype)


METHODS = {  # how heads are made, drafter, slow reference, heads that know
    "medusa": (new_medusa, MedusaDrafter, SlowMedusa, Oracle),
    "hydra": (new_hydra, HydraDrafter, SlowHydra, OracleHydra),
}


@pytest.mark.parametrize(
    "method, more", [("medusa", {}), ("hydra", {"arch": "mlp"}), ("hydra", {"arch": "prefix-mlp"})]
)
@pytest.mark.parametrize("num_slots, nodes", [(1, TREE), (2, TREE), (2, [(0,)]), (2, CHAIN)])
@torch.inference_mode()
def test_drafts_equal_a_slow_reference(method, more, num_slots, nodes):
    """Three prompts: the third begins in a slot while the other one goes on."""
    make_heads, drafter, slow, _ = METHODS[method]
    shape = {"dtype": torch.float64, "vocab_size": 11}  # few tokens, so that some come true
    target, model = Target(make_model(**shape)), make_model(**shape)
    model.set_attn_implementation("sdpa")
    heads = make_heads(target, **more)
    recording = Recording(drafter(heads, nodes, target))
    turns = decode(target, recording, make_prompts(3, vocab_size=11), 20, num_slots=num_slots)
    accepted = [turn.accept_lengths for turn in turns]
    assert len(recording.drafts) == sum(map(len, accepted))
    assert nodes != TREE or max(map(max, accepted)) > 1
    reference = slow(model, heads, nodes)
    for one in recording.drafts:
        assert one.tokens == reference.draft(one.ids)


@pytest.mark.parametrize("num_slots", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_heads_that_know_commit_a_path_and_the_bonus(method, num_slots):
    _, drafter, _, oracle = METHODS[method]
    target, plain, prompts = Target(make_model()), make_model(), make_prompts(4)
    plain.set_attn_implementation("sdpa")
    expected = outputs(decode(target, EmptyDrafter(), prompts, 40))
    heads = oracle(plain, [prompt + ids for prompt, ids in zip(prompts, expected)], 4)
    turns = decode(target, drafter(heads, TREE, target), prompts, 26, num_slots=num_slots)
    assert outputs(turns) == [answer[:26] for answer in expected]
    assert [turn.accept_lengths for turn in turns] == [[5] * 5] * 4
