"""Parts of draft heads: a Llama layer's attention over cached rows, a head with a cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.common.errors import BadInput
from model.common.heads.kinds import check_kinds
from model.common.target.attention import additive, grouped_attention, rows_mask, write
from model.common.target.cache import CachedModel
from model.common.target.products import choose_products
from model.common.target.runtime import Runtime

LAYER_FIELDS = (  # of a head's config.json that make its Llama layer
    *("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"),
    *("num_key_value_heads", "head_dim", "rms_norm_eps", "hidden_act", "mlp_bias"),
    *("max_position_embeddings", "attention_bias", "qkv_bias"),
    *("rope_parameters", "rope_scaling", "rope_theta"),
    *("layer_types", "sliding_window", "use_sliding_window"),
)
LAYER_LIMITS = {  # fields that would change the layer and add no tensor: values that change nothing
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "partial_rotary_factor": (1,),
    "attention_multiplier": (),
    "residual_multiplier": (1,),
    "embedding_multiplier": (1,),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "is_causal": (True,),
}


def llama_config(fields: dict, path: str = "config.json"):
    """A LlamaConfig of a head's config.json; rope_theta defaults to 10000, as in published code.

    qkv_bias, where it is there, says in place of attention_bias whether q, k and v have one.
    Raises BadInput: a size that is missing, a value that transformers refuses.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import LlamaConfig
    from transformers.activations import ACT2FN

    check_kinds(fields, path)
    missing = [name for name in LAYER_FIELDS[:4] if not isinstance(fields.get(name), int)]
    if missing:
        raise BadInput(f"{path}: no {missing[0]}")
    chosen = {name: fields[name] for name in LAYER_FIELDS[:10] if fields.get(name) is not None}
    bias = fields.get("qkv_bias")
    chosen["attention_bias"] = bool(fields.get("attention_bias") if bias is None else bias)
    if chosen.get("hidden_act", "silu") not in ACT2FN:
        raise BadInput(f"{path}: hidden_act {fields['hidden_act']!r} is not known")
    rope = _rope(fields, path)
    try:
        return LlamaConfig(num_hidden_layers=1, rope_parameters=rope, **chosen)
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise BadInput(f"{path}: {' '.join(str(error).split())}") from error


