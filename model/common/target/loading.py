"""Models and devices from the command line's names; every failure is one line of BadInput."""

from __future__ import annotations

import os
import pickle

import torch
from safetensors import SafetensorError

from model.common.errors import BadInput
from model.common.target.model import Target

LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError, SafetensorError)


def load_target(
    path: str,
    dtype: str,
    device: str,
    runtime: str,
    num_gpus: int = 1,
    offload=None,
    scale_to: str | None = None,
) -> Target:
    """Load a model directory or hub id. num_gpus > 1 spreads it with accelerate's device map.

    offload: an offload.Offload, for layers that are streamed to the device; scale_to: the name of
    a shape in shapes.SHAPES, or its numbers, for the model's twin of that size.
    """

    def model_on(device: str):
        if scale_to is None:
            return load_model(path, dtype, device, num_gpus), None
        from model.common.target.twin.twin import load_twin

        return load_twin(path, dtype, torch_device(device), scale_to)

    if offload is None:
        model, twin = model_on(device)
        return Target(model, runtime, twin)
    from model.common.target.offload import LayerStream, private_folder

    folder, where = private_folder(offload), torch_device(device)
    model, twin = model_on("cpu")
    stream = LayerStream(model, where, offload, folder)
    target = Target(model, runtime, twin)
    target.facts = stream.facts
    return target


def torch_device(name: str) -> torch.device:
    """Device of auto, cpu, cuda or cuda:1; CUDA asked for and absent is bad input."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(f"--device {name}: this PyTorch sees no CUDA device")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise BadInput(f"--device {name}: {str(error).splitlines()[0]}") from error


def load_model(path: str, dtype: str, device: str, num_gpus: int = 1):
    """transformers' AutoModelForCausalLM; every failure is one line of BadInput."""
    from transformers import AutoModelForCausalLM

    from model.common.target.attention import NAME, register

    check_model_path(path)
    where = torch_device(device)
    register()
    try:
        place = {"": where} if num_gpus == 1 else "auto"
        if num_gpus > 1:
            limits = {i: torch.cuda.mem_get_info(i)[0] for i in range(num_gpus)}
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=getattr(torch, dtype),
            attn_implementation=NAME,
            device_map=place,
            max_memory=limits if num_gpus > 1 else None,
        )
    except LOAD_ERRORS as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise BadInput(f"{path}: cannot be loaded: {lines[0] if lines else error!r}") from error
    check_tensors(path, report)
    return model.eval()


def check_tensors(path: str, report) -> None:
    """Refuse weights that lack a tensor or hold one of another shape: it would be random."""
    for name, *shapes in sorted(report["mismatched_keys"]):
        found, expected = (tuple(shape) for shape in shapes[:2])
        raise BadInput(f"{path}: tensor {name} is {found}, the config says {expected}")
    missing = sorted(report["missing_keys"])
    if missing:
        raise BadInput(f"{path}: no tensor {missing[0]} ({len(missing)} missing)")


def check_model_path(path: str) -> None:
    """Refuse a missing path or one without config.json before transformers asks a hub."""
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "config.json")):
            raise BadInput(f"{path}: not a model directory (no config.json)")
    elif os.path.exists(path):
        raise BadInput(f"{path}: not a directory")
    elif path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise BadInput(f"{path}: no such model directory")
