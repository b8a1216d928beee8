"""EAGLE-3's head: a Llama layer over fused target states, with an output vocabulary of its own.

Row i reads the embedding of token i + 1 and, of the target, the inputs of decoder layers 2, L // 2
and L - 3 at i, fused by one linear layer; while drafting, the layer's own output takes their place.
Source: Li et al., arXiv 2503.01840.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.common.errors import BadInput
from model.common.heads.checkpoint import Checkpoint
from model.common.heads.head import RowAttention, llama_config
from model.common.target.twin.corner import FAR
from model.eagle.head import FILES, KINDS, EagleHead, borrowed_from

MIN_LAYERS = 8  # of the target: with fewer the three states coincide or lose their order
UNSUPPORTED = {"norm_before_residual": False, "fc_norm": False, "norm_output": True}


def fused_layers(num_layers: int) -> tuple[int, int, int]:
    """Decoder layers whose inputs are fused: low, middle, high."""
    if num_layers < MIN_LAYERS:
        raise BadInput(f"EAGLE-3 needs a target of at least {MIN_LAYERS} layers, not {num_layers}")
    return 2, num_layers // 2, num_layers - 3


class Eagle3Layer(nn.Module):
    """A Llama layer whose attention reads [embedding; feature], each with a norm of its own."""

    def __init__(self, config):
        from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

        super().__init__()
        norm = (config.hidden_size, config.rms_norm_eps)
        self.hidden_norm, self.input_layernorm = LlamaRMSNorm(*norm), LlamaRMSNorm(*norm)
        self.self_attn = RowAttention(config, 2 * config.hidden_size)
        self.post_attention_layernorm = LlamaRMSNorm(*norm)
        self.mlp = LlamaMLP(config)

    def both(self, embedded: Tensor, features: Tensor) -> Tensor:
        """What the attention reads, [B, r, 2 H]."""
        return torch.cat([self.input_layernorm(embedded), self.hidden_norm(features)], -1)

    def finish(self, features: Tensor, attended: Tensor) -> Tensor:
        """The layer's output from its un-normed residual and the attention's output."""
        rows = features + attended
        return rows + self.mlp(self.post_attention_layernorm(rows))

    def forward(self, embedded, features, rotary, mask, place) -> Tensor:
        attended = self.self_attn(self.both(embedded, features), rotary, mask, place)
        return self.finish(features, attended)


class Eagle3Module(nn.Module):
    """The published tensors. borrowed: the target's embedding, unless the head has its own width.

    d2t [V_d] long: offset of each draft id to the target's; t2d [V] bool: target ids covered.
    """

    def __init__(self, config, draft_vocab: int, target_width: int, embedding, owns=False):
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        super().__init__()
        self.fc = nn.Linear(3 * target_width, config.hidden_size, bias=False)
        self.midlayer = Eagle3Layer(config)
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, draft_vocab, bias=False)
        if draft_vocab != config.vocab_size:
            self.register_buffer("d2t", torch.zeros(draft_vocab, dtype=torch.long))
            self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))
        if owns:
            self.embed_tokens = embedding
        self.borrowed = (embedding,)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [B, r, H] of target ids."""
        return self.borrowed[0](tokens).to(self.fc.weight.dtype)

    def fuse(self, features: Tensor) -> Tensor:
        """Target states [B, r, 3 H_t] to features [B, r, H]; the layer's own output stays."""
        return self.fc(features) if features.shape[-1] == self.fc.in_features else features

    def forward(self, inputs, rotary, mask, place) -> Tensor:
        """inputs (tokens [S, r], states [S, r, 3 H_t] or features [S, r, H]) -> outputs before the
        norm [S, r, H]; the rest as CachedHead gives it."""
        tokens, features = inputs
        return self.midlayer(self.embed(tokens), self.fuse(features), rotary, mask, place)

    def logits(self, features: Tensor) -> Tensor:
        """[.., H] -> [.., V_d]."""
        return self.lm_head(self.norm(features))


class Eagle3Head(EagleHead):
    """The head with its cache; needs the inputs of three of the target's layers."""

    def __init__(self, module, config, target):
        super().__init__(module, config, target)
        self.needs = fused_layers(target.config.num_hidden_layers)
        self.offsets = getattr(module, "d2t", None)

    def features(self, hidden: dict) -> Tensor:
        """What rows read of the target, [S, r, 3 H_t]."""
        return torch.cat([hidden[layer].to(self.device) for layer in self.needs], -1)

    def target_ids(self, ids: Tensor) -> Tensor:
        """Ids of the draft's vocabulary as the target's."""
        return ids if self.offsets is None else ids + self.offsets[ids]


