"""Directories of random Medusa and Hydra heads in the published formats, for tiny targets."""

import functools
import json
import tempfile
from pathlib import Path

import torch

from model.common.heads.checkpoint import save_checkpoint

HYDRA_CONFIG = {
    "grounded_heads": True,
    "hidden_state_offset": 0,
    "hydra_head_arch": "prefix-mlp",
    "hydra_num_heads": 4,
    "hydra_num_layers": 4,
}


def randomize(module, seed=0, scale=0.2):
    """Normal weights in float32, so that heads say something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return module.eval()


def medusa_heads(hidden_size=64, vocab_size=97, num_heads=5, seed=0, **more):
    """Random heads."""
    from model.medusa.heads import MedusaHeads

    return randomize(MedusaHeads(num_heads, hidden_size, vocab_size, **more), seed)


def hydra_heads(config, vocab_size, arch="prefix-mlp", num_heads=4, num_layers=4, seed=0):
    """Random heads for a target of a transformers config."""
    from model.hydra.heads import HydraHeads, layer_config

    config = layer_config(config, vocab_size)
    return randomize(HydraHeads(config, arch, num_heads, num_layers), seed)


@functools.cache
def medusa_dir(model_path: str) -> str:
    """Five random heads for the target in a directory; the config says two, as published ones."""
    target = json.loads((Path(model_path) / "config.json").read_text())
    heads = medusa_heads(target["hidden_size"], target["vocab_size"])
    folder = tempfile.mkdtemp()
    config = {"medusa_num_heads": 2, "medusa_num_layers": 1}
    save_checkpoint(folder, config, "medusa_lm_head.pt", heads.state_dict())
    return folder


@functools.cache
def hydra_dir(model_path: str) -> str:
    """A random prefix layer and four heads for the target in a directory."""
    from transformers import AutoConfig

    from model.hydra.heads import state_to_save

    target = AutoConfig.from_pretrained(model_path)
    heads = hydra_heads(target, target.vocab_size)
    folder = tempfile.mkdtemp()
    save_checkpoint(folder, HYDRA_CONFIG, "hydra_lm_head.pt", state_to_save(heads))
    return folder
