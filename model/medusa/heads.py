"""Medusa heads: residual blocks on the target's last hidden state, each with an output matrix.

Source: Cai et al., arXiv 2401.10774; tensor names of FasterDecoding/medusa-vicuna-7b-v1.3
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from model.common.errors import BadInput
from model.common.heads.checkpoint import Checkpoint, check_fields, read_config
from model.common.heads.vocabulary import DraftIds, some_rows

HEAD_FILES = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")
MODEL_FILES = ("model.safetensors", "pytorch_model.bin")  # Medusa-2, and vLLM's packing
BLOCK = re.compile(r"(\d+)\.(\d+)\.linear\.weight")
KINDS = {r"\d+\.\d+\.linear": "state", r"\d+\.\d+": "output"}  # see corner.KINDS
FIELDS = (  # of a config: published heads', then vLLM's. Sizes are those of the tensors
    *("medusa_num_heads", "medusa_num_layers", "version", "hidden_size", "vocab_size"),
    *("num_heads", "num_hidden_layers", "max_paths", "topk", "max_seq_len", "medusa_fc_bias"),
)
PACKED_BLOCK = re.compile(r"blocks\.(\d+)\.layers\.(\d+)\.weight")


class ResidualBlock(nn.Module):
    """z + SiLU(W z + b), [.., H] -> [.., H]."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        return rows + nn.functional.silu(self.linear(rows))


class MedusaHeads(nn.Module):
    """K heads; head k (from 0) at position t guesses the token at t + 2 + k.

    The state dict has the published names: {k}.{j}.linear.weight and .bias for the residual blocks
    j, {k}.{number of blocks}.weight for the output matrix.

    shared     the target's lm_head, for heads without an output matrix of their own; not a part of
               the module, so neither trained nor saved with it
    draft_ids  which ids V are
    """

    def __init__(
        self,
        num_heads: int,
        hidden_size: int,
        vocab_size: int,
        num_layers: int = 1,
        shared: nn.Linear | None = None,
    ):
        super().__init__()
        self.num_heads, self.draft_ids = num_heads, DraftIds()
        self._shared = (shared,)  # in a tuple, which is not registered
        for k in range(num_heads):
            head = nn.Sequential(*(ResidualBlock(hidden_size) for _ in range(num_layers)))
            if shared is None:
                head.append(nn.Linear(hidden_size, vocab_size, bias=False))
            self.add_module(str(k), head)

    def forward(self, hidden: Tensor, num_heads: int | None = None) -> Tensor:
        """Logits [K, .., V] of all heads, or the first ones, from hidden states after the final
        norm [.., H]."""
        out = torch.stack([head(hidden) for head in [*self.children()][:num_heads]])
        return out if self._shared[0] is None else self._shared[0](out)

    def keep_ids(self, ids: Tensor) -> None:
        """Score these of the target's ids alone, [V]."""
        self.draft_ids = DraftIds(ids.to(next(self.parameters()).device))
        if self._shared[0] is not None:
            self._shared = (some_rows(self._shared[0], ids),)
            return
        for head in self.children():
            head[-1] = some_rows(head[-1], ids)

    @torch.no_grad()
    def init_from(self, lm_head: nn.Linear, factor: float = 1.0) -> None:
        """Start as the target: its output matrix, blocks that add nearly nothing.

        The blocks' weights are zero, their biases stay as nn.Linear draws them.
        factor: that the target multiplies its lm_head's outputs by
        """
        for head in self.children():
            for part in head:
                if isinstance(part, ResidualBlock):
                    part.linear.weight.zero_()
                else:
                    part.weight.copy_(lm_head.weight.float() * factor)


