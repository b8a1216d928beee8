"""Models and devices from the command line's names; every failure is one line of BadInput."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from model.common.errors import BadInput, Unsupported, first_line, parse_json
from model.common.remote_code import check_needed, trusted
from model.common.target.attention import NAME, register
from model.common.target.gguf_files import check_taken, complete_config, gguf_file, pretrained
from model.common.target.model import Target
from model.common.target.placement import Share, device_map, settle
from model.common.target.products import choose_products
from model.common.target.quantised import (
    check_known,
    failure,
    may_be_missing,
    refuse_quantised,
    settle_dtype,
)
from model.common.target.runtime import tell_once

PACKAGED = ("smollm2", "gemma3-270m")  # what data/download.py makes models of
HUB_WEIGHTS = (["*.safetensors"], ["*.bin", "*.pt"])  # of a repository, as loaders prefer them
NOT_OF_A_MODEL = ["*/*", "consolidated*"]  # other programs' copies of it


def load_target(
    path: str,
    dtype: str,
    device: str | Share,
    runtime: str,
    offload=None,
    scale_to: str | None = None,
) -> Target:
    """Load a model directory or hub id onto a device, or spread it over those of a Share.

    offload: an offload.Offload, for layers that are streamed to the device; scale_to: the name of
    a shape in shapes.SHAPES, or its numbers, for the model's twin of that size.
    """

    if scale_to is None and offload is None:
        return _own_size(path, dtype, device, runtime)

    def model_on(device: str | Share):
        if scale_to is None:
            return load_model(path, dtype, device), None
        from model.common.target.twin.twin import load_twin

        return load_twin(path, dtype, share_of(device).devices[0], scale_to)

    if offload is None:
        model, twin = model_on(device)
        return Target(model, runtime, twin)
    from model.common.target.offload import LayerStream, private_folder

    folder, where = private_folder(offload), share_of(device).devices[0]
    try:
        model, twin = model_on("cpu")
        refuse_quantised(model, f"{path}: --offload")
        stream = LayerStream(model, where, offload, folder)
        target = Target(model, runtime, twin)
        target.facts, target.forget = stream.facts, stream.forget
        return target if twin else _checked(target)
    except Unsupported as refusal:
        raise BadInput(f"{path}: --offload: {refusal}") from refusal


def _own_size(path: str, dtype: str, device: str | Share, runtime: str) -> Target:
    """A Target that reads as transformers does; on its own cache where ours does not serve it."""
    try:
        return _checked(Target(load_model(path, dtype, device), runtime))
    except Unsupported as refusal:
        reason = str(refusal).removesuffix("; it is not supported")
    if runtime != "eager":
        raise BadInput(f"{path}: {reason}; on its own cache it needs --runtime eager")
    try:
        target = _checked(load_plain(path, dtype, device))
    except Unsupported as refusal:
        raise BadInput(f"{path}: {refusal}") from refusal
    tell_once(f"{path}: {reason}: chains only, on transformers' own cache")
    choose_products(target.model, target.device)
    return target


def _checked(target: Target) -> Target:
    """The target, if its logits are the model's own; nothing holds one that is refused."""
    from model.common.target.self_check import check

    check(target)
    return target


def load_plain(path: str, dtype: str, device: str | Share) -> Target:
    """A target on transformers' own cache and attention, untouched."""
    from model.common.target.own_cache import EncoderDecoderTarget, OwnCacheTarget

    model = load_model(path, dtype, device, attention=None)
    kind = EncoderDecoderTarget if model.config.is_encoder_decoder else OwnCacheTarget
    return kind(model)


