"""Random acceptance heads, in memory and in directories of the published format."""

import functools
import json
import tempfile
from pathlib import Path

import torch
from head_dirs import randomize

from model.common.heads.checkpoint import save_checkpoint
from model.specdecpp.heads import AcceptanceHead, state_to_save


def make_head(hidden_size=64, num_layers=3, tied=True, seed=0, scale=0.2, lean=1.0):
    """A random head; lean: added to the logit of "accepted"."""
    head = randomize(AcceptanceHead(hidden_size, num_layers, tied), seed, scale)
    with torch.no_grad():
        head.output.bias[1] += lean
    return head.requires_grad_(False)


@functools.cache
def specdecpp_dir(draft_path: str) -> str:
    """A random head for the draft model in a directory."""
    draft = json.loads((Path(draft_path) / "config.json").read_text())
    head = make_head(draft["hidden_size"])
    folder = tempfile.mkdtemp()
    config = {"hidden_size": head.hidden_size, "num_layers": head.num_layers}
    save_checkpoint(folder, config, "pytorch_model.bin", state_to_save(head))
    return folder
