"""Draft heads on disk: a config.json and weights in .safetensors, .bin or .pt, one file or shards.

Nothing is loaded quietly: a missing, unknown or misshapen tensor is one line of bad input.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from model.common.errors import BadInput, parse_json
from model.common.heads.kinds import check_kinds

CONFIG = "config.json"
HARMLESS = frozenset(  # fields of published heads that change nothing in what a head computes
    (
        *("_name_or_path", "auto_map", "base_model_name_or_path", "dtype", "model_type"),
        *("speculators_config", "speculators_version", "target_model_type", "torch_dtype"),
        *("transformers_version", "bos_token_id", "eos_token_id", "pad_token_id"),
        # of training, or of programs that serve heads
        *("attention_dropout", "base_model_ep_plan", "enable_sp_ulysses"),
        *("has_no_defaults_at_init", "initializer_range", "pretraining_tp", "use_cache"),
        # layers and ties are counted in the tensors; positions are not limited
        *("decoder_sparse_step", "max_sequence_length", "max_window_layers", "num_hidden_layers"),
        "tie_word_embeddings",
    )
)
ARCHITECTURES = {  # names of Llama's layer, beside which others stand for other wirings
    *("LlamaForCausalLM", "LlamaForCausalLMEagle", "LlamaForCausalLMEagle3"),
    *("EagleLlamaForCausalLM", "Eagle3LlamaForCausalLM", "Eagle3Speculator", "Eagle3DraftModel"),
    *("Qwen2ForCausalLM", "MedusaModel"),
}


class Checkpoint:
    """A head's directory or hub id.

    path     as given, for messages
    config   the parsed config.json
    tensors  {name: tensor} as stored
    file     the weights' file (or index), for messages
    """

    def __init__(self, path: str, names: tuple[str, ...], prefix: str = ""):
        """names: weight files in order of preference; prefix: of tensor names, cut off."""
        from model.common.target.loading import check_directory

        check_directory(path)
        self.path = path
        self.config = read_config(path)
        self.file, self.tensors = _read_first(path, names, prefix)
        if not self.tensors:
            raise BadInput(f"{self.file}: no tensor named {prefix}...")

    def get(self, field: str, default=None):
        """A field of the config; without a default it has to be there."""
        value = self.config.get(field, default)
        if value is None:
            raise BadInput(f"{self.path}/{CONFIG}: no {field}")
        return value

    def rename(self, old: str, new: str) -> None:
        """Give a tensor the name that we use, if it is there."""
        if old in self.tensors:
            self.tensors[new] = self.tensors.pop(old)

    def strip(self, prefix: str) -> None:
        """Cut a prefix off the names that have it."""
        for name in list(self.tensors):
            self.rename(name, name.removeprefix(prefix))

    def drop(self, *names: str) -> None:
        """Forget tensors that are documented and not used."""
        for name in names:
            self.tensors.pop(name, None)

    def load_into(self, module: nn.Module, dtype, device, optional: tuple[str, ...] = ()) -> None:
        """Give a module built on the meta device its tensors, cast; see check()."""
        self.check(module.state_dict(), optional)
        cast = {
            name: tensor.to(device, dtype if tensor.is_floating_point() else None)
            for name, tensor in self.tensors.items()
        }
        module.load_state_dict(cast, strict=False, assign=True)
        module.requires_grad_(False)

    def check(self, expected: dict, optional: tuple[str, ...] = ()) -> None:
        """Refuse tensors other than `expected` ({name: a tensor of that shape and kind}).

        optional: names that may be missing.
        """
        for name, wanted in expected.items():
            shape = tuple(wanted.shape)
            if name not in self.tensors:
                if name not in optional:
                    raise BadInput(f"{self.file}: no tensor {name}, expected {shape}")
                continue
            tensor = self.tensors[name]
            if tuple(tensor.shape) != shape:
                found = tuple(tensor.shape)
                raise BadInput(f"{self.file}: tensor {name} is {found}, expected {shape}")
            if wanted.is_floating_point() and not tensor.is_floating_point():
                kind = str(tensor.dtype).removeprefix("torch.")
                raise BadInput(f"{self.file}: tensor {name} is {kind}: not supported")
        for name in self.tensors:
            if name not in expected:
                found = tuple(self.tensors[name].shape)
                raise BadInput(f"{self.file}: unknown tensor {name} {found}")


def is_copy(weight: Tensor, module: nn.Module) -> bool:
    """Whether a head's matrix is that of a module of the target, in the precision of the file or of
    the target: a target in float16 has lost bits of a file in bfloat16, and the other way round.
    """
    theirs = getattr(module, "weight", None)
    if type(theirs) is not nn.Parameter or theirs.shape != weight.shape:
        return False
    own = theirs.detach().to(weight.device)
    return torch.equal(own.to(weight.dtype), weight) or torch.equal(own, weight.to(own.dtype))


def check_fields(fields: dict, place: str, read=(), limits: dict | None = None) -> None:
    """Refuse fields of a head's config.json that would change its wiring; name unknown ones.

    A field that adds a tensor is caught by Checkpoint.check(); one that adds none would be ignored
    in silence, and cost acceptance. Empty fields (null) say nothing.

    read    fields that the caller honours, or checks itself
    limits  {field: values that it may have, () = none}; others are bad input
    Unknown fields, and other architectures than ARCHITECTURES, are one line on stderr.
    """
    check_kinds(fields, place)
    limits = limits or {}
    known, unknown = {*read, *limits, *HARMLESS}, []
    for name, value in fields.items():
        if value is None:
            continue
        if name in limits and value not in limits[name]:
            raise BadInput(f"{place}: {name} {json.dumps(value)} is not supported")
        if name == "architectures":
            names = value if isinstance(value, list) else [value]
            unknown += [f"architectures {one}" for one in names if one not in ARCHITECTURES]
        elif name not in known:
            unknown.append(name)
    if unknown:
        print(
            f"{place}: fields that nothing here reads, and that may change the head's wiring: "
            f"{', '.join(unknown)}",
            file=sys.stderr,
        )


def read_config(path: str) -> dict:
    """config.json of a local directory or a hub id."""
    file = _resolve(path, CONFIG)
    try:
        config = parse_json(Path(file).read_text(encoding="utf-8")) if file else None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}/{CONFIG}: cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise BadInput(f"{path}: no {CONFIG}" if config is None else f"{path}/{CONFIG}: no object")
    return config


def _resolve(path: str, name: str) -> str | None:
    """Local path of a file of a directory or a hub repository, None where it has none."""
    if os.path.isdir(path):
        file = os.path.join(path, name)
        return file if os.path.isfile(file) else None
    from transformers.utils import cached_file

    try:
        return cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise BadInput(f"{path}: {str(error).splitlines()[0]}") from error


def _read_first(path: str, names, prefix: str) -> tuple[str, dict[str, Tensor]]:
    """(file, tensors) of the first of the files that is there, or of its shards."""
    for name in names:
        if file := _resolve(path, name):
            return file, _strip(read_tensors(file), prefix)
        if index := _resolve(path, name + ".index.json"):
            return index, _read_shards(path, index, prefix)
    raise BadInput(f"{path}: none of {', '.join(names)} is there")


def _read_shards(path: str, index: str, prefix: str) -> dict[str, Tensor]:
    """Tensors of a sharded checkpoint whose names begin with prefix."""
    try:
        places = parse_json(Path(index).read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{index}: no weight_map: {error}") from error
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise BadInput(f"{index}: weight_map does not say a file for every tensor")
    tensors = {}
    for shard in sorted({file for name, file in places.items() if name.startswith(prefix)}):
        file = _resolve(path, shard)
        if file is None:
            raise BadInput(f"{path}: no {shard}, which {os.path.basename(index)} names")
        tensors |= _strip(read_tensors(file), prefix)
    return tensors


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)
    }


def read_tensors(file: str) -> dict[str, Tensor]:
    """Tensors of one file; a pickle that holds anything else is refused, its code never runs."""
    import pickle

    from safetensors.torch import load_file

    try:
        if file.endswith(".safetensors"):
            return load_file(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except Exception as error:  # a damaged pickle fails in as many ways as it has bytes
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else repr(error)
        if isinstance(error, pickle.UnpicklingError):
            reason = "holds more than tensors (refused: loading it could run code)"
        raise BadInput(f"{file}: {reason}") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise BadInput(f"{file}: not a dictionary of tensors")
    return dict(tensors)


def _is_zip(file: str) -> bool:
    """Files of PyTorch before 1.6 are no zip archives and cannot be mapped."""
    import zipfile

    return zipfile.is_zipfile(file)


def save_checkpoint(
    folder: str | Path, config: dict, file: str, tensors: dict[str, Tensor]
) -> None:
    """Write a head in a published format: config.json and `file` (.safetensors, .bin or .pt)."""
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    part = folder / (file + ".part")
    if file.endswith(".safetensors"):
        part.write_bytes(save(tensors, metadata={"format": "pt"}))  # save_file hides it from others
    else:
        torch.save(tensors, part)
    os.replace(part, folder / file)
    part = folder / (CONFIG + ".part")
    part.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / CONFIG)
