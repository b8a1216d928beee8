"""EAGLE-3's head: a Llama layer over fused target states, with an output vocabulary of its own.

Row i reads the embedding of token i + 1 and, of the target, the inputs of three decoder layers
(usually 2, L // 2 and L - 3) at i, fused by one linear layer; while drafting, the layer's own
output takes their place.
Source: Li et al., arXiv 2503.01840; config.py has what later heads do differently.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.common.errors import BadInput
from model.common.heads.checkpoint import Checkpoint
from model.common.heads.head import RowAttention
from model.common.heads.vocabulary import DraftIds
from model.common.target.twin.corner import FAR
from model.eagle.head import FILES, KINDS, EagleHead, borrowed, layer_config
from model.eagle3.config import (
    NORMS,
    PLAIN,
    Wiring,
    flat_fields,
    read_layers,
    read_wiring,
    refuse_parallel,
)

UNUSED = ("verifier_norm.weight", "verifier_lm_head.weight")  # copies of the target's


class Eagle3Layer(nn.Module):
    """A Llama layer whose attention reads [embedding; feature], each with a norm of its own."""

    def __init__(self, config, norm_before_residual: bool = False):
        from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

        super().__init__()
        norm = (config.hidden_size, config.rms_norm_eps)
        self.norm_before_residual = norm_before_residual
        self.hidden_norm, self.input_layernorm = LlamaRMSNorm(*norm), LlamaRMSNorm(*norm)
        self.self_attn = RowAttention(config, 2 * config.hidden_size)
        self.post_attention_layernorm = LlamaRMSNorm(*norm)
        self.mlp = LlamaMLP(config)

    def inputs(self, embedded: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """What the attention reads [B, r, 2 H], and the residual [B, r, H]."""
        normed = self.hidden_norm(features)
        residual = normed if self.norm_before_residual else features
        return torch.cat([self.input_layernorm(embedded), normed], -1), residual

    def finish(self, residual: Tensor, attended: Tensor) -> Tensor:
        """The layer's output from its residual and the attention's output."""
        rows = residual + attended
        return rows + self.mlp(self.post_attention_layernorm(rows))

    def forward(self, embedded, features, rotary, mask, place) -> Tensor:
        rows, residual = self.inputs(embedded, features)
        return self.finish(residual, self.self_attn(rows, rotary, mask, place))


class Eagle3Module(nn.Module):
    """The published tensors.

    d2t [V_d] long: offset of each draft id to the target's; t2d [V] bool: target ids covered.

    embedding    the target's, or with `owns` the head's own
    draft_vocab  V_d; None = all of the target's ids, with the target's lm_head
    borrowed     (embedding, lm_head or None) that rows go through
    """

    kinds = {**KINDS, r"fc_norm\.\d+": "norm"}  # how its parts grow with a twin

    def __init__(
        self,
        config,
        draft_vocab: int | None,
        target_width: int,
        embedding,
        owns: bool = False,
        wiring: Wiring = PLAIN,
    ):
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        super().__init__()
        width, epsilon, num_states = config.hidden_size, config.rms_norm_eps, wiring.num_states
        self.wiring = wiring
        if wiring.norm_before_fc:
            self.input_norm = LlamaRMSNorm(num_states * target_width, epsilon)
        if wiring.fc_norm:
            norms = [LlamaRMSNorm(target_width, epsilon) for _ in range(num_states)]
            self.fc_norm = nn.ModuleList(norms)
        self.fc = nn.Linear(num_states * target_width, width, bias=False)
        self.midlayer = Eagle3Layer(config, wiring.norm_before_residual)
        self.norm = LlamaRMSNorm(width, epsilon)
        if draft_vocab:
            self.lm_head = nn.Linear(width, draft_vocab, bias=False)
        if draft_vocab not in (None, config.vocab_size):
            self.register_buffer("d2t", torch.zeros(draft_vocab, dtype=torch.long))
            self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))
        if owns:
            self.embed_tokens = embedding
        self.borrowed = (embedding, None)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [B, r, H] of target ids."""
        return self.borrowed[0](tokens).to(self.fc.weight.dtype)

    def fuse(self, features: Tensor) -> Tensor:
        """Target states [B, r, n H_t] to features [B, r, H]; the layer's own output stays."""
        if features.shape[-1] != self.fc.in_features:
            return features
        if self.wiring.norm_before_fc:
            features = self.input_norm(features)
        if self.wiring.fc_norm:
            parts = features.chunk(len(self.fc_norm), -1)
            features = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts)], -1)
        return self.fc(features)

    def forward(self, inputs, rotary, mask, place) -> Tensor:
        """inputs (tokens [S, r], states [S, r, n H_t] or features [S, r, H]) -> outputs [S, r, H],
        before the norm but for norm_output; the rest as CachedHead gives it."""
        tokens, features = inputs
        rows = self.midlayer(self.embed(tokens), self.fuse(features), rotary, mask, place)
        return self.norm(rows) if self.wiring.norm_output else rows

    def logits(self, features: Tensor) -> Tensor:
        """[.., H] -> [.., V_d]."""
        rows = features if self.wiring.norm_output else self.norm(features)
        return (self.borrowed[1] or self.lm_head)(rows)


