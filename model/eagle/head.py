"""EAGLE's head: one linear layer and one Llama layer that guess the target's next feature.

Row i reads the embedding of token i + 1 and the target's final feature at i, sits at position i
and gives the feature at i + 1, whose logits are what the target's own would be.
Source: Li et al., arXiv 2401.15077 (EAGLE), 2406.16858 (EAGLE-2, same head).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.common.errors import BadInput
from model.common.heads.checkpoint import Checkpoint, check_fields
from model.common.heads.head import (
    LAYER_FIELDS,
    LAYER_LIMITS,
    CachedHead,
    RowAttention,
    llama_config,
    shared_module,
    window_of,
)
from model.common.heads.vocabulary import DraftIds, some_rows
from model.common.target.logits import logits_of

FILES = ("pytorch_model.bin", "model.safetensors")
KINDS = {"fc": "state"}  # see corner.KINDS


class EagleLayer(nn.Module):
    """A Llama layer without the norm before its attention."""

    def __init__(self, config):
        from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

        super().__init__()
        self.self_attn = RowAttention(config)
        self.mlp = LlamaMLP(config)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, rows: Tensor, rotary, mask, place) -> Tensor:
        return self.finish(rows + self.self_attn(rows, rotary, mask, place))

    def finish(self, rows: Tensor) -> Tensor:
        """What follows the attention and its residual."""
        return rows + self.mlp(self.post_attention_layernorm(rows))


class EagleModule(nn.Module):
    """The published tensors; the target's embedding and lm_head are borrowed, not owned."""

    def __init__(self, config, bias: bool, embedding: nn.Module | None, lm_head: nn.Module | None):
        super().__init__()
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=bias)
        self.layers = nn.ModuleList([EagleLayer(config)])
        self.borrowed = (embedding, lm_head)  # a tuple: no submodules, no parameters

    def forward(self, inputs, rotary, mask, place) -> Tensor:
        """inputs (tokens [S, r], features [S, r, H]) -> next features [S, r, H]; the rest as
        CachedHead gives it."""
        tokens, features = inputs
        embedded = self.borrowed[0](tokens).to(features.dtype)
        rows = self.fc(torch.cat([embedded, features], -1))
        return self.layers[0](rows, rotary, mask, place)

    def logits(self, features: Tensor) -> Tensor:
        """[.., H] -> [.., V], what the target's lm_head says."""
        return self.borrowed[1](features)


class EagleHead(CachedHead):
    """The head with its cache, as EAGLE's and EAGLE-2's drafters use it.

    draft_ids  which of the target's ids its V logits are of
    """

    needs = ("last",)

    def __init__(self, module, config, target, draft_ids: DraftIds | None = None):
        super().__init__(module, config, target.device, target.dtype, target.runtime)
        self.target_config = target.config
        self.draft_ids, self.vocab_size = draft_ids or DraftIds(), target.vocab_size

    def facts(self) -> dict:
        """How it is wired, for Drafter.facts()."""
        return self.draft_ids.facts()

    def features(self, hidden: dict) -> Tensor:
        """What rows read of the target, [S, r, H]."""
        return hidden["last"].to(self.device)

    def logits(self, features: Tensor) -> Tensor:
        """Of the draft's vocabulary, [.., H] -> [.., V], scaled and capped as the target's are."""
        return logits_of(self.module.logits(features), self.target_config)

    def target_ids(self, ids: Tensor) -> Tensor:
        """Ids of the draft's vocabulary as the target's."""
        return self.draft_ids.of_target(ids)

    def target_laws(self, laws: Tensor) -> Tensor:
        """Laws over the draft's vocabulary [.., V] as laws over the target's."""
        return self.draft_ids.laws(laws, self.vocab_size)


def layer_config(checkpoint: Checkpoint, fields: dict, layer: str):
    """LlamaConfig of a head's layer, whose tensors' names begin with `layer`.

    attention_bias is one of the output too where that has a tensor: Llama's layer has one, the
    heads' own and Qwen2's do not.
    """
    place = f"{checkpoint.path}/config.json"
    config = llama_config(fields, place)
    config.window = window_of(fields, place)
    config.o_bias = bool(fields.get("attention_bias")) and (
        f"{layer}.self_attn.o_proj.bias" in checkpoint.tensors
    )
    return config


def module_config(checkpoint: Checkpoint, target):
    """The layer's config; another width than the target's is bad input."""
    fields, place = checkpoint.config, f"{checkpoint.path}/config.json"
    check_fields(fields, place, (*LAYER_FIELDS, "bias", "eagle_fc_bias"), LAYER_LIMITS)
    config = layer_config(checkpoint, fields, "layers.0")
    for name, wanted in (
        ("hidden_size", target.config.hidden_size),
        ("vocab_size", target.vocab_size),
    ):
        found = getattr(config, name)
        if found != wanted:
            raise BadInput(f"{checkpoint.path}: {name} {found}, the target's is {wanted}")
    return config


def load_eagle(path: str, target, ids: Tensor | None = None) -> EagleHead:
    """EAGLE's published files: config.json with pytorch_model.bin or model.safetensors.

    ids: of the target's that the head drafts, None = all.
    """
    checkpoint, origin = Checkpoint(path, FILES), target.origin
    checkpoint.strip("model.")
    config = module_config(checkpoint, origin)
    bias = checkpoint.config.get("eagle_fc_bias", checkpoint.config.get("bias", True))

    def make(config):
        return EagleModule(config, bias, None, None)

    with torch.device("meta"):
        embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        module = make(config)
    expected = {**module.state_dict(), "embed_tokens.weight": embedding.weight}
    checkpoint.check(expected, optional=("embed_tokens.weight",))
    checkpoint.drop("embed_tokens.weight")  # a copy of the target's
    checkpoint.load_into(module, origin.dtype, origin.device)
    module, config = target.grown(module, config, make, KINDS)
    module.borrowed = (borrowed(target, "input"), borrowed(target, "output", ids))
    return EagleHead(module.eval(), config, target, DraftIds(ids))


def borrowed(target, end: str, ids: Tensor | None = None) -> nn.Module:
    """The target's embedding (end "input") or lm_head ("output"), on the head's device.

    ids: rows of it alone, None = all.
    """
    module = getattr(target.model, f"get_{end}_embeddings")()
    module = shared_module(module, target.device)
    return module if ids is None else some_rows(module, ids)
