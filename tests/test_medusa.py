"""Medusa: the published trees and formats, drafts against a slow reference, answers vanilla's."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_prompts
from head_dirs import medusa_heads
from test_recycling import Recording

from model.common import args as arguments
from model.common.contract import trees as tree
from model.common.contract.drafter import Draft, EmptyDrafter
from model.common.contract.static_tree import StaticTree, read_tree
from model.common.errors import BadInput
from model.common.heads.checkpoint import save_checkpoint
from model.common.loop import verify
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.common.target.runtime import compilations
from model.medusa import inference_medusa as script
from model.medusa.drafter import MedusaDrafter, last_committed
from model.medusa.flags import TREES
from model.medusa.heads import MedusaHeads, load_heads, state_to_save

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
PARAMETERS = {4096: 739_266_560, 5120: 950_297_600, 6656: 1_286_504_960}
HEAD_FILE, WHOLE_FILE = "medusa_lm_head.pt", "model.safetensors"


def tree_of(name="mc_sim_7b_63"):
    return read_tree(name, TREES, 97)


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


def decode(target, drafter, prompts, limit=24, batch=1, sampler=None, typical=None, eos=()):
    """Ids and accept lengths of all prompts, decoded `batch` at a time."""
    turns = []
    for begin in range(0, len(prompts), batch):
        part = prompts[begin : begin + batch]
        seeds = list(range(begin, begin + len(part)))
        sampler, stop = sampler or Sampler(), StopRules(frozenset(eos))
        turns += generate(target, drafter, part, sampler, seeds, stop, limit, typical)
    return [turn.output_ids for turn in turns], [turn.accept_lengths for turn in turns]


def medusa(target, heads=None, nodes=None, runtime="eager"):
    heads = heads or medusa_heads(vocab_size=target.vocab_size, num_heads=4).to(target.dtype)
    return MedusaDrafter(heads, nodes or tree_of(), target, runtime)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_trees(name):
    by_depth, leaves, ones = PUBLISHED[name]
    nodes = read_tree(name, TREES, 10)
    counts = Counter(map(len, nodes))
    assert [counts[depth] for depth in sorted(counts)] == by_depth and len(nodes) == 63
    static = StaticTree(nodes, "cpu")
    assert static.is_sibling_closed and static.num_children[1:].count(0) == leaves
    known = tree.ancestors(static.parents)
    assert known.sum() == ones and known.diagonal().all() and known[:, 0].all()
    assert not known.triu(1).any()
    assert known.sum(-1).tolist() == [1, *(depth + 1 for depth in static.depths)]


def test_toy_layout(target):
    nodes = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    drafter = medusa(target, nodes=nodes)
    assert drafter.columns.tolist() == [0, 1, 2, 3, 2, 4]  # two ranks a head
    known = tree.ancestors(drafter.tree.parents)
    lines = [set(row.nonzero().flatten().tolist()) for row in known]
    assert lines == [{0}, {0, 1}, {0, 2}, {0, 1, 3}, {0, 1, 4}, {0, 2, 5}, {0, 1, 3, 6}]


def test_the_published_tree_reads_ten_ranks_of_four_heads(target):
    columns = medusa(target).columns
    assert columns.max() + 1 == 32 and medusa(target).num_best == 10  # the flat list has a root


@pytest.mark.parametrize("size", PARAMETERS)
def test_published_format(size):
    with torch.device("meta"):
        state = state_to_save(MedusaHeads(5, size, 32000))
    wanted = {}
    for i in range(5):
        wanted[f"{i}.0.linear.weight"] = (size, size)
        wanted[f"{i}.0.linear.bias"] = (size,)
        wanted[f"{i}.1.weight"] = (32000, size)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == wanted
    assert sum(tensor.numel() for tensor in state.values()) == PARAMETERS[size]


def packed_names(state):
    """vLLM's names."""
    return {
        f"lm_heads.{name[0]}.weight"
        if ".linear." not in name
        else f"blocks.{name[0]}.layers.{name[2]}.{name.split('.')[-1]}": tensor
        for name, tensor in state.items()
    }


