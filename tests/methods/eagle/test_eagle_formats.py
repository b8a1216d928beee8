"""The files of EAGLE heads as they are published: every tensor and field finds its place."""

import pytest
import torch
from eagle_checks import KINDS, meta_target, open_published, published_tensors
from eagle_dirs import eagle3_shapes, eagle_shapes
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from model.eagle3.config import IDS, fused_layers

COMMON = {  # fields that published heads have and that change nothing
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "use_cache": True},
    **{"initializer_range": 0.02, "max_position_embeddings": 2048, "tie_word_embeddings": False},
    **{"torch_dtype": "float16", "transformers_version": "4.28.1", "rms_norm_eps": 1e-6},
}
SPECFORGE = {
    **{"architectures": ["LlamaForCausalLMEagle3"], "attention_bias": False, "rope_scaling": None},
    **{"attention_dropout": 0.0, "max_window_layers": 48, "sliding_window": None},
    **{"use_sliding_window": False, "num_hidden_layers": 1},
}
SPECULATORS = {
    **{"architectures": ["Eagle3DraftModel"], "auto_map": {"": "config.Eagle3SpeculatorConfig"}},
    **{"speculators_model_type": "eagle3", "speculators_version": "0.8.0.dev0", "fc_norm": False},
    **{"speculators_config": {"algorithm": "eagle3"}, "embed_requires_grad": False},
    **{"target_hidden_size": None, "norm_before_residual": True, "norm_before_fc": False},
}
NVIDIA = {
    **{"use_aux_hidden_state": True, "use_last_layernorm": True, "use_mtp_layernorm": False},
    **{"use_input_layernorm_in_first_layer": True, "parallel_draft_step": 1},
}
YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn", "truncate": False}
YARN["original_max_position_embeddings"] = 4096
OLDER = {"max_position_embeddings": None, "max_sequence_length": 2048}
LLAMA3 = {"bias": False, "rope_theta": 5e5, "rms_norm_eps": 1e-5}
FORTY = {"draft": 32000, "num_hidden_layers": 40}  # where one layer is stored


def sizes(width, inner, heads, vocab, keys=None, draft=None, **more):
    """Fields of a head's config."""
    config = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": heads}
    config |= {"num_key_value_heads": keys} if keys else {}
    return COMMON | config | {"vocab_size": vocab, "draft_vocab_size": draft} | more


SPECFORGE = sizes(2048, 12288, 32, 151936, 4, 32000, head_dim=128, fc_norm=True) | SPECFORGE
QWEN3 = sizes(4096, 12288, 32, 151936, 8, 32000, head_dim=128)
WINDOW = {"layer_types": ["sliding_attention"], "sliding_window": 2048, "use_sliding_window": True}
LATER = {"norm_before_fc": True, "norm_output": True, IDS: [2, 46, 91, 93], **WINDOW}
GPT_OSS = sizes(2880, 17280, 64, 201088, 8, 201088, head_dim=64)
GPT_OSS["eagle_config"] = {IDS: [1, 17, 32], "norm_before_fc": True, **NVIDIA}
NEBIUS = sizes(2880, 11520, 64, 201088, 8, 64000, head_dim=64, rope_theta=150000)
NEBIUS |= {"rope_scaling": YARN, "truncated_vocab_size": 64000}
PUBLISHED = {  # (version, layers of the target, config, parameters without embedding, file's GB)
    "Vicuna-7B": (1, 32, sizes(4096, 11008, 32, 32000), 235_937_792, 1.468),
    "Vicuna-13B": (1, 40, sizes(5120, 13824, 40, 32000), 369_633_280, 2.134),
    "Vicuna-33B": (1, 60, sizes(6656, 17920, 52, 32000, 13, **OLDER), 557.2e6, 3.081),
    "LLaMA3-8B": (1, 32, sizes(4096, 14336, 32, 128256, 8, **LLAMA3), 251.7e6, 1.554),
    "Qwen2-7B": (1, 28, sizes(3584, 18944, 28, 152064, 4, qkv_bias=True)),
    "LLaMA3.1-8B": (3, 32, sizes(4096, 14336, 32, 128256, 8, 32000), 424_689_664, 0.850),
    "Vicuna1.3-13B": (3, 40, sizes(5120, 13824, 40, 32000, **FORTY), 638_341_120, 1.277),
    "AngelSlim Qwen3-32B": (3, 64, sizes(5120, 25600, 64, 151936, 8, 32000, head_dim=80)),
    "SpecForge Qwen3-30B 3.1": (3, 48, SPECFORGE),
    "speculators Qwen3-8B": (3, 36, QWEN3 | SPECULATORS | {IDS: [2, 18, 33]}),
    "speculators Qwen3-235B": (3, 94, QWEN3 | SPECULATORS | LATER),
    "NVIDIA gpt-oss-120b": (3, 36, GPT_OSS),
    "nebius gpt-oss-20b": (3, 24, NEBIUS),
    "Automodel LLaMA-8B": (3, 32, sizes(4096, 14336, 32, 128256, 8, 32000)),
}


