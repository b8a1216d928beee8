"""The files of P-EAGLE heads as they are published, and what of them is refused."""

import pytest
import torch
from eagle_checks import (
    loopy_prompts,
    meta_target,
    new_peagle,
    open_published,
    parsed,
    published_tensors,
    target_of,
)
from eagle_dirs import change, nest, peagle_shapes
from oracle import decode, facts
from test_eagle_formats import QWEN3, SPECULATORS, sizes

from model.common.contract.drafter import Needs
from model.common.errors import BadInput
from model.eagle3.config import IDS, fused_layers
from model.eagle3.head import load_eagle3
from model.peagle import inference_peagle as script
from model.peagle.head import load_peagle

PEAGLE = {"architectures": ["PEagleDraftModel"], "speculators_model_type": "peagle"}
PEAGLE |= {"mask_token_id": 151669, "embed_requires_grad": True, "norm_before_residual": False}
SPECFORGE = {"architectures": ["PEagleDraftModel"], "max_window_layers": 36, "rope_scaling": None}
SPECFORGE |= {"attention_bias": False, "sliding_window": None, "use_sliding_window": False}
AUTOMODEL = {"architectures": ["LlamaEagle3DraftModel"], "parallel_drafting": True, "num_depths": 8}
AUTOMODEL |= {"down_sample_ratio": 0.7, "down_sample_ratio_min": 0.2, "mask_token_id": 128255}
GPT_OSS = sizes(2880, 17280, 64, 201088, 8, 201088, head_dim=64)
GPT_OSS |= {"ptd_token_id": "200018", "architectures": ["LlamaForCausalLMEagle3"]}
PUBLISHED = {  # (layers of the target, of the head, config, mask token)
    "speculators Qwen3-8B": (36, 1, QWEN3 | SPECULATORS | PEAGLE | {IDS: [2, 18, 33]}, 151669),
    "speculators, 4 layers": (36, 4, QWEN3 | SPECULATORS | PEAGLE | {"fc_norm": True}, 151669),
    "SpecForge Qwen3-8B": (36, 4, QWEN3 | SPECFORGE, None),
    "AWS gpt-oss-120b": (36, 4, GPT_OSS, 200018),
    "AWS gpt-oss-20b": (24, 4, GPT_OSS, 200018),
    "Automodel LLaMA-8B": (32, 1, sizes(4096, 14336, 32, 128256, 8, 32000) | AUTOMODEL, 128255),
}


def as_stored(name, config, layers):
    """({tensor's name as stored: shape}, {as the module has it: shape}, config as stored)."""
    states = len(config.get(IDS) or range(3))
    shapes = peagle_shapes(config, states, layers)
    held = dict(shapes)
    held["mask_hidden.weight"] = held.pop("mask_hidden")[1:]
    stored = {n.replace("midlayer", "layers.0"): shape for n, shape in shapes.items()}
    if "speculators" in name:
        root = {*SPECULATORS, *PEAGLE, IDS, "draft_vocab_size", "norm_output"}
        layer = {field: value for field, value in config.items() if field not in root}
        config = {field: config[field] for field in root & {*config}}
        config["transformer_layer_config"] = layer
    if "Automodel" in name:
        own = ("d2t", "t2d", "lm_head.weight", "mask_hidden")
        stored = {n if n in own else f"model.{n}": shape for n, shape in stored.items()}
        stored["mask_hidden"] = stored["mask_hidden"][1:]
    return stored, held, config | {"num_hidden_layers": layers}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_formats(name, monkeypatch, capsys):
    """The whole loader on the meta device: each tensor of the file finds its place, cast; nothing
    in the config is unknown."""
    num_layers, layers, fields, mask_id = PUBLISHED[name]
    shapes, wanted, config = as_stored(name, fields, layers)
    open_published(monkeypatch, config, published_tensors(shapes, fields, torch.float16))
    target = meta_target(fields, num_layers)
    if mask_id is None:
        with pytest.raises(BadInput, match="no mask_token_id, .*; --mask-id says which"):
            load_peagle("published", target)
    head = load_peagle("published", target, mask_id=151669 if mask_id is None else None)
    held = head.module.state_dict()
    assert {n: tuple(tensor.shape) for n, tensor in held.items()} == wanted
    assert {t.dtype for n, t in held.items() if n not in ("d2t", "t2d")} == {torch.float16}
    assert head.mask_id == mask_id or mask_id is None
    assert head.needs == tuple(fields.get(IDS) or fused_layers(num_layers))
    assert head.facts()["head_layers"] == layers and head.num_ids == fields["draft_vocab_size"]
    assert head.module.borrowed == (head.module.embed_tokens, None)
    assert capsys.readouterr().err == ""


