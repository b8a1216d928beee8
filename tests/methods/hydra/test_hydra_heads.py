"""Hydra's heads: published format, bad files, flags, the prefix layer's cache, training's start."""

import json

import pytest
import torch
from conftest import make_model
from head_dirs import HYDRA_CONFIG, hydra_heads

from model.common import args as arguments
from model.common.contract.static_tree import StaticTree, read_tree
from model.common.errors import BadInput
from model.common.heads.checkpoint import save_checkpoint
from model.common.heads.head import CachedHead, row_of
from model.common.target.model import Target
from model.hydra import inference_hydra as script
from model.hydra.heads import HydraHeads, layer_config, load_heads, state_to_save
from model.medusa.flags import TREES

FILE = "hydra_lm_head.pt"
PRE = "prefix_embeding_layer."
LAYER = PRE + "layers.0."
# hidden size -> (MLP width, attention heads, parameters with two copies of the embedding)
PUBLISHED = {
    4096: (11008, 32, 1_525_867_520),
    5120: (13824, 40, 2_139_299_840),
    6656: (17920, 52, 3_230_890_496),
}


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


def heads_for(target, **more):
    return hydra_heads(target.config, target.vocab_size, **more).to(target.dtype)


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


def saved(folder, state, **config):
    """Write a head directory; fields of None are left out of the config."""
    config = {**HYDRA_CONFIG, **config}
    config = {name: value for name, value in config.items() if value is not None}
    save_checkpoint(folder, config, FILE, state)
    return str(folder)


def same(loaded, heads):
    """Whether all that was loaded is as it was saved."""
    state = heads.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_the_published_file_is_read(target, tmp_path):
    heads = heads_for(target)
    state = state_to_save(heads)
    state |= {PRE + "embed_tokens.weight": torch.zeros(97, 64)}
    state |= {"input_embed_fn.weight": torch.zeros(97, 64)}
    state |= {LAYER + "self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    path = saved(tmp_path, {name: tensor.clone() for name, tensor in state.items()})
    before = target.model.get_input_embeddings().weight.clone()
    for num_heads in (4, 3):
        loaded = load_heads(path, target, num_heads)
        assert loaded.num_heads == num_heads and same(loaded, heads)
    assert torch.equal(target.model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("arch", ["mlp", "prefix-mlp"])
def test_architectures_and_single_names_are_read(arch, num_layers, target, tmp_path):
    heads = heads_for(target, arch=arch, num_layers=num_layers, num_heads=3)
    config = {"hydra_head_arch": arch, "hydra_num_layers": num_layers, "hydra_num_heads": None}
    path = saved(tmp_path / "pt", state_to_save(heads), **config)
    save_checkpoint(
        tmp_path / "st", {**HYDRA_CONFIG, **config}, "hydra_lm_head.safetensors", heads.state_dict()
    )
    for folder in (path, str(tmp_path / "st")):
        loaded = load_heads(folder, target, 3)
        assert same(loaded, heads)
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
        (["--acceptance", "typical", "--temperature", "1", "--min-p", "0.1"], "--min-p exclude"),
        (["--posterior-alpha", "0.2"], "need --acceptance typical"),
    ):
        with pytest.raises(BadInput, match=line):
            script.build(parser.parse_args([*base, *flags]), target)


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


def test_published_tree_asks_1_10_10_1_rows():
    static = StaticTree(read_tree("mc_sim_7b_63", TREES, 97), "cpu")
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
