"""Hydra heads: the prefix layer, and MLP heads that read the tokens drafted before them.

Source: Ankner et al., arXiv 2402.05109; tensor names of ankner/hydra-vicuna-7b-v1.3
"""

from __future__ import annotations

import re
import sys

import torch
from torch import Tensor, nn

from model.common.errors import BadInput
from model.common.heads.checkpoint import Checkpoint, check_fields
from model.common.heads.head import CausalRows, RowAttention, llama_config, target_rope
from model.common.heads.vocabulary import DraftIds, some_rows
from model.medusa.heads import ResidualBlock

FILES = ("hydra_lm_head.safetensors", "hydra_lm_head.pt")
ARCHS = ("mlp", "prefix-mlp")
FIELDS = (  # of a config; heads are counted in the tensors, there is no dropout when drafting
    *("hydra_head_arch", "hydra_num_heads", "hydra_num_layers", "grounded_heads"),
    *("hidden_state_offset", "dropout_rate"),
)
PREFIX = "prefix_embeding_layer"  # so it is spelt in the published files
UNUSED = (  # copies of the target's embedding, a table that nothing reads, RoPE's own numbers
    "input_embed_fn.weight",
    f"{PREFIX}.embed_tokens.weight",
    f"{PREFIX}.rotary_emb.inv_freq",
    f"{PREFIX}.layers.0.self_attn.rotary_emb.inv_freq",
)
KINDS = {  # see corner.KINDS
    r"hydra_mlp\.\d+\.\d+\.(linear|res_connection)": "state",
    r"hydra_lm_head\.\d+(\.1)?": "output",
}


class PrefixLayer(nn.Module):
    """A Llama layer and the final norm, over the target's features in place of embeddings."""

    def __init__(self, config):
        from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

        super().__init__()
        size, epsilon = config.hidden_size, config.rms_norm_eps
        layer = {
            "self_attn": RowAttention(config),
            "mlp": LlamaMLP(config),
            "input_layernorm": LlamaRMSNorm(size, epsilon),
            "post_attention_layernorm": LlamaRMSNorm(size, epsilon),
        }
        self.layers = nn.ModuleList([nn.ModuleDict(layer)])
        self.norm = LlamaRMSNorm(size, epsilon)

    def forward(self, inputs: tuple, rotary, mask: Tensor, place) -> Tensor:
        """inputs (features [S, r, H],) -> states [S, r, H]; the rest as CachedHead gives it."""
        (rows,) = inputs
        layer = self.layers[0]
        out = rows + layer["self_attn"](layer["input_layernorm"](rows), rotary, mask, place)
        out = out + layer["mlp"](layer["post_attention_layernorm"](out))
        return self.norm(out)


