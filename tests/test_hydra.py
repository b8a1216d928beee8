"""Hydra: the published format, drafts against a slow reference, answers vanilla's."""

import json
import shutil
from functools import partial

import pytest
import torch
from conftest import SHAPE, make_model, make_prompts
from eagle_checks import Guarded
from head_dirs import HYDRA_CONFIG, hydra_heads
from test_medusa import Oracle, assert_compiled_drafts_are_eagers, decode, medusa, tree_of
from test_recycling import Recording

from model.common import args as arguments
from model.common.contract.drafter import EmptyDrafter
from model.common.contract.static_tree import StaticTree
from model.common.errors import BadInput
from model.common.heads.checkpoint import save_checkpoint
from model.common.heads.head import CachedHead
from model.common.loop.sampling import Sampler
from model.common.target.model import Target
from model.common.target.runtime import Graphs
from model.hydra import inference_hydra as script
from model.hydra.drafter import HydraDrafter
from model.hydra.heads import HydraHeads, layer_config, load_heads, state_to_save

FILE = "hydra_lm_head.pt"
PRE = "prefix_embeding_layer."
LAYER = PRE + "layers.0."
# hidden size -> (MLP width, attention heads, parameters with two copies of the embedding)
PUBLISHED = {
    4096: (11008, 32, 1_525_867_520),
    5120: (13824, 40, 2_139_299_840),
    6656: (17920, 52, 3_230_890_496),
}
CHAIN = [(0,), (0, 0), (0, 0, 0), (0, 0, 0, 0)]


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


def heads_for(target, **more):
    return hydra_heads(target.config, target.vocab_size, **more).to(target.dtype)


def hydra(target, heads=None, nodes=None, runtime="eager", **more):
    return HydraDrafter(heads or heads_for(target, **more), nodes or tree_of(), target, runtime)


def published_shapes(size, width, vocab_size=32000):
    """The table of the published prefix-mlp files, what is not used included."""
    table = {
        PRE + "embed_tokens.weight": (vocab_size, size),
        LAYER + "mlp.gate_proj.weight": (width, size),
        LAYER + "mlp.up_proj.weight": (width, size),
        LAYER + "mlp.down_proj.weight": (size, width),
        LAYER + "input_layernorm.weight": (size,),
        LAYER + "post_attention_layernorm.weight": (size,),
        PRE + "norm.weight": (size,),
        "input_embed_fn.weight": (vocab_size, size),
    }
    table |= {LAYER + f"self_attn.{name}_proj.weight": (size, size) for name in "qkvo"}
    for i in range(4):
        for part in ("linear", "res_connection"):
            table[f"hydra_mlp.{i}.1.{part}.weight"] = (size, size * (i + 2))
            table[f"hydra_mlp.{i}.1.{part}.bias"] = (size,)
        for place in (3, 5, 7):
            table[f"hydra_mlp.{i}.{place}.linear.weight"] = (size, size)
            table[f"hydra_mlp.{i}.{place}.linear.bias"] = (size,)
        table[f"hydra_lm_head.{i}.1.weight"] = (vocab_size, size)
        table[f"hydra_lm_head.{i}.1.bias"] = (vocab_size,)
    return table


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_format(size):
    width, num_attention_heads, parameters = PUBLISHED[size]
    config = make_model(hidden_size=64).config
    config.hidden_size, config.intermediate_size = size, width
    config.num_attention_heads = config.num_key_value_heads = num_attention_heads
    config.head_dim = 128
    with torch.device("meta"):
        heads = HydraHeads(layer_config(config, 32000), "prefix-mlp", 4, 4)
    wanted = published_shapes(size, width)
    tables = [wanted.pop(name) for name in (PRE + "embed_tokens.weight", "input_embed_fn.weight")]
    assert {name: tuple(tensor.shape) for name, tensor in state_to_save(heads).items()} == wanted
    unique = sum(weight.numel() for weight in heads.parameters())
    assert unique + sum(rows * columns for rows, columns in tables) == parameters
    if size == 4096:
        parts = (heads.prefix, heads.hydra_mlp, heads.hydra_lm_head)
        counts = [sum(weight.numel() for weight in part.parameters()) for part in parts]
        assert counts == [202_387_456, 536_920_064, 524_416_000] and unique == 1_263_723_520


