"""Where tensors are."""

from __future__ import annotations

import torch
from torch import Tensor


def on(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor on a device; to() would cost ten microseconds where it is there already."""
    return tensor if tensor.device == device else tensor.to(device)


def all_on(device: torch.device, tensors):
    """Tensors that are in one place, on a device."""
    if tensors[0].device == device:
        return tensors
    return [tensor.to(device) for tensor in tensors]
