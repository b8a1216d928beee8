"""P-EAGLE's head: EAGLE-3's, with more layers, and a learned state where the target has none yet.

Row i reads token i + 1 and the target's states at i, as EAGLE-3's do; a mask row reads the mask
token and the mask state. All K tokens of a draft come out of one pass: K - 1 mask rows stand behind
the last row with states of the target, at the positions that follow.
Source: Hui et al., arXiv 2602.01469; files of AWS, speculators, SpecForge and NeMo Automodel
"""

from __future__ import annotations

import functools
import re

import torch
from torch import Tensor, nn

from model.common.errors import BadInput
from model.common.heads.checkpoint import Checkpoint
from model.common.heads.head import RowAttention
from model.common.heads.kinds import architectures
from model.common.heads.vocabulary import DraftIds
from model.eagle3.config import MASK_IDS, flat_fields, read_layers, read_wiring
from model.eagle3.head import Eagle3Head, Eagle3Module, load_module, open_eagle3

MASK = "mask_hidden"
FIELDS = (*MASK_IDS, "parallel_drafting")
TRAINED = ("num_depths", "down_sample_ratio", "down_sample_ratio_min")  # NeMo Automodel's, unused
NAMES = {  # architectures of these heads
    *("PEagleSpeculator", "PEagleDraftModel", "PeagleLlamaForCausalLM"),
    "LlamaEagle3DraftModel",
}


class LlamaLayer(nn.Module):
    """A Llama layer of the published tensor names; its rows read a cache, or each other."""

    def __init__(self, config):
        from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

        super().__init__()
        norm = (config.hidden_size, config.rms_norm_eps)
        self.input_layernorm = LlamaRMSNorm(*norm)
        self.self_attn = RowAttention(config)
        self.post_attention_layernorm = LlamaRMSNorm(*norm)
        self.mlp = LlamaMLP(config)

    def forward(self, rows: Tensor, rotary, mask, place) -> Tensor:
        """[S, r, H] -> [S, r, H]; the rest as RowAttention takes it."""
        rows = rows + self.self_attn(self.input_layernorm(rows), rotary, mask, place)
        return rows + self.mlp(self.post_attention_layernorm(rows))


class PEagleModule(Eagle3Module):
    """The published tensors: EAGLE-3's, layers.1, layers.2, ... on top, and the mask state.

    The file's mask_hidden, of n H_t numbers, is here the one row of an embedding [1, n H_t].
    """

    kinds = {**Eagle3Module.kinds, MASK: "embedding"}

    def __init__(
        self, config, draft_vocab, target_width, embedding, owns, wiring, num_layers: int = 1
    ):
        super().__init__(config, draft_vocab, target_width, embedding, owns, wiring)
        above = {str(layer): LlamaLayer(config) for layer in range(1, num_layers)}
        self.layers = nn.ModuleDict(above)
        self.mask_hidden = nn.Embedding(1, wiring.num_states * target_width)

    def forward(self, inputs, rotary, mask, place) -> Tensor:
        """inputs (tokens [S, r], states [S, r, n H_t]) -> outputs [S, r, H] before the norm; the
        rest as CachedHead gives it."""
        rows = super().forward(inputs, rotary, mask, place)
        for layer in self.layers.values():
            rows = layer(rows, rotary, mask, place)
        return rows


class PEagleHead(Eagle3Head):
    """The head with its cache.

    mask_id     token that mask rows read
    mask_state  [n H_t] what they read in place of the target's states
    """

    def __init__(self, module, config, target, layers: tuple[int, ...], mask_id: int):
        super().__init__(module, config, target, layers)
        self.mask_id, self.mask_state = mask_id, module.mask_hidden.weight[0]
        self.drafted = DraftIds()
        if self.offsets is not None:
            ids = torch.arange(len(self.offsets), device=self.offsets.device)
            self.drafted = DraftIds(ids + self.offsets)

    def facts(self) -> dict:
        return {"head_layers": 1 + len(self.module.layers), **super().facts()}

    def target_laws(self, laws: Tensor) -> Tensor:
        return self.drafted.laws(laws, self.vocab_size)