def saved(folder, state, kind="heads"):
    """Write heads in one of the formats; returns the directory."""
    if kind == "heads":
        save_checkpoint(folder, {"medusa_num_heads": 2}, HEAD_FILE, state)
    elif kind == "safetensors":
        save_checkpoint(folder, {"medusa_num_heads": 2}, "medusa_lm_head.safetensors", state)
    elif kind == "vllm":
        save_checkpoint(folder, {"model_type": "medusa"}, WHOLE_FILE, packed_names(state))
    else:
        whole = {f"medusa_head.{name}": tensor for name, tensor in state.items()}
        whole["model.embed_tokens.weight"] = torch.zeros(97, 64)
        save_checkpoint(folder, {"model_type": "llama"}, WHOLE_FILE, whole)
        if kind == "sharded":
            (folder / WHOLE_FILE).rename(folder / "a.safetensors")
            index = {"weight_map": dict.fromkeys(whole, "a.safetensors")}
            (folder / f"{WHOLE_FILE}.index.json").write_text(json.dumps(index))
    return str(folder)


@pytest.mark.parametrize("kind", ["heads", "safetensors", "vllm", "medusa-2", "sharded"])
def test_formats_are_read(kind, target, tmp_path):
    heads = medusa_heads()
    path = saved(tmp_path / "heads", state_to_save(heads), kind)
    rows = torch.randn(3, 64)
    for num_heads in (5, 4):
        loaded = load_heads(path, target, num_heads)
        assert len(state_to_save(loaded)) == 3 * num_heads
        assert torch.equal(loaded(rows), heads(rows)[:num_heads])


def test_two_layers_are_read(target, tmp_path):
    heads = medusa_heads(num_heads=2, num_layers=2)
    rows = torch.randn(3, 64)
    for kind in ("heads", "vllm"):
        loaded = load_heads(saved(tmp_path / kind, state_to_save(heads), kind), target, 2)
        assert torch.equal(loaded(rows), heads(rows))


def test_version_2_heads_end_in_the_targets_output_matrix(target, tmp_path):
    heads = medusa_heads(num_heads=3)
    state = {n: t for n, t in state_to_save(heads).items() if ".linear." in n}
    save_checkpoint(tmp_path, {"version": "2"}, "medusa_lm_head.safetensors", state)
    loaded = load_heads(str(tmp_path), target, 3)
    rows = torch.randn(3, 64)
    lm_head = target.model.lm_head
    for k in range(3):
        block = [state[f"{k}.0.linear.{part}"] for part in ("weight", "bias")]
        wanted = lm_head(rows + torch.nn.functional.silu(rows @ block[0].T + block[1]))
        assert torch.allclose(loaded(rows)[k], wanted, atol=1e-5)
    assert state_to_save(loaded).keys() == state.keys()
    drafter = MedusaDrafter(loaded, [(0,), (0, 0)], target, "eager")
    assert drafter.facts() == {"head_bytes": 3 * (64 * 64 + 64) * 4}


def test_vllm_packing_without_biases(target, tmp_path):
    heads = medusa_heads(num_heads=4)
    state = {n: t for n, t in state_to_save(heads).items() if not n.endswith("bias")}
    loaded = load_heads(saved(tmp_path, state, "vllm"), target, 4)
    assert all((loaded.state_dict()[f"{k}.0.linear.bias"] == 0).all() for k in range(4))
    config = {"model_type": "medusa", "medusa_fc_bias": True}
    save_checkpoint(tmp_path, config, WHOLE_FILE, packed_names(state))
    with pytest.raises(BadInput, match=r"no tensor blocks.0.layers.0.bias, expected \(64,\)"):
        load_heads(str(tmp_path), target, 4)


BAD = [  # (format, tensor -> None or another one, what the line says)
    ("heads", {"2.0.linear.bias": None}, r"no tensor 2.0.linear.bias, expected \(64,\)"),
    ("heads", {"1.1.weight": None}, r"no tensor 1.1.weight, expected \(97, 64\)"),
    ("heads", {"4.1.weight": torch.zeros(98, 64)}, r"4.1.weight is \(98, 64\), expected \(97, 64"),
    ("heads", {"0.0.linear.weight": torch.zeros(64, 32)}, r"0.0.linear.weight is \(64, 32\)"),
    ("heads", {"7.1.weight": torch.zeros(97, 64)}, r"unknown tensor 7.1.weight \(97, 64\)"),
    ("heads", {"extra": torch.zeros(2)}, r"unknown tensor extra \(2,\)"),
    ("medusa-2", {"0.0.linear.bias": torch.zeros(1)}, r"0.0.linear.bias is \(1,\), expected"),
    ("vllm", {"3.1.weight": torch.zeros(9, 64)}, r"lm_heads.3.weight is \(9, 64\), expected \(97"),
    ("vllm", {"3.0.linear.bias": None}, r"no tensor blocks.3.layers.0.bias"),
    ("heads", {f"{k}.1.weight": None for k in range(5)}, "no tensor 0.1.weight"),
    ("heads", {f"{k}.0.linear.weight": None for k in range(5)}, "no Medusa head"),
]


