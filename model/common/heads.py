"""Parts of draft heads: a Llama layer's attention over cached rows, a head with a cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.common.attention import additive, grouped_attention
from model.common.cached import CachedModel
from model.common.errors import BadInput


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
    """A Llama layer's attention, with the published tensor names; inputs may be wider than H.

    layer: index in the head's cache.
    """

    def __init__(self, config, input_size: int | None = None, layer: int = 0):
        super().__init__()
        self.head_dim, self.layer = config.head_dim, layer
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

    def forward(self, rows: Tensor, rotary, mask: Tensor | None, cache) -> Tensor:
        """rows [B, r, input size] -> [B, r, H]; mask [B, 1, r, view]; cache None = no past."""
        query, key, value = self.project(rows, rotary)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        out, _ = grouped_attention(self, query, key, value, mask, self.scaling)
        return self.o_proj(out.flatten(2))


class CachedHead(CachedModel):
    """A module with one attention layer that reads rows after the rows it has read before.

    module   forward(inputs, rotary, mask, cache) -> tensors [B, r, ..], of inputs [B, r, ..]
    config   LlamaConfig of the layer, for RoPE
    """

    def __init__(self, module: nn.Module, config, device, dtype, runtime: str):
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        super().__init__([torch.device(device)], dtype, runtime)
        self.module = module
        self.rotary = LlamaRotaryEmbedding(config).to(device)

    def reader(self, committed: int, num_columns: int):
        """A function that reads rows within so many columns after the committed ones.

        committed: host int, rows of the longest sequence in cache.length. With a static runtime all
        passes of a tree have one view. The function returns the module's output for rows [B, r]:

        inputs     three tensors [B, r, ..], or None
        known      [.., r, w] as in CachedModel.mask, None = a chain whose positions are its columns
        offset     columns between the committed ones and these rows
        depth      positions of a tree's rows: committed rows + depth
        then       what is made of the output in the same compiled or captured call:
                   then(output, known, *extras), extras tensors; None = the output itself
        """
        runtime, is_static = self.runtime, self.runtime.static_shapes
        shared = self.columns(committed + num_columns, committed)

        def read(inputs, known=None, offset=0, depth=0, then=None, extras=()):
            place = shared
            if not is_static:
                place = self.columns(committed + offset + inputs[0].shape[1], committed)
            return runtime(*inputs, known, offset, depth, *place, None, then, *extras)

        return read

    def read_step(
        self,
        inputs: tuple,
        num_rows: int,
        committed: int,
        longest: int,
        before,
        then=None,
        extras: tuple = (),
    ) -> tuple:
        """Read the committed rows of a step, [B, num_rows], and commit them, in one call.

        Returns what a reader() does, a tuple.
        inputs   three tensors, which `before` makes the rows of in the same call:
                 before(*inputs, *extras) -> (inputs of a reader(), count, extras of `then`)
        count    [B] of the rows that are kept; 0 = a finished sequence, which goes to column 0
        longest  host int, rows that no unfinished sequence exceeds
        """
        place = self.columns(committed + num_rows, committed)
        out = self.runtime(*inputs, None, 0, 0, *place, before, then, *extras)
        if self.cache.batch > 1:  # one that has just ended may be longer
            self.cache.length.clamp_(max=longest)
        return out

    def read_prompt(self, inputs: tuple, count: Tensor, pick_at: int, capacity: int) -> tuple:
        """Read right-padded prompts [B, P] into the emptied cache, in chunks.

        count [B]: rows of each. inputs[pick_at] is replaced by the place of the last row where it
        falls into the chunk, and the module has to return that row alone, [B, 1, ..].
        """
        num_rows = inputs[0].shape[1]
        self.reserve(len(count), max(capacity, num_rows))
        self.cache.reset()
        last, found = count.to(self.device) - 1, None
        for begin in range(0, num_rows, PROMPT_CHUNK):
            end = min(begin + PROMPT_CHUNK, num_rows)
            self.cache.length.fill_(begin)
            parts = [part if part is None else part[:, begin:end] for part in inputs]
            parts[pick_at] = (last - begin).clamp(0, end - begin - 1)
            view = self.view(end)
            out = self._rows(*parts, None, 0, 0, view, self.known_start(begin), None, None)
            here = ((last >= begin) & (last < end)).view(-1, 1, 1)
            found = [torch.where(here, new, old) for new, old in zip(out, found or out)]
        self.cache.length.copy_(count)
        return tuple(found)

    @torch.inference_mode()
    def warm(
        self,
        capacity: int,
        inputs: tuple,
        known=None,
        offset: int = 0,
        depth: int = 0,
        then=None,
        extras: tuple = (),
        before=None,
    ):
        """Compile or capture a shape of a reader() in all buckets up to `capacity` columns.

        With `before` it is one of read_step(). Returns the output of the last one, whose values
        mean nothing.
        """
        self.make_room(capacity)  # a cache that grew later would have to be compiled for again
        for view in self.views(capacity):
            self.cache.length.zero_()
            out = self.runtime(*inputs, known, offset, depth, view, None, before, then, *extras)
        return out

    def _rows(self, first, pick, last, known, offset, depth, view, start, before, then, *extras):
        count = None
        if before is not None:
            (first, pick, last), count, extras = before(first, pick, last, *extras)
        num_rows = first.shape[1]
        positions = self.place(num_rows, view, start, offset)
        if known is not None:
            positions = (self.cache.length + depth).unsqueeze(1).expand(-1, num_rows)
        mask = self.mask(positions, known, None, start)
        rotary = self.rotary(last, positions)
        out = self.module((first, pick, last), rotary, mask, self.cache)
        out = out if then is None else then(out, known, *extras)
        if count is not None:
            self.cache.length.add_(count).mul_(count > 0)
        return out


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