def test_published_tree_asks_1_10_10_1_rows(target):
    static = StaticTree(tree_of(), "cpu")
    assert [len(rows) for rows in static.inner] == [1, 10, 10, 1]
    rows = {path: 1 + node for node, path in enumerate(static.paths)}
    wanted = {(0, 0, 0): 39, (2, 0): 28, (9, 0): 38, (0, 0, 0, 1): 63}
    assert {path: rows[path] for path in wanted} == wanted
    children = {node: n for node, n in enumerate(static.num_children) if n}
    assert [children[row] for row in range(11)] == [10, 10, 7, 3, 2, 1, 1, 1, 1, 1, 1]


def saved(folder, state, **config):
    """Write a head directory; fields of None are left out of the config."""
    config = {**HYDRA_CONFIG, **config}
    config = {name: value for name, value in config.items() if value is not None}
    save_checkpoint(folder, config, FILE, state)
    return str(folder)


def test_the_published_file_is_read(target, tmp_path):
    heads = heads_for(target)
    state = state_to_save(heads)
    state |= {PRE + "embed_tokens.weight": torch.zeros(97, 64)}
    state |= {"input_embed_fn.weight": torch.zeros(97, 64)}
    state |= {LAYER + "self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    path = saved(tmp_path, {name: tensor.clone() for name, tensor in state.items()})
    before = target.model.get_input_embeddings().weight.clone()
    features, embeddings = torch.randn(2, 2, 6, 64).unbind(0)
    wanted = heads(features, embeddings)
    for num_heads in (4, 3):
        loaded = load_heads(path, target, num_heads)
        for one, other in zip(loaded(features, embeddings), wanted[:num_heads], strict=True):
            assert torch.equal(one, other)
    assert torch.equal(target.model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("arch", ["mlp", "prefix-mlp"])
def test_architectures_and_single_names_are_read(arch, num_layers, target, tmp_path):
    heads = heads_for(target, arch=arch, num_layers=num_layers, num_heads=3)
    features, embeddings = torch.randn(2, 2, 6, 64).unbind(0)
    wanted = heads(features, embeddings)
    config = {"hydra_head_arch": arch, "hydra_num_layers": num_layers, "hydra_num_heads": None}
    path = saved(tmp_path / "pt", state_to_save(heads), **config)
    save_checkpoint(
        tmp_path / "st", {**HYDRA_CONFIG, **config}, "hydra_lm_head.safetensors", heads.state_dict()
    )
    for folder in (path, str(tmp_path / "st")):
        loaded = load_heads(folder, target, 3)
        assert all(map(torch.equal, loaded(features, embeddings), wanted))
        assert state_to_save(loaded).keys() == state_to_save(heads).keys()
    first = "1" if arch == "prefix-mlp" else "0"
    last = {"prefix-mlp": {1: "1", 3: "5"}, "mlp": {1: "0", 3: "2"}}[arch][num_layers]
    places = {n.split(".")[2] for n in state_to_save(heads) if n.startswith("hydra_mlp")}
    assert (min(places), max(places)) == (first, last)
    assert ("hydra_lm_head.0.weight" in state_to_save(heads)) == (arch == "mlp")


def test_differing_repeats_are_a_warning(target, tmp_path, capfd):
    heads = heads_for(target)
    state = {name: tensor.clone() for name, tensor in state_to_save(heads).items()}
    path = saved(tmp_path, state)
    load_heads(path, target, 4)
    assert capfd.readouterr().err == ""
    state["hydra_mlp.2.7.linear.weight"] += 1
    loaded = load_heads(saved(tmp_path, state), target, 4)
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "hydra_mlp.2.7.linear.weight" in err
    last = state["hydra_mlp.2.7.linear.weight"]
    assert torch.equal(loaded.state_dict()["hydra_mlp.2.3.linear.weight"], last)


BAD = [  # (changed tensors, changed config, what the line says)
    ({"hydra_mlp.0.1.res_connection.weight": None}, {}, r"no tensor hydra_mlp.0.1.res_conn.*128\)"),
    ({"hydra_mlp.1.3.linear.bias": None}, {}, r"no tensor hydra_mlp.1.3.linear.bias, expected"),
    ({PRE + "norm.weight": None}, {}, r"no tensor prefix_embeding_layer.norm.weight"),
    (
        {"hydra_mlp.3.1.linear.weight": torch.zeros(64, 256)},
        {},
        r"is \(64, 256\), expected \(64, 3",
    ),
    ({"hydra_mlp.3.7.linear.bias": torch.zeros(6)}, {}, r"3.7.linear.bias is \(6,\), expected"),
    ({"hydra_lm_head.0.1.weight": torch.zeros(98, 64)}, {}, r"is \(98, 64\), expected \(97, 64\)"),
    ({"prefix_embedding_layer.norm.weight": torch.ones(64)}, {}, "unknown tensor prefix_embedding"),
    ({"hydra_lm_head.9.1.bias": torch.zeros(97)}, {}, "unknown tensor hydra_lm_head.9.1.bias"),
    ({}, {"hydra_num_layers": 1}, "unknown tensor hydra_mlp.0.3.linear.weight"),
    ({}, {"hydra_head_arch": "mlp"}, "no tensor hydra_mlp.0.0.linear.weight"),
    ({}, {"hydra_head_arch": "eagle-attn"}, "eagle-attn is not supported, only mlp and prefix-mlp"),
    ({}, {"hydra_head_arch": "cross-attn"}, "cross-attn is not supported"),
    ({}, {"grounded_heads": None}, "only grounded heads"),
    ({}, {"hidden_state_offset": 2}, "hidden_state_offset 2"),
    ({}, {"hydra_num_layers": 0}, "hydra_num_layers 0"),
]


@pytest.mark.parametrize("changes, config, line", BAD)
def test_bad_heads_are_one_line(changes, config, line, target, tmp_path):
    state = {**state_to_save(heads_for(target)), **changes}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(BadInput, match=line) as error:
        load_heads(saved(tmp_path, state, **config), target, 4)
    assert "\n" not in str(error.value)


def test_flags(target, tmp_path):
    heads = heads_for(target, num_heads=2)
    path = saved(tmp_path, state_to_save(heads))
    small = tmp_path / "tree.json"
    small.write_text(json.dumps([[0], [0, 0]]))
    parser = arguments.make_parser("hydra", script.__doc__, script.add_args)
    base = ["--model-path", "m", "--hydra-path", path]
    drafter = script.build(parser.parse_args([*base, "--tree", str(small)]), target)
    assert drafter.facts() == {"head_bytes": 4 * sum(w.numel() for w in heads.parameters())}
    for flags, line in (
        ([], "2 heads, a tree of depth 4 needs 4"),
        (["--acceptance", "typical"], "needs --temperature above 0"),
    ):
        with pytest.raises(BadInput, match=line):
            script.build(parser.parse_args([*base, *flags]), target)


def test_head_algebra(target):
    """With zero gates a head is W (R u + r) + c."""
    heads = heads_for(target, arch="mlp")
    for i in range(4):
        mlp, rows = heads.hydra_mlp[i], torch.randn(3, (i + 2) * 64)
        first, shared = mlp.children()
        for block in (first, shared):
            block.linear.weight.data.zero_()
            block.linear.bias.data.zero_()
        wanted = heads.hydra_lm_head[i](first.res_connection(rows))
        assert torch.allclose(heads.guess(i, rows), wanted)


def test_conditioning(target):
    """A token changes the guesses of the heads behind it and no others; states are causal."""
    heads = heads_for(target)
    features, embeddings = torch.randn(2, 1, 6, 64).unbind(0)
    before = heads(features, embeddings)
    assert [tuple(out.shape) for out in before] == [(1, 6 - i, 97) for i in range(4)]
    changed = embeddings.clone()
    changed[:, 1] += 1  # the token of column 1: read by row t of head i if t <= 1 <= t + i
    for i, (one, other) in enumerate(zip(before, heads(features, changed))):
        for t in range(6 - i):
            assert torch.equal(one[:, t], other[:, t]) != (t <= 1 <= t + i)
    changed = features.clone()
    changed[:, 2] += 1
    for one, other in zip(before, heads(changed, embeddings)):
        assert torch.equal(one[:, :2], other[:, :2])
        assert not torch.allclose(one[:, 2:], other[:, 2:])


def test_init_and_dropout(target):
    heads = heads_for(target)
    heads.init_from(target.model.lm_head)
    first, shared = heads.hydra_mlp[1].children()
    assert (first.linear.weight == 0).all() and (shared.linear.weight == 0).all()
    assert (first.res_connection.weight != 0).any() and (first.linear.bias != 0).any()
    assert torch.equal(heads.hydra_lm_head[2][1].weight, target.model.lm_head.weight)
    assert 0.015 < heads.prefix.layers[0]["mlp"].up_proj.weight.std() < 0.025
    rows = torch.randn(3, 128)
    assert torch.equal(heads.guess(0, rows), heads.guess(0, rows))
    heads.train()
    assert not torch.equal(heads.guess(0, rows), heads.guess(0, rows))
    plain = heads_for(target, arch="mlp").train()
    assert torch.equal(plain.guess(0, rows), plain.guess(0, rows))


def picked(rows, count, more):
    """What read_step() needs of rows that are there already."""
    return (rows, count - 1, more), count, ()


@torch.inference_mode()
def test_prefix_in_pieces_equals_one_pass(target):
    heads = heads_for(target)
    features = torch.randn(2, 40, 64)
    wanted = heads.states(features)
    prefix = CachedHead(heads.prefix, heads.config, "cpu", torch.float32, "eager")
    count = torch.tensor([23, 11])
    prefix.read_prompt(features[:, :23], features[:, :23], count, 64)
    assert prefix.cache.length.tolist() == [23, 11]
    committed = 23
    for step in ([1, 5], [3, 4], [5, 1]):
        count = torch.tensor(step)
        rows = torch.randn(2, 5, 64)  # what follows the new rows is padding
        for row, begin in enumerate(prefix.cache.length.tolist()):
            rows[row, : step[row]] = features[row, begin : begin + step[row]]
        longest = max((prefix.cache.length + count).tolist())
        (state,) = prefix.read_step((rows, count, rows), 5, committed, longest, picked, None)
        committed = longest
        last = prefix.cache.length - 1
        assert torch.allclose(state[:, 0], wanted[[0, 1], last], atol=1e-5)


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
            own = {n[len(PRE) :]: t for n, t in self.state.items() if n.startswith(PRE)}
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
@pytest.mark.parametrize("batch", [1, 3])
@torch.inference_mode()
def test_drafts_equal_a_slow_reference(arch, batch):
    shape = {"dtype": torch.float64, "vocab_size": 11}  # few tokens, so that some come true
    target, model = Target(make_model(**shape)), make_model(**shape)
    model.set_attn_implementation("sdpa")
    heads = heads_for(target, arch=arch)
    nodes = tree_of()
    drafter = Recording(hydra(target, heads, nodes))
    _, accepted = decode(target, drafter, make_prompts(3, vocab_size=11), 20, batch)
    slow, number = SlowHydra(model, heads, nodes), 0
    for part in range(0, 3, batch):
        for step in range(max(map(len, accepted[part : part + batch]))):
            tokens, committed = drafter.drafts[number]
            number += 1
            for row in range(batch):
                if step < len(accepted[part + row]):
                    assert tokens[row] == slow.draft(committed[row])
    assert number == len(drafter.drafts) and max(map(max, accepted)) > 1


@pytest.mark.parametrize("arch", ["mlp", "prefix-mlp"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("nodes", [None, [(0,)], CHAIN])
def test_answers_are_vanillas(target, arch, batch, nodes):
    prompts = make_prompts(4)
    limit = 200 if batch == 4 else 40
    expected, _ = decode(target, EmptyDrafter(), prompts, limit, 4)
    ids, accepted = decode(target, hydra(target, nodes=nodes, arch=arch), prompts, limit, batch)
    assert ids == expected
    assert [1 + sum(lengths) for lengths in accepted] == [limit] * 4


class Knowing(Oracle):
    """Hydra heads that know the answers by the state they are given."""

    prefix = None

    def guess(self, i, rows):
        return self(rows[..., : self.states.shape[1]].flatten(0, 1))[i].unflatten(0, rows.shape[:2])


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("sign, committed", [(1.0, 5), (-1.0, 1)])
def test_oracle_and_wrong_heads(target, batch, sign, committed):
    prompts = make_prompts(4)
    expected, _ = decode(target, EmptyDrafter(), prompts, 40)
    plain = make_model()
    plain.set_attn_implementation("sdpa")
    sequences = [prompt + ids for prompt, ids in zip(prompts, expected)]
    drafter = hydra(target, Knowing(plain, sequences, 4, sign))
    ids, accepted = decode(target, drafter, prompts, 26, batch)
    assert ids == [answer[:26] for answer in expected]
    assert accepted == [[committed] * (25 // committed)] * 4


@pytest.mark.parametrize("batch", [1, 4])
def test_sampled_answers_are_vanillas(batch):
    target = Target(make_model(vocab_size=17))
    prompts, sampler = make_prompts(4, vocab_size=17), Sampler(1.0, top_p=0.9)
    expected, _ = decode(target, EmptyDrafter(), prompts, 40, sampler=sampler)
    ids, accepted = decode(target, hydra(target), prompts, 40, batch, sampler)
    assert ids == expected and max(map(max, accepted)) > 1


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma3_text"])
def test_other_families(family):
    target = Target(make_model(family))
    expected, _ = decode(target, EmptyDrafter(), make_prompts(4))
    assert decode(target, hydra(target), make_prompts(4), batch=4)[0] == expected


def test_typical_acceptance_is_deterministic(target):
    prompts, sampler = make_prompts(4), Sampler(0.7)
    first, second = (
        decode(target, hydra(target), prompts, batch=4, sampler=sampler, typical=(0.0, 0.3))
        for _ in range(2)
    )
    assert first == second and max(map(max, first[1])) == 5


def replaying(function):
    """A capture without CUDA: a replay runs the function and writes into its first results."""
    first = function()

    def tensors(result):
        if isinstance(result, torch.Tensor):
            return [result]
        parts = result.values() if isinstance(result, dict) else result
        return [tensor for part in parts for tensor in tensors(part)]

    def replay():
        for old, new in zip(tensors(first), tensors(function()), strict=True):
            old.copy_(new)

    return replay, first


@pytest.mark.parametrize("make", [medusa, hydra])
def test_replayed_drafts_are_eagers(make):
    """With idle rows, which fill the batch up."""
    plain, heads = make_model(), Knowing if make is hydra else Oracle
    plain.set_attn_implementation("sdpa")
    prompts = make_prompts(3, vocab_size=11)
    answers, _ = decode(Target(make_model()), EmptyDrafter(), prompts, 40)
    oracle = heads(plain, [prompt + ids for prompt, ids in zip(prompts, answers)], 4)
    for vocab_size, own in ((11, None), (97, oracle)):
        eager, target = (Target(make_model(vocab_size=vocab_size)) for _ in range(2))
        expected = decode(eager, make(eager, own), prompts, 30)
        assert max(map(max, expected[1])) > 1
        target.static_batch = 4
        drafter = make(target, own)
        replayed = {target: target._rows, drafter: drafter._tokens}
        if getattr(drafter, "prefix", None):
            replayed[drafter.prefix] = drafter.prefix._rows
        for part, forward in replayed.items():
            part.runtime = Graphs(forward, replaying)
        for _ in range(2):
            assert decode(target, drafter, prompts, 30, 3) == expected
            drafter.warm(300)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "make", [medusa, partial(hydra, arch="mlp"), partial(hydra, arch="prefix-mlp")]
)
def test_one_shape_serves_prompt_steps_and_warm_up(make, batch, temperature):
    """Whatever rule accepts: its paths have strides of their own."""
    target, prompts = Target(make_model(vocab_size=11)), make_prompts(3, vocab_size=11)
    drafter = make(target)
    part = getattr(drafter, "prefix", None) or drafter
    part.runtime = Guarded(part.runtime.forward)
    expected = decode(target, EmptyDrafter(), prompts, 30, batch, Sampler(temperature))[0]
    assert decode(target, drafter, prompts, 30, batch, Sampler(temperature))[0] == expected
    assert len(part.runtime.seen) == 1
    drafter.warm(30)
    assert len(part.runtime.seen) == 1


@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a C compiler")
def test_compiled_drafts_are_eagers():
    shape = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 2, "head_dim": SHAPE["head_dim"]}
    assert_compiled_drafts_are_eagers(hydra, shape)