@pytest.mark.parametrize("kind, changes, line", BAD)
def test_bad_tensors_are_one_line(kind, changes, line, target, tmp_path):
    state = {**state_to_save(medusa_heads()), **changes}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(BadInput, match=line) as error:
        load_heads(saved(tmp_path, state, kind), target, 4)
    assert "\n" not in str(error.value)


def test_places_without_heads_are_one_line(target, tmp_path):
    with pytest.raises(BadInput, match="no such model directory"):
        load_heads(str(tmp_path / "none"), target, 4)
    for config, line in (({}, "medusa_lm_head"), ({"model_type": "llama"}, "model.safetensors")):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(BadInput, match=f"none of {line}"):
            load_heads(str(tmp_path), target, 4)


def parsed(*flags):
    parser = arguments.make_parser("medusa", script.__doc__, script.add_args)
    return parser.parse_args(["--model-path", "m", *map(str, flags)])


def test_flags(target, tmp_path):
    path = saved(tmp_path, state_to_save(medusa_heads(num_heads=3)))
    small = tmp_path / "tree.json"
    small.write_text("[[0], [1], [0, 0]]")
    drafter = script.build(parsed("--medusa-path", path, "--tree", small), target)
    assert (len(drafter.tree), len(state_to_save(drafter.heads))) == (3, 6)
    args = parsed("--medusa-path", path, "--tree", small, "--medusa-num-heads", 3)
    assert len(state_to_save(script.build(args, target).heads)) == 9
    for flags, line in (
        ([], "3 heads, 4 are needed"),
        (["--medusa-num-heads", 3], "depth of 4 needs 4 heads, --medusa-num-heads is 3"),
        (["--acceptance", "typical"], "needs --temperature above 0"),
        (["--acceptance", "typical", "--temperature", 1, "--top-p", 0.9], "exclude each other"),
        (["--tree", "none"], "--tree none: neither"),
    ):
        with pytest.raises(BadInput, match=line):
            script.build(parsed("--medusa-path", path, *flags), target)
    args = parsed("--medusa-path", path)
    assert (args.posterior_threshold, args.posterior_alpha) == (0.09, 0.3)


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


@pytest.mark.parametrize("batch", [1, 3])
@torch.inference_mode()
def test_drafts_equal_a_slow_reference(batch):
    shape = {"dtype": torch.float64}
    target, model = Target(make_model(**shape)), make_model(**shape)
    model.set_attn_implementation("sdpa")
    heads = medusa_heads(num_heads=4).double()
    heads.get_submodule("0.1").weight.copy_(model.lm_head.weight)  # some guesses come true
    drafter = Recording(medusa(target, heads))
    _, accepted = decode(target, drafter, make_prompts(3), 10, batch)
    slow, number = SlowMedusa(model, state_to_save(heads), tree_of()), 0
    for part in range(0, 3, batch):
        for step in range(max(map(len, accepted[part : part + batch]))):
            tokens, committed = drafter.drafts[number]
            number += 1
            for row in range(batch):
                if step < len(accepted[part + row]):
                    assert tokens[row] == slow.draft(committed[row])
    assert number == len(drafter.drafts) and max(map(max, accepted)) > 1


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("nodes", [None, [(0,)], [(0,), (0, 0), (0, 0, 0)]])
def test_answers_are_vanillas(target, batch, nodes):
    prompts = [ids for seed in range(1 if nodes else 5) for ids in make_prompts(4, seed)]
    expected, _ = decode(target, EmptyDrafter(), prompts, 64, 4)
    ids, accepted = decode(target, medusa(target, nodes=nodes), prompts, 64, batch)
    assert ids == expected
    assert [1 + sum(lengths) for lengths in accepted] == [64] * len(prompts)


