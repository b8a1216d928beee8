"""The loader of EAGLE's heads: forms that are one, casts, bad files; the methods' own flags."""

import json

import pytest
import torch
from eagle_checks import (
    KINDS,
    SMALL_TREE,
    SMALL_VOCAB,
    loopy_prompts,
    parsed,
    target_of,
    tiny_model,
)
from eagle_dirs import change
from oracle import decode, facts

from model.common.contract.drafter import Needs
from model.common.contract.static_tree import check_tree
from model.common.errors import BadInput
from model.common.heads.checkpoint import read_tensors
from model.common.target.model import Target
from model.eagle import inference_eagle
from model.eagle3 import inference_eagle3

FLOAT = torch.float32
FILES = ["pytorch_model.bin", "model.safetensors"]
LOADED = [
    *[("eagle", {"file": file}) for file in FILES],
    *[("eagle", {"bias": False, "file": file}) for file in FILES],
    *[
        ("eagle", {"num_key_value_heads": 1}),
        ("eagle", {"qkv_bias": True, "attention_bias": False}),
    ],
    *[("eagle", {"attention_bias": True}), ("eagle3", {"attention_bias": True})],
    *[("eagle3", {"draft_vocab": size, "file": FILES[1]}) for size in (None, SMALL_VOCAB, 16)],
    *[("eagle3", {"draft_vocab": size, "num_key_value_heads": 4}) for size in (None, SMALL_VOCAB)],
    *[("eagle3", {"draft_vocab": size, "num_hidden_layers": 40}) for size in (None, SMALL_VOCAB)],
]


@pytest.mark.parametrize("name, changes", LOADED)
def test_files_load(tmp_path, name, changes):
    path = KINDS[name].new_head(tmp_path, **changes)
    tensors = read_tensors(f"{path}/{changes.get('file', FILES[0])}")
    head = KINDS[name].load(path, target_of(name, FLOAT))
    held = head.module.state_dict()
    assert ("fc.bias" in tensors) == (name == "eagle" and changes.get("bias", True))
    biased = changes.get("qkv_bias") or changes.get("attention_bias", False)
    assert biased == any(tensor.endswith("k_proj.bias") for tensor in tensors)
    assert set(held) == set(tensors) - {"embed_tokens.weight"}
    assert all(torch.equal(held[name], tensors[name]) for name in held)
    ids = head.target_ids(torch.arange(len(tensors.get("lm_head.weight", range(17)))))
    assert ids.tolist() == tensors.get("t2d", torch.ones(17)).nonzero().flatten().tolist()


@pytest.mark.parametrize("name", ["eagle", "eagle3"])
def test_float32_files_are_cast(tmp_path, name):
    kind = KINDS[name]
    target = Target(tiny_model(**kind.shape, dtype=torch.bfloat16))
    head = kind.load(kind.new_head(tmp_path), target)
    assert {p.dtype for p in head.module.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in head.module.parameters())
    buffers = {name: tensor.dtype for name, tensor in head.module.named_buffers()}
    assert buffers == ({"d2t": torch.long, "t2d": torch.bool} if name == "eagle3" else {})
    turns = decode(target, kind.drafter(head), loopy_prompts(), 16)
    assert all(len(turn.output_ids) == 16 for turn in turns)
    assert head.cache.storage[0][0].dtype == torch.bfloat16


def swap(old, new):
    """Names with one part in place of another."""
    return {"rename": lambda name: name.replace(old, new)}


def put(name, *shape, value=1.0, dtype=None):
    """Add a tensor of one value, or replace it."""
    return {"edit": lambda tensors: tensors.update({name: torch.full(shape, value, dtype=dtype)})}


def pop(name):
    return {"edit": lambda tensors: tensors.pop(name)}


def prefixed(name):
    return name if name in ("d2t", "t2d", "lm_head.weight") else f"model.{name}"


def narrow(tensors):
    tensors["d2t"] = tensors["d2t"].int()


MAPS = {"d2t": torch.zeros(17, dtype=torch.long), "t2d": torch.ones(17, dtype=torch.bool)}
SAME = [  # (kind, draft vocabulary, changes that draft nothing else)
    ("eagle", None, pop("embed_tokens.weight")),
    ("eagle", None, {"rename": lambda name: f"model.{name}"}),
    ("eagle3", SMALL_VOCAB, swap("midlayer.", "layers.0.")),
    ("eagle3", SMALL_VOCAB, {"rename": prefixed}),
    ("eagle3", SMALL_VOCAB, put("embed_tokens.weight", 17, 64)),
    ("eagle3", SMALL_VOCAB, put("verifier_lm_head.weight", 17, 64)),
    ("eagle3", SMALL_VOCAB, pop("t2d")),
    ("eagle3", SMALL_VOCAB, {"edit": narrow}),
    ("eagle3", SMALL_VOCAB, {"draft_vocab_size": None, "truncated_vocab_size": SMALL_VOCAB}),
    ("eagle3", None, {"edit": lambda tensors: tensors.update(MAPS)}),
    ("eagle3", None, {"draft_vocab_size": None}),
    ("eagle3", None, {"norm_output": False, "norm_before_residual": False, "fc_norm": False}),
    ("eagle3", None, {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}),
    ("eagle3", None, {"layer_types": ["full_attention"], "sliding_window": 2}),
]


