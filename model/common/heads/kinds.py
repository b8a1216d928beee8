"""What the fields of a head's config.json may be: a value of another kind is refused in a line."""

from __future__ import annotations

import json
import math

from model.common.errors import BadInput


def _whole(value) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


WHOLE = (_whole, "an integer of at least 1")
POSITIVE = (lambda value: _number(value) and value > 0, "a number above 0")
NOT_NEGATIVE = (lambda value: _number(value) and value >= 0, "a number of at least 0")
YES_OR_NO = (lambda value: type(value) is bool, "true or false")
TEXT = (lambda value: isinstance(value, str), "a text")
TEXTS = (_texts, "a list of texts")
OBJECT = (lambda value: isinstance(value, dict), "an object")

ROPE = ("rope_parameters", "rope_scaling")
KINDS = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads"), WHOLE),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "vocab_size", "draft_vocab_size"), WHOLE),
    **dict.fromkeys(("max_position_embeddings", "num_target_layers"), WHOLE),
    **dict.fromkeys(("rope_theta", "output_multiplier", "input_embedding_scale"), POSITIVE),
    **dict.fromkeys(("final_logit_softcapping", "rms_norm_eps"), NOT_NEGATIVE),
    **dict.fromkeys(("attention_bias", "qkv_bias", "mlp_bias", "use_sliding_window"), YES_OR_NO),
    **dict.fromkeys(("is_causal", "causal", "use_swa", "sample_from_anchor"), YES_OR_NO),
    **dict.fromkeys(("sliding_window_non_causal", "enable_confidence_head"), YES_OR_NO),
    **dict.fromkeys(("confidence_head_with_markov", "bias", "eagle_fc_bias"), YES_OR_NO),
    **dict.fromkeys(("hidden_act", "projector_type"), TEXT),
    "architectures": (lambda value: isinstance(value, str) or _texts(value), "a list of texts"),
    "layer_types": TEXTS,
    **dict.fromkeys(ROPE, OBJECT),
}
ROPE_LISTS = ("long_factor", "short_factor", "mrope_section")
ROPE_WORDS = ("rope_type", "type")
ROPE_FLAGS = ("truncate", "mrope_interleaved")


def check_kinds(fields: dict, place: str, kinds: dict | None = None) -> None:
    """Refuse a field of another kind; what is null or missing says nothing.

    kinds: of some fields, None = of all that heads share, what stands in RoPE's objects included
    """
    for name, (holds, words) in (KINDS if kinds is None else kinds).items():
        value = fields.get(name)
        if value is not None and not holds(value):
            raise BadInput(f"{place}: {name} {json.dumps(value)}, {words} is needed")
    for part in ROPE if kinds is None else ():
        for name, value in (fields.get(part) or {}).items():
            _check_rope(name, value, f"{place}: {part}")


def architectures(fields: dict, place: str) -> list[str]:
    """The names in a config's `architectures`; a text is one name."""
    check_kinds(fields, place, {"architectures": KINDS["architectures"]})
    names = fields.get("architectures")
    return [] if names is None else [names] if isinstance(names, str) else names


def _check_rope(name: str, value, place: str) -> None:
    if name in ROPE_LISTS:
        holds = isinstance(value, list) and all(map(_number, value))
    elif name in ROPE_WORDS:
        holds = isinstance(value, str)
    elif name in ROPE_FLAGS:
        holds = isinstance(value, bool)
    else:
        holds = POSITIVE[0](value) if name in ("rope_theta", "factor") else _number(value)
    if value is not None and not holds:
        raise BadInput(f"{place}: {name} {json.dumps(value)} is of another kind")
