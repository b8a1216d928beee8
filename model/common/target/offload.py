"""Decoder layers that wait in host memory or on disk and are copied to the device as they are due.

Everything but the layers stays on the device. A ring of buffers there holds the next layers: layer
i always uses buffer i mod D, a copying thread fills it as soon as the layer before it is done, and
the last layers of a pass make room for the first ones of the next.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from model.common.errors import BadInput, Unsupported

ALIGNED = 256  # bytes; tensors of a layer begin at multiples


def pinned_bytes(size: int) -> int:
    """Bytes that a block of pinned memory takes: PyTorch rounds up to a power of two.

    >>> pinned_bytes(5), pinned_bytes(8)
    (8, 8)
    """
    return 1 << (size - 1).bit_length()


@dataclass(frozen=True)
class Offload:
    """Where the layers wait: "ram", or "disk" in `folder`; num_buffers layers on the device."""

    place: str
    folder: str | None = None
    num_buffers: int = 2


def wanted_offload(args) -> Offload | None:
    """The offloading that a command asks for, None where its method has none."""
    place, folder = getattr(args, "offload", None), getattr(args, "offload_folder", None)
    if place is None:
        if folder is not None:
            raise BadInput("--offload-folder needs --offload disk")
        if getattr(args, "offload_buffers", None) is not None:
            raise BadInput("--offload-buffers needs --offload")
        return None
    if (place == "disk") != (folder is not None):
        raise BadInput("--offload disk and --offload-folder go together")
    if args.runtime != "eager":
        raise BadInput(f"--offload needs --runtime eager, not {args.runtime}")
    return Offload(place, folder, args.offload_buffers or Offload.num_buffers)


def private_folder(offload: Offload):
    """A temporary directory in the folder of a "disk" place, else None; removed at the end."""
    if offload.place != "disk":
        return None
    try:
        return tempfile.TemporaryDirectory(prefix="layers-", dir=offload.folder)
    except OSError as error:
        reason = error.strerror or error
        raise BadInput(f"--offload-folder {offload.folder}: cannot be written: {reason}") from error


class LayerStream:
    """The layers of a model that sits in host memory, streamed to `device` by hooks.

    folder: of private_folder(). Counts bytes and seconds; a pass is a forward of all layers.
    host_bytes: that the waiting layers take, in memory or in files
    """

    def __init__(self, model: nn.Module, device: torch.device, offload: Offload, folder=None):
        self.folder = folder  # kept: the directory lives as long as this
        self.host_only = device.type == "cpu"
        decoder = model.get_decoder()
        layers = list(getattr(decoder, "layers", ()))
        if not layers:
            kind = model.config.model_type
            raise Unsupported(f"model type {kind}: its layers cannot be streamed")
        decoder.layers = nn.ModuleList()
        model.to(device)
        decoder.layers = nn.ModuleList(layers)
        plans = [_plan(layer) for layer in layers]
        self.sizes = [size for _, size in plans]
        pinned = folder is None and not self.host_only
        self.host_bytes = sum(map(pinned_bytes, self.sizes) if pinned else self.sizes)
        num_buffers = min(offload.num_buffers, len(layers))
        self.buffers = [
            torch.empty(max(self.sizes[first::num_buffers]), dtype=torch.uint8, device=device)
            for first in range(num_buffers)
        ]
        self.waiting = []  # [bytes] of each layer, in host memory or mapped
        for number, (layer, (plan, size)) in enumerate(zip(layers, plans)):
            self.waiting.append(self._stored(plan, size, number))
            _bind(plan, self.buffers[number % num_buffers])
            layer.register_forward_pre_hook(lambda *_, i=number: self._before(i))
            layer.register_forward_hook(lambda *_, i=number: self._after(i))
        self.held = [-1] * num_buffers  # layer whose bytes are, or will be, in a buffer
        self.copies: list[Future | None] = [None] * num_buffers
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="offload")
        self.stream = None if self.host_only else torch.Stream(device)
        self.forget()

    def _stored(self, plan, size: int, number: int) -> Tensor:
        """A layer's bytes in one piece: mapped from a file, or in memory, pinned for a device."""
        pieces = [
            (tensor.data.contiguous().view(-1).view(torch.uint8), at) for tensor, at, _ in plan
        ]
        if self.folder is None:
            held = torch.empty(size, dtype=torch.uint8, pin_memory=not self.host_only)
            for piece, begin in pieces:
                held[begin : begin + len(piece)] = piece
            return held
        path = Path(self.folder.name) / f"{number:04d}.bin"
        try:
            with path.open("wb") as out:
                for piece, begin in pieces:
                    out.seek(begin)
                    out.write(piece.numpy())
                out.truncate(size)
            return torch.from_file(str(path), size=size, dtype=torch.uint8)
        except (OSError, RuntimeError) as error:
            line = str(error).splitlines()[0]
            raise BadInput(f"{path}: cannot be written: {line}") from error

    def _before(self, layer: int) -> None:
        """Have the layer's bytes in its buffer before it runs."""
        begin = time.perf_counter()
        self.num_passes += layer == 0
        slot = layer % len(self.buffers)
        if self.held[slot] != layer:
            self._fetch(layer)
        if self.copies[slot] is not None:
            done = self.copies[slot].result()
            if done is not None:
                torch.accelerator.current_stream(self.buffers[slot].device).wait_event(done)
            self.copies[slot] = None
        self.wait_s += time.perf_counter() - begin

    def _after(self, layer: int) -> None:
        """Give the layer's buffer to the next one that uses it."""
        following = layer + len(self.buffers)
        if following >= len(self.waiting):
            following = layer % len(self.buffers)
        if following != layer:
            self._fetch(following)

    def _fetch(self, layer: int) -> None:
        slot, used = layer % len(self.buffers), None
        if self.copies[slot] is not None:
            self.copies[slot].result()
        if self.stream is not None:
            used = torch.accelerator.current_stream(self.buffers[slot].device).record_event()
        self.held[slot] = layer
        self.copies[slot] = self.worker.submit(self._copy, layer, slot, used)

    def _copy(self, layer: int, slot: int, used):
        """In the worker: fill a buffer when it is free; the event after it, None on a CPU."""
        begin = time.perf_counter()
        size, done = self.sizes[layer], None
        if self.stream is None:
            self.buffers[slot][:size].copy_(self.waiting[layer])
        else:
            with self.stream:
                self.stream.wait_event(used)
                self.buffers[slot][:size].copy_(self.waiting[layer], non_blocking=True)
                done = self.stream.record_event()
            done.synchronize()
        self.num_bytes += size
        self.num_copies += 1
        self.copy_s += time.perf_counter() - begin
        return done

    def forget(self) -> None:
        """Begin the counts anew."""
        self._settle()
        self.num_bytes = self.num_passes = self.num_copies = 0
        self.copy_s = self.wait_s = 0.0

    def _settle(self) -> None:
        """Wait for the copies that are under way."""
        for copy in self.copies:
            if copy is not None:
                copy.result()

    def facts(self) -> dict:
        """Bytes and seconds since forget(), for a report.

        wait_s: the host stood still for a layer; copy_s: the copying thread was at work.
        """
        self._settle()
        return {
            "offload_passes": self.num_passes,
            "offload_bytes_per_pass": round(self.num_bytes / max(self.num_passes, 1)),
            "offload_copies": self.num_copies,
            "offload_device_bytes": sum(buffer.numel() for buffer in self.buffers),
            "offload_host_bytes": self.host_bytes,
            "offload_copy_s": round(self.copy_s, 6),
            "offload_wait_s": round(self.wait_s, 6),
        }


def _plan(layer: nn.Module) -> tuple[list[tuple[Tensor, int, int]], int]:
    """([(tensor, first byte, end)], bytes in all) of a layer's parameters and buffers."""
    plan, begin = [], 0
    for tensor in [*layer.parameters(), *layer.buffers()]:
        end = begin + tensor.numel() * tensor.element_size()
        plan.append((tensor, begin, end))
        begin = -(-end // ALIGNED) * ALIGNED
    return plan, begin


def _bind(plan, buffer: Tensor) -> None:
    """Let a layer's tensors be views of a buffer; their own storage is freed."""
    for tensor, begin, end in plan:
        shape, dtype = tensor.shape, tensor.dtype
        tensor.requires_grad_(False)
        tensor.data = buffer[begin:end].view(dtype).view(shape)
