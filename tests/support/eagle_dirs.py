"""Directories of random EAGLE heads in the published formats, for tiny targets."""

import json
from pathlib import Path

import torch

from model.common.heads.checkpoint import read_config, read_tensors, save_checkpoint

FILE = "pytorch_model.bin"
WIDTHS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}


def head_config(model_path: str, **changes) -> dict:
    """A head's config.json for the target in a directory."""
    target = json.loads((Path(model_path) / "config.json").read_text())
    config = {name: target[name] for name in ("hidden_size", "vocab_size")}
    return {**config, **WIDTHS, "rms_norm_eps": 1e-6, "num_hidden_layers": 1, **changes}


def layer_shapes(prefix: str, config: dict, input_size: int) -> dict:
    """Shapes of a layer's attention and MLP under a prefix."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    dim = config.get("head_dim") or width // heads
    keys = dim * config.get("num_key_value_heads", heads)
    rows = {"q": dim * heads, "k": keys, "v": keys}
    shapes = {f"{prefix}.self_attn.{n}_proj.weight": (size, input_size) for n, size in rows.items()}
    if config.get("qkv_bias", config.get("attention_bias")):
        shapes |= {f"{prefix}.self_attn.{name}_proj.bias": (size,) for name, size in rows.items()}
        if "qkv_bias" not in config:  # as transformers' Llama
            shapes[f"{prefix}.self_attn.o_proj.bias"] = (width,)
    return shapes | {
        f"{prefix}.self_attn.o_proj.weight": (width, dim * heads),
        f"{prefix}.mlp.gate_proj.weight": (inner, width),
        f"{prefix}.mlp.up_proj.weight": (inner, width),
        f"{prefix}.mlp.down_proj.weight": (width, inner),
        f"{prefix}.post_attention_layernorm.weight": (width,),
    }


def eagle_shapes(config: dict) -> dict:
    """EAGLE-1/2: fc, one layer without an input norm, a copy of the embedding."""
    width = config["hidden_size"]
    shapes = {"fc.weight": (width, 2 * width), "fc.bias": (width,)}
    if not config.get("bias", True):
        del shapes["fc.bias"]
    shapes |= layer_shapes("layers.0", config, width)
    return shapes | {"embed_tokens.weight": (config["vocab_size"], width)}


def eagle3_shapes(config: dict, states: int = 3) -> dict:
    """EAGLE-3: fc over the target's states and what norms the config asks for, midlayer, norm,
    lm_head; maps of a smaller vocabulary, an embedding where the width is not the target's."""
    width, vocab = config["hidden_size"], config["vocab_size"]
    read, rows = config.get("target_hidden_size") or width, config["draft_vocab_size"]
    shapes = {"fc.weight": (width, states * read), **layer_shapes("midlayer", config, 2 * width)}
    shapes |= {"midlayer.hidden_norm.weight": (width,), "midlayer.input_layernorm.weight": (width,)}
    shapes |= {"norm.weight": (width,), "lm_head.weight": (rows, width)}
    if config.get("norm_before_fc"):
        shapes["input_norm.weight"] = (states * read,)
    if config.get("fc_norm"):
        shapes |= {f"fc_norm.{state}.weight": (read,) for state in range(states)}
    if rows != vocab:
        shapes |= {"d2t": (rows,), "t2d": (vocab,)}
    if read != width:
        shapes["embed_tokens.weight"] = (vocab, width)
    return shapes


def peagle_shapes(config: dict, states: int = 3, layers: int = 2) -> dict:
    """P-EAGLE: EAGLE-3's with further layers, an embedding and the mask state."""
    width, vocab = config["hidden_size"], config["vocab_size"]
    shapes = eagle3_shapes(config, states)
    for layer in range(1, layers):
        name = f"layers.{layer}"
        shapes |= layer_shapes(name, config, width) | {f"{name}.input_layernorm.weight": (width,)}
    read = config.get("target_hidden_size") or width
    return shapes | {"embed_tokens.weight": (vocab, width), "mask_hidden": (1, 1, states * read)}


