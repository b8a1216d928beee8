"""Files of block drafters as they are published: every tensor and field finds its place."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model
from dflash_checks import (
    EMBEDDED,
    QWEN,
    QWEN4,
    SHAPE,
    head_dir,
    meta_target,
    open_as,
    target_of,
)
from dflash_dirs import DFLASH2, DSPARK, dflash_shapes

from model.common.errors import BadInput
from model.common.heads.checkpoint import is_copy
from model.common.target.model import Target
from model.dflash import head as heads
from model.dflash.config import read_causal, read_states, read_windows, spread_layers

FIVE = [1, 9, 17, 25, 33]
QWEN8 = {**QWEN, "hidden_size": 4096, "intermediate_size": 12288, "num_target_layers": 36}
GLIMMER = {
    **{"hidden_size": 6656, "intermediate_size": 19968, "num_hidden_layers": 5, "head_dim": 128},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5},
    **{"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}, "hidden_act": "silu"},
    **{"max_position_embeddings": 131072, "sliding_window": 2048, "block_size": 16},
    **{"layer_types": ["sliding_attention"] * 5, "mask_token_id": 201818},
    **{"target_layer_ids": [1, 13, 25, 37, 49]},
}
META = {**GLIMMER, "architectures": ["MuseGlimmerAssistantModel"]}
META |= {"model_type": "muse_glimmer_assistant", "attention_dropout": 0, "dtype": "bfloat16"}
SECOND = {**DFLASH2, "conv_group_size": 16, "selector_rank": 256, "selector_top_k": 16}
SECOND_PARTS = (*SECOND, "block_size", "mask_token_id", "target_layer_ids")
QWEN27 = {  # against heads of 256 and an embedding of 248,320 of its target
    **{**QWEN, "architectures": ["DFlash2DraftModel"], "hidden_size": 5120, "vocab_size": 248320},
    **{"intermediate_size": 17408, "num_target_layers": 64, "block_size": 8, **SECOND},
    **{"layer_types": ["sliding_attention"] * 5, "sliding_window": 2048, "is_causal": False},
    **{"mask_token_id": 248070, "target_layer_ids": [5, 19, 33, 47, 61]},
}
PUBLISHED = {  # config flat, fields in dflash_config, target's layers, parameters
    "z-lab Qwen3-4B": (
        {**QWEN4, "block_size": 16, "target_layer_ids": FIVE, "mask_token_id": 151669},
        ("target_layer_ids", "mask_token_id"),
        36,
        537_427_200,
    ),
    "z-lab Qwen3-8B": (
        {**QWEN8, "block_size": 16, "mask_token_id": 151669},
        ("mask_token_id",),
        36,
        1_048_626_432,
    ),
    "z-lab, newer": (
        {**QWEN4, "block_size": 16, "target_layer_ids": FIVE, "mask_token_id": 151669},
        ("target_layer_ids", "mask_token_id", "block_size"),
        36,
        537_427_200,
    ),
    "third party": (
        {**QWEN4, "block_size": 10, "target_layer_ids": FIVE, "mask_token_id": 151669},
        (),
        36,
        537_427_200,
    ),
    "SpecForge Qwen3-32B": (
        {
            **{**QWEN, "hidden_size": 5120, "intermediate_size": 25600, "num_target_layers": 64},
            **{"num_attention_heads": 64, "num_hidden_layers": 10, "block_size": 16},
            **{"layer_types": ["full_attention"] * 10, "mask_token_id": 151669},
        },
        ("mask_token_id",),
        64,
        None,
    ),
    "Meta Glimmer": (META, (), 52, 2_555_985_152),
    "DFlash2 Glimmer": (
        {
            **{**GLIMMER, **SECOND, "architectures": ["DFlash2DraftModel"], "is_causal": False},
            **{"vocab_size": 202048, "model_type": "qwen3", "output_multiplier": 0.196},
            "final_logit_softcapping": 20.0,
        },
        (*SECOND_PARTS, "output_multiplier", "final_logit_softcapping"),
        52,
        2_772_159_744,
    ),
    "DFlash2 Qwen3.8-27B": (QWEN27, SECOND_PARTS, 64, None),
    "speculators Qwen3-8B": (
        {
            **{**QWEN8, "block_size": 8, "mask_token_id": 151669, "draft_vocab_size": 32000},
            **{"aux_hidden_state_layer_ids": [2, 18, 33], "speculators_model_type": "dflash"},
            **{"sample_from_anchor": False, "sliding_window_non_causal": False},
            **{"architectures": ["DFlashSpeculator"], "max_anchors": 3072},
        },
        (),
        36,
        None,
    ),
    "DeepSpec Qwen3-4B": (
        {
            **{**QWEN4, **DSPARK, "markov_rank": 0, "enable_confidence_head": False},
            **{"block_size": 7, "target_layer_ids": FIVE, "mask_token_id": 151669},
        },
        (),
        36,
        537_427_200,
    ),
}
SPECULATORS = ("block_size", "mask_token_id", "draft_vocab_size", "aux_hidden_state_layer_ids")
SPECULATORS += ("speculators_model_type", "sample_from_anchor", "sliding_window_non_causal")
SPECULATORS += ("architectures", "max_anchors")


def as_stored(name, fields, inner):
    """(config as published, tensors' shapes as stored, as the module has them)."""
    config = {field: value for field, value in fields.items() if field not in inner}
    if inner:
        config["dflash_config"] = {field: fields[field] for field in inner}
    ids = fields.get("target_layer_ids") or fields.get("aux_hidden_state_layer_ids")
    wanted = dflash_shapes({"vocab_size": 0, **fields}, len(ids or fields["layer_types"]))
    stored, width = dict(wanted), fields["hidden_size"]
    if name.startswith("speculators"):
        root = {field: fields[field] for field in SPECULATORS}
        layer = {field: value for field, value in fields.items() if field not in root}
        layer.pop("num_target_layers")
        config = {**root, "transformer_layer_config": layer, "speculators_version": "0.5"}
        rows = fields["draft_vocab_size"]
        wanted |= {"lm_head.weight": (rows, width), "d2t": (rows,), "t2d": (151936,)}
        stored = {**wanted, "embed_tokens.weight": (151936, width)}
    if name.startswith("DeepSpec"):
        stored |= {matrix: (151936, width) for matrix in EMBEDDED}
    if name.startswith("Meta"):
        stored = {
            one.replace("fc.", "encoder.fc.").replace(
                "hidden_norm", "encoder.output_norm_enc"
            ): shape
            for one, shape in wanted.items()
        }
    return config, stored, wanted


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_formats(name, monkeypatch, capsys):
    """The whole loader on the meta device; nothing in the config is unknown."""
    fields, inner, layers, told = PUBLISHED[name]
    config, stored, wanted = as_stored(name, fields, inner)
    open_as(monkeypatch, config, stored)
    vocab = fields.get("vocab_size", 202048)
    target = meta_target(fields["hidden_size"], vocab, layers)
    head = heads.load_head("published", target)
    held = head.module.state_dict()
    if "selector_rank" in fields:  # made without a vocabulary's size where the config has none
        wanted = dflash_shapes({**fields, "vocab_size": vocab}, len(fields["target_layer_ids"]))
    assert {one: tuple(tensor.shape) for one, tensor in held.items()} == wanted
    parameters = sum(tensor.numel() for tensor in head.module.parameters())
    assert told is None or parameters == told
    design = head.design
    ids = fields.get("aux_hidden_state_layer_ids")
    outputs = fields.get("target_layer_ids") or spread_layers(layers, fields["num_hidden_layers"])
    assert design.states == tuple(ids or [one + 1 for one in outputs])
    assert design.block_size == fields["block_size"] and design.mask_id == fields["mask_token_id"]
    assert design.num_drafts == fields["block_size"] - (not name.startswith("DeepSpec"))
    slides = "sliding_attention" in fields["layer_types"]
    window = 2049 if name.startswith("Meta") else 2048
    assert set(design.windows) == ({window} if slides else {None}) and not any(design.causal)
    assert head.config.rms_norm_eps == fields["rms_norm_eps"]
    theta = 500000.0 if "Glimmer" in name else 1e6
    inverse = theta ** (-torch.arange(0, 128, 2).float() / 128)
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    assert torch.allclose(LlamaRotaryEmbedding(head.config).inv_freq, inverse)
    assert (design.cap, design.multiplier) == ((20.0, 0.196) if "DFlash2 Gl" in name else (None, 1))
    assert capsys.readouterr().err == ""


def test_layer_ids_of_configs_without_them():
    known = {
        (36, 5): (1, 9, 17, 25, 33),
        (64, 5): (1, 16, 31, 46, 61),
        (28, 5): (1, 7, 13, 19, 25),
        (32, 5): (1, 8, 15, 22, 29),
        (40, 5): (1, 10, 19, 28, 37),
        (52, 5): (1, 13, 25, 37, 49),
        (8, 3): (1, 3, 5),
        (8, 2): (1, 5),
        (8, 1): (4,),
    }
    assert {sizes: spread_layers(*sizes) for sizes in known} == known
    assert read_states({"target_layer_ids": [-1, 2]}, "c", 2, 8) == (0, 3)


BOTH = ["sliding_attention", "full_attention"]
CAUSAL = [  # flat fields, whether each of two layers is causal
    ({"layer_types": BOTH}, (True, False)),
    ({}, (False, False)),
    ({"layer_types": BOTH, "is_causal": False, "causal": True}, (False, False)),
    ({"layer_types": BOTH, "causal": False}, (False, False)),
    ({"causal": True}, (True, True)),
    ({"use_swa": True, "swa_window_size": 4}, (False, False)),
    ({"layer_types": BOTH, "speculators_model_type": "dflash"}, (True, False)),
    (
        {
            **{"layer_types": BOTH, "speculators_model_type": "dflash"},
            "sliding_window_non_causal": True,
        },
        (False, False),
    ),
    ({"layer_types": BOTH, "speculators_model_type": "dflash2"}, (False, False)),
    ({"layer_types": BOTH, "architectures": "MuseGlimmerAssistantModel"}, (False, False)),
]


@pytest.mark.parametrize("fields, wanted", CAUSAL)
def test_which_layers_are_causal(fields, wanted):
    assert read_causal({"architectures": None, **fields}, 2) == wanted


def test_windows():
    swa = {"architectures": None, "use_swa": True, "swa_window_size": 4, "sliding_window": 9}
    assert read_windows(swa, "c", 2) == (4, 4)
    mixed = {"architectures": None, "layer_types": BOTH, "sliding_window": 9}
    assert read_windows(mixed, "c", 2) == (9, None)
    meta = {"architectures": "MuseGlimmerAssistantModel", "sliding_window": 9}
    assert read_windows(meta, "c", 2) == (10, 10)  # as its class in transformers
    plain = {"architectures": None, "sliding_window": 9}
    assert read_windows(plain, "c", 2) == (None, None)


def test_a_mask_embedding_of_its_own_is_refused():
    folder = head_dir()
    Path(folder, "mask_embedding.pt").write_bytes(b"x")
    with pytest.raises(BadInput, match="a mask embedding of its own is not supported"):
        heads.load_head(folder, target_of())


def test_copies_of_the_targets_matrices_are_dropped(capsys):
    """Others are used, and a line says so."""
    model = target_of().model
    table = model.get_input_embeddings().weight.detach().float()
    output = model.get_output_embeddings().weight.detach().float()

    def copies(tensors):
        tensors |= {"embed_tokens.weight": table.clone(), "lm_head.weight": output.clone()}

    def others(tensors):
        tensors |= {"embed_tokens.weight": 2 * table, "lm_head.weight": output.clone()}

    head = heads.load_head(head_dir(edit=copies), target_of())
    assert head.module.borrowed == (model.get_input_embeddings(), model.get_output_embeddings())
    assert not set(EMBEDDED) & set(head.module.state_dict()) and capsys.readouterr().err == ""
    head = heads.load_head(head_dir(edit=others), target_of())
    assert torch.equal(head.module.borrowed[0].weight.float(), 2 * table)
    said = "embed_tokens.weight is not the target's; it is used"
    assert said in capsys.readouterr().err


def test_copies_in_bfloat16_are_known_to_a_target_in_float16(capsys):
    """Which has 1e-6 as a multiple of 6e-8: rounded back it is another number."""
    model, copies = make_model(**SHAPE, dtype=torch.float16), {}
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for name, module in zip(EMBEDDED, ends):
        copies[name] = module.weight.detach().to(torch.bfloat16)
        copies[name][0] = 1e-6 * torch.arange(1, 1 + copies[name].shape[1])
        module.weight.data.copy_(copies[name])
        assert not torch.equal(module.weight.detach().to(torch.bfloat16), copies[name])
    head = heads.load_head(head_dir(edit=lambda tensors: tensors.update(copies)), Target(model))
    assert head.module.borrowed == ends
    assert not set(EMBEDDED) & set(head.module.state_dict()) and capsys.readouterr().err == ""


@pytest.mark.parametrize("file", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_copy_may_be_rounded_as_the_file_or_as_the_target(file, target):
    """What one of two has lost the other may have; a number off by 1 in 64 is another one."""
    wider = torch.promote_types(file, target)
    exact = (torch.tensor([[1e-6, 3e-7, -0.3], [7.0, 1e-3, 0.1]]) * 1.01).to(wider)
    exact = exact.to(torch.bfloat16) if torch.bfloat16 in (file, target) else exact
    module = torch.nn.Linear(3, 2, bias=False, dtype=target)
    module.weight.data.copy_(exact)
    assert is_copy(exact.to(file), module)
    assert not is_copy(exact.to(file) * (1 + 2**-6), module)
    assert not is_copy(exact.to(file)[:1], module)


def test_blocks_of_another_size():
    head = heads.load_head(head_dir(), target_of(), 3)
    assert head.design.num_drafts == 2 and head.facts()["block_size"] == 3
    with pytest.raises(BadInput, match="the root alone drafts nothing"):
        heads.load_head(head_dir(), target_of(), 1)


MINI = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6, "head_dim": 32}
MINI |= {"num_key_value_heads": 2, "vocab_size": 2048, "block_size": 8, "mask_token_id": 2}
MINI |= {"target_layer_ids": [1, 3, 5], "rms_norm_eps": 1e-6}


@pytest.mark.parametrize(
    "layers, more, told",
    [
        (1, {}, 504_640),
        (2, {}, 898_304),
        (3, {}, 1_291_968),
        (2, {"conv_kernel_size": 2, "conv_group_size": 16}, 898_304 + 2 * 19_968),
        (2, {"selector_rank": 32, "selector_top_k": 8}, 898_304 + 137_216),
    ],
)
def test_sizes_of_mini_heads(layers, more, told, monkeypatch):
    fields = {**MINI, "num_hidden_layers": layers, **more}
    open_as(monkeypatch, fields, dflash_shapes(fields, 3))
    head = heads.load_head("mini", meta_target(192, 2048, 8))
    assert sum(tensor.numel() for tensor in head.module.parameters()) == told


def test_a_twin_is_refused():
    with pytest.raises(BadInput, match="--scale-to: a twin has no norms of queries and keys"):
        heads.load_head(head_dir(), SimpleNamespace(twin=object()))
