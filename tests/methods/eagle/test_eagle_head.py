"""EAGLE's head: the published formats, the loader, bad files, trees and flags."""

import json
from types import SimpleNamespace

import pytest
import torch
from eagle_checks import KINDS, SMALL_TREE, config_dir, loopy_prompts, parsed, tiny_model
from eagle_dirs import eagle_dir
from oracle import decode, facts

from model.common.contract.drafter import Needs
from model.common.contract.static_tree import check_tree
from model.common.errors import BadInput
from model.common.heads import head as heads
from model.common.heads.checkpoint import Checkpoint, read_tensors, save_checkpoint
from model.common.target.model import Target
from model.common.target.runtime import make_runtime
from model.eagle import head as eagle_head
from model.eagle import inference_eagle as script
from model.eagle.head import load_eagle

static = KINDS["eagle"].drafter
# the published tensors of Vicuna 7B, 13B, 33B and LLaMA-3 8B: width, MLP, key width, vocabulary
PUBLISHED = {
    "7B": {
        "config": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
        | {"vocab_size": 32000, "rms_norm_eps": 1e-6, "num_hidden_layers": 1},
        "keys": 4096,
        "parameters": 235_937_792,
        "gigabytes": 1.468,
        "item_bytes": 4,
    },
    "13B": {
        "config": {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40}
        | {"vocab_size": 32000, "rms_norm_eps": 1e-6, "num_hidden_layers": 1},
        "keys": 5120,
        "parameters": 369_633_280,
        "gigabytes": 2.134,
        "item_bytes": 4,
    },
    "33B": {
        "config": {"hidden_size": 6656, "intermediate_size": 17920, "num_attention_heads": 52}
        | {"vocab_size": 32000, "num_key_value_heads": 13, "max_sequence_length": 2048},
        "keys": 1664,
        "parameters": 557_200_000,
        "gigabytes": 3.081,
        "item_bytes": 4,
    },
    "LLaMA3-8B": {
        "config": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
        | {"vocab_size": 128256, "num_key_value_heads": 8, "bias": False, "rope_theta": 500000.0},
        "keys": 1024,
        "parameters": 251_700_000,
        "gigabytes": 1.554,
        "item_bytes": 2,
    },
}


