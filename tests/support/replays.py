"""What stands for CUDA graphs on a CPU."""

import pytest
import torch

from model.common.target import model as target_module
from model.common.target.model import Target
from model.common.target.runtime import CudaGraphs, tensors_of


class Replays:
    """A capture whose replays run the function again into the tensors of the first call."""

    def __init__(self):
        self.captured = self.replayed = 0

    def __call__(self, function):
        self.captured += 1
        kept = function()

        def replay():
            self.replayed += 1
            for tensor, new in zip(tensors_of(kept), tensors_of(function())):
                tensor.copy_(new)

        return replay, kept


class Held(Replays):
    """Refuses to replay where the tensors of places() are not those of the capture: a real graph
    has their addresses. With a target, these are the target's cache."""

    target = None

    def places(self) -> list[int]:
        """Addresses that a replay would read or write."""
        cache = self.target.cache
        kept = [part for module in cache.modules for layer in module for part in layer.kv]
        return [tensor.data_ptr() for tensor in (cache.length, *kept)]

    def __call__(self, function):
        replay, result = super().__call__(function)
        captured = self.places()

        def checked():
            assert self.places() == captured
            replay()

        return checked, result


def with_graphs(model, capture=None, twin=None):
    """(target, capture): a target under --runtime cudagraph, recorded by `capture` on a CPU."""
    capture = capture or Held()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target_module, "make_runtime", lambda _, device: CudaGraphs(device, capture))
        target = Target(model, "cudagraph", twin)
    if isinstance(capture, Held):
        capture.target = target
    assert target.runtime.static and target.device == torch.device("cpu")
    return target, capture