@pytest.mark.parametrize("name, draft_vocab, changes", SAME)
def test_variants_of_a_file_draft_the_same(tmp_path, name, draft_vocab, changes):
    kind, target = KINDS[name], target_of(name, FLOAT)
    path = kind.new_head(tmp_path, **({"draft_vocab": draft_vocab} if name == "eagle3" else {}))
    stored = sum(tensor.nbytes for tensor in read_tensors(f"{path}/{FILES[0]}").values())

    def drafted():
        head = kind.load(path, target)
        turns = decode(target, kind.drafter(head), loopy_prompts(), 16)
        return head, facts(turns)

    _, expected = drafted()
    change(path, **changes)
    head, found = drafted()
    assert found == expected
    model, own = target.model, 17 * 64 * 4 if name == "eagle" else 0  # a copy of the embedding
    assert head.module.borrowed[0] is model.get_input_embeddings()
    assert head.module.borrowed[1] is (model.get_output_embeddings() if name == "eagle" else None)
    assert kind.drafter(head).facts()["head_bytes"] == stored - own
    assert draft_vocab is None or head.module.t2d.sum() == SMALL_VOCAB


def shifted(name, place, by):
    """Change one number of a tensor."""

    def edit(tensors):
        tensors[name][place] += by

    return {"edit": edit}


def collide(tensors):
    tensors["d2t"][1] = tensors["d2t"][0] - 1


def uncover(tensors):
    tensors["t2d"][tensors["t2d"].nonzero()[0]] = False


BAD = [  # (kind, changes, words of the line)
    ("eagle", pop("fc.weight"), ["no tensor fc.weight", "(64, 128)"]),
    ("eagle", pop("fc.bias"), ["no tensor fc.bias", "(64,)"]),
    ("eagle", {"bias": False}, ["unknown tensor fc.bias", "(64,)"]),
    ("eagle", {"qkv_bias": True}, ["no tensor layers.0.self_attn.q_proj.bias, expected (64,)"]),
    (
        "eagle",
        put("layers.0.input_layernorm.weight", 64),
        ["unknown tensor layers.0.input_", "(64,)"],
    ),
    ("eagle", put("layers.0.self_attn.o_proj.bias", 64), ["unknown tensor layers.0.self_attn.o_"]),
    ("eagle", swap("fc.weight", "mod.fc.weight"), ["no tensor fc.weight"]),
    ("eagle", put("lm_head.weight", 17, 64), ["unknown", "lm_head", "(17, 64)"]),
    ("eagle", {"num_key_value_heads": 4}, ["layers.0.self_attn.k_proj", "(32, 64)", "(64, 64)"]),
    ("eagle", {"intermediate_size": 95}, ["layers.0.mlp.gate_proj", "(96, 64)", "(95, 64)"]),
    ("eagle", put("fc.weight", 64, 64), ["fc.weight", "(64, 64)", "(64, 128)"]),
    ("eagle", put("embed_tokens.weight", 18, 64), ["embed_tokens.weight", "(18, 64)", "(17, 64)"]),
    ("eagle", {"hidden_size": 32}, ["hidden_size 32", "64"]),
    ("eagle", {"vocab_size": 18}, ["vocab_size 18", "17"]),
    ("eagle", {"intermediate_size": None}, ["no intermediate_size"]),
    ("eagle", {"hidden_act": "relu7"}, ["hidden_act 'relu7' is not known"]),
    ("eagle", {"num_attention_heads": 5}, ["config.json", "hidden size"]),
    ("eagle3", pop("fc.weight"), ["no tensor fc.weight", "(64, 192)"]),
    ("eagle3", pop("norm.weight"), ["no tensor norm.weight", "(64,)"]),
    ("eagle3", pop("lm_head.weight"), ["no tensor lm_head.weight", "(11, 64)"]),
    ("eagle3", pop("d2t"), ["no tensor d2t", "(11,)"]),
    ("eagle3", put("fc.bias", 64), ["unknown tensor fc.bias", "(64,)"]),
    ("eagle3", put("fc_norm.0.weight", 64), ["unknown tensor fc_norm.0.weight", "(64,)"]),
    ("eagle3", put("input_norm.weight", 192), ["unknown tensor input_norm.weight", "(192,)"]),
    (
        "eagle3",
        put("midlayer.self_attn.q_norm.weight", 16),
        ["unknown tensor midlayer.self_attn.q_"],
    ),
    ("eagle3", put("layers.1.mlp.up_proj.weight", 96, 64), ["unknown tensor layers.1.mlp.up_proj"]),
    ("eagle3", put("fc.weight", 64, 128), ["tensor fc.weight is (64, 128)", "expected (64, 192)"]),
    ("eagle3", {"draft_vocab_size": 12}, ["tensor d2t is (11,)", "expected (12,)"]),
    ("eagle3", {"draft_vocab_size": None}, ["lm_head.weight is (11, 64)", "expected (17, 64)"]),
    ("eagle3", {"num_key_value_heads": 4}, ["midlayer.self_attn.k_proj", "(32, 128)", "(64, 128)"]),
    ("eagle3", shifted("d2t", -1, 17), ["d2t does not map into the 17 ids"]),
    ("eagle3", put("d2t", 11, value=-1, dtype=torch.long), ["d2t does not map into the 17 ids"]),
    (
        "eagle3",
        put("d2t", 11, value=0, dtype=torch.long),
        ["t2d and d2t do not cover the same ids"],
    ),
    ("eagle3", {"edit": collide}, ["d2t does not map into"]),
    ("eagle3", {"edit": uncover}, ["t2d and d2t do not cover the same ids"]),
    ("eagle3", put("d2t", 11), ["tensor d2t is torch.float32"]),
    ("eagle3", {"hidden_size": 32}, ["hidden_size of the target 32", "64"]),
    ("eagle3", {"target_hidden_size": 32}, ["hidden_size of the target 32", "64"]),
    ("eagle3", {"hidden_size": 32, "target_hidden_size": 64}, ["tensor", "expected (32, 192)"]),
    ("eagle3", {"vocab_size": 18}, ["vocab_size 18", "17"]),
]