def published_shapes(name):
    """Shapes of a published file, typed from its description."""
    config, keys = PUBLISHED[name]["config"], PUBLISHED[name]["keys"]
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "embed_tokens.weight": (config["vocab_size"], width),
        "fc.weight": (width, 2 * width),
        "fc.bias": (width,),
        "layers.0.self_attn.q_proj.weight": (width, width),
        "layers.0.self_attn.k_proj.weight": (keys, width),
        "layers.0.self_attn.v_proj.weight": (keys, width),
        "layers.0.self_attn.o_proj.weight": (width, width),
        "layers.0.mlp.gate_proj.weight": (inner, width),
        "layers.0.mlp.up_proj.weight": (inner, width),
        "layers.0.mlp.down_proj.weight": (width, inner),
        "layers.0.post_attention_layernorm.weight": (width,),
    }
    if not config.get("bias", True):
        del shapes["fc.bias"]
    return shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random head for the loopy targets."""
    return eagle_dir(tmp_path_factory.mktemp("eagle"), config_dir(tmp_path_factory.mktemp("t")))


@pytest.fixture(scope="module")
def target():
    return Target(tiny_model())


@pytest.fixture
def wide(target, tmp_path):
    """The config directory of that target, to make other heads for."""
    return config_dir(tmp_path / "target")


# --- the format ---


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_formats(name, monkeypatch):
    """The whole loader on the meta device: every tensor of the file finds its place, cast."""
    told, shapes = PUBLISHED[name], published_shapes(name)
    config = told["config"]
    stored = torch.float32 if told["item_bytes"] == 4 else torch.float16

    def open_published(self, path, names, prefix=""):
        self.path, self.file, self.config = path, f"{path}/pytorch_model.bin", config
        self.tensors = {n: torch.empty(s, dtype=stored, device="meta") for n, s in shapes.items()}

    monkeypatch.setattr(Checkpoint, "__init__", open_published)
    with torch.device("meta"):
        embedding = torch.nn.Embedding(config["vocab_size"], config["hidden_size"])
    target = SimpleNamespace(
        config=SimpleNamespace(hidden_size=config["hidden_size"]),
        vocab_size=config["vocab_size"],
        dtype=torch.float16,
        device=torch.device("meta"),
        model=SimpleNamespace(
            get_input_embeddings=lambda: embedding, get_output_embeddings=lambda: embedding
        ),
        runtime=make_runtime("eager", torch.device("meta")),
        twin=None,
        grown=lambda *head: Target.grown(target, *head),
    )
    target.origin = target
    head = load_eagle("published", target)
    held = {n: tuple(t.shape) for n, t in head.module.state_dict().items()}
    assert held == {n: s for n, s in shapes.items() if n != "embed_tokens.weight"}
    assert {t.dtype for t in head.module.state_dict().values()} == {torch.float16}
    parameters = sum(t.numel() for t in head.module.parameters())
    assert abs(parameters - told["parameters"]) < 5e4
    if name in ("7B", "13B"):
        assert parameters == told["parameters"]
    whole = parameters + config["vocab_size"] * config["hidden_size"]
    assert abs(whole * told["item_bytes"] / 1e9 - told["gigabytes"]) < 0.001
    assert head.module.borrowed == (embedding, embedding)
    base = config.get("rope_theta", 10000.0)
    dim = config["hidden_size"] // config["num_attention_heads"]
    assert torch.allclose(
        _inverse_frequencies(config),
        base ** (-torch.arange(0, dim, 2).float() / dim),
    )


def _inverse_frequencies(config):
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    return LlamaRotaryEmbedding(heads.llama_config(config)).inv_freq


def test_config_fields_reach_the_layer():
    config = heads.llama_config(
        {**PUBLISHED["LLaMA3-8B"]["config"], "rms_norm_eps": 1e-5, "hidden_act": "silu"}
    )
    assert (config.rms_norm_eps, config.head_dim, config.num_hidden_layers) == (1e-5, 128, 1)
    assert config.rope_parameters["rope_theta"] == 500000.0
    assert heads.llama_config(PUBLISHED["33B"]["config"]).num_key_value_heads == 13
    with torch.device("meta"):
        layer = eagle_head.EagleLayer(config)
    assert not [name for name, _ in layer.named_parameters() if "input_layernorm" in name]


# --- the loader ---


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("changes", [{}, {"bias": False}, {"num_key_value_heads": 1}])
def test_files_load(target, wide, tmp_path, file, changes):
    path = eagle_dir(tmp_path / "head", wide, file=file, **changes)
    tensors = read_tensors(f"{path}/{file}")
    assert ("fc.bias" in tensors) == changes.get("bias", True)
    held = load_eagle(path, target).module.state_dict()
    assert set(held) == set(tensors) - {"embed_tokens.weight"}
    assert all(torch.equal(held[name], tensors[name]) for name in held)


def test_float32_files_are_cast(wide, tmp_path):
    target = Target(tiny_model(dtype=torch.bfloat16))
    head = load_eagle(eagle_dir(tmp_path / "head", wide), target)
    assert {p.dtype for p in head.module.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in head.module.parameters())
    drafter = static(head)
    turns = decode(target, drafter, loopy_prompts(), 16)
    assert all(len(turn.output_ids) == 16 for turn in turns)
    assert head.cache.storage[0][0].dtype == torch.bfloat16


def test_the_copy_of_the_embedding_is_optional_and_unused(target, wide, tmp_path):
    path = eagle_dir(tmp_path / "head", wide)
    with_copy = facts(decode(target, static(load_eagle(path, target)), loopy_prompts()))
    change(path, lambda tensors: tensors.pop("embed_tokens.weight"))
    head = load_eagle(path, target)
    assert facts(decode(target, static(head), loopy_prompts())) == with_copy
    assert head.module.borrowed[0] is target.model.get_input_embeddings()
    assert head.module.borrowed[1] is target.model.get_output_embeddings()
    stored = sum(tensor.nbytes for tensor in read_tensors(f"{path}/pytorch_model.bin").values())
    assert static(head).facts() == {"head_bytes": stored}


def change(path, edit=None, **config):
    """Rewrite a head with edited tensors and config fields."""
    fields = json.loads(open(f"{path}/config.json").read()) | config
    tensors = read_tensors(f"{path}/pytorch_model.bin")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    if edit:
        edit(tensors)
    save_checkpoint(path, fields, "pytorch_model.bin", tensors)


def rename(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


BAD = [
    ({}, lambda t: t.pop("fc.weight"), ["no tensor fc.weight", "(64, 128)"]),
    ({}, lambda t: t.pop("fc.bias"), ["no tensor fc.bias", "(64,)"]),
    ({"bias": False}, None, ["unknown tensor fc.bias", "(64,)"]),
    (
        {},
        lambda t: t.update({"layers.0.input_layernorm.weight": torch.ones(64)}),
        ["unknown tensor layers.0.input_layernorm.weight", "(64,)"],
    ),
    ({}, rename("fc.weight", "model.fc.weight"), ["no tensor fc.weight"]),
    (
        {},
        lambda t: t.update({"lm_head.weight": torch.ones(17, 64)}),
        ["unknown", "lm_head", "(17, 64)"],
    ),
    (
        {"num_key_value_heads": 4},
        None,
        ["layers.0.self_attn.k_proj.weight", "(32, 64)", "expected (64, 64)"],
    ),
    ({"intermediate_size": 95}, None, ["layers.0.mlp.gate_proj.weight", "(96, 64)", "(95, 64)"]),
    (
        {},
        lambda t: t.update({"fc.weight": torch.ones(64, 64)}),
        ["fc.weight", "(64, 64)", "(64, 128)"],
    ),
    (
        {},
        lambda t: t.update({"embed_tokens.weight": torch.ones(18, 64)}),
        ["embed_tokens.weight", "(18, 64)", "(17, 64)"],
    ),
    ({"hidden_size": 32}, None, ["hidden_size 32", "64"]),
    ({"vocab_size": 18}, None, ["vocab_size 18", "17"]),
    ({"intermediate_size": None}, None, ["no intermediate_size"]),
]


@pytest.mark.parametrize("config, edit, words", BAD, ids=[bad[2][0] for bad in BAD])
def test_bad_heads_are_one_line(target, wide, tmp_path, config, edit, words):
    path = eagle_dir(tmp_path / "head", wide)
    change(path, edit, **config)
    with pytest.raises(BadInput) as error:
        load_eagle(path, target)
    message = str(error.value)
    assert "\n" not in message and message.startswith(path)
    assert all(word in message for word in words), message


def test_missing_files_are_one_line(target, wide, tmp_path):
    path = eagle_dir(tmp_path / "head", wide)
    for name, words in (("pytorch_model.bin", "none of"), ("config.json", "config.json")):
        (tmp_path / "head" / name).unlink()
        with pytest.raises(BadInput, match=words) as error:
            load_eagle(path, target)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "paths, words",
    [
        ([[0], [0, 0], [1, 0]], "[1, 0] without [1]"),
        ([[0], [2]], "ranks 0, 1, 2, ..."),
        ([[0], [0, 1]], "ranks 0, 1, 2, ..."),
        ([[17]], "from 0 to 16"),
    ],
)
def test_bad_trees_are_one_line(target, folder, tmp_path, paths, words):
    file = tmp_path / "tree.json"
    file.write_text(json.dumps(paths))
    args = parsed(script, "eagle", "--eagle-path", folder, "--tree", file)
    with pytest.raises(BadInput) as error:
        script.build(args, target)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_flags(target, folder, tmp_path):
    file = tmp_path / "tree.json"
    file.write_text(json.dumps([list(path) for path in SMALL_TREE[::-1]]))
    drafter = script.build(parsed(script, "eagle", "--eagle-path", folder), target)
    assert len(drafter.tree) == 25 and drafter.needs == Needs(hidden=("last",))
    assert (drafter.max_nodes, drafter.max_depth) == (25, 5)
    args = parsed(script, "eagle", "--eagle-path", folder, "--tree", file)
    assert script.build(args, target).tree.paths == check_tree(
        [list(p) for p in SMALL_TREE], "", 17
    )