def as_stored(name, version, config):
    """({tensor's name as stored: shape}, {as the module has it: shape}, config as stored)."""
    states = len(config.get(IDS) or range(3))
    nested = config.get("eagle_config", {})
    shapes = eagle_shapes(config) if version == 1 else eagle3_shapes(config | nested, states)
    held, stored = dict(shapes), dict(shapes)
    held.pop("embed_tokens.weight", None)
    if "speculators" in name or "NVIDIA" in name:
        stored = {n.replace("midlayer", "layers.0"): shape for n, shape in shapes.items()}
        stored["embed_tokens.weight"] = (config["vocab_size"], config["hidden_size"])
    if "speculators" in name:
        root = {*SPECULATORS, IDS, "draft_vocab_size", "norm_output"}
        layer = {field: value for field, value in config.items() if field not in root}
        config = {field: config[field] for field in root & {*config}}
        config["transformer_layer_config"] = layer
    if "NVIDIA" in name:  # the base's output matrix is not copied
        del stored["lm_head.weight"], held["lm_head.weight"]
    if "Automodel" in name:
        own = ("d2t", "t2d", "lm_head.weight")
        stored = {n if n in own else f"model.{n}": shape for n, shape in shapes.items()}
    return stored, held, config


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_formats(name, monkeypatch, capsys):
    """The whole loader on the meta device: each tensor of the file finds its place, cast; nothing
    in the config is unknown."""
    version, layers, fields, *sized = PUBLISHED[name]
    told, gigabytes = sized or (None, None)
    shapes, wanted, config = as_stored(name, version, fields)
    kept = torch.float32 if version == 1 and "Vicuna" in name else torch.float16
    tensors = published_tensors(shapes, fields, kept)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert gigabytes is None or abs(size / 1e9 - gigabytes) < 0.001
    open_published(monkeypatch, config, tensors)
    width, target = fields["hidden_size"], meta_target(fields, layers)
    head = KINDS["eagle" if version == 1 else "eagle3"].load("published", target)
    held = head.module.state_dict()
    assert {n: tuple(tensor.shape) for n, tensor in held.items()} == wanted
    assert {t.dtype for n, t in held.items() if n not in ("d2t", "t2d")} == {torch.float16}
    parameters = sum(tensor.numel() for tensor in head.module.parameters())
    assert told is None or abs(parameters - told) < (1 if isinstance(told, int) else 5e4)
    output = None if "lm_head.weight" in wanted else target.model.get_output_embeddings()
    assert head.module.borrowed == (target.model.get_input_embeddings(), output)
    if version == 3:
        usual = tuple(fields.get(IDS) or fused_layers(layers))
        assert head.needs == (fused_layers(layers) if "NVIDIA" in name else usual)
        assert (head.offsets is not None) == ("d2t" in shapes)
        assert head.num_ids == fields["draft_vocab_size"]
    wired = "speculators Qwen3-235B" == name
    assert head.config.window == (2048 if wired else None)
    said = "norm_before_fc norm_output norm_before_residual"
    assert (head.facts().get("wiring") == said) == wired
    if fields.get("rope_scaling") is None:
        dim = fields.get("head_dim") or width // fields["num_attention_heads"]
        wanted = fields.get("rope_theta", 1e4) ** (-torch.arange(0, dim, 2).float() / dim)
        assert torch.allclose(LlamaRotaryEmbedding(head.config).inv_freq, wanted)
    assert head.config.rms_norm_eps == fields["rms_norm_eps"] and capsys.readouterr().err == ""