class Oracle(torch.nn.Module):
    """Heads that know the answers: they look their hidden state up in those of the sequences."""

    def __init__(self, model, sequences, num_heads, sign=1.0):
        super().__init__()
        states, following = [], []
        with torch.inference_mode():
            for ids in sequences:
                out = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
                states.append(out[: len(ids) - num_heads - 1])
                following += [ids[t + 2 : t + 2 + num_heads] for t in range(len(states[-1]))]
        self.states = torch.nn.Parameter(torch.cat(states).clone())
        self.following, self.sign = torch.tensor(following), sign

    def forward(self, hidden):
        nearest = torch.cdist(hidden, self.states).argmin(-1)
        guesses = self.following[nearest].movedim(-1, 0)
        return self.sign * torch.nn.functional.one_hot(guesses, 97).float()


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("sign, committed", [(1.0, 5), (-1.0, 1)])
def test_oracle_and_wrong_heads(target, batch, sign, committed):
    prompts = make_prompts(4)
    expected, _ = decode(target, EmptyDrafter(), prompts, 40)
    plain = make_model()
    plain.set_attn_implementation("sdpa")
    sequences = [prompt + ids for prompt, ids in zip(prompts, expected)]
    drafter = medusa(target, Oracle(plain, sequences, 4, sign))
    ids, accepted = decode(target, drafter, prompts, 26, batch)
    assert ids == [answer[:26] for answer in expected]
    assert accepted == [[committed] * (25 // committed)] * 4


@pytest.mark.parametrize("batch", [1, 4])
def test_sampled_answers_are_vanillas(batch):
    target = Target(make_model(vocab_size=17))
    prompts, sampler = make_prompts(4, vocab_size=17), Sampler(1.0, top_p=0.9)
    expected, _ = decode(target, EmptyDrafter(), prompts, 40, sampler=sampler)
    ids, accepted = decode(target, medusa(target), prompts, 40, batch, sampler)
    assert ids == expected and max(map(max, accepted)) > 1


def typical_draft(*tokens):
    return Draft(torch.tensor([tokens]), torch.tensor([-1] * len(tokens)), 1)


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
    prompts, sampler = make_prompts(4), Sampler(0.7)
    first, second = (
        decode(target, medusa(target), prompts, sampler=sampler, typical=(0.09, 0.3))
        for _ in range(2)
    )
    assert first == second
    _, every = decode(target, medusa(target), prompts, 26, sampler=sampler, typical=(0.0, 0.3))
    assert every == [[5] * 5] * 4
    _, none = decode(target, medusa(target), prompts, 9, sampler=sampler, typical=(2.0, 1e9))
    assert none == [[1] * 8] * 4


def test_training_forward_and_init(target):
    heads = medusa_heads(num_heads=3)
    hidden = torch.randn(2, 5, 64)
    logits = heads(hidden)
    assert logits.shape == (3, 2, 5, 97)
    assert torch.allclose(heads(hidden[1, 3]), logits[:, 1, 3], atol=1e-5)
    heads.init_from(target.model.lm_head)
    for head in heads.children():
        assert (head[0].linear.weight == 0).all() and (head[0].linear.bias != 0).any()
        head[0].linear.bias.data.zero_()
        assert torch.equal(head(hidden), target.model.lm_head(hidden))


def test_facts_and_idle_rows(target):
    drafter = medusa(target)
    drafter.warm(64)
    assert drafter.facts() == {"head_bytes": 4 * (64 * 64 + 64 + 97 * 64) * 4}
    assert drafter.reads_per_step == 0
    assert drafter.shapes() == [(63, drafter.tree.parents, 4)]
    step = SimpleNamespace(
        hidden={"last": torch.arange(12.0).view(2, 3, 2)},
        count=torch.tensor([2, 0]),
        path=torch.tensor([[0, 2], [-1, -1]]),
    )
    drafter.observe(step)
    assert last_committed(*drafter.seen).tolist() == [[4, 5], [6, 7]]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a C compiler")
def test_compiled_drafts_are_eagers():
    assert_compiled_drafts_are_eagers(medusa, {"num_hidden_layers": 1})


def assert_compiled_drafts_are_eagers(make, shape):
    """Of three rows that end one after another; a later answer compiles nothing."""
    eager, compiled = Target(make_model(**shape)), Target(make_model(**shape), "compile")
    nodes = [(0,), (1,), (0, 0)]
    plain, drafter = make(eager, nodes=nodes), make(compiled, nodes=nodes, runtime="compile")
    expected, found = Recording(plain), Recording(drafter)
    prompts = make_prompts(3)
    eos = decode(eager, EmptyDrafter(), prompts, 12, 3)[0][1][5:6]
    answers = decode(eager, expected, prompts, 12, 3, eos=eos)
    assert len(set(map(len, answers[0]))) > 1
    assert decode(compiled, drafter, prompts, 12, 3, eos=eos) == answers
    compiled.warm(200, drafter.shapes(), drafter.needs.hidden)
    drafter.warm(200)
    before = compilations()
    assert decode(compiled, found, prompts, 12, 3, eos=eos) == answers
    assert compilations() == before
    for (tokens, committed), (wanted, _) in zip(found.drafts, expected.drafts, strict=True):
        for row, ids in enumerate(committed):
            if len(ids) < len(prompts[row]) + len(answers[0][row]):  # it goes on
                assert tokens[row] == wanted[row]
