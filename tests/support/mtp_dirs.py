"""Random multi-token-prediction heads in the published layouts, for tiny targets of their families.

Names and shapes stand here as the files have them, from a config's numbers alone.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FILE = "model.safetensors"


def attention_shapes(config: dict, prefix: str) -> dict:
    """Grouped-query attention, as Llama's, GLM's (with norms and biases) and Qwen's (gated)."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    dim = config.get("head_dim") or hidden // heads
    keys = config["num_key_value_heads"] * dim
    kind = config["model_type"]
    gated = kind.startswith(("qwen3_next", "qwen3_5"))
    rows = {"q": heads * dim * (2 if gated else 1), "k": keys, "v": keys}
    shapes = {f"{prefix}{name}_proj.weight": (size, hidden) for name, size in rows.items()}
    shapes[f"{prefix}o_proj.weight"] = (hidden, heads * dim)
    if kind == "qwen2" or (kind == "glm4_moe" and config.get("attention_bias")):
        shapes |= {f"{prefix}{name}_proj.bias": (size,) for name, size in rows.items()}
    if gated or kind == "qwen3" or config.get("use_qk_norm"):
        shapes |= {f"{prefix}{name}_norm.weight": (dim,) for name in "qk"}
    return shapes


def latent_shapes(config: dict, prefix: str) -> dict:
    """DeepSeek's latent attention."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    low, rank = config["q_lora_rank"], config["kv_lora_rank"]
    turned, plain, value = (config[f"{name}_head_dim"] for name in ("qk_rope", "qk_nope", "v"))
    return {
        f"{prefix}q_a_proj.weight": (low, hidden),
        f"{prefix}q_a_layernorm.weight": (low,),
        f"{prefix}q_b_proj.weight": (heads * (turned + plain), low),
        f"{prefix}kv_a_proj_with_mqa.weight": (rank + turned, hidden),
        f"{prefix}kv_a_layernorm.weight": (rank,),
        f"{prefix}kv_b_proj.weight": (heads * (plain + value), rank),
        f"{prefix}o_proj.weight": (hidden, heads * value),
    }


def mlp_shapes(hidden: int, inner: int, prefix: str) -> dict:
    """Three matrices."""
    up = {f"{prefix}{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
    return up | {f"{prefix}down_proj.weight": (hidden, inner)}


def experts_shapes(config: dict, prefix: str) -> dict:
    """A mixture of experts: stored one by one, but for Qwen3.5's, which are two tensors."""
    hidden, inner, kind = (
        config["hidden_size"],
        config["moe_intermediate_size"],
        config["model_type"],
    )
    num = config.get("n_routed_experts") or config["num_experts"]
    shapes = {f"{prefix}gate.weight": (num, hidden)}
    if kind.startswith("qwen"):
        shared = config["shared_expert_intermediate_size"]
        shapes |= mlp_shapes(hidden, shared, f"{prefix}shared_expert.")
        shapes[f"{prefix}shared_expert_gate.weight"] = (1, hidden)
    else:
        shared = inner * config["n_shared_experts"]
        shapes |= mlp_shapes(hidden, shared, f"{prefix}shared_experts.")
        shapes[f"{prefix}gate.e_score_correction_bias"] = (num,)
    if kind.startswith("qwen3_5"):
        return shapes | {
            f"{prefix}experts.gate_up_proj": (num, 2 * inner, hidden),
            f"{prefix}experts.down_proj": (num, hidden, inner),
        }
    for number in range(num):
        shapes |= mlp_shapes(hidden, inner, f"{prefix}experts.{number}.")
    return shapes


def layer_shapes(config: dict, prefix: str) -> dict:
    """The head's layer."""
    hidden = config["hidden_size"]
    attention = latent_shapes if config["model_type"] == "deepseek_v3" else attention_shapes
    shapes = attention(config, f"{prefix}self_attn.")
    if config.get("moe_intermediate_size"):
        shapes |= experts_shapes(config, f"{prefix}mlp.")
    else:
        shapes |= mlp_shapes(hidden, config["intermediate_size"], f"{prefix}mlp.")
    names = ("input_layernorm", "post_attention_layernorm")
    return shapes | {f"{prefix}{name}.weight": (hidden,) for name in names}


