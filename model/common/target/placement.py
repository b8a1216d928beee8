"""Where target and drafter sit: the devices of a strategy, and a device for every layer.

A model on several devices is a pipeline: a device holds some of its layers and works while the
others wait, so that its weights fit and nothing is faster. The embedding stands on the first one;
the final norm and the LM head stand on the last one or, where the head is the embedding's own
matrix, beside that on the first. What reads a model's output (the loop, the heads of a method, the
states that they read) is where its LM head is.

from_pretrained() brings the weights to their devices. In place of accelerate's hooks, which copy a
step's masks again for every layer and all outputs back to the first device, a layer's inputs are
copied once a forward to each device, and outputs stay where they are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.common.argument_types import shares_of
from model.common.errors import BadInput
from model.common.remote_code import trusted


class Share(NamedTuple):
    """The devices of one model; automatic: accelerate says which layer is where."""

    devices: tuple[torch.device, ...]
    automatic: bool = False


@dataclass(frozen=True)
class Placement:
    """label: the strategy as it is recorded; target, drafter: their Shares."""

    label: str
    target: Share
    drafter: Share

    @property
    def devices(self) -> list[torch.device]:
        """All of them, each once."""
        return list(dict.fromkeys((*self.target.devices, *self.drafter.devices)))


def wanted_placement(args) -> Placement:
    """The placement that a command's parsed flags ask for.

    Raises BadInput where there are fewer devices than it takes.
    """
    from model.common.target.loading import torch_device

    devices, strategy = visible_devices(args.device), getattr(args, "gpu_strategy", None)
    num = getattr(args, "num_gpus_per_model", 1)
    if num > len(devices):
        flag = f"--gpu-strategy {strategy}" if strategy else f"--num-gpus-per-model {num}"
        names = "is" if len(devices) == 1 else "are"
        raise BadInput(f"{flag} takes {num} devices; --device {args.device} {names} {len(devices)}")
    automatic = strategy in (None, "auto") and num > 1
    split, rest = shares_of(strategy, num)
    target = Share(devices[:split], automatic)
    drafter = Share(devices[split:num] or devices[:rest], automatic)
    label = f"auto:{num}" if automatic else strategy or "same"
    if (own := getattr(args, "drafter_device", None)) is not None:
        drafter = Share((torch_device(own, "--drafter-device"),))
        label += f", drafter {own}"
    return Placement(label, target, drafter)


def visible_devices(name: str) -> tuple[torch.device, ...]:
    """What a --device flag lets a run use: one device with an index or cpu, else all there are."""
    from model.common.target.loading import torch_device

    device = torch_device(name)
    if device.type == "cpu" or device.index is not None:
        return (device,)
    return tuple(torch.device(device.type, i) for i in range(torch.accelerator.device_count()))


class Parts(NamedTuple):
    """Names of a model's modules, in the order in which they are used; of tensors that stand beside
    the layers' list, too."""

    before: list[str]
    layers: list[str]
    after: list[str]


def device_map(path: str, config, kind, devices: tuple) -> dict[str, torch.device]:
    """{part: device} of a model that is to be loaded; "" is all of it.

    The layers are spread in their order so that the fullest device holds as few bytes as can be (of
    unquantised weights), and every device a layer. kind: the model's auto class.
    """
    if len(devices) == 1:
        return {"": devices[0]}
    if config.is_encoder_decoder:
        raise BadInput(f"{path}: an encoder-decoder model; only --gpu-strategy auto spreads one")
    with torch.device("meta"):
        model = kind.from_config(config, trust_remote_code=trusted())
    parts = parts_of(path, model)
    if len(parts.layers) < len(devices):
        raise BadInput(f"{path}: {len(parts.layers)} layers cannot be spread over {len(devices)}")
    num_bytes = part_bytes(model, [name for names in parts for name in names])
    last, extra = 0 if is_tied(model) else -1, [0] * len(devices)
    extra[0] += sum(num_bytes[name] for name in parts.before)
    extra[last] += sum(num_bytes[name] for name in parts.after)
    stages = spread([num_bytes[name] for name in parts.layers], extra)
    found = {name: devices[stage] for name, stage in zip(parts.layers, stages)}
    return (
        dict.fromkeys(parts.before, devices[0]) | found | dict.fromkeys(parts.after, devices[last])
    )


