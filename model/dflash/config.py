"""What the config.json of a block drafter says: of DFlash, DFlash2 and DSpark, in all spellings.

z-lab and SpecForge (some fields in dflash_config), Meta (flat), speculators (the layers' fields in
transformer_layer_config, layer ids counted from the layers' inputs) and DeepSpec (flat, the anchor
predicts too). Fields that change the wiring are honoured or refused.
Source: Chen et al., arXiv 2602.06036; github.com/z-lab/dflash, vllm-project/speculators
"""

from __future__ import annotations

from typing import NamedTuple

from model.common.errors import BadInput
from model.common.heads.checkpoint import check_fields
from model.common.heads.head import LAYER_FIELDS, LAYER_LIMITS
from model.common.heads.kinds import architectures

NESTED = "dflash_config"
META = "MuseGlimmerAssistantModel"
FROM_ANCHOR = ("Qwen3DSparkModel", "DSparkDraftModel", "DSparkSpeculator")
ARCHITECTURES = {"DFlashDraftModel", "DFlash2DraftModel", "DFlashSpeculator", "DFlash2Speculator"}
ARCHITECTURES |= {META, *FROM_ANCHOR}
KINDS = (None, "dflash", "dflash2", "dspark")  # speculators_model_type
OWN = (
    *("block_size", "target_layer_ids", "aux_hidden_state_layer_ids", "mask_token_id"),
    *("num_target_layers", "target_hidden_size", "num_hidden_layers", "draft_vocab_size"),
    *("use_swa", "swa_window_size", "sliding_window_non_causal", "is_causal", "causal"),
    *("final_logit_softcapping", "output_multiplier", "input_embedding_scale"),
    *("conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k"),
    *("sample_from_anchor", "speculators_model_type", "projector_type"),
    *("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov"),
    *("num_anchors", "max_anchors"),  # of training
)
HONOURED = ("final_logit_softcapping", "is_causal")
LIMITS = {name: values for name, values in LAYER_LIMITS.items() if name not in HONOURED}
LIMITS |= {"shift_label": (False,), "pure_draft_prefix_len": (1,)}


class Design(NamedTuple):
    """How a block is read and drafted.

    block_size   rows of a block: the anchor (root) and masks
    from_anchor  row j predicts the token that follows it; else a mask's row its own token
    mask_id      token of the masks' rows
    states       decoder layers of the target whose inputs are read, in the order of fc's columns
    windows      of each layer in positions, None = it reads all
    causal       of each layer: whether a block's row reads those before it only
    draft_vocab  V_d where not all of the target's ids are drafted
    conv         (taps, channels of a group) of DFlash2's convolutions
    selector     (rank, candidates of a slot) of DFlash2's selector
    cap, multiplier, embedding_scale  of logits and embeddings; cap None = none
    """

    block_size: int
    from_anchor: bool
    mask_id: int
    states: tuple[int, ...]
    windows: tuple[int | None, ...]
    causal: tuple[bool, ...]
    draft_vocab: int | None = None
    conv: tuple[int, int] | None = None
    selector: tuple[int, int] | None = None
    cap: float | None = None
    multiplier: float = 1.0
    embedding_scale: float = 1.0

    @property
    def num_drafts(self) -> int:
        """Tokens that a block drafts."""
        return self.block_size if self.from_anchor else self.block_size - 1


def flat_fields(config: dict, place: str) -> dict:
    """All fields of a config in one dict, checked; `architectures` is its one name or None.

    place: the file, for messages
    """
    fields = {name: value for name, value in config.items() if value is not None}
    names = architectures(fields, place) or [None]
    fields.pop("architectures", None)
    if names[0] is not None and names[0] not in ARCHITECTURES:
        raise BadInput(f"{place}: architectures {names[0]} is no block drafter that is read here")
    if (kind := fields.get("speculators_model_type")) not in KINDS:
        raise BadInput(f"{place}: speculators_model_type {kind} is no block drafter")
    for part in ("transformer_layer_config", NESTED):
        inner = fields.pop(part, {})
        if not isinstance(inner, dict):
            raise BadInput(f"{place}: {part} is no object")
        for name, value in inner.items():
            if value is None:
                continue
            if part == NESTED and fields.get(name, value) != value:
                raise BadInput(
                    f"{place}: {name} is {fields[name]} at the root and {value} in {NESTED}"
                )
            if name != "architectures":
                fields[name] = value
    check_fields(fields, place, (*LAYER_FIELDS, *OWN), LIMITS)
    return {**fields, "architectures": names[0]}