class Eagle3Head(EagleHead):
    """The head with its cache; layers: of the target, whose inputs it reads."""

    def __init__(self, module, config, target, layers: tuple[int, ...], draft_ids=None):
        super().__init__(module, config, target, draft_ids)
        if target.twin:
            layers = tuple(target.twin.depth_of(layer) for layer in layers)
        self.needs = layers
        self.offsets = getattr(module, "d2t", None)
        self.num_ids = (module.borrowed[1] or module.lm_head).out_features

    def facts(self) -> dict:
        norms = [name for name in NORMS if getattr(self.module.wiring, name)]
        wiring = {"fused_layers": list(self.needs), "wiring": " ".join(norms) or "plain"}
        return wiring | super().facts()

    def features(self, hidden: dict) -> Tensor:
        """What rows read of the target, [S, r, n H_t]."""
        return torch.cat([hidden[layer].to(self.device) for layer in self.needs], -1)

    def logits(self, features: Tensor) -> Tensor:
        """[.., H] -> [.., V_d]. A borrowed lm_head's outputs are neither scaled nor capped as the
        target's are: behind a norm of its own the head was trained on them as they come, and
        other programs read it so."""
        return self.module.logits(features)

    def target_ids(self, ids: Tensor) -> Tensor:
        """Ids of the draft's vocabulary as the target's."""
        return super().target_ids(ids) if self.offsets is None else ids + self.offsets[ids]


def open_eagle3(path: str) -> Checkpoint:
    """EAGLE-3's published files; layers.0.* (speculators, NVIDIA) reads as midlayer.*."""
    checkpoint = Checkpoint(path, FILES)
    checkpoint.strip("model.")
    for name in list(checkpoint.tensors):
        checkpoint.rename(name, name.replace("layers.0.", "midlayer."))
    checkpoint.drop(*UNUSED)
    return checkpoint


def load_eagle3(
    path: str,
    target,
    layer_ids: str = "config",
    norm_output: str = "config",
    ids: Tensor | None = None,
) -> Eagle3Head:
    """The head in a directory or hub id.

    layer_ids, norm_output: what the config's mean, see config.py. ids: of the target's that are
    drafted by a head that borrows its lm_head, None = all.
    """
    checkpoint = open_eagle3(path)
    refuse_parallel(checkpoint)
    fields, place = flat_fields(checkpoint), f"{path}/config.json"
    layers = read_layers(fields, place, target.origin.config.num_hidden_layers, layer_ids)
    wiring = read_wiring(fields, place, len(layers), norm_output)
    module, config = load_module(checkpoint, fields, target, wiring, ids=ids)
    return Eagle3Head(module, config, target, layers, DraftIds(ids))


def load_module(
    checkpoint: Checkpoint,
    fields: dict,
    target,
    wiring: Wiring,
    kind=Eagle3Module,
    ids: Tensor | None = None,
) -> tuple[Eagle3Module, object]:
    """(module, its layers' config) of an open checkpoint, checked, on the target's device.

    fields: as flat_fields() gives them; kind: called as Eagle3Module is
    """
    path, origin = checkpoint.path, target.origin
    config = _config(checkpoint, fields, origin, wiring.num_states)
    own_width = config.hidden_size != origin.config.hidden_size
    owns = own_width or fields.get("embed_requires_grad") is True
    draft_vocab = _draft_vocab(fields, f"{path}/config.json", config.vocab_size)
    whole = draft_vocab == config.vocab_size
    can_borrow = whole and not own_width and not fields.get("tie_word_embeddings")
    if can_borrow and "lm_head.weight" not in checkpoint.tensors:
        draft_vocab = None
    if ids is not None and draft_vocab:
        raise BadInput(f"--draft-vocab: {path} has an output of its own, of {draft_vocab} ids")
    if not owns:
        checkpoint.drop("embed_tokens.weight")  # of no use, and random in some published files

    def make(config, draft_vocab, width):
        embedding = nn.Embedding(config.vocab_size, config.hidden_size) if owns else None
        return kind(config, draft_vocab, width, embedding, owns, wiring)

    with torch.device("meta"):
        module = make(config, draft_vocab, origin.config.hidden_size)
    check_vocabulary(module, checkpoint, config.vocab_size)
    checkpoint.load_into(module, origin.dtype, origin.device)
    module, config = _grown(module, config, target, make)
    embedding = module.embed_tokens if owns else borrowed(target, "input")
    module.borrowed = (embedding, None if draft_vocab else borrowed(target, "output", ids))
    return module.eval(), config


