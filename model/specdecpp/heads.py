"""The acceptance head: from the draft model's hidden state, whether the target keeps the token.

Source: Huang, Guo, Wang, arXiv 2405.19715; tensor names of hacky/acchead-llama2-chat-7bx70b
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.common.errors import BadInput
from model.common.heads.checkpoint import Checkpoint, check_fields

HEAD_FILES = ("model.safetensors", "pytorch_model.bin")


class AcceptanceHead(nn.Module):
    """Residual blocks x + SiLU(W x + b), then two logits: refused, accepted.

    tied  all blocks are one and the same, as in the published heads
    """

    def __init__(self, hidden_size: int, num_layers: int, tied: bool = True):
        super().__init__()
        self.hidden_size, self.num_layers = hidden_size, num_layers
        num_own = min(num_layers, 1) if tied else num_layers
        self.blocks = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(num_own))
        self.output = nn.Linear(hidden_size, 2)

    def forward(self, states: Tensor) -> Tensor:
        """Logits [.., 2] of hidden states after the final norm [.., H]."""
        for layer in range(self.num_layers):
            states = states + nn.functional.silu(self.blocks[layer % len(self.blocks)](states))
        return self.output(states)

    def accepted(self, states: Tensor) -> Tensor:
        """Probability [..] that the token which made the states [.., H] is accepted."""
        return self(states.to(self.output.weight.dtype)).float().softmax(-1)[..., 1]


def file_names(num_layers: int, num_own: int) -> dict[str, str]:
    """{name in the file: name in the module}; num_own blocks are told apart.

    >>> [own for name, own in file_names(2, 1).items() if name.endswith("weight")]
    ['blocks.0.weight', 'blocks.0.weight', 'output.weight']
    """
    names = {}
    for part in ("weight", "bias"):
        for layer in range(num_layers):
            names[f"model.{layer}.linear.{part}"] = f"blocks.{layer % num_own}.{part}"
        names[f"model.{num_layers}.{part}"] = f"output.{part}"
    return dict(sorted(names.items()))


def load_head(path: str, hidden_size: int, device) -> AcceptanceHead:
    """The float32 head of a directory or hub id for draft states of hidden_size.

    A file that names one block stands for tied blocks; one that names all of them with the same
    content is loaded as tied too. Raises BadInput: a head of another width, a missing, unknown or
    misshapen tensor, some of several blocks.
    """
    checkpoint = Checkpoint(path, HEAD_FILES)
    check_fields(checkpoint.config, f"{path}/config.json", ("hidden_size", "num_layers"))
    width, num_layers = _size(checkpoint, "hidden_size", 1), _size(checkpoint, "num_layers", 0)
    if width != hidden_size:
        raise BadInput(f"{path}: a head of {width} numbers, the draft model has {hidden_size}")
    stored = checkpoint.tensors
    present = [j for j in range(num_layers) if f"model.{j}.linear.weight" in stored]
    tied = num_layers > 1 and _are_one(stored, present)
    with torch.device("meta"):
        head = AcceptanceHead(width, num_layers, tied)
    names = file_names(num_layers, max(len(head.blocks), 1))
    state = head.state_dict()
    spare = [name for name in names if tied and name not in stored and ".linear." in name]
    kept = f"model.{present[0]}." if present else ""
    checkpoint.check({name: state[own] for name, own in names.items()}, tuple(spare))
    checkpoint.tensors = {
        own: stored[name]
        for name, own in names.items()
        if not (tied and ".linear." in name) or name.startswith(kept)
    }
    checkpoint.load_into(head, torch.float32, device)
    return head.eval()


def grown_head(head: AcceptanceHead, draft) -> AcceptanceHead:
    """A head loaded for `draft.origin` at the draft model's own size, see Target.grown()."""

    def make(config):
        return AcceptanceHead(config.hidden_size, head.num_layers, len(head.blocks) < 2)

    kinds = {r"blocks\.\d+": "state", "output": "output"}  # see corner.KINDS
    return draft.grown(head, draft.origin.config, make, kinds, torch.float32)[0]


def _size(checkpoint: Checkpoint, field: str, low: int) -> int:
    value = checkpoint.get(field, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise BadInput(f"{checkpoint.path}/config.json: {field} is {value!r}")
    return value


def _are_one(stored: dict, present: list[int]) -> bool:
    """Whether the blocks in the file are all the same one."""
    if not present:
        return False
    parts = [f".linear.{part}" for part in ("weight", "bias")]
    first = [stored.get(f"model.{present[0]}{part}") for part in parts]
    return all(
        tensor is not None and one is not None and torch.equal(tensor, one)
        for layer in present
        for part, one in zip(parts, first)
        for tensor in [stored.get(f"model.{layer}{part}")]
    )


def state_to_save(head: AcceptanceHead) -> dict[str, Tensor]:
    """Tensors by their published names; a tied block stands there once, as model.0."""
    state = head.state_dict()
    found = {}
    for name, own in file_names(head.num_layers, max(len(head.blocks), 1)).items():
        if own not in found:
            found[own] = name
    return {name: state[own] for own, name in found.items()}
