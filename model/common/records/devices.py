"""What of a run is on which device, and what crosses between devices in a step.

A meta's `placement`:

    strategy      same, separate, multi-gpu-ratio:A:B, auto:N (accelerate's map over N devices)
    target        {device: {"weight_bytes", "layers"}}; layers: how many, where our cache is used
    drafter       {device: {"weight_bytes"}} of a draft model or of heads, also of the copies of the
                  target's matrices that heads on another device need; {} = it has none
    peak_bytes    {device: most bytes that PyTorch held there at once in this process}, of GPUs
    crossings     where there are several devices: `steps` counted after the warm-up, and `per_step`
                  [{phase (draft, verify, commit), from, to, transfers, bytes}], means of a step.
                  Copies between host and device are not in it

They are counted by a torch.utils._python_dispatch.TorchDispatchMode (PyTorch's notes on extending
it), which sees every copy, in a decoding that is not timed.
"""

from __future__ import annotations

import sys
from collections import Counter
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from model.common.errors import one_line

COPIES = (torch.ops.aten.to, torch.ops.aten._to_copy, torch.ops.aten.copy_)
COUNTED = 24  # tokens of each answer
OWN = "model."  # modules whose objects may hold a drafter's weights


class Crossings(TorchDispatchMode):
    """While it lasts, counts what a loop's steps copy from one device to another.

    counts  {(phase, from, to, "transfers" or "bytes"): how many}
    """

    def __init__(self, loop):
        super().__init__()
        self.loop, self.counts = loop, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in COPIES:
            self._note(*(reversed(args[:2]) if result is args[0] else (args[0], result)))
        return result

    def _note(self, source: Tensor, copy: Tensor) -> None:
        marks = self.loop.clock.marks
        if source.device == copy.device or "cpu" in (source.device.type, copy.device.type):
            return
        if marks:  # else a prompt is read
            key = marks[-1][0], str(source.device), str(copy.device)
            self.counts[(*key, "transfers")] += 1
            self.counts[(*key, "bytes")] += copy.nbytes

    def facts(self, steps: int) -> dict:
        """As the meta has them."""
        found = {}
        for (phase, origin, goal, unit), count in self.counts.items():
            row = {"phase": phase, "from": origin, "to": goal}
            row = found.setdefault((phase, origin, goal), row)
            row[unit] = round(count / max(steps, 1), 2)
        return {"steps": steps, "per_step": list(found.values())}


def crossings(loop, prompts: list[list[int]]) -> dict | None:
    """A meta's `crossings`, of a few steps behind these prompts; None where they cannot be read."""
    from model.common.loop.source import Prompts, Request

    try:
        source = Prompts([Request(ids, COUNTED) for ids in prompts])
        with loop.target.runtime.prompts(), Crossings(loop) as counted:
            loop.run(source)  # a slot each: all begin at once
        return counted.facts(max(len(turn.accept_lengths) for turn in source.answers()))
    except Exception as error:  # the question fails again when its turn comes, and is recorded
        print(f"counting what crosses devices: {one_line(error)}", file=sys.stderr)
        return None


def placement_facts(placement, target, drafter) -> dict:
    """A meta's `placement` of a loaded target and drafter, without peaks and crossings."""
    own, seen = _weight_bytes(_tensors([target.model]), set())
    layers = Counter(str(device) for *_, device in target.layers)
    parts = {name: {"weight_bytes": num} for name, num in own.items()}
    for name, num in layers.items():
        parts.setdefault(name, {})["layers"] = num
    modules = _modules(drafter, {id(target), id(target.model)})
    drafted, _ = _weight_bytes(_tensors(modules), seen)
    return {
        "strategy": placement.label,
        "target": parts,
        "drafter": {name: {"weight_bytes": num} for name, num in drafted.items()},
    }


def peak_bytes(devices) -> dict[str, int]:
    """{device: most bytes at once} of those that PyTorch counts them for."""
    kind = torch.accelerator.current_accelerator()
    counted = [device for device in devices if kind is not None and device.type == kind.type]
    return {str(device): torch.accelerator.max_memory_allocated(device) for device in counted}


def said(facts: dict) -> str:
    """A line that tells where everything is, and what crosses in a step."""
    parts = []
    for name in ("target", "drafter"):
        places = [f"{where} {_size(part['weight_bytes'])}" for where, part in facts[name].items()]
        parts.append(f"{name} on {', '.join(places)}" if places else f"{name} without weights")
    crossings = facts.get("crossings")
    for row in crossings["per_step"] if crossings else ():
        moved = f"{row['transfers']:g} transfers, {_size(row['bytes'])}"
        parts.append(f"a step's {row['phase']} {row['from']} > {row['to']} {moved}")
    return f"placement {facts['strategy']}: {'; '.join(parts)}"


def _size(num_bytes: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:g} B"


def _modules(thing, passed: set[int]):
    """The modules that an object of the project holds, however deep; passed: ids to leave out."""
    waiting = [thing]
    while waiting:
        one = waiting.pop()
        if id(one) in passed:
            continue
        passed.add(id(one))
        if isinstance(one, nn.Module):
            yield one
            waiting += [part for own in one.modules() for part in vars(own).values()]
        elif isinstance(one, (list, tuple)):  # a NamedTuple of the project's among them
            waiting += [part for part in one if isinstance(part, nn.Module) or _is_own(part)]
        elif _is_own(one):
            waiting += getattr(one, "__dict__", {}).values()


def _is_own(thing) -> bool:
    return type(thing).__module__.startswith(OWN)


def _tensors(modules):
    return chain.from_iterable(chain(part.parameters(), part.buffers()) for part in modules)


def _weight_bytes(tensors, seen: set[int]) -> tuple[dict[str, int], set[int]]:
    """({device: bytes} of tensors whose ids are not in `seen`, `seen` with these)."""
    found = Counter()
    for tensor in tensors:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[str(tensor.device)] += tensor.nbytes
    return dict(found), seen