def _grown(module: Eagle3Module, config, target, make):
    """As Target.grown(); a twin's head has a row for every id, as those published for Vicuna."""
    if target.twin is None:
        return module, config
    if hasattr(module, "d2t"):
        ids = torch.arange(len(module.d2t)) + module.d2t
        dtype = module.lm_head.weight.dtype
        whole = nn.Linear(config.hidden_size, config.vocab_size, dtype=dtype)
        with torch.no_grad():
            whole.weight.index_copy_(0, ids, module.lm_head.weight)
            whole.bias.fill_(FAR).index_fill_(0, ids, 0.0)
        module.lm_head = whole
    has_output = hasattr(module, "lm_head")

    def make_whole(config):
        return make(config, config.vocab_size if has_output else None, config.hidden_size)

    return target.grown(module, config, make_whole, module.kinds)


def _config(checkpoint: Checkpoint, fields: dict, target, num_states: int):
    """The layer's config, which may be of another width if it says the target's."""
    config = layer_config(checkpoint, fields, "midlayer")
    place, name = f"{checkpoint.path}/config.json", "target_hidden_size"
    if fields.get(name) is None:
        name = "hidden_size"
    read, width = fields[name], target.config.hidden_size
    if read != width:
        raise BadInput(
            f"{place}: {name}: hidden_size of the target {read}, the target's is {width}"
        )
    if config.vocab_size != target.vocab_size:
        raise BadInput(
            f"{place}: vocab_size {config.vocab_size}, the target's is {target.vocab_size}"
        )
    heads, keys = config.num_attention_heads, config.num_key_value_heads
    if heads % keys:
        raise BadInput(
            f"{place}: num_key_value_heads {keys} does not divide num_attention_heads {heads}"
        )
    if num_states * read == config.hidden_size:  # they could not be told from features
        raise BadInput(f"{place}: {num_states} states of {read} are as wide as the head")
    return config


def _draft_vocab(fields: dict, place: str, vocab: int) -> int:
    """Ids that the head scores, under either of two names; all where none is there."""
    names = ("draft_vocab_size", "truncated_vocab_size")
    found = {name: fields[name] for name in names if fields.get(name) is not None}
    for name, value in found.items():
        if value > vocab:
            raise BadInput(f"{place}: {name} {value}, the target has {vocab} ids")
    if len({*found.values()}) > 1:
        said = " and ".join(f"{name} {value}" for name, value in found.items())
        raise BadInput(f"{place}: {said} are not the same")
    return next(iter(found.values()), vocab)


def check_vocabulary(module: Eagle3Module, checkpoint: Checkpoint, vocab: int) -> None:
    """Refuse offsets that lead outside the target's vocabulary or disagree with t2d.

    A head with a row for every id needs no offsets, but may have zeros. A missing t2d is made.
    """
    tensors, file = checkpoint.tensors, checkpoint.file
    offsets = tensors.get("d2t")
    if not hasattr(module, "d2t"):
        if offsets is not None and len(offsets) == vocab and offsets.any():
            raise BadInput(f"{file}: d2t moves ids, but the head has a row for every one")
        return checkpoint.drop("d2t", "t2d")
    checkpoint.check(module.state_dict(), optional=("t2d",))
    if offsets.is_floating_point():
        raise BadInput(f"{file}: tensor d2t is {offsets.dtype}, expected torch.int64")
    ids = torch.arange(len(offsets)) + offsets.long()
    if ids.min() < 0 or ids.max() >= vocab or len(ids.unique()) < len(ids):
        raise BadInput(f"{file}: d2t does not map into the {vocab} ids of the target")
    covered = torch.zeros(vocab, dtype=torch.bool).index_fill(0, ids, True)
    if not torch.equal(tensors.get("t2d", covered).bool(), covered):
        raise BadInput(f"{file}: t2d and d2t do not cover the same ids")
    tensors |= {"d2t": offsets.long(), "t2d": covered}
