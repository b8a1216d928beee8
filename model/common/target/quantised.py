"""Quantised checkpoints: what their config says, and what loading may change without a word."""

from __future__ import annotations

import torch

from model.common.errors import BadInput, first_line
from model.common.target.runtime import tell_once

# of activations, which quanto checkpoints do not quantise and so do not hold: they are 1
QUANTO_SCALES = (".input_scale", ".output_scale")


def method_of(config) -> str | None:
    """The method's name in a model's config, None where it is not quantised."""
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    found = found if isinstance(found, dict) else found.to_dict()
    method = found.get("quant_method")
    if method is None:
        loads = [key for key in ("load_in_4bit", "load_in_8bit") if found.get(key)]
        return "bitsandbytes" if loads else "a method that its config does not name"
    return getattr(method, "value", method)


def check_known(path: str, config) -> None:
    """Refuse a method that transformers would pass over and read the stored numbers as weights."""
    from transformers import __version__
    from transformers.quantizers import AutoHfQuantizer

    found = getattr(config, "quantization_config", None)
    if not found:
        return
    found = found if isinstance(found, dict) else found.to_dict()
    if not AutoHfQuantizer.supports_quant_method(found):
        raise BadInput(
            f"{path}: quantised with {method_of(config)}, which transformers {__version__} does "
            "not know"
        )


def failure(config, error: Exception) -> str:
    """Why a model did not load; a quantised one with its method, whose package may be missing."""
    method = method_of(config)
    return first_line(error) if method is None else f"quantised with {method}: {first_line(error)}"


def may_be_missing(model) -> tuple[str, ...]:
    """Endings of names that a checkpoint of the model's quantisation method need not hold."""
    return QUANTO_SCALES if getattr(model, "quantization_method", None) == "quanto" else ()


def settle_dtype(path: str, config, model, dtype: torch.dtype) -> None:
    """Say that weights were dequantised at load, and give all of them the dtype asked for.

    fp8 and mxfp4 are, where a device has no kernels for them; they come out in their scales' dtype.
    """
    method = method_of(config)
    if method is None or getattr(model, "is_quantized", False):
        return
    name = str(dtype).removeprefix("torch.")
    tell_once(f"{path}: quantised with {method}; it is dequantised to {name} on this machine")
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def refuse_quantised(model, what: str) -> None:
    """Refuse for a model in quantised form `what` handles weights as plain tensors."""
    if getattr(model, "is_quantized", False):
        raise BadInput(f"{what} needs weights that are not quantised")