def _rope(fields: dict, path: str) -> dict:
    """RoPE's parameters; that of several axes (mrope) is the plain one where there is only text."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = dict(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
    rope.setdefault("rope_type", rope.pop("type", "default"))
    rope.setdefault("rope_theta", fields.get("rope_theta") or 10000.0)
    if rope["rope_type"] == "mrope":
        rope["rope_type"] = "default"
    if rope["rope_type"] not in ("default", *ROPE_INIT_FUNCTIONS):
        raise BadInput(f"{path}: RoPE of type {rope['rope_type']!r} is not known")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise BadInput(f"{path}: partial_rotary_factor is not supported")
    return {name: value for name, value in rope.items() if not name.startswith("mrope_")}


def window_of(fields: dict, path: str = "config.json") -> int | None:
    """Sliding window of a head's one layer in rows, itself included; None = it reads all.

    layer_types says which layers have one. Heads without it are written by programs that copy
    sliding_window from the target and do not look at it.
    """
    kind = (fields.get("layer_types") or [None])[0]
    window = fields.get("sliding_window")
    if kind is None and fields.get("use_sliding_window") and window:
        raise BadInput(f"{path}: use_sliding_window, but no layer_types that say where")
    if kind in (None, "full_attention"):
        return None
    if kind != "sliding_attention" or not isinstance(window, int) or window < 1:
        raise BadInput(f"{path}: layer_types {kind} with sliding_window {window} is not supported")
    return window


PROMPT_CHUNK = 2048  # rows of a prompt read at a time


class RowAttention(nn.Module):
    """A Llama layer's attention, with the published tensor names; inputs may be wider than H."""

    def __init__(self, config, input_size: int | None = None):
        super().__init__()
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        input_size = input_size or config.hidden_size
        bias = config.attention_bias
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(input_size, queries, bias=bias)
        self.k_proj = nn.Linear(input_size, keys, bias=bias)
        self.v_proj = nn.Linear(input_size, keys, bias=bias)
        o_bias = getattr(config, "o_bias", False)  # no field of LlamaConfig's
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=o_bias)

    def project(self, rows: Tensor, rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, heads, r, D] of rows [B, r, input size], rotated."""
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        shape = (*rows.shape[:-1], -1, self.head_dim)
        query, key, value = (
            layer(rows).view(shape).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return *apply_rotary_pos_emb(query, key, *rotary), value

    def forward(self, rows: Tensor, rotary, mask: Tensor, place: tuple | None) -> Tensor:
        """rows [S, r, input size] -> [S, r, H]; mask additive [S, 1, r, width].

        place: (columns [S, r], slots [S] or None) of the rows in the layer's cache, None = no cache
        and the rows read each other.
        """
        query, key, value = self.project(rows, rotary)
        if place is not None:
            key, value = write(self.kv, key, value, *place, mask.shape[-1])
        out = grouped_attention(query, key, value, mask, self.scaling)
        return self.o_proj(out.flatten(2))


class CachedHead(CachedModel):
    """A module with RowAttention layers that reads rows behind what its slots have committed.

    module   forward(inputs, rotary, mask, place) -> states [S, r, H], of a tuple of inputs
             [S, r, ..] whose last is floating; mask and place go to its RowAttention layers
    config   LlamaConfig of its layers, for RoPE and the cache; its window, if it has one, is the
             layers' sliding window
    """

    def __init__(self, module: nn.Module, config, device, dtype, runtime: Runtime):
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        device = torch.device(device)
        layers = [
            (part, config.num_key_value_heads, config.head_dim, config.head_dim, dtype, device)
            for part in module.modules()
            if isinstance(part, RowAttention)
        ]
        super().__init__(layers, device, dtype, runtime)
        choose_products(module, device)
        self.module, self.config = module, config
        self.rotary = LlamaRotaryEmbedding(config).to(device)
        self.forward = runtime.compiled(module.forward)
        self.step = runtime.captured(self._rows)

    def read(
        self,
        inputs: tuple,
        longest: int,
        offset: int = 0,
        ancestors: Tensor | None = None,
        depths: Tensor | None = None,
    ):
        """The module's states [B, r, H] of rows behind the committed ones, which stay as they are.

        Nothing is committed: the cache's advance() keeps the first rows, keep() a path of them.

        inputs     tensors [B, r, ..]
        longest    host int, the longest running sequence's rows in the cache
        offset     columns that earlier reads of the same draft have taken
        ancestors  [.., r, w]: which of the w columns behind the committed ones each row reads, None
                   = a chain. A block whose rows all read each other: torch.ones(1, r, r)
        depths     [.., r] positions of the rows behind the committed ones; None, None = a chain
        """
        width = self.width(longest + offset + inputs[0].shape[1])
        return self.step(width, offset, ancestors, depths, None, *inputs)

    def read_prompt(self, slots: list[int], inputs: tuple, lengths: Tensor):
        """Read right-padded prompts [S, P, ..] into these slots, which are emptied.

        lengths [S]: of each prompt so many rows stay. Returns the state [S, H] of the last of them.
        """
        num_rows = inputs[0].shape[1]
        owner = torch.tensor(slots, device=self.device)
        some = None if len(slots) == self.cache.num_slots else owner
        self.make_room(num_rows)
        self.cache.clear(slots)
        last, found = (lengths - 1).clamp(min=0), None
        for begin in range(0, num_rows, PROMPT_CHUNK):
            chunk = tuple(part[:, begin : begin + PROMPT_CHUNK] for part in inputs)
            size = chunk[0].shape[1]
            self.cache.rewind(torch.full_like(owner, begin), slots)
            with self.runtime.prompts():
                out = self._rows(self.width(begin + size), 0, None, None, some, *chunk)
            states = row_of(out, (last - begin).clamp(0, size - 1))
            here = (last >= begin).unsqueeze(1)
            found = states if found is None else torch.where(here, states, found)
        self.cache.rewind(lengths, slots)
        return found

    def _rows(self, width, offset, ancestors, depths, slots, *inputs):
        length = self.cache.length if slots is None else self.cache.length[slots]
        columns = self.columns(inputs[0].shape[1], offset, slots)
        positions = columns if depths is None else length.unsqueeze(1) + depths
        allowed = rows_mask(length, columns, positions, ancestors, width)
        if window := getattr(self.config, "window", None):  # a row reads one column a position
            allowed &= allowed.flip(-1).cumsum(-1).flip(-1) <= window
        mask = additive(allowed, self.dtype)
        rotary = self.rotary(inputs[-1], positions)
        return self.forward(inputs, rotary, mask, (columns, slots))


def row_of(rows: Tensor, place: Tensor) -> Tensor:
    """Row place[b] of each sequence, [B, r, H] -> [B, H]."""
    return rows[torch.arange(len(rows), device=rows.device), place]


def shared_module(module: nn.Module, device) -> nn.Module:
    """A module of the target; a copy where it sits on another device (models over several GPUs)."""
    import copy

    if next(module.parameters()).device == torch.device(device):
        return module
    return copy.deepcopy(module).to(device)


def head_fields(config) -> dict:
    """config.json of a new head for a target's config: a Llama layer of the target's sizes."""
    fields = config.to_dict()
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    names += ("max_position_embeddings", "rms_norm_eps", "vocab_size", "bos_token_id")
    names += ("eos_token_id", "pad_token_id")
    chosen = {name: fields[name] for name in names if fields.get(name) is not None}
    if (fields.get("head_dim") or 0) * chosen["num_attention_heads"] != chosen["hidden_size"]:
        chosen["num_key_value_heads"] = chosen["num_attention_heads"]  # heads of H / their number
    theta = target_rope(fields).get("rope_theta", 10000.0)
    llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    return {**llama, **chosen, "num_hidden_layers": 1, "rope_theta": theta}


def target_rope(fields: dict) -> dict:
    """RoPE's parameters of a target's config, as a dict; of full attention where kinds differ."""
    rope = fields.get("rope_parameters") or {}
    return rope.get("full_attention") or rope


def module_bytes(module: nn.Module) -> int:
    """Size of a head's own tensors; what it borrows of the target is not counted."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())


class CausalRows:
    """RoPE and mask of whole sequences without a cache, for training."""

    def __init__(self, config, device):
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        self.rotary_embedding = LlamaRotaryEmbedding(config).to(device)

    def rotary(self, rows: Tensor, shift: int = 0) -> tuple[Tensor, Tensor]:
        """cos and sin for rows [B, T, H] at positions shift, shift + 1, ..."""
        positions = torch.arange(shift, shift + rows.shape[1], device=rows.device).unsqueeze(0)
        return self.rotary_at(rows, positions)

    def rotary_at(self, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for rows [B, r, H] at positions [B or 1, r]."""
        return self.rotary_embedding(rows, positions)

    def mask(self, rows: Tensor) -> Tensor:
        """The additive causal mask, [1, 1, T, T]."""
        length = rows.shape[1]
        causal = torch.ones(1, length, length, dtype=torch.bool, device=rows.device).tril()
        return additive(causal, rows.dtype)
