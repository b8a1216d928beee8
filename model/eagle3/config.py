"""What the config.json of a published EAGLE-3 head says about its wiring.

Read are the forms of SafeAILab and SpecForge (flat), NVIDIA (flat, with switches in eagle_config)
and speculators (the layer's own fields in transformer_layer_config). Fields that change the wiring
are honoured or refused.
Source: arXiv 2503.01840; 2605.09992 (EAGLE-3.1: fc_norm, norm_output)
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from model.common.errors import BadInput
from model.common.heads.checkpoint import Checkpoint, check_fields
from model.common.heads.head import LAYER_FIELDS, LAYER_LIMITS
from model.common.heads.kinds import WHOLE, YES_OR_NO, architectures, check_kinds

MIN_LAYERS = 8  # of the target: with fewer the three usual states coincide or lose their order
IDS = "eagle_aux_hidden_state_layer_ids"
NORMS = ("norm_before_fc", "fc_norm", "norm_output", "norm_before_residual")
DEEP_SPEC = ("Qwen3Eagle3Model", "Gemma4Eagle3Model")  # architectures of deepseek-ai/DeepSpec
FIELDS = (
    *LAYER_FIELDS,
    *NORMS,
    *(IDS, "num_aux_hidden_states", "eagle_config", "speculators_model_type"),
    *("draft_vocab_size", "truncated_vocab_size", "target_hidden_size", "embed_requires_grad"),
)
MASK_IDS = ("mask_token_id", "pard_token", "ptd_token_id")  # of P-EAGLE's, as vLLM reads them
SWITCHES = {  # of eagle_config, and now and then at the root
    "use_aux_hidden_state": (True,),
    "use_last_layernorm": (True,),
    "use_input_layernorm_in_first_layer": (True,),
    "use_mtp_layernorm": (False,),
    "next_layer_regular": (True, False),  # of layers that a head of one layer does not have
    "parallel_draft_step": (1,),
    "parallel_draft_heads_num_layers": (0, 1),  # of heads that one step does not have
    "has_lm_head": (True, False),  # seen in the tensors
}
LIMITS = {**LAYER_LIMITS, **SWITCHES, "bias": (False,), "eagle_fc_bias": (False,)}
KINDS = {  # of fields that these heads alone have
    **dict.fromkeys(("truncated_vocab_size", "target_hidden_size"), WHOLE),
    "num_aux_hidden_states": WHOLE,
    **dict.fromkeys(("embed_requires_grad", "tie_word_embeddings"), YES_OR_NO),
    "parallel_drafting": YES_OR_NO,
}
LAYER_DEFAULTS = {  # of transformers' LlamaConfig, which speculators leaves out where they hold
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


class Wiring(NamedTuple):
    """What differs between heads of one layer.

    num_states            target states that are fused
    norm_before_fc        one norm over the states side by side, before they are fused
    fc_norm               a norm for each of them
    norm_output           the next row reads the output behind the final norm, not before it
    norm_before_residual  the layer's residual is the normed feature
    """

    num_states: int = 3
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    norm_before_residual: bool = False


PLAIN = Wiring()


def flat_fields(checkpoint: Checkpoint, kind: str = "eagle3", more: tuple[str, ...] = ()) -> dict:
    """All fields of a head's config in one dict, checked; other kinds of heads are refused.

    kind: speculators' name of this one; more: fields that it has beside FIELDS
    """
    fields, place = dict(checkpoint.config), f"{checkpoint.path}/config.json"
    fields["architectures"] = architectures(fields, place)
    _check_kind(fields, place, kind)
    layer = fields.pop("transformer_layer_config", None)
    if layer is not None:
        if not isinstance(layer, dict) or layer.get("model_type", "llama") != "llama":
            kind = layer.get("model_type") if isinstance(layer, dict) else layer
            raise BadInput(f"{place}: transformer_layer_config of type {kind}, only llama is read")
        fields = LAYER_DEFAULTS | fields | layer
        if not isinstance(fields.get("norm_before_residual"), bool):
            raise BadInput(f"{place}: no norm_before_residual, for which readers differ")
    check_kinds(fields, place, KINDS)
    check_fields(fields, place, (*FIELDS, *more), LIMITS)
    check_fields(_nested(fields, place), f"{place}: eagle_config", (IDS, *NORMS), SWITCHES)
    return fields


def refuse_parallel(checkpoint: Checkpoint) -> None:
    """Refuse a P-EAGLE head, which stands in the same folders and is another method's."""
    fields = checkpoint.config
    names = architectures(fields, f"{checkpoint.path}/config.json")
    names = [fields.get("speculators_model_type"), *names]
    said = any(fields.get(name) for name in ("parallel_drafting", *MASK_IDS))
    named = any("peagle" in str(name).lower() for name in names)
    if said or named or "mask_hidden" in checkpoint.tensors:
        raise BadInput(
            f"{checkpoint.path}/config.json: a P-EAGLE head (parallel drafting), which is the "
            "method peagle's"
        )


