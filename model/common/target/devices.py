"""Where tensors are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def ids_on(device: torch.device, rows: list) -> Tensor:
    """Lists of ints of one length as a tensor of longs on a device.

    Between two forwards, which empty the caches, torch.tensor() takes four times as long: 70
    microseconds of a step.
    """
    return on(device, torch.from_numpy(np.array(rows, np.int64)))


def on(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor on a device; to() would cost ten microseconds where it is there already."""
    return tensor if tensor.device == device else tensor.to(device)


def all_on(device: torch.device, tensors):
    """Tensors that are in one place, on a device."""
    if tensors[0].device == device:
        return tensors
    return [tensor.to(device) for tensor in tensors]
