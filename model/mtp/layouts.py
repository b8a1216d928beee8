"""Where published multi-token-prediction heads stand in a checkpoint, and what their tensors are.

A head is part of its target's own checkpoint, whose loader passes it over, or has a folder of its
own. Layouts differ in names and in the order of the two inputs:

deepseek     DeepSeek-V3, GLM-4.5: model.layers.L.*, one layer behind the target's L
qwen         Qwen3-Next, Qwen3.5: mtp.*
mimo         MiMo, FastMTP: model.mtp_layers.0.*, the state before the embedding; MiMo's authors
             hand it over before the target's final norm (their vLLM fork at 3a353c0, mimo.py)
speculators  mimo's names without "model.", the embedding before the state
"""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import Tensor, nn

from model.common.errors import BadInput
from model.common.heads.checkpoint import Checkpoint, is_copy
from model.common.target.runtime import tell_once

FILE = "model.safetensors"
EXPERTS = re.compile(r"(.*\.experts)\.\d+\.gate_proj\.weight")


class Layout(NamedTuple):
    """A published spelling.

    marker        pattern of the full name of the linear layer's weight; its group is the prefix of
                  all of the head's tensors, and a second one the number of the head's layer
    parts         {our submodule: its name behind the prefix}; what is in none is the layer
    hidden_first  the linear layer reads [state; embedding]
    target_state  of STATES: which state of the target the head was trained to read
    """

    name: str
    marker: str
    parts: dict[str, str]
    hidden_first: bool = False
    target_state: str = "normed"

    def published(self, name: str) -> str:
        """Name behind the prefix of a tensor of MtpModule."""
        part, _, rest = name.partition(".")
        return f"{self.parts[part]}{rest}"


_PLAIN = {
    "enorm": "token_layernorm.",
    "hnorm": "hidden_layernorm.",
    "eh_proj": "input_proj.",
    "norm": "final_layernorm.",
    "layer": "",
}
LAYOUTS = (
    Layout(
        "deepseek",
        r"((?:.*\.)?layers\.(\d+)\.)eh_proj\.weight",
        {
            "enorm": "enorm.",
            "hnorm": "hnorm.",
            "eh_proj": "eh_proj.",
            "norm": "shared_head.norm.",
            "layer": "",
        },
    ),
    Layout(
        "qwen",
        r"((?:.*\.)?mtp\.)fc\.weight",
        {
            "enorm": "pre_fc_norm_embedding.",
            "hnorm": "pre_fc_norm_hidden.",
            "eh_proj": "fc.",
            "norm": "norm.",
            "layer": "layers.0.",
        },
    ),
    Layout("mimo", r"(model\.mtp_layers\.(\d+)\.)input_proj\.weight", _PLAIN, True, "plain"),
    Layout("speculators", r"(mtp_layers\.(\d+)\.)input_proj\.weight", _PLAIN),
)
COPIES = {"embed_tokens.weight": "input", "shared_head.head.weight": "output"}  # of the target's


class HeadFile(NamedTuple):
    """A head as it is stored: tensors of the checkpoint by their full names."""

    checkpoint: Checkpoint
    layout: Layout
    prefix: str


def head_path(args) -> tuple[str, bool]:
    """(path, whether it is the target's own checkpoint) by a method's flags, of which those that
    say nothing are refused."""
    if args.mtp_path == "":
        raise BadInput("--mtp-path '': a directory or hub id is needed")
    if args.num_draft == 1 and args.chained_state == "plain":
        raise BadInput("--chained-state plain says nothing with --num-draft 1: nothing is chained")
    own = args.mtp_path is None
    return args.model_path if own else args.mtp_path, own


def read_head(path: str, num_layers: int) -> HeadFile:
    """The head in a folder or hub id; num_layers: of the target."""
    layout, prefix = find_head(path, tensor_names(path), num_layers)
    checkpoint = Checkpoint(path, (FILE,), prefix)
    checkpoint.tensors = {f"{prefix}{name}": value for name, value in checkpoint.tensors.items()}
    for name, tensor in checkpoint.tensors.items():
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise BadInput(
                f"{checkpoint.file}: {name} is {kind}: quantised heads are not supported"
            )
    return HeadFile(checkpoint, layout, prefix)


