"""Devices that are none: tensors with values in host memory that claim to sit on a device.

What PyTorch refuses for real devices is refused here: an operation on tensors of two of them. So a
model spread over several devices runs, with its numbers, on a machine that has only a CPU.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

KIND = "xla"  # a type that this PyTorch knows by name and has no kernels for


def device(index):
    return torch.device(KIND, index)


class Placed(torch.Tensor):
    """`held`, a tensor in host memory, that says it is on a device."""

    @staticmethod
    def __new__(cls, held, where):
        like = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        with torch.inference_mode(False):  # a view of a usual tensor has to be a usual one
            made = torch.Tensor._make_wrapper_subclass(
                cls, held.shape, dtype=held.dtype, device=where, **like
            )
        made.held = held
        return made

    def __repr__(self):
        return f"Placed({self.held}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


INDICES = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
HOST = torch.device("cpu")
COPIES = {"aten::copy_", "aten::_to_copy", "aten::to"}


def _run(func, args, kwargs):
    """An operation, done in host memory for the device that its tensors say, or that it names."""
    name = func._schema.name
    if name == "aten::_has_compatible_shallow_copy_type":
        return False  # so that Module.to() makes new parameters
    given = [args[0], _on_devices(args[1]), *args[2:]] if name in INDICES else args
    here = _device(name, (given, kwargs), name in COPIES)
    asked = next((part for part in tree_leaves((args, kwargs)) if _is_device(part)), None)
    result = func(*_held(args), **_held(kwargs))
    if func._schema.is_mutable:
        return args[0]
    where = here if asked is None else asked
    if asked is not None and where != here and result is _held(args[0]):
        result = result.clone()  # nothing is shared with another device
    return _placed(result, where)


def _device(name, given, copies=False):
    """Of the first of the tensors; of two devices is refused, but for single numbers in memory."""
    found = [part for part in tree_leaves(given) if isinstance(part, torch.Tensor)]
    found = [part.device for part in found if isinstance(part, Placed) or part.dim()]
    if len(set(found)) > 1 and not copies:
        raise RuntimeError(f"{name}: tensors on {' and '.join(sorted(map(str, set(found))))}")
    return found[0] if found else HOST


def _held(given):
    """Arguments as host memory's tensors and device."""

    def held(part):
        if isinstance(part, Placed):
            return part.held
        return HOST if _is_device(part) and part.type == KIND else part

    return tree_map(held, given)


def _is_device(part):
    return isinstance(part, torch.device)


def _placed(result, where):
    if where.type != KIND:
        return result
    return tree_map(lambda part: Placed(part, where) if _bare(part) else part, result)


def _on_devices(indices):
    """Without those in host memory, which real devices take as well."""
    return [part for part in tree_leaves(indices) if isinstance(part, Placed)]


def _bare(part):
    return isinstance(part, torch.Tensor) and not isinstance(part, Placed)


ITEMS = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
SCALARS = ("tolist", "item", "__index__", "__bool__", "__int__")
TO_HOST = {getattr(torch.Tensor, name) for name in SCALARS}
DISPATCHED = {
    torch.Tensor.__invert__: torch.bitwise_not,
    torch.Tensor.copy_: torch.ops.aten.copy_,
    torch.Tensor.nonzero: torch.ops.aten.nonzero,
    torch.Tensor.argsort: torch.ops.aten.argsort,
    torch.Tensor.contiguous: lambda rows: rows.clone(memory_format=torch.contiguous_format),
}
FROM_LISTS = (torch.tensor, torch.as_tensor)


class _Python(TorchFunctionMode):
    """What PyTorch does with a device before its dispatcher is asked."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in TO_HOST:
            return func(args[0].cpu())
        if func is torch.Tensor.nonzero and kwargs.get("as_tuple"):
            return torch.ops.aten.nonzero(args[0]).unbind(1)
        func = DISPATCHED.get(func, func)
        if func in ITEMS and isinstance(args[0], Placed):
            where = _device("[]", (args[0], _on_devices(args[1]), args[2:]))
            return _placed(func(*_held(args)), where)
        where = kwargs.get("device")
        if func in FROM_LISTS and where is not None:
            return func(*args, **kwargs | {"device": "cpu"}).to(where)
        return func(*args, **kwargs)


@contextmanager
def pretended():
    """While it lasts, tensors can be made on, and moved to, devices of device()."""
    with _Mode(), _Python():
        yield


def seen(monkeypatch, num):
    """Let commands see so many devices, and models be loaded onto them."""
    from model.common.target import placement

    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # what is pretended is of one thread
    found = tuple(map(device, range(num)))
    monkeypatch.setattr(placement, "visible_devices", lambda name: found)
