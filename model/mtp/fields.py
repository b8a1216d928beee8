"""What the config.json beside an MTP head says, held against the target's own config.

A head's layer is made of the target's class and config. A field that the target has too must say
the same, or what is so of a model with the head's layer alone; one that nothing here knows is named
in a line.
"""

from __future__ import annotations

import json
import re

from model.common.errors import BadInput
from model.common.heads.checkpoint import HARMLESS, check_fields
from model.common.heads.head import LAYER_LIMITS, target_rope
from model.common.heads.kinds import ROPE

COUNTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")  # of the head's layers
LIMITS = {
    "speculators_model_type": ("mtp", "fastmtp", "fast_mtp"),
    "mtp_use_dedicated_embeddings": (False,),
}
ARCHITECTURES = {"MtpHead", "MTPDraftModel", "MiMoMTPModel", "MiMoForCausalLM"}
CHECKED = ("num_hidden_layers", "decoder_sparse_step")  # in HARMLESS, of heads of Llama's layer
UNREAD = {  # where the tensors tell, positions are not limited, or it is of training
    *HARMLESS.difference(CHECKED),
    *("architectures", "max_position_embeddings", "quantization_config"),
    *("output_router_logits", "router_aux_loss_coef", "aux_loss_alpha", "seq_aux", "ep_size"),
}
ROPE_DEFAULTS = {"rope_type": "default", "partial_rotary_factor": 1}
ALIKE = {"mimo": "qwen2"}  # MiMo's own code is Qwen2's
OTHER_LAYERS = ("full_attention_interval",)  # of the target, where the head's one is not
OTHER_INPUTS = re.compile(r"(vision|image|video|audio)_.*")  # of models that read more than text


def check_config(fields: dict, place: str, whole, config, one_layer) -> None:
    """Refuse fields that say another wiring than the target's; name unknown ones.

    fields     of the head's config.json, whose name is `place`
    whole      the target's config
    config     of its text model
    one_layer  layer_config() of that
    """
    from transformers import PretrainedConfig

    fields = _flat(fields, place)
    _check_type(fields, place, whole, config)
    for name in COUNTS:
        value = fields.get(name)
        if value is not None and (type(value) is not int or value != 1):
            raise BadInput(f"{place}: {name} {json.dumps(value)}: heads of one layer are read")
    ours, theirs = _named(one_layer), _named(config)
    unread = UNREAD.union(PretrainedConfig().to_dict())  # what configs of all kinds of models have
    plain = _without_kinds(fields, place)
    _check_rope(plain, place, theirs)
    own = (*ROPE, *COUNTS, *ROPE_DEFAULTS, "rope_theta", *OTHER_LAYERS)
    for name, value in fields.items():
        if value is None or name in unread or name in own or name not in theirs:
            continue
        if name == "sliding_window" and theirs.get("use_sliding_window") is False:
            continue  # written by programs that do not look at it
        if not (_same(value, theirs[name]) or _same(value, ours[name])):
            raise _other(place, name, value, theirs[name])
    known = [*theirs, *own, *(name for name in fields if OTHER_INPUTS.fullmatch(name))]
    limits = {name: values for name, values in LAYER_LIMITS.items() if name not in known}
    names = plain.get("architectures")
    if isinstance(names, list):
        known_names = ARCHITECTURES.union(whole.architectures or (), config.architectures or ())
        plain["architectures"] = [name for name in names if name not in known_names]
    check_fields(plain, place, known, LIMITS | limits)


def _flat(fields: dict, place: str) -> dict:
    """All fields in one dict: speculators' have the layer's own in transformer_layer_config, models
    that read more than text those of their text model in text_config."""
    fields = dict(fields)
    for part in ("transformer_layer_config", "text_config"):
        inner = fields.pop(part, None)
        if inner is not None and not isinstance(inner, dict):
            raise BadInput(f"{place}: {part} is no object")
        fields |= inner or {}
    return fields


def _check_type(fields: dict, place: str, whole, config) -> None:
    """Refuse another model's layer; a type that transformers does not know is named in a line."""
    from transformers import CONFIG_MAPPING

    kind = fields.get("model_type")
    if kind is None:
        return
    if not isinstance(kind, str):
        raise BadInput(f"{place}: model_type {json.dumps(kind)}, a text is needed")
    theirs = {whole.model_type, config.model_type}
    theirs |= {ALIKE.get(name, name) for name in theirs}
    if ALIKE.get(kind, kind) in theirs:
        return
    if kind in CONFIG_MAPPING:
        raise _other(place, "model_type", kind, config.model_type)
    fields[f"model_type {kind}"] = True  # unknown: check_fields() names it


def _named(config) -> dict:
    """A config's values by all names that its class has for them."""
    values = config.to_dict()
    aliases = getattr(config, "attribute_map", None) or {}
    values |= {name: values[real] for name, real in aliases.items() if real in values}
    heads = values.get("num_attention_heads")
    if heads and values.get("head_dim", 0) is None:
        values["head_dim"] = values["hidden_size"] // heads
    return values


def _without_kinds(fields: dict, place: str) -> dict:
    """Fields whose RoPE is that of full attention, where it has one for each kind of layer."""
    plain = dict(fields)
    for part in ROPE:
        value = fields.get(part)
        rope = target_rope({"rope_parameters": value}) if isinstance(value, dict) else value
        if rope is not None and not isinstance(rope, dict):
            raise BadInput(f"{place}: {part} {json.dumps(value)}, an object is needed")
        plain[part] = rope
    return plain


def _check_rope(fields: dict, place: str, theirs: dict) -> None:
    """Refuse other rotary positions than the target's, at the root or in an object."""
    wanted = {**ROPE_DEFAULTS, **target_rope(theirs)}
    names = ("rope_theta", "partial_rotary_factor")
    found = [(name, name, fields.get(name)) for name in names]
    for part in ROPE:
        for name, value in (fields[part] or {}).items():
            known = "rope_type" if name == "type" else name
            found.append((f"{part}: {name}", known, value))
    for words, name, value in found:
        if value is None or name.startswith("mrope_"):  # of several axes: for text they are one
            continue
        if name == "rope_type" and value == "mrope":
            value = "default"
        target = wanted.get(name, theirs.get(name))
        if not _same(value, target):
            raise _other(place, words, value, target)


def _same(one, other) -> bool:
    """Whether two values are equal; true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(other, (list, tuple)):
        return isinstance(one, list) and one == list(other)
    return one == other


def _other(place: str, name: str, value, target) -> BadInput:
    said = json.dumps(target, default=str)
    return BadInput(f"{place}: {name} {json.dumps(value)}, the target's is {said}")