def _check_kind(fields: dict, place: str, wanted: str) -> None:
    """Refuse other heads of speculators', and other layers than Llama's."""
    kind = fields.get("speculators_model_type")
    if kind not in (None, wanted):
        raise BadInput(f"{place}: speculators_model_type {kind}, {wanted} is needed")
    names = fields["architectures"]
    if latent := [name for name in names if "Deepseek" in name]:
        raise BadInput(f"{place}: {latent[0]} has latent attention, which is not supported")
    if other := [name for name in names if name in DEEP_SPEC]:
        raise BadInput(
            f"{place}: {other[0]} reads five states and norms queries and keys (DeepSpec), which "
            "is not supported"
        )


def _nested(fields: dict, place: str) -> dict:
    """The fields in eagle_config."""
    nested = fields.get("eagle_config")
    if nested is not None and not isinstance(nested, dict):
        raise BadInput(f"{place}: eagle_config is no object")
    return nested or {}


def _one_of(fields: dict, place: str, name: str):
    """A field that stands at the root, in eagle_config, or equal in both; None = nowhere."""
    found = [part.get(name) for part in (fields, _nested(fields, place))]
    first, second = found
    if None not in found and first != second:
        raise BadInput(f"{place}: {name} is {first} at the root and {second} in eagle_config")
    return second if first is None else first


def read_wiring(fields: dict, place: str, num_states: int, norm_output: str = "config") -> Wiring:
    """The wiring that a config says, for so many states.

    norm_output: on, off, or as the config has it, of which SpecForge's before September 2026 mean
    something else by it: true there is the plain wiring.
    """
    said = {name: _one_of(fields, place, name) for name in NORMS}
    for name, value in said.items():
        if value is not None and not isinstance(value, bool):
            raise BadInput(f"{place}: {name} {value!r} is neither true nor false")
    if said["norm_before_fc"] and said["fc_norm"]:
        raise BadInput(f"{place}: norm_before_fc and fc_norm exclude each other")
    if norm_output != "config":
        said["norm_output"] = norm_output == "on"
    elif said["norm_output"] and not fields.get("speculators_model_type"):
        print(
            f"{place}: norm_output is true: the normed output is drafted on, as in EAGLE-3.1; "
            "heads of SpecForge before September 2026 say so and need --norm-output off",
            file=sys.stderr,
        )
    return Wiring(num_states, **{name: bool(value) for name, value in said.items()})


def fused_layers(num_layers: int) -> tuple[int, int, int]:
    """Decoder layers whose inputs are fused where nothing else is said: low, middle, high."""
    if num_layers < MIN_LAYERS:
        raise BadInput(f"EAGLE-3 needs a target of at least {MIN_LAYERS} layers, not {num_layers}")
    return 2, num_layers // 2, num_layers - 3


def read_layers(
    fields: dict, place: str, num_layers: int, layer_ids: str = "config"
) -> tuple[int, ...]:
    """Decoder layers of the target whose inputs a head reads, ascending.

    Programs that write layer ids count layers' inputs, as we do, or their outputs (id i is the
    input of layer i + 1): the usual three are known in both spellings, speculators' are inputs,
    others need layer_ids: inputs or outputs. States stand side by side in the order of layers,
    whatever the order of the ids.
    Example: 32 layers, ids [1, 15, 28] or [2, 16, 29] -> (2, 16, 29)
    """
    ids, told = _one_of(fields, place, IDS), fields.get("num_aux_hidden_states")
    if ids is None:
        if layer_ids != "config":
            raise BadInput(f"{place}: no {IDS}: --layer-ids {layer_ids} says nothing")
        layers = fused_layers(num_layers)
        if told not in (None, len(layers)):
            raise BadInput(f"{place}: num_aux_hidden_states {told}, but no {IDS}")
        return layers
    if not isinstance(ids, list) or any(type(one) is not int for one in ids):
        raise BadInput(f"{place}: {IDS} {ids} are no layer ids")
    if len(set(ids)) < len(ids) or len(ids) < 2:
        raise BadInput(f"{place}: {IDS} {ids}: two different layers or more are needed")
    if told not in (None, len(ids)):
        raise BadInput(f"{place}: num_aux_hidden_states {told}, but {IDS} {ids}")
    ids = sorted(ids)
    if layer_ids == "config":
        usual = [2, num_layers // 2, num_layers - 3]
        if ids in (usual, [layer - 1 for layer in usual]):
            return fused_layers(num_layers)
        if not fields.get("speculators_model_type"):
            raise BadInput(
                f"{place}: {IDS} {ids} are not the usual {usual}; --layer-ids says whether they "
                "count layers' inputs or outputs"
            )
    layers = tuple(one + (layer_ids == "outputs") for one in ids)
    if layers[0] < 0 or layers[-1] >= num_layers:
        raise BadInput(
            f"{place}: {IDS} {ids}: the target has {num_layers} layers, inputs of 0 to "
            f"{num_layers - 1} can be read"
        )
    return layers