def random_tensors(shapes: dict, seed: int, scale: float) -> dict:
    """Normal weights, norms around 1, offsets to random ids."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = scale * torch.randn(shape, generator=generator)
        tensors[name] = values + 1 if "norm" in name else values
    if "d2t" in shapes:
        (rows,), (vocab,) = shapes["d2t"], shapes["t2d"]
        generator.manual_seed(seed)
        ids = torch.randperm(vocab, generator=generator)[:rows].sort().values
        tensors["d2t"] = ids - torch.arange(rows)
        tensors["t2d"] = torch.zeros(vocab, dtype=torch.bool).index_fill(0, ids, True)
    return tensors


def eagle_dir(folder, model_path: str, seed=0, scale=0.15, file=FILE, **changes):
    """A head of EAGLE-1/2; changes: fields of its config."""
    config = head_config(model_path, **changes)
    save_checkpoint(folder, config, file, random_tensors(eagle_shapes(config), seed, scale))
    return str(folder)


def eagle3_dir(
    folder, model_path: str, draft_vocab=None, seed=0, scale=0.15, file=FILE, states=3, **changes
):
    """A head of EAGLE-3 over draft_vocab ids, None = all."""
    config = head_config(model_path, **changes)
    config["draft_vocab_size"] = draft_vocab or config["vocab_size"]
    tensors = random_tensors(eagle3_shapes(config, states), seed, scale)
    save_checkpoint(folder, config, file, tensors)
    return str(folder)


def peagle_dir(
    folder, model_path: str, draft_vocab=None, seed=0, scale=0.15, states=3, layers=2, **changes
):
    """A head of P-EAGLE over draft_vocab ids, None = all."""
    config = head_config(model_path, num_hidden_layers=layers, **changes)
    config.setdefault("mask_token_id", min(3, config["vocab_size"] - 1))
    config["draft_vocab_size"] = draft_vocab or config["vocab_size"]
    tensors = random_tensors(peagle_shapes(config, states, layers), seed, scale)
    save_checkpoint(folder, config, FILE, tensors)
    return str(folder)


def copying_peagle_dir(folder, model_path: str):
    """A head of P-EAGLE that mostly says again what the six rows in its window read, which tiny
    targets do too; the embedding of its mask token is zero."""
    window = {"layer_types": ["sliding_attention"] * 2, "sliding_window": 6}
    path = peagle_dir(folder, model_path, **window)

    def edit(tensors):
        attention, width = "midlayer.self_attn", tensors["norm.weight"].shape[0]
        value, out = (tensors[f"{attention}.{name}_proj.weight"] for name in "vo")
        value[:, width:] = 0  # of the embedding alone
        out *= 6
        table = tensors["embed_tokens.weight"]
        table[read_config(path)["mask_token_id"]] = 0
        size = table.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=1e-9)
        normed = table / size * tensors["midlayer.input_layernorm.weight"]
        heads = (normed @ value[:, :width].T).unflatten(-1, (2, -1)).repeat_interleave(2, 1)
        said = heads.flatten(1) @ out.T  # what the attention makes of every token
        tensors["lm_head.weight"].copy_(torch.nn.functional.normalize(said))

    change(path, edit)
    return path


def change(path, edit=None, rename=None, **config):
    """Rewrite a head with edited tensors, other names and fields of its config."""
    tensors = {name: one.clone() for name, one in read_tensors(f"{path}/{FILE}").items()}
    if edit:
        edit(tensors)
    if rename:
        tensors = {rename(name): tensor for name, tensor in tensors.items()}
    save_checkpoint(path, read_config(path) | config, FILE, tensors)


def nest(path, **config):
    """Write a head's config as speculators does: the layer in transformer_layer_config."""
    fields = read_config(path) | config
    own = ("draft_vocab_size", "norm_before_fc", "norm_output", "fc_norm", "target_hidden_size")
    own += ("eagle_aux_hidden_state_layer_ids", "embed_requires_grad", "architectures")
    own += ("mask_token_id", "speculators_model_type")
    layer = {name: value for name, value in fields.items() if name not in own}
    root = {name: fields[name] for name in own if name in fields}
    root |= {"norm_before_residual": layer.pop("norm_before_residual", False)}
    root = {"speculators_model_type": "eagle3", **root, "speculators_version": "0.8.0.dev0"}
    root["transformer_layer_config"] = {"model_type": "llama", **layer}
    Path(path, "config.json").write_text(json.dumps(root))