class FirstBlock(nn.Module):
    """R u + SiLU(A u), both with bias, [.., input size] -> [.., H]."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.linear = nn.Linear(input_size, hidden_size)
        self.res_connection = nn.Linear(input_size, hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        return self.res_connection(rows) + nn.functional.silu(self.linear(rows))


class HeadMLP(nn.Module):
    """The first block, then one residual block applied num_layers - 1 times.

    places: published index of each application; the residual block is registered as its first.
    """

    def __init__(self, input_size: int, hidden_size: int, places: list[int], dropout: float):
        super().__init__()
        self.places, self.dropout = places, dropout
        self.add_module(str(places[0]), FirstBlock(input_size, hidden_size))
        if len(places) > 1:
            self.add_module(str(places[1]), ResidualBlock(hidden_size))

    def forward(self, rows: Tensor) -> Tensor:
        first, *shared = self.children()
        rows = first(nn.functional.dropout(rows, self.dropout, self.training))
        for _ in self.places[1:]:
            rows = shared[0](nn.functional.dropout(rows, self.dropout, self.training))
        return rows


class HydraHeads(nn.Module):
    """Head i (from 0) at position t reads the state s_t and tokens t+1 .. t+1+i, guesses t+2+i.

    The state dict has the published names, but names the repeated block once. Dropout takes up
    indices where there is a prefix layer, and does not exist without one.

    config     LlamaConfig of the prefix layer and of the sizes (layer_config)
    draft_ids  which ids V are
    """

    def __init__(self, config, arch: str, num_heads: int, num_layers: int, dropout: float = 0.2):
        super().__init__()
        has_prefix = arch == "prefix-mlp"
        self.config, self.num_heads, self.draft_ids = config, num_heads, DraftIds()
        size, dropout = config.hidden_size, dropout if has_prefix else 0.0
        places = [2 * j + 1 if has_prefix else j for j in range(num_layers)]
        if has_prefix:
            self.add_module(PREFIX, PrefixLayer(config))
        self.hydra_mlp = nn.ModuleList(
            HeadMLP((i + 2) * size, size, places, dropout) for i in range(num_heads)
        )
        heads = [nn.Linear(size, config.vocab_size) for _ in range(num_heads)]
        if has_prefix:
            heads = [nn.Sequential(nn.Dropout(dropout), head) for head in heads]
        self.hydra_lm_head = nn.ModuleList(heads)

    @property
    def prefix(self) -> PrefixLayer | None:
        """The prefix layer, None in arch mlp."""
        return getattr(self, PREFIX, None)

    def guess(self, i: int, rows: Tensor) -> Tensor:
        """Logits [.., V] of head i, of states and embeddings side by side [.., (i+2) H]."""
        return self.hydra_lm_head[i](self.hydra_mlp[i](rows))

    def keep_ids(self, ids: Tensor) -> None:
        """Score these of the target's ids alone, [V]."""
        self.draft_ids = DraftIds(ids.to(next(self.parameters()).device))
        for i, head in enumerate(self.hydra_lm_head):
            if isinstance(head, nn.Linear):
                self.hydra_lm_head[i] = some_rows(head, ids)
            else:
                head[1] = some_rows(head[1], ids)

    def states(self, features: Tensor) -> Tensor:
        """s_t of whole sequences, [B, T, H]: the prefix layer's output, or the features."""
        if self.prefix is None:
            return features
        rows = CausalRows(self.config, features.device)
        return self.prefix((features,), rows.rotary(features), rows.mask(features), None)

    @torch.no_grad()
    def init_from(self, lm_head: nn.Linear, factor: float = 1.0) -> None:
        """Start as in the paper's code: output matrices are the target's, gates are zero.

        Other parts of the heads stay as nn.Linear draws them; the prefix layer is normal(0, 0.02).
        factor: that the target multiplies its lm_head's outputs by
        """
        for module in self.hydra_mlp.modules():
            if isinstance(module, (FirstBlock, ResidualBlock)):
                module.linear.weight.zero_()
        for head in self.hydra_lm_head:
            linear = head if isinstance(head, nn.Linear) else head[1]
            linear.weight.copy_(lm_head.weight.float() * factor)
        for weight in self.prefix.parameters() if self.prefix else ():
            if weight.dim() > 1:
                weight.normal_(0, 0.02)

    def repeats(self) -> dict[str, str]:
        """Further published names of the repeated blocks -> the name in the state dict."""
        names = {}
        for i, mlp in enumerate(self.hydra_mlp):
            for place in mlp.places[2:]:
                for part in ("weight", "bias"):
                    own = f"hydra_mlp.{i}.{mlp.places[1]}.linear.{part}"
                    names[f"hydra_mlp.{i}.{place}.linear.{part}"] = own
        return names


def state_to_save(heads: HydraHeads) -> dict[str, Tensor]:
    """Tensors by their published names; repeated blocks are one tensor under several names.

    For hydra_lm_head.pt. A .safetensors file refuses such tensors; for it save the state dict,
    which names a block once and which load_heads reads as well.
    """
    state = heads.state_dict()
    return state | {name: state[own] for name, own in heads.repeats().items()}