def load_peagle(
    path: str,
    target,
    layer_ids: str = "config",
    mask_id: int | None = None,
    num_draft: int | None = None,
) -> PEagleHead:
    """P-EAGLE's published files: EAGLE-3's forms, with mask_hidden and any number of layers.

    layer_ids: as load_eagle3() has it; mask_id: the token of mask rows, None = as the config says.
    num_draft: tokens of a draft, where it is known: of one no mask row is read.
    The embedding is the head's own where the file has one, else the target's.
    """
    checkpoint, place = open_eagle3(path), f"{path}/config.json"
    names = architectures(checkpoint.config, place)
    checkpoint.config |= {"architectures": [name for name in names if name not in NAMES]}
    fields = flat_fields(checkpoint, "peagle", (*FIELDS, *TRAINED))
    if len(set(fields.get("layer_types") or ())) > 1:
        raise BadInput(f"{place}: layer_types {fields['layer_types']}: all have to be alike")
    if fields.get("parallel_drafting") is False:
        raise BadInput(f"{place}: parallel_drafting false: no head of method peagle")
    num_layers = prepare_tensors(checkpoint)
    has_embedding = "embed_tokens.weight" in checkpoint.tensors
    if fields.get("embed_requires_grad") and not has_embedding:
        raise BadInput(
            f"{place}: embed_requires_grad true, but {checkpoint.file} has no embed_tokens.weight"
        )
    fields["embed_requires_grad"] = has_embedding
    layers = read_layers(fields, place, target.origin.config.num_hidden_layers, layer_ids)
    # what drafting on from a normed output would mean: no row of this head is drafted on from
    wiring = read_wiring(fields, place, len(layers), norm_output="off")
    mask_id = read_mask_id(fields, place, target.origin.vocab_size, mask_id, num_draft)
    kind = functools.partial(PEagleModule, num_layers=num_layers)
    module, config = load_module(checkpoint, fields, target, wiring, kind)
    return PEagleHead(module, config, target, layers, mask_id)


def prepare_tensors(checkpoint: Checkpoint) -> int:
    """Bring a file's tensors into the module's shapes; the number of its layers.

    mask_hidden is stored as [1, 1, n H_t] or [1, n H_t]. Layers are counted in the file, which has
    to have all of them. vLLM makes a hidden_norm in every layer and reads it in the first alone.
    """
    tensors = checkpoint.tensors
    if MASK in tensors:
        tensors[f"{MASK}.weight"] = tensors.pop(MASK).reshape(1, -1)
    numbers = {name: match[1] for name in tensors if (match := re.match(r"layers\.(\d+)\.", name))}
    found, num_layers = {*numbers.values()}, 1
    while str(num_layers) in found:
        checkpoint.drop(f"layers.{num_layers}.hidden_norm.weight")
        num_layers += 1
    known = {str(number) for number in range(1, num_layers)}
    for name, number in numbers.items():
        if number not in known:
            raise BadInput(f"{checkpoint.file}: tensor {name}, but no tensor layers.{num_layers}.*")
    return num_layers


def read_mask_id(
    fields: dict, place: str, vocab_size: int, given: int | None, num_draft: int | None = None
) -> int:
    """The token of mask rows: given (--mask-id), or of the first of the names in MASK_IDS."""
    found = {name: fields[name] for name in MASK_IDS if fields.get(name) is not None}
    ids = {name: _id(value, f"{place}: {name}") for name, value in found.items()}
    if given is not None:
        if found and num_draft == 1:
            raise BadInput(
                f"--mask-id {given} says nothing with --num-draft 1: no mask row is read"
            )
        mask_id, who = given, "--mask-id"
    elif ids:
        name, mask_id = next(iter(ids.items()))
        who = f"{place}: {name}: the mask token's id"
    else:
        raise BadInput(f"{place}: no {', '.join(MASK_IDS)}; --mask-id says which token it is")
    if mask_id < 0:
        raise BadInput(f"{who} {mask_id} is not below {vocab_size} and at least 0")
    if mask_id >= vocab_size:
        raise BadInput(f"{who} {mask_id} is not below {vocab_size}, the target's vocabulary")
    return mask_id


def _id(value, what: str) -> int:
    """A token's id: a whole number, or one as text, which AWS' config has."""
    text = isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value)
    if type(value) is not int and not text:
        raise BadInput(f"{what} {value!r} is no id of a mask token")
    return int(value)