def find_head(path: str, names: list[str], num_layers: int) -> tuple[Layout, str]:
    """(layout, prefix) of the one head among a checkpoint's tensor names."""
    found = [
        (layout, match)
        for layout in LAYOUTS
        for match in (re.fullmatch(layout.marker, name) for name in names)
        if match
    ]
    if len(found) > 1 or any(re.search(r"(^|\.)mtp\.layers\.[1-9]", name) for name in names):
        raise BadInput(
            f"{path}: several MTP layers, of which one after another would be drafted "
            "with; heads of one layer are read"
        )
    if found:
        layout, match = found[0]
        if layout.name == "deepseek" and int(match[2]) != num_layers:
            raise BadInput(
                f"{path}: tensor {match[0]} is no MTP layer of the target, which has {num_layers} "
                f"layers: its would be layers.{num_layers}"
            )
        return layout, match[1]
    other = next((name for name in names if "mtp" in name or "nextn" in name), None)
    if other:
        raise BadInput(f"{path}: tensor {other} is of no MTP head that is known here")
    raise BadInput(
        f"{path}: no MTP head among its tensors (layers.{num_layers}.eh_proj, mtp.fc or "
        "mtp_layers.0.input_proj); --mtp-path says where one is"
    )


def tensor_names(path: str) -> list[str]:
    """Names of all tensors of a checkpoint, which is safetensors, one file or shards."""
    import json
    from pathlib import Path

    from safetensors import SafetensorError, safe_open
    from transformers.utils import cached_file

    from model.common.target.gguf_files import gguf_file
    from model.common.target.loading import check_model_path

    check_model_path(path)
    if gguf_file(path) is not None:
        raise BadInput(f"{path}: MTP heads are not read from GGUF files; --mtp-path names a folder")
    try:
        for name in (FILE, f"{FILE}.index.json"):
            file = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
            if file and name == FILE:
                with safe_open(file, framework="pt") as opened:
                    return list(opened.keys())
            if file:
                return list(json.loads(Path(file).read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BadInput(f"{path}: {str(error).splitlines()[0]}") from error
    raise BadInput(f"{path}: no {FILE}, in which MTP heads are looked for")


def fuse_experts(file: HeadFile) -> None:
    """Experts stored one by one as two tensors of all: gate and up [E, 2I, H], down [E, H, I].

    Weights that are missing are named as they would be stored.
    """
    import torch

    tensors = file.checkpoint.tensors
    blocks = {match[1] for match in map(EXPERTS.fullmatch, tensors) if match}
    for block in blocks:
        part = re.compile(rf"{re.escape(block)}\.(\d+)\.\w+_proj\.weight")
        numbers = {int(match[1]) for match in map(part.fullmatch, tensors) if match}

        def taken(kind: str, block=block, numbers=numbers) -> list[Tensor]:
            wanted = [f"{block}.{number}.{kind}_proj.weight" for number in range(1 + max(numbers))]
            for name in wanted:
                if name not in tensors:
                    raise BadInput(f"{file.checkpoint.file}: no tensor {name}")
            return [tensors.pop(name) for name in wanted]

        pairs = zip(taken("gate"), taken("up"))
        tensors[f"{block}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in pairs])
        tensors[f"{block}.down_proj"] = torch.stack(taken("down"))


def drop_copies(file: HeadFile, model: nn.Module) -> None:
    """Forget copies of the target's embedding and LM head; one that differs is named in a line."""
    checkpoint = file.checkpoint
    for name, end in COPIES.items():
        copy = checkpoint.tensors.pop(file.prefix + name, None)
        if copy is None:
            continue
        if not is_copy(copy, getattr(model, f"get_{end}_embeddings")()):
            tell_once(
                f"{checkpoint.file}: {file.prefix}{name} is not the target's {end} matrix, "
                "which is used in its place"
            )
    for name in [name for name in checkpoint.tensors if name.endswith("rotary_emb.inv_freq")]:
        checkpoint.drop(name)


def fill(file: HeadFile, module: nn.Module, dtype, device) -> None:
    """Give a module built on the meta device the head's tensors, which have to be just its own."""
    checkpoint, layout, prefix = file
    fuse_experts(file)
    names = {own: prefix + layout.published(own) for own in module.state_dict()}
    checkpoint.check({names[own]: wanted for own, wanted in module.state_dict().items()})
    for own, name in names.items():
        checkpoint.rename(name, own)
    wide = {n: t for n, t in checkpoint.tensors.items() if n.endswith("e_score_correction_bias")}
    checkpoint.load_into(module, dtype, device)
    for name, tensor in wide.items():  # which transformers keeps in 32 bits
        if dtype.itemsize < 4:
            place, _, own = name.rpartition(".")
            setattr(module.get_submodule(place), own, tensor.to(device).float())
