"""Ids on their way from the device to the host."""

from __future__ import annotations

import torch


def host_copy(tensor: torch.Tensor):
    """Something with tolist(): a GPU's tensor on its way, a CPU's as it is."""
    return HostCopy(tensor) if tensor.is_cuda else tensor


class HostCopy:
    """A tensor on its way to the host; a GPU and the host go on until somebody asks for it."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor, self.arrived = tensor.to("cpu", non_blocking=True), None  # to pinned memory
        if tensor.is_cuda:
            self.arrived = torch.cuda.Event()
            self.arrived.record(torch.cuda.current_stream(tensor.device))

    def tolist(self) -> list:
        """Its values, waited for."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tensor.tolist()