def mtp_shapes(config: dict, layout: str, copies: bool = True) -> dict:
    """{name: shape} of a head as its family's checkpoints have it.

    layout: deepseek, qwen, mimo or speculators; copies: deepseek's, of the target's matrices.
    """
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    prefix, names = {
        "deepseek": (
            f"model.layers.{config['num_hidden_layers']}.",
            ("enorm", "hnorm", "shared_head.norm", "eh_proj"),
        ),
        "qwen": ("mtp.", ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm", "fc")),
        "mimo": (
            "model.mtp_layers.0.",
            ("token_layernorm", "hidden_layernorm", "final_layernorm", "input_proj"),
        ),
        "speculators": (
            "mtp_layers.0.",
            ("token_layernorm", "hidden_layernorm", "final_layernorm", "input_proj"),
        ),
    }[layout]
    *norms, linear = names
    shapes = {f"{prefix}{name}.weight": (hidden,) for name in norms}
    shapes[f"{prefix}{linear}.weight"] = (hidden, 2 * hidden)
    if layout == "deepseek" and copies:
        shapes |= {
            f"{prefix}{name}.weight": (vocab, hidden)
            for name in ("embed_tokens", "shared_head.head")
        }
    return shapes | layer_shapes(config, prefix + ("layers.0." if layout == "qwen" else ""))


def random_head(config: dict, layout: str, seed: int = 3, scale: float = 0.15) -> dict:
    """Random tensors of a head: norms of unlike weights, no copies."""
    generator = torch.Generator().manual_seed(seed)
    centred = config["model_type"].startswith(("qwen3_next", "qwen3_5", "gemma"))
    tensors = {}
    for name, shape in mtp_shapes(config, layout, copies=False).items():
        norm = len(shape) == 1 and "norm" in name
        tensors[name] = torch.randn(shape, generator=generator) * (0.5 if norm else scale)
        if norm and not centred:
            tensors[name] += 1
    return tensors


def add_head(folder: str, layout: str, seed: int = 3, scale: float = 0.15, **tensors) -> str:
    """Put a random head into a target's own checkpoint; tensors: more of them, by name."""
    config = text_config(folder)
    own = load_file(f"{folder}/{FILE}")
    save_file(
        {**own, **random_head(config, layout, seed, scale), **tensors},
        f"{folder}/{FILE}",
        metadata={"format": "pt"},
    )
    return str(folder)


def head_dir(folder, model_path: str, layout: str = "deepseek", seed: int = 3, **more) -> str:
    """A random head in a folder of its own."""
    config = text_config(model_path)
    Path(folder).mkdir(parents=True, exist_ok=True)
    names = ("hidden_size", "vocab_size", "num_hidden_layers")
    fields = {name: config[name] for name in names} | {"num_nextn_predict_layers": 1}
    (Path(folder) / "config.json").write_text(json.dumps(fields))
    save_file(random_head(config, layout, seed, **more), f"{folder}/{FILE}")
    return str(folder)


def family_head(folder, config, seed: int = 3, scale: float = 0.15) -> str:
    """A random head for a target of any family, by transformers' config: DeepSeek's layout."""
    from model.mtp.head import MtpModule, layer_config
    from model.mtp.layouts import LAYOUTS

    generator = torch.Generator().manual_seed(seed)
    prefix, tensors = f"model.layers.{config.num_hidden_layers}.", {}
    for name, tensor in MtpModule(layer_config(config)).state_dict().items():
        values = torch.randn(tensor.shape, generator=generator) * scale
        own = "norm" in name and "gemma" not in config.model_type  # gemma's add the 1 themselves
        tensors[prefix + LAYOUTS[0].published(name)] = values + 1 if own else values
    Path(folder).mkdir(parents=True, exist_ok=True)
    names = ("hidden_size", "vocab_size", "num_hidden_layers")
    fields = {name: getattr(config, name) for name in names}
    (Path(folder) / "config.json").write_text(json.dumps(fields))
    save_file(tensors, f"{folder}/{FILE}")
    return str(folder)


def text_config(folder: str) -> dict:
    """A directory's config, of its text model."""
    config = json.loads((Path(folder) / "config.json").read_text())
    return config.get("text_config") or config