def is_tied(model: nn.Module) -> bool:
    """Whether the LM head is the embedding's own matrix."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return getattr(head, "weight", None) is getattr(embedding, "weight", ())


def parts_of(path: str, model: nn.Module) -> Parts:
    """The parts that a model can be cut into; its layers are the largest list of modules."""
    lists = {name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    if not lists:
        raise BadInput(f"{path}: no list of layers to be spread")
    layers = max(lists, key=lambda name: sum(part.nbytes for part in lists[name].parameters()))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    parts = Parts([], [], [])

    def walk(module: nn.Module, prefix: str) -> None:
        own = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        parts.before.extend(prefix + name for name, _ in own)
        for name, child in module.named_children():
            full = prefix + name
            if full == layers:
                parts.layers.extend(f"{full}.{number}" for number, _ in child.named_children())
            elif layers.startswith(f"{full}."):
                walk(child, f"{full}.")
            else:
                weighs = next(child.parameters(), None) is not None
                behind = parts.layers and weighs and child is not embedding
                (parts.after if behind or child is head else parts.before).append(full)

    walk(model, "")
    return parts


def part_bytes(model: nn.Module, parts) -> dict[str, int]:
    """{part: bytes of its tensors}, a tensor of two of them with the first one."""
    found = dict.fromkeys(parts, 0)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        found[part_of(name, found)] += tensor.nbytes
    return found


def part_of(name: str, parts) -> str | None:
    """The part that a module or tensor belongs to, by its name; "" is all of a model."""
    pieces = name.split(".")
    begins = (".".join(pieces[:num]) for num in range(len(pieces), -1, -1))
    return next((begin for begin in begins if begin in parts), None)


def spread(sizes: list[int], extra: list[int]) -> list[int]:
    """The stage of every layer: in order, no stage empty, the largest one as small as can be.

    sizes: of the layers; extra: of what else stands on each stage.

    >>> spread([2, 2, 2, 2], [3, 0])
    [0, 1, 1, 1]
    """
    sums, num = [0, *accumulate(sizes)], len(extra)
    best: dict[int, tuple[int, tuple]] = {0: (0, ())}  # layers so far: (largest stage, the ends)
    for stage in range(num):
        ends = range(stage + 1, len(sizes) - num + stage + 2)
        best = {
            end: min(
                (max(largest, sums[end] - sums[begin] + extra[stage]), (*before, end))
                for begin, (largest, before) in best.items()
                if begin < end
            )
            for end in ends
        }
    _, ends = best[len(sizes)]
    return [sum(end <= layer for end in ends) for layer in range(len(sizes))]


def settle(path: str, model: nn.Module, share: Share, given: dict) -> None:
    """Check that a loaded model is where it should be, and let its parts fetch their inputs.

    given: device_map()'s, of which accelerate's takes the place where the share is automatic.
    """
    if share.automatic:
        kind, places = share.devices[0].type, model.hf_device_map
        given = {
            name: torch.device(kind, place) if isinstance(place, int) else torch.device(place)
            for name, place in places.items()
            if place != "disk"
        }
        if len(given) < len(places) or not set(given.values()) <= set(share.devices):
            raise BadInput(
                f"{path}: its weights do not fit the free memory of {len(share.devices)} devices"
            )
    check_placed(path, model, given)
    if len(set(given.values())) > 1:
        from accelerate.hooks import remove_hook_from_submodules

        remove_hook_from_submodules(model)
        join(model, given)


def check_placed(path: str, model: nn.Module, wanted: dict[str, torch.device]) -> None:
    """Refuse a model of which a parameter or buffer is elsewhere than its map says."""
    parameters = model.named_parameters(remove_duplicate=False)
    for name, tensor in chain(parameters, model.named_buffers(remove_duplicate=False)):
        part = part_of(name, wanted)
        if part is None:
            raise BadInput(f"{path}: tensor {name} is in no part of the device map")
        device = wanted[part]
        numbers = {tensor.device.index, device.index} - {None}  # a processor has none
        if tensor.device.type != device.type or len(numbers) > 1:
            raise BadInput(f"{path}: tensor {name} is on {tensor.device}, {device} was asked for")


def join(model: nn.Module, places: dict[str, torch.device]) -> None:
    """Let the parts of a map fetch what they are called with to where their tensors are.

    A tensor that several parts are given, a mask for one, is copied once a forward and device.
    """
    copies: dict[tuple, tuple] | None = None  # {(id, device): (tensor, copy)}, within a forward

    def fetch(value, device):
        if isinstance(value, Tensor) and value.device != device:
            if copies is None:
                return value.to(device)
            key = id(value), device
            if key not in copies:
                copies[key] = value, value.to(device)  # held, so that its id stays its own
            return copies[key][1]
        if type(value) in (list, tuple):
            return type(value)(fetch(part, device) for part in value)
        if type(value) is dict:
            return {name: fetch(part, device) for name, part in value.items()}
        return value

    def before(module, args, kwargs):
        device = next(chain(module.parameters(), module.buffers())).device
        return fetch(args, device), fetch(kwargs, device)

    def begin(*_):
        nonlocal copies
        copies = {}

    def end(*_):
        nonlocal copies
        copies = None

    modules = dict(model.named_modules())
    for name in places:
        part = modules.get(name)  # None: a tensor
        if part is not None and next(chain(part.parameters(), part.buffers()), None) is not None:
            part.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_pre_hook(begin)
    model.register_forward_hook(end, always_call=True)


def output_device(model: nn.Module) -> torch.device:
    """Where a model's logits are made."""
    head = model.get_output_embeddings()
    tensors = () if head is None else chain(head.parameters(), head.buffers())
    return next((tensor.device for tensor in tensors), model.device)