def read_design(fields: dict, place: str, target) -> Design:
    """The design that flat fields say, for a target (its transformers config is asked)."""
    layers = _whole(fields, place, "num_hidden_layers")
    from_anchor = fields.get("sample_from_anchor", fields["architectures"] in FROM_ANCHOR)
    vocab, mask_id = target.vocab_size, _whole(fields, place, "mask_token_id", 0)
    if mask_id >= vocab:
        raise BadInput(f"{place}: mask_token_id {mask_id}, the target has {vocab} ids")
    draft_vocab = fields.get("draft_vocab_size")
    design = Design(
        block_size=_whole(fields, place, "block_size", 1 if from_anchor else 2),
        from_anchor=bool(from_anchor),
        mask_id=mask_id,
        states=read_states(fields, place, layers, target.config.num_hidden_layers),
        windows=read_windows(fields, place, layers),
        causal=read_causal(fields, layers),
        draft_vocab=None if draft_vocab == vocab else draft_vocab,
        conv=_pair(fields, place, "conv_kernel_size", "conv_group_size"),
        selector=_pair(fields, place, "selector_rank", "selector_top_k"),
        cap=fields.get("final_logit_softcapping") or None,
        multiplier=fields.get("output_multiplier", 1.0),
        embedding_scale=fields.get("input_embedding_scale", 1.0),
    )
    check_block(design.block_size, f"{place}: block_size", target)
    if design.conv and _whole(fields, place, "hidden_size") % design.conv[1]:
        raise BadInput(f"{place}: conv_group_size {design.conv[1]} does not divide hidden_size")
    if design.selector and design.draft_vocab:
        raise BadInput(f"{place}: a selector over draft_vocab_size {draft_vocab} is not supported")
    if design.cap is None and design.multiplier == 1:  # then logits are scaled as the target's
        cap = getattr(target.config, "final_logit_softcapping", None)
        multiplier = getattr(target.config, "output_multiplier", None) or 1.0
        design = design._replace(cap=cap, multiplier=multiplier)
    return design


def _whole(fields: dict, place: str, name: str, least: int = 1) -> int:
    """A field that has to be an integer of at least `least`."""
    value = fields.get(name)
    if type(value) is not int or value < least:
        raise BadInput(
            f"{place}: {name} {value!r}, an integer of at least {least} is needed"
            if name in fields
            else f"{place}: no {name}"
        )
    return value


def check_block(block_size: int, name: str, target) -> None:
    """Refuse blocks that no text of the target has room for."""
    context = getattr(target.config, "max_position_embeddings", None)
    if context is not None and block_size > context:
        raise BadInput(f"{name} {block_size}: the target's context is of {context} tokens")


def _pair(fields: dict, place: str, first: str, second: str) -> tuple[int, int] | None:
    """Two fields that go together; None where the first is missing or 0."""
    if not fields.get(first):
        return None
    return _whole(fields, place, first), _whole(fields, place, second)


def spread_layers(num_layers: int, num_states: int) -> tuple[int, ...]:
    """Ids of decoder layers whose outputs are read where no config says them.

    >>> spread_layers(36, 5), spread_layers(8, 3), spread_layers(8, 1)
    ((1, 9, 17, 25, 33), (1, 3, 5), (4,))
    """
    if num_states == 1:
        return (num_layers // 2,)
    gap = (num_layers - 4) / (num_states - 1)
    return tuple(round(1 + gap * i) for i in range(num_states))


def read_states(fields: dict, place: str, layers: int, num_layers: int) -> tuple[int, ...]:
    """Decoder layers whose inputs are read: behind the layers of target_layer_ids, -1 = layer 0's;
    those of aux_hidden_state_layer_ids. The last layer's output is known behind the norm only."""
    told = fields.get("num_target_layers", num_layers)
    if told != num_layers:
        raise BadInput(f"{place}: num_target_layers {told}, the target has {num_layers}")
    name = "aux_hidden_state_layer_ids"
    ids, shift = fields.get(name), 0
    if ids is None:
        name, shift = "target_layer_ids", 1
        ids = fields.get(name, list(spread_layers(num_layers, layers)))
    if not isinstance(ids, list) or not ids or any(type(one) is not int for one in ids):
        raise BadInput(f"{place}: {name} {ids} are no layer ids")
    states = tuple(one + shift for one in ids)
    for one, state in zip(ids, states):
        if not 0 <= state < num_layers:
            raise BadInput(
                f"{place}: {name} {ids}: {one} is not from {-shift} to {num_layers - 1 - shift}, "
                f"the states that can be read of {num_layers} layers"
            )
    return states


def read_windows(fields: dict, place: str, layers: int) -> tuple[int | None, ...]:
    """The window of each layer, itself included, None = it reads all.

    Meta's class counts the distance, so that one position more is read.
    """
    kinds = fields.get("layer_types")
    sliding = "sliding_attention"
    if kinds is None:
        kinds = [sliding if fields["architectures"] == META else "full_attention"] * layers
    if fields.get("use_swa") and sliding not in kinds:
        kinds = [sliding] * layers
    unknown = [kind for kind in kinds if kind not in ("full_attention", sliding)]
    if len(kinds) != layers or unknown:
        raise BadInput(f"{place}: layer_types {kinds} for {layers} layers")
    if sliding not in kinds:
        return (None,) * layers
    name = "swa_window_size" if "swa_window_size" in fields else "sliding_window"
    window = _whole(fields, place, name) + (fields["architectures"] == META)
    return tuple(window if kind == sliding else None for kind in kinds)


def read_causal(fields: dict, layers: int) -> tuple[bool, ...]:
    """Whether each layer is causal inside a block: is_causal, else causal, else where it slides.

    Meta's is not, speculators' sliding layers are unless sliding_window_non_causal.
    """
    kind = fields.get("speculators_model_type")
    causal = fields.get("is_causal", fields.get("causal"))
    if causal is None and fields["architectures"] == META:
        causal = False
    if causal is None and kind and fields.get("sliding_window_non_causal", kind == "dflash2"):
        causal = False
    if causal is not None:
        return (bool(causal),) * layers
    kinds = fields.get("layer_types") or ["full_attention"] * layers
    return tuple(one == "sliding_attention" for one in kinds)
