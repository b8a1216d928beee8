"""Directories of random EAGLE heads in the published formats, for tiny targets."""

import json
from pathlib import Path

import torch

from model.common.heads.checkpoint import save_checkpoint

WIDTHS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}


def head_config(model_path: str, **changes) -> dict:
    """A head's config.json for the target in a directory."""
    target = json.loads((Path(model_path) / "config.json").read_text())
    config = {name: target[name] for name in ("hidden_size", "vocab_size")}
    return {**config, **WIDTHS, "rms_norm_eps": 1e-6, "num_hidden_layers": 1, **changes}


def llama_shapes(prefix: str, config: dict, input_size: int) -> dict:
    """Shapes of a layer's attention and MLP under a prefix."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    return {
        f"{prefix}.self_attn.q_proj.weight": (width, input_size),
        f"{prefix}.self_attn.k_proj.weight": (keys, input_size),
        f"{prefix}.self_attn.v_proj.weight": (keys, input_size),
        f"{prefix}.self_attn.o_proj.weight": (width, width),
        f"{prefix}.mlp.gate_proj.weight": (inner, width),
        f"{prefix}.mlp.up_proj.weight": (inner, width),
        f"{prefix}.mlp.down_proj.weight": (width, inner),
        f"{prefix}.post_attention_layernorm.weight": (width,),
    }


def random_tensors(shapes: dict, seed: int, scale: float) -> dict:
    """Normal weights, norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = scale * torch.randn(shape, generator=generator)
        tensors[name] = values + 1 if "norm" in name else values
    return tensors


def eagle_dir(folder, model_path: str, seed=0, scale=0.15, file="pytorch_model.bin", **changes):
    """EAGLE-1/2: fc, one layer without an input norm, a copy of the embedding."""
    config = head_config(model_path, **changes)
    width = config["hidden_size"]
    shapes = {"fc.weight": (width, 2 * width)}
    if config.get("bias", True):
        shapes["fc.bias"] = (width,)
    shapes |= llama_shapes("layers.0", config, width)
    shapes["embed_tokens.weight"] = (config["vocab_size"], width)
    save_checkpoint(folder, config, file, random_tensors(shapes, seed, scale))
    return str(folder)


def eagle3_dir(folder, model_path: str, draft_vocab=None, seed=0, scale=0.15, **changes):
    """EAGLE-3: fc over three states, midlayer, norm, lm_head, and maps of a smaller vocabulary."""
    config = head_config(model_path, **changes)
    config["draft_vocab_size"] = draft_vocab or config["vocab_size"]
    width, vocab = config["hidden_size"], config["vocab_size"]
    shapes = {"fc.weight": (width, 3 * width), **llama_shapes("midlayer", config, 2 * width)}
    shapes |= {"midlayer.hidden_norm.weight": (width,), "midlayer.input_layernorm.weight": (width,)}
    shapes |= {"norm.weight": (width,), "lm_head.weight": (config["draft_vocab_size"], width)}
    tensors = random_tensors(shapes, seed, scale)
    if draft_vocab:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randperm(vocab, generator=generator)[:draft_vocab].sort().values
        tensors["d2t"] = ids - torch.arange(draft_vocab)
        tensors["t2d"] = torch.zeros(vocab, dtype=torch.bool).index_fill(0, ids, True)
    save_checkpoint(folder, config, "pytorch_model.bin", tensors)
    return str(folder)