def load_heads(path: str, target, num_heads: int, ids: Tensor | None = None) -> MedusaHeads:
    """The first num_heads heads of a directory or hub id, in the target's dtype.

    ids: of the target's that they score, None = all.

    Reads heads with and without output matrices ("version 2"), models that contain heads
    (medusa_head.*), and vLLM's names (blocks.*, lm_heads.*). Everything there is checked against
    the target's sizes; the number of heads is counted, since published configs misstate it.
    Raises BadInput: a missing, unknown or misshapen tensor, or fewer heads.
    """
    checkpoint, packed = _open(path)
    origin = target.origin
    lm_head = origin.model.get_output_embeddings()
    _check_fields(checkpoint.config, f"{path}/config.json", packed, len(lm_head.weight))
    pattern = PACKED_BLOCK if packed else BLOCK
    found = [match.groups() for match in map(pattern.fullmatch, checkpoint.tensors) if match]
    num_found, num_layers = len({k for k, _ in found}), len({j for _, j in found})
    if not found:
        first = _stored("0.0.linear.weight", packed)
        raise BadInput(f"{checkpoint.file}: no tensor {first}, so no Medusa head")
    outputs = {_stored(f"{k}.{num_layers}.weight", packed) for k in range(num_found)}
    owns = str(checkpoint.config.get("version")) != "2" or outputs & checkpoint.tensors.keys()
    vocab_size, hidden_size = origin.config.vocab_size, origin.config.hidden_size
    sizes = (hidden_size, vocab_size, num_layers, None if owns else lm_head)
    with torch.device("meta"):
        every = MedusaHeads(num_found, *sizes).state_dict()
    _check(checkpoint, every, packed)
    if num_found < num_heads:
        raise BadInput(f"{checkpoint.file}: {num_found} heads, {num_heads} are needed")
    with torch.device("meta"):
        heads = MedusaHeads(num_heads, *sizes)
    stored = checkpoint.tensors
    checkpoint.tensors = {  # zeros: biases that a packing left out
        name: stored[found]
        if (found := _stored(name, packed)) in stored
        else torch.zeros(like.shape)
        for name, like in heads.state_dict().items()
    }
    checkpoint.load_into(heads, origin.dtype, lm_head.weight.device)

    def make(config):
        shared = None if owns else target.model.get_output_embeddings()
        return MedusaHeads(num_heads, config.hidden_size, config.vocab_size, num_layers, shared)

    heads = target.grown(heads, origin.config, make, KINDS)[0].eval()
    if ids is not None:
        heads.keep_ids(ids)
    return heads


def _open(path: str) -> tuple[Checkpoint, bool]:
    """The checkpoint, and whether its names are vLLM's; its config says where heads are kept."""
    from model.common.target.loading import check_directory

    check_directory(path)
    kind = read_config(path).get("model_type")
    if kind == "medusa":
        return Checkpoint(path, MODEL_FILES), True
    if kind:
        return Checkpoint(path, MODEL_FILES, prefix="medusa_head."), False
    return Checkpoint(path, HEAD_FILES), False


def _check_fields(fields: dict, place: str, packed: bool, vocab_size: int) -> None:
    """See check_fields(); of a model that contains heads, the fields that are about them."""
    if fields.get("model_type") and not packed:
        fields = {name: value for name, value in fields.items() if name.startswith("medusa_")}
    limits = {"original_lm_head": (False,), "truncated_vocab_size": (vocab_size,)}
    check_fields(fields, place, FIELDS, {**limits, "logit_scale": (1,)})


def _stored(name: str, packed: bool) -> str:
    """Name of a tensor in the file.

    >>> _stored("3.0.linear.bias", True), _stored("3.1.weight", True)
    ('blocks.3.layers.0.bias', 'lm_heads.3.weight')
    """
    if not packed:
        return name
    head, layer, *rest = name.split(".")
    return f"blocks.{head}.layers.{layer}.{rest[1]}" if rest[1:] else f"lm_heads.{head}.weight"


def _check(checkpoint: Checkpoint, expected: dict, packed: bool) -> None:
    """Refuse other tensors than the expected ones, by the names in the file.

    vLLM's packing may lack all biases, which then are zero, unless its config claims them.
    """
    biases = tuple(_stored(name, packed) for name in expected if name.endswith(".bias"))
    has_biases = not checkpoint.tensors.keys().isdisjoint(biases)
    optional = packed and not has_biases and not checkpoint.config.get("medusa_fc_bias")
    stored = {_stored(name, packed): wanted for name, wanted in expected.items()}
    checkpoint.check(stored, biases if optional else ())