SAME = [  # changes that draft nothing else
    {"rename": lambda name: name.replace("midlayer.", "layers.0.")},
    {"edit": lambda tensors: tensors.update(mask_hidden=tensors["mask_hidden"][0])},
    {"edit": lambda tensors: tensors.update({"layers.1.hidden_norm.weight": torch.ones(64)})},
    {"edit": lambda tensors: tensors.pop("t2d")},
    {"mask_token_id": None, "pard_token": 3},
    {"ptd_token_id": 9},  # the first of the three names counts, as in vLLM
    {"norm_output": True},
]


@pytest.mark.parametrize("changes", SAME)
def test_variants_of_a_file_draft_the_same(tmp_path, changes):
    target, path = target_of("eagle3", torch.float32), new_peagle(tmp_path)

    def drafted():
        flags = ["--eagle-path", path, "--num-draft", 5]
        drafter = script.build(parsed(script, "peagle", *flags), target)
        return facts(decode(target, drafter, loopy_prompts(), 12))

    expected = drafted()
    change(path, **changes)
    assert drafted() == expected


def drop(name):
    return {"edit": lambda tensors: tensors.pop(name)}


def put(name, *shape):
    return {"edit": lambda tensors: tensors.update({name: torch.ones(shape)})}


REFUSED = [  # (changes, words of the line)
    (drop("mask_hidden"), "no tensor mask_hidden.weight, expected (1, 192)"),
    (put("mask_hidden", 1, 1, 64), "tensor mask_hidden.weight is (1, 64), expected (1, 192)"),
    (drop("layers.1.mlp.up_proj.weight"), "no tensor layers.1.mlp.up_proj.weight"),
    (put("layers.3.mlp.up_proj.weight", 96, 64), "no tensor layers.2."),
    (put("layers.1.self_attn.q_norm.weight", 16), "unknown tensor layers.1.self_attn.q_norm"),
    ({"mask_token_id": None}, "no mask_token_id, pard_token, ptd_token_id; --mask-id says"),
    ({"mask_token_id": 17}, "the mask token's id 17 is not below 17"),
    ({"mask_token_id": -1}, "the mask token's id -1 is not below 17"),
    ({"mask_token_id": "mask"}, "'mask' is no id of a mask token"),
    ({"speculators_model_type": "eagle3"}, "speculators_model_type eagle3, peagle is needed"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "all have to be alike"),
    ({"eagle_config": {"parallel_draft_step": 4}}, "parallel_draft_step 4 is not supported"),
    ({"logit_scale": 0.5}, "logit_scale 0.5 is not supported"),
]


@pytest.mark.parametrize("changes, line", REFUSED, ids=[line for _, line in REFUSED])
def test_bad_heads_are_one_line(tmp_path, changes, line):
    path = new_peagle(tmp_path)
    change(path, **changes)
    with pytest.raises(BadInput) as error:
        load_peagle(path, target_of("eagle3", torch.float32))
    message = str(error.value)
    assert line in message and message.startswith(path) and "\n" not in message


def test_flags(tmp_path):
    """Whose head it is is said by both methods; no tree, only chains."""
    target, path = target_of("eagle3", torch.float32), new_peagle(tmp_path)

    def build(*flags):
        return script.build(parsed(script, "peagle", "--eagle-path", path, *flags), target)

    drafter = build()
    assert (drafter.max_nodes, drafter.max_depth) == (5, None)
    assert drafter.needs == Needs(hidden=(2, 4, 5)) and drafter.head.mask_id == 3
    assert build("--mask-id", 11, "--num-draft", 8).head.mask_id == 11
    with pytest.raises(BadInput, match="--mask-id 17 is not below 17, the target's vocabulary"):
        build("--mask-id", 17)
    with pytest.raises(BadInput, match="a P-EAGLE head .* is the method peagle's"):
        load_eagle3(path, target)


def test_layer_ids_of_other_layers(tmp_path):
    """Of speculators they count inputs; of others --layer-ids says it."""
    path = new_peagle(tmp_path, **{IDS: [1, 3, 6]})
    target = target_of("eagle3", torch.float32)
    with pytest.raises(BadInput, match="--layer-ids says whether"):
        load_peagle(path, target)
    assert load_peagle(path, target, "inputs").needs == (1, 3, 6)
    nest(path, speculators_model_type="peagle")
    assert load_peagle(path, target).needs == (1, 3, 6)