def torch_device(name: str, flag: str = "--device") -> torch.device:
    """Device of auto, cpu, cuda or cuda:1; CUDA asked for and absent is bad input."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(f"{flag} {name}: this PyTorch sees no CUDA device")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadInput(f"{flag} {name}: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"{flag} {name}: there are {torch.cuda.device_count()} CUDA devices")
    return device


def share_of(device: str | Share) -> Share:
    """The Share of one device by its name; a Share as it is."""
    return device if isinstance(device, Share) else Share((torch_device(device),))


def load_model(path: str, dtype: str, device: str | Share, attention: str | None = NAME):
    """transformers' own class for a model; every failure is one line of BadInput.

    attention: its implementation, ours or (None) transformers' choice. Raises Unsupported where a
    model cannot be given ours.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GgufConfig

    check_model_path(path)
    share, config = share_of(device), None
    register()
    try:
        with pretrained(path) as (source, more):
            config = _config(path, source, more)
            kind = AutoModelForCausalLM
            if config.is_encoder_decoder:
                if attention is not None:
                    raise Unsupported("it is an encoder-decoder model")
                kind = AutoModelForSeq2SeqLM
            if more:
                more |= {"quantization_config": GgufConfig(dequantize=True)}
            places, limits = _places(path, config, kind, share)
            model, report = kind.from_pretrained(
                source,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                dtype=getattr(torch, dtype),
                attn_implementation=attention,
                device_map=places,
                max_memory=limits,
                trust_remote_code=trusted(),
                **more,
            )
    except BadInput:
        raise
    except Exception as error:  # of many kinds: of its code, its quantiser's, the file system's
        check_needed(path, error)
        if attention is not None and isinstance(error, KeyError) and error.args == (attention,):
            raise Unsupported("its attention is one of its own") from error
        raise BadInput(f"{path}: cannot be loaded: {failure(config, error)}") from error
    check_tensors(path, report, may_be_missing(model))
    settle_dtype(path, config, model, getattr(torch, dtype))
    settle(path, model, share, places)
    if more:
        check_taken(path, model)
        config.name_or_path = model.config.name_or_path = path
    return model.eval()


def _places(path: str, config, kind, share: Share) -> tuple:
    """(device_map, max_memory) for from_pretrained()."""
    if not share.automatic:
        return device_map(path, config, kind, share.devices), None
    return "auto", {device.index: torch.cuda.mem_get_info(device)[0] for device in share.devices}


def _config(path: str, source: str, more: dict):
    """A model's config, checked and completed; source, more: of pretrained()."""
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(source, trust_remote_code=trusted(), **more)
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    if isinstance(layers, int) and layers < 1:
        raise BadInput(f"{path}: config.json says num_hidden_layers {layers}")
    check_known(path, config)
    if os.path.isfile(os.path.join(source, "generation_config.json")):
        GenerationConfig.from_pretrained(source)  # a broken one would be passed over, with its ends
    if more:
        complete_config(path, config)
    return config


def check_tensors(path: str, report, optional: tuple[str, ...] = ()) -> None:
    """Refuse weights that lack a tensor or hold one of another shape: it would be random.

    optional: endings of names that may be missing.
    """
    for name, *shapes in sorted(report["mismatched_keys"]):
        found, expected = (tuple(shape) for shape in shapes[:2])
        raise BadInput(f"{path}: tensor {name} is {found}, the config says {expected}")
    missing = sorted(key for key in report["missing_keys"] if not key.endswith(optional))
    if missing:
        raise BadInput(f"{path}: no tensor {missing[0]} ({len(missing)} missing)")
    extra = sorted(report["unexpected_keys"])
    if extra:
        tell_once(f"{path}: the model has no place for tensor {extra[0]} ({len(extra)} left out)")


def check_model_path(path: str) -> None:
    """Refuse a path that is no model's before transformers asks a hub; see gguf_file() too."""
    if gguf_file(path) is None:
        check_directory(path)


def model_folder(path: str) -> Path:
    """The directory of a model: itself, or a hub id's snapshot; of a GGUF model its file.

    A snapshot's weights are fetched by this, so that its hash is that of what will be loaded.
    """
    if file := gguf_file(path):
        return file
    if os.path.isdir(path):
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        for kinds in HUB_WEIGHTS:
            wanted = {"allow_patterns": ["*.json", *kinds], "ignore_patterns": NOT_OF_A_MODEL}
            folder = Path(snapshot_download(path, **wanted))
            if any(file for kind in kinds for file in folder.glob(kind)):
                return folder
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: {first_line(error)}") from error
    raise BadInput(f"{path}: no weights in its repository")


def check_directory(path: str) -> None:
    """Refuse a missing path or one without config.json."""
    name = os.path.basename(path.rstrip("/"))
    if name in PACKAGED and not os.path.exists(path):
        raise BadInput(f"{path}: missing; python data/download.py {name} makes data/models/{name}")
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "config.json")):
            raise BadInput(f"{path}: not a model directory (no config.json)")
        check_shards(path)
    elif os.path.exists(path):
        raise BadInput(f"{path}: not a directory")
    elif path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise BadInput(f"{path}: no such model directory")


def check_shards(path: str) -> None:
    """Refuse a directory whose index names shards elsewhere; a broken index is its reader's."""
    for index in sorted(Path(path).glob("*.index.json")):
        try:
            shards = set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        for shard in map(Path, filter(lambda name: isinstance(name, str), shards)):
            if shard.is_absolute() or ".." in shard.parts:
                raise BadInput(f"{index}: {shard} lies outside its folder")