def load_eagle3(path: str, target) -> Eagle3Head:
    """EAGLE-3's published files; layers.0.* (speculators, vLLM) reads as midlayer.*."""
    origin = target.origin
    fused_layers(origin.config.num_hidden_layers)
    checkpoint = Checkpoint(path, FILES)
    for name in list(checkpoint.tensors):
        checkpoint.rename(name, name.replace("layers.0.", "midlayer."))
    config = _config(checkpoint, origin)
    width = origin.config.hidden_size
    draft_vocab = checkpoint.config.get("draft_vocab_size") or config.vocab_size
    owns = config.hidden_size != width
    with torch.device("meta"):
        embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        module = Eagle3Module(config, draft_vocab, width, embedding, owns)
    if not owns:
        checkpoint.drop("embed_tokens.weight")  # of no use, and random in some published files
    if draft_vocab == config.vocab_size:
        checkpoint.drop("d2t", "t2d")
    checkpoint.load_into(module, origin.dtype, origin.device, optional=("t2d",))
    check_vocabulary(module, checkpoint)
    module, config = _grown(module, config, target)
    module.borrowed = (module.embed_tokens,) if owns else borrowed_from(target)[:1]
    return Eagle3Head(module.eval(), config, target)


def _grown(module: Eagle3Module, config, target):
    """As Target.grown(); a twin's head has a row for every id, as those published for Vicuna."""
    if target.twin is None:
        return module, config
    if hasattr(module, "d2t"):
        ids = torch.arange(len(module.d2t)) + module.d2t
        whole = nn.Linear(config.hidden_size, config.vocab_size)
        with torch.no_grad():
            whole.weight.index_copy_(0, ids, module.lm_head.weight)
            whole.bias.fill_(FAR).index_fill_(0, ids, 0.0)
        module.lm_head = whole

    def make(config):
        return Eagle3Module(config, config.vocab_size, config.hidden_size, None)

    return target.grown(module, config, make, KINDS)


def _config(checkpoint: Checkpoint, target):
    """The layer's config, which may be of another width if it says the target's."""
    for name, usual in UNSUPPORTED.items():
        if checkpoint.config.get(name, usual) != usual:
            raise BadInput(f"{checkpoint.path}/config.json: {name} is not supported")
    _check_layers(checkpoint, target)
    config = llama_config(checkpoint.config, f"{checkpoint.path}/config.json")
    read = checkpoint.config.get("target_hidden_size") or config.hidden_size
    for name, found, wanted in (
        ("hidden_size of the target", read, target.config.hidden_size),
        ("vocab_size", config.vocab_size, target.vocab_size),
    ):
        if found != wanted:
            raise BadInput(f"{checkpoint.path}: {name} {found}, the target's is {wanted}")
    return config


def _check_layers(checkpoint: Checkpoint, target) -> None:
    """Refuse a head trained on other states; its config counts layers' outputs, we their inputs."""
    states = checkpoint.config.get("eagle_config") or {}
    ours = [layer - 1 for layer in fused_layers(target.config.num_hidden_layers)]
    found = states.get("eagle_aux_hidden_state_layer_ids") or ours
    if not states.get("use_aux_hidden_state", True) or list(found) != ours:
        raise BadInput(f"{checkpoint.path}/config.json: eagle_config {states}, supported is {ours}")


def check_vocabulary(module: Eagle3Module, checkpoint: Checkpoint) -> None:
    """Refuse offsets that lead outside the target's vocabulary or disagree with t2d."""
    if not hasattr(module, "d2t"):
        return
    if module.d2t.is_floating_point():
        raise BadInput(f"{checkpoint.file}: tensor d2t is {module.d2t.dtype}, expected torch.int64")
    ids = torch.arange(len(module.d2t)) + module.d2t.cpu()
    vocab = module.t2d.shape[0]
    if ids.min() < 0 or ids.max() >= vocab or len(ids.unique()) < len(ids):
        raise BadInput(f"{checkpoint.file}: d2t does not map into the {vocab} ids of the target")
    covered = torch.zeros(vocab, dtype=torch.bool)
    covered[ids] = True
    if "t2d" in checkpoint.tensors and not torch.equal(module.t2d.cpu().bool(), covered):
        raise BadInput(f"{checkpoint.file}: t2d and d2t do not cover the same ids")
    module.t2d = covered.to(module.d2t.device)