def layer_config(target_config, vocab_size: int):
    """LlamaConfig of the prefix layer: the target's sizes, norms and RoPE."""
    fields = target_config.to_dict()
    own = {"rope_parameters": target_rope(fields), "vocab_size": vocab_size}
    return llama_config(fields | own, "target")


def load_heads(path: str, target, num_heads: int, ids: Tensor | None = None) -> HydraHeads:
    """The prefix layer and the first num_heads heads of a directory or hub id, in target's dtype.

    ids: of the target's that they score, None = all.

    Everything there is checked against the target's sizes. Repeated blocks that differ are one
    warning on stderr; the last one is used. Raises BadInput: another architecture, a missing,
    unknown or misshapen tensor, or fewer heads.
    """
    checkpoint = Checkpoint(path, FILES)
    arch, num_layers = _kind(checkpoint)
    checkpoint.drop(*UNUSED)
    found = {m[1] for name in checkpoint.tensors if (m := re.match(r"hydra_mlp\.(\d+)\.", name))}
    if not found:
        raise BadInput(f"{checkpoint.file}: no tensor hydra_mlp.0..., so no Hydra head")
    origin = target.origin
    lm_head = origin.model.get_output_embeddings()
    config = layer_config(origin.config, lm_head.weight.shape[0])
    with torch.device("meta"):
        every = HydraHeads(config, arch, len(found), num_layers)
    checkpoint.check(state_to_save(every), tuple(every.repeats()))
    if len(found) < num_heads:
        raise BadInput(
            f"{checkpoint.file}: {len(found)} heads, a tree of depth {num_heads} needs {num_heads}"
        )
    _merge(checkpoint, every.repeats())

    def make(config):
        return HydraHeads(config, arch, num_heads, num_layers)

    with torch.device("meta"):
        heads = make(config)
    checkpoint.drop(*every.state_dict().keys() - heads.state_dict().keys())
    checkpoint.load_into(heads, origin.dtype, lm_head.weight.device)
    heads = target.grown(heads, config, make, KINDS)[0].eval()
    if ids is not None:
        heads.keep_ids(ids)
    return heads


def _kind(checkpoint: Checkpoint) -> tuple[str, int]:
    """(architecture, layers of a head) of the config; what cannot be run is refused."""
    place = f"{checkpoint.path}/config.json"
    check_fields(checkpoint.config, place, FIELDS)
    arch = checkpoint.get("hydra_head_arch", "mlp")
    if arch not in ARCHS:
        known = " and ".join(ARCHS)
        raise BadInput(f"{place}: hydra_head_arch {arch} is not supported, only {known}")
    if checkpoint.get("grounded_heads", False) is not True:
        raise BadInput(f"{place}: grounded_heads is not true; only grounded heads are supported")
    if offset := checkpoint.get("hidden_state_offset", 0):
        raise BadInput(f"{place}: hidden_state_offset {offset} is not supported, only 0")
    num_layers = checkpoint.get("hydra_num_layers", 1)
    if type(num_layers) is not int or num_layers < 1:
        raise BadInput(f"{place}: hydra_num_layers {num_layers!r} is not a number from 1 on")
    return arch, num_layers


def _merge(checkpoint: Checkpoint, repeats: dict[str, str]) -> None:
    """Keep one of the repeated tensors, as loading them one after another would: the last."""
    differ = []
    for name, own in repeats.items():
        if name in checkpoint.tensors:
            last = checkpoint.tensors.pop(name)
            if not torch.equal(last, checkpoint.tensors[own]):
                differ.append(name)
            checkpoint.tensors[own] = last
    if differ:
        print(
            f"{checkpoint.file}: {len(differ)} repeated tensors differ from the block that they "
            f"repeat, first {differ[0]}; the last one is used",
            file=sys.stderr,
        )