@pytest.mark.parametrize("name, changes, words", BAD, ids=[bad[2][0] for bad in BAD])
def test_bad_heads_are_one_line(tmp_path, name, changes, words):
    path = KINDS[name].new_head(tmp_path)
    change(path, **changes)
    with pytest.raises(BadInput) as error:
        KINDS[name].load(path, target_of(name, FLOAT))
    message = str(error.value)
    assert "\n" not in message and message.startswith(path)
    assert all(word in message for word in words), message


def test_missing_files_are_one_line(tmp_path):
    path = KINDS["eagle"].new_head(tmp_path)
    for name, words in (("pytorch_model.bin", "none of"), ("config.json", "config.json")):
        (tmp_path / "head" / name).unlink()
        with pytest.raises(BadInput, match=words) as error:
            KINDS["eagle"].load(path, target_of("eagle", FLOAT))
        assert "\n" not in str(error.value)


# --- commands ---


@pytest.mark.parametrize(
    "paths, words",
    [
        ([[0], [0, 0], [1, 0]], "[1, 0] without [1]"),
        ([[0], [2]], "ranks 0, 1, 2, ..."),
        ([[0], [0, 1]], "ranks 0, 1, 2, ..."),
        ([[17]], "from 0 to 16"),
        ([list(path) for path in SMALL_TREE[::-1]], None),
    ],
)
def test_trees_of_a_file(tmp_path, paths, words):
    (tmp_path / "tree.json").write_text(json.dumps(paths))
    flags = ["--eagle-path", KINDS["eagle"].new_head(tmp_path), "--tree", tmp_path / "tree.json"]
    args = parsed(inference_eagle, "eagle", *flags)
    if words is None:
        drafter = inference_eagle.build(args, target_of("eagle", FLOAT))
        assert drafter.tree.paths == check_tree([list(path) for path in SMALL_TREE], "", 17)
        return
    with pytest.raises(BadInput) as error:
        inference_eagle.build(args, target_of("eagle", FLOAT))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_flags_of_eagle(tmp_path):
    args = parsed(inference_eagle, "eagle", "--eagle-path", KINDS["eagle"].new_head(tmp_path))
    drafter = inference_eagle.build(args, target_of("eagle", FLOAT))
    assert len(drafter.tree) == 25 and drafter.needs == Needs(hidden=("last",))
    assert (drafter.max_nodes, drafter.max_depth) == (25, 5)


def test_flags_of_eagle3(tmp_path):
    path = KINDS["eagle3"].new_head(tmp_path)

    def build(target, *flags):
        args = parsed(inference_eagle3, "eagle3", "--eagle-path", path, *flags)
        return inference_eagle3.build(args, target)

    with pytest.raises(BadInput, match="--draft-top-k 12: the head drafts 11 tokens"):
        build(target_of("eagle3", FLOAT), "--draft-top-k", 12)
    with pytest.raises(BadInput, match="--total-token 60: .* allow 2 to 13"):
        build(target_of("eagle3", FLOAT), "--draft-top-k", 3, "--depth", 1)
    with pytest.raises(BadInput, match="at least 8 layers, not 3$"):
        build(Target(tiny_model(num_hidden_layers=3)))
    drafter = build(target_of("eagle3", FLOAT))
    assert (drafter.max_nodes, drafter.depth, drafter.top_k) == (59, 5, 10)
    assert drafter.needs == Needs(hidden=(2, 4, 5))
    stored = sum(tensor.nbytes for tensor in read_tensors(f"{path}/{FILES[0]}").values())
    said = {"head_bytes": stored, "fused_layers": [2, 4, 5], "wiring": "plain"}
    assert drafter.facts() == said
