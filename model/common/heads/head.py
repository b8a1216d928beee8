"""Parts of draft heads: a Llama layer's attention over cached rows, a head with a cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.common.errors import BadInput
from model.common.target.attention import additive, grouped_attention, split_attention
from model.common.target.cache import KVCache
from model.common.target.cached import CachedModel


def llama_config(fields: dict, path: str = "config.json"):
    """A LlamaConfig of a head's config.json; rope_theta defaults to 10000, as in published code."""
    from transformers import LlamaConfig

    wanted = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    missing = [name for name in wanted if not isinstance(fields.get(name), int)]
    if missing:
        raise BadInput(f"{path}: no {missing[0]}")
    known = (*wanted, "num_key_value_heads", "head_dim", "rms_norm_eps", "hidden_act")
    known += ("max_position_embeddings", "attention_bias")
    chosen = {name: fields[name] for name in known if fields.get(name) is not None}
    rope = dict(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
    rope.setdefault("rope_type", rope.pop("type", "default"))
    rope.setdefault("rope_theta", fields.get("rope_theta") or 10000.0)
    return LlamaConfig(num_hidden_layers=1, rope_parameters=rope, **chosen)


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
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def project(self, rows: Tensor, rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, heads, r, D] of rows [B, r, input size], rotated."""
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        shape = (*rows.shape[:-1], -1, self.head_dim)
        query, key, value = (
            layer(rows).view(shape).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return *apply_rotary_pos_emb(query, key, *rotary), value

    def forward(self, rows: Tensor, rotary, mask: Tensor | None, past) -> Tensor:
        """rows [B, r, input size] -> [B, r, H].

        past: a KVCache, mask [B, 1, r, view]; TreeRows, mask as of its attend(); None = no past.
        """
        query, key, value = self.project(rows, rotary)
        if isinstance(past, TreeRows):
            out = past.attend(query, key, value, mask, self.scaling)
        else:
            if past is not None:
                key, value = past.update(key, value, 0)
            out, _ = grouped_attention(self, query, key, value, mask, self.scaling)
        return self.o_proj(out.flatten(2))


class TreeRows:
    """A tree's rows behind the committed ones, while one call drafts it.

    Their keys and values stand beside the cache, so that the call writes the cache once (see
    KVCache.moves), and are gone with it.
    """

    def __init__(self, cache: KVCache, dtype: torch.dtype):
        keys, values = (part[:, :, : cache.view] for part in cache.layers[0])
        columns = torch.arange(cache.view, device=keys.device)
        committed = columns < cache.length.unsqueeze(-1)
        self.past = keys, values, additive(committed.unsqueeze(1), dtype)
        self.own: tuple[Tensor, Tensor] | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float):
        """Attention of further rows, [B, H, r, D] -> [B, r, H, D].

        mask: additive [.., 1, r, w], over the rows so far and these.
        """
        if self.own is not None:
            key, value = (torch.cat(both, 2) for both in zip(self.own, (key, value)))
        self.own = key, value
        return split_attention(query, [self.past, (key, value, mask)], scaling)


class CachedHead(CachedModel):
    """A module with one attention layer that reads rows after the rows it has read before.

    module   forward(inputs, rotary, mask, past) -> tensors [B, r, ..], of inputs [B, r, ..]
    config   LlamaConfig of the layer, for RoPE
    """

    def __init__(self, module: nn.Module, config, device, dtype, runtime: str):
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        super().__init__([torch.device(device)], dtype, runtime)
        self.module = module
        self.rotary = LlamaRotaryEmbedding(config).to(device)

    def read_step(
        self, inputs: tuple, num_rows: int, committed: int, longest: int, before, then, extras=()
    ) -> tuple:
        """Read the committed rows of a step, [B, num_rows], and commit them, in one call.

        inputs     three tensors, which `before` makes the rows of:
                   before(*inputs, *extras) -> (three tensors [B, r, ..] or None, count, extras of
                   `then`)
        count      [B] of the rows that are kept; 0 = a finished sequence, which goes to column 0
        then       what is made of the module's output, then(output, *extras) -> tensors; None = the
                   output itself
        committed  host int, rows of the longest sequence in cache.length
        longest    host int, rows that no unfinished sequence exceeds afterwards
        """
        place = self.columns(committed + num_rows, committed)
        out = self.runtime(*inputs, *place, before, then, *extras)
        if self.cache.batch > 1:  # one that has just ended may be longer
            self.cache.length.clamp_(max=longest)
        return out

    def tree(self) -> TreeRows:
        """The rows of a tree behind the committed ones, for read_below()."""
        return TreeRows(self.cache, self.dtype)

    def read_below(self, inputs: tuple, mask: Tensor, depth: int, rows: TreeRows) -> tuple:
        """The module's output for further rows [B, r] of a tree; part of what `then` does.

        mask   additive [.., 1, r, w], over the tree's rows so far and these
        depth  their positions are committed rows + depth
        """
        positions = (self.cache.length + depth).unsqueeze(1).expand_as(inputs[0])
        return self.module(inputs, self.rotary(inputs[2], positions), mask, rows)

    def read_prompt(self, first: Tensor, last: Tensor, lengths: Tensor, capacity: int) -> None:
        """Read right-padded prompts into the emptied cache, in chunks.

        first, last [B, P, ..]: what a step's rows are made of; of each the first `lengths` [B] rows
        stay. No output is wanted: the module is asked for that of one row a chunk.
        """
        num_rows = first.shape[1]
        self.reserve(len(lengths), max(capacity, num_rows))
        self.cache.reset()
        pick = torch.zeros_like(lengths, device=self.device)
        for begin in range(0, num_rows, PROMPT_CHUNK):
            end = min(begin + PROMPT_CHUNK, num_rows)
            self.cache.length.fill_(begin)
            rows = first[:, begin:end], pick, last[:, begin:end]
            self._rows(*rows, self.view(end), self.known_start(begin), None, None)
        self.cache.length.copy_(lengths)

    @torch.inference_mode()
    def warm(self, capacity: int, inputs: tuple, before, then, extras: tuple = ()) -> None:
        """Compile or capture a read_step() in all buckets up to `capacity` columns."""
        self.make_room(capacity)  # a cache that grew later would have to be compiled for again
        for view in self.views(capacity):
            self.cache.length.zero_()
            self.runtime(*inputs, view, None, before, then, *extras)

    def _rows(self, first, pick, last, view, start, before, then, *extras):
        count = None
        if before is not None:
            (first, pick, last), count, extras = before(first, pick, last, *extras)
        positions = self.place(first.shape[1], view, start)
        mask = self.mask(positions, None, None, start)
        out = self.module((first, pick, last), self.rotary(last, positions), mask, self.cache)
        if count is not None:
            self.cache.length.add_(count).mul_(count > 0)
        return out if then is None else then(out, *extras)


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
    if fields.get("head_dim", 0) * chosen["num_attention_heads"] != chosen["hidden_size"]:
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
        return self.rotary_embedding(rows, positions)

    def mask(self, rows: Tensor) -> Tensor:
        """The additive causal mask, [1, 1, T, T]."""
        length = rows.shape[1]
        causal = torch.ones(1, length, length, dtype=torch.bool, device=rows.device).tril()
        return additive(causal, rows.dtype)
