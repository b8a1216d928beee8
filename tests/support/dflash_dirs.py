"""Directories of random DFlash and DSpark heads in the published formats, for tiny targets."""

import functools
import json
import tempfile
from pathlib import Path

import eagle_dirs
import torch

from model.common.heads.checkpoint import save_checkpoint

FILE = "model.safetensors"
LAYER = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
LAYER |= {"head_dim": 16, "rms_norm_eps": 1e-6, "num_hidden_layers": 2, "rope_theta": 1e4}
DFLASH2 = {"conv_kernel_size": 2, "conv_group_size": 8, "selector_rank": 4, "selector_top_k": 5}
DSPARK = {
    **{"architectures": ["Qwen3DSparkModel"], "num_anchors": 512, "enable_confidence_head": True},
    **{"markov_rank": 4, "markov_head_type": "vanilla", "confidence_head_with_markov": True},
}
RANK, FOLLOWING = (
    16,
    {3: 3, 0: 5, 5: 0, 9: 3, 4: 0, 8: 0, 10: 0},
)  # pairs that stand often in known answers


def layer_shapes(config: dict) -> dict:
    """Shapes of the layers, Qwen3's with a convolution around each part where a config has one."""
    width, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    taps, group = config.get("conv_kernel_size"), config.get("conv_group_size")
    shapes = {}
    for layer in range(config["num_hidden_layers"]):
        own = {f"self_attn.{n}_proj": (r, width) for n, r in zip("qkv", (queries, keys, keys))}
        own |= {"self_attn.o_proj": (width, queries), "mlp.down_proj": (width, inner)}
        own |= {"self_attn.q_norm": (dim,), "self_attn.k_norm": (dim,)}
        own |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width)}
        own |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
        shapes |= {f"layers.{layer}.{name}.weight": shape for name, shape in own.items()}
        for conv in ("attention_conv", "mlp_conv") if taps else ():
            shapes[f"layers.{layer}.{conv}.base_kernel"] = (2, taps, width)
            rows = 2 * taps * width // group
            shapes[f"layers.{layer}.{conv}.kernel_projection.weight"] = (rows, width)
    return shapes


def dflash_shapes(config: dict, num_states: int) -> dict:
    """All tensors of a DFlash or DFlash2 head of flat fields."""
    width, vocab, rank = config["hidden_size"], config["vocab_size"], config.get("selector_rank")
    shapes = {"fc.weight": (width, num_states * width), "hidden_norm.weight": (width,)}
    shapes |= {"norm.weight": (width,), **layer_shapes(config)}
    if rank:
        shapes |= {
            "candidate_selector.predecessor_codebook": (vocab, rank),
            "candidate_selector.successor_codebook": (vocab, rank),
            "candidate_selector.hidden_projection.weight": (rank, width),
        }
    return shapes


def dspark_shapes(config: dict, num_states: int) -> dict:
    """All tensors of a DSpark head but the copies of the target's."""
    width, vocab = config["hidden_size"], config["vocab_size"]
    rows, rank = config.get("draft_vocab_size") or vocab, config["markov_rank"]
    shapes = dflash_shapes(config, num_states)
    if rank:
        shapes |= {"markov_head.markov_w1.weight": (vocab, rank)}
        shapes |= {"markov_head.markov_w2.weight": (rows, rank)}
    if config.get("markov_head_type") == "gated":
        shapes["markov_head.gate_proj.weight"] = (rank, width + rank)
        shapes["markov_head.gate_proj.bias"] = (rank,)
    if config.get("markov_head_type") == "rnn":
        shapes["markov_head.joint_proj.weight"] = (3 * rank, 2 * rank + width)
        shapes["markov_head.joint_proj.bias"] = (3 * rank,)
    if config.get("enable_confidence_head"):
        more = rank if config["confidence_head_with_markov"] else 0
        shapes |= {"confidence_head.proj.weight": (1, width + more)}
        shapes |= {"confidence_head.proj.bias": (1,)}
    return shapes


def random_tensors(shapes: dict, seed: int, scale: float) -> dict:
    """Normal weights, norms around 1, plain taps near 1 and 0."""
    tensors = eagle_dirs.random_tensors(shapes, seed, scale)
    for name, tensor in tensors.items():
        if name.endswith("base_kernel"):
            tensor[:, 0] += 1
    return tensors


def target_fields(model_path: str) -> dict:
    """config.json of a target."""
    return json.loads((Path(model_path) / "config.json").read_text())


def block_dir(folder, model_path, seed=0, scale=0.2, states=2, edit=None, **fields) -> str:
    """A random head for the target in a directory, its config flat; edit(tensors) at last."""
    target = target_fields(model_path)
    config = {name: target[name] for name in ("hidden_size", "vocab_size")}
    config |= {**LAYER, "block_size": 5, "mask_token_id": 3}
    config["target_layer_ids"] = list(range(states))
    config |= fields
    config["mask_token_id"] = min(config["mask_token_id"], config["vocab_size"] - 1)
    make = dspark_shapes if "markov_rank" in config else dflash_shapes
    tensors = random_tensors(make(config, len(config["target_layer_ids"])), seed, scale)
    if edit:
        edit(tensors)
    save_checkpoint(folder, config, FILE, tensors)
    return str(folder)


# seeds and masks with which random blocks often hit the conformance tests' answers
@functools.cache
def dflash_dir(model_path: str) -> str:
    """A random DFlash head for a target."""
    return block_dir(tempfile.mkdtemp(), model_path, 1, 0.4, mask_token_id=9)


@functools.cache
def dflash2_dir(model_path: str) -> str:
    """A random DFlash2 head for a target."""
    return block_dir(tempfile.mkdtemp(), model_path, 7, 0.4, **DFLASH2)


def knows_pairs(tensors: dict) -> None:
    """Have a Markov head of RANK draft what FOLLOWING says, most of the time."""
    first, second = (tensors[f"markov_head.markov_{part}.weight"] for part in ("w1", "w2"))
    first[: len(second)] += torch.eye(RANK).repeat(len(second) // RANK + 1, 1)[: len(second)]
    for before, token in FOLLOWING.items():
        if max(before, token) < len(second):
            second[token, before] += 8
    if (joint := tensors.get("markov_head.joint_proj.weight")) is not None:
        joint[2 * RANK :, RANK : 2 * RANK] += 2 * torch.eye(RANK)


@functools.cache
def dspark_dir(model_path: str, kind: str = "vanilla") -> str:
    """A DSpark head for a target, random but for some pairs of tokens."""
    fields = {**DSPARK, "markov_head_type": kind, "markov_rank": RANK}
    return block_dir(tempfile.mkdtemp(), model_path, 1, edit=knows_pairs, **fields)
