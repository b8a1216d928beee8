"""What bounds a decode step: the bytes that it has to read, over the bandwidth of its device.

Measured once a run, outside every timed region, and written into the meta file:

    environment.bandwidth   in GB/s (1e9 bytes a second), the best of several repetitions
        read            a buffer that is too large for the device's caches
        copy            one half of it onto the other; bytes read plus bytes written
        read_weights    a buffer of as many bytes as a step reads of the weights, at most the large
                        one: weights that fit into a cache are bounded by that cache's bandwidth
    environment.turned_rows  "1-64", "none": of target/products.py; null where none was to be chosen
    step_reads
        weight_bytes    {dtype: bytes} as loaded: the decoder's layers and norms, and the whole LM
                        head, tied or not; of embedding tables only embedding_row_bytes per token
        kv              [{layers, bytes_per_token (of all these layers), window or None}]
        no_bound        why there is none, in place of all these

evaluation/speedup/roofline.py makes the bound of them.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

import torch
from torch import nn

from model.common.errors import BadInput, one_line
from model.common.loop.clock import Clock
from model.common.target.products import form_of

MIB = 1 << 20
SMALLEST, LARGEST = 128 * MIB, 1024 * MIB  # of the buffer that leaves the caches
CACHE_MULTIPLE = 4  # times the largest cache, where the system tells its size
MIN_REPETITIONS, MAX_REPETITIONS, LONGEST_S = 3, 100, 0.1  # of one probe
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def measure(target, streamed: bool) -> dict:
    """{"bandwidth", "step_reads", "turned_rows"} of a loaded target; streamed: it is offloaded.

    A failure, for want of memory say, is one line and leaves the figure out: it ends no run.
    """
    measured = {"bandwidth": None, "step_reads": None, "turned_rows": form_of(target.model)}
    try:
        reads = measured["step_reads"] = step_reads(target, streamed)
        num_bytes = sum(reads.get("weight_bytes", {}).values())
        measured["bandwidth"] = bandwidth(target.device, num_bytes)
    except Exception as error:  # of the model's own code, or the device's
        print(f"bandwidth probe: {one_line(error)}; this run has no bound", file=sys.stderr)
        measured["step_reads"] = {"no_bound": f"the probe failed: {one_line(error)}"}
        _release(target.device)
    return measured


def note(files, measured: dict, placed: dict) -> None:
    """Write what measure() found, and how products are computed, into the metas of answer files.

    placed: of devices.placement_facts(), written with them.
    """
    for file in files:
        environment = file.meta["environment"] | {"bandwidth": measured["bandwidth"]}
        environment["turned_rows"] = measured["turned_rows"]
        facts = {"step_reads": measured["step_reads"], "placement": placed}
        file.note({"environment": environment, **facts})


def step_reads(target, streamed: bool = False) -> dict:
    """Bytes that a decode step of the target has to read, or why they are not known."""
    reason = _no_bound(target, streamed)
    if reason is None:
        try:
            kv = _cache_reads(target)
        except (BadInput, RuntimeError) as error:
            reason = f"no KV cache to measure: {str(error).splitlines()[0]}"
    if reason is not None:
        return {"no_bound": reason}
    whole, row_bytes = _weights(target.model)
    return {
        "weight_bytes": whole,
        "embedding_row_bytes": row_bytes,
        "num_layers": target.config.num_hidden_layers,
        "kv": kv,
    }


def _no_bound(target, streamed: bool) -> str | None:
    if streamed:
        return "the layers are streamed to the device (--offload)"
    if not target.layers:
        return "the model keeps a cache of its own"
    num_devices = len({device for *_, device in target.layers})
    if num_devices > 1:
        return f"the layers are spread over {num_devices} devices"
    counts = [getattr(target.config, name, None) for name in EXPERTS]
    if any(isinstance(count, int) and count > 1 for count in counts):
        return "a mixture of experts: which weights a step reads depends on its token"
    return None


def _weights(model) -> tuple[dict[str, int], int]:
    """({dtype: bytes read whole}, bytes of one row of every embedding table).

    As loaded: quantised weights count what is stored. A tensor that two modules share counts once.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    tables = [m.weight for m in decoder.modules() if isinstance(m, nn.Embedding)]
    whole = {_place(tensor): tensor for tensor in _stored(head)}
    looked_up = {_place(part) for table in tables for part in _parts(table)}
    for tensor in _stored(decoder):
        if _place(tensor) not in looked_up:
            whole[_place(tensor)] = tensor
    by_dtype: dict[str, int] = {}
    for tensor in whole.values():
        name = str(tensor.dtype).removeprefix("torch.")
        by_dtype[name] = by_dtype.get(name, 0) + tensor.nbytes
    return by_dtype, sum(table.nbytes // max(table.shape[0], 1) for table in tables)


def _stored(module) -> list:
    """The tensors of a module (or None) that hold numbers of their own."""
    tensors = module.state_dict(keep_vars=True).values() if module is not None else ()
    return [part for tensor in tensors if torch.is_tensor(tensor) for part in _parts(tensor)]


def _parts(tensor) -> list:
    """What a tensor stores: itself, or the tensors inside of one that quantisers make."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(tensor, name))]


def _place(tensor) -> tuple:
    """What tells whether two tensors are the same memory."""
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape)


def _cache_reads(target) -> list[dict]:
    """The cache's bytes per token, by window of the layers' attention."""
    kinds = list(target.kinds)[:1] * len(target.layers)
    if len(target.kinds) > 1:
        kinds = target.config.layer_types
    counts: dict[int | None, list[int]] = {}
    for kind, (_, heads, key_size, value_size, dtype, _) in zip(kinds, target.layers):
        num_bytes = heads * (key_size + value_size) * dtype.itemsize
        counts.setdefault(target.kinds[kind], []).append(num_bytes)
    return [
        {"layers": len(sizes), "bytes_per_token": sum(sizes), "window": window}
        for window, sizes in counts.items()
    ]


def bandwidth(device, num_weight_bytes: int = 0) -> dict | None:
    """The probes' results; None where the device has no room for a buffer."""
    threads = torch.get_num_threads() if device.type == "cpu" else None
    large = _large(device, threads)
    if large is None:
        return None
    facts = {"unit": "GB/s", **large}
    num_bytes = min(num_weight_bytes, large["buffer_bytes"]) // 4 * 4
    if num_bytes:
        facts["read_weights"] = _read_of(device, threads, num_bytes)
        facts["read_weights_bytes"] = num_bytes
    return facts


@functools.lru_cache(maxsize=8)
def _large(device, threads) -> dict | None:
    """{"buffer_bytes", "read", "copy"} with a buffer beyond the caches; halved where it is too
    large for the device."""
    size = LARGEST
    if device.type == "cpu":
        size = min(max(CACHE_MULTIPLE * _cache_bytes(), SMALLEST), LARGEST)
    while size >= SMALLEST // 4:
        try:
            buffer = torch.ones(size // 4, device=device)
            rates = {"read": _read(buffer), "copy": _copy(buffer)}
            buffer = None
            _release(device)
            return {"buffer_bytes": size, **rates}
        except RuntimeError:  # out of memory
            size //= 2
    return None


@functools.lru_cache(maxsize=8)
def _read_of(device, threads, num_bytes: int) -> float:
    """Read bandwidth of a buffer of this size."""
    rate = _read(torch.ones(num_bytes // 4, device=device))
    _release(device)
    return rate


def _release(device) -> None:
    """Give a buffer back to the device, where the cache of the run will need the room."""
    if device.type != "cpu":
        torch.accelerator.empty_cache()


def _read(buffer) -> float:
    """The faster of two ways to read a buffer once."""
    return max(_rate(buffer.sum, buffer), _rate(buffer.amax, buffer))


def _copy(buffer) -> float:
    """One half onto the other: every byte is read or written once."""
    first, second = buffer.chunk(2)
    return _rate(lambda: first.copy_(second), buffer)


def _rate(operation, buffer) -> float:
    """GB/s of an operation that moves the buffer's bytes, the best of several."""
    clock = Clock(buffer.device)
    begin = time.perf_counter()
    while len(clock.steps) < MIN_REPETITIONS or (
        len(clock.steps) < MAX_REPETITIONS and time.perf_counter() - begin < LONGEST_S
    ):
        clock.mark("verify")
        operation()
        clock.end_step()
    least_s = min(phases["verify"] for phases, _ in clock.read()[1])
    return round(buffer.nbytes / least_s / 1e9, 2)


def _cache_bytes() -> int:
    """The processor's largest cache, 0 where the system does not tell."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        unit = {"K": 1 << 10, "M": MIB}.get(text[-1:])
        if unit and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * unit)
    return max(sizes)
