"""A multi-token-prediction head: two norms, a linear layer, a layer of the target's own class.

Row i reads the target's state at i and the embedding of token i + 1, each normed, and says what
follows token i + 1; while drafting, the head's own output takes the state's place.
Source: DeepSeek-V3, arXiv 2412.19437, section 2.2; layouts.py has the published names
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from model.common.errors import BadInput
from model.common.heads.vocabulary import DraftIds
from model.common.remote_code import trusted
from model.common.target.attention import NAME, attention_modules, register
from model.common.target.cache import CachedModel
from model.common.target.products import choose_products
from model.eagle.head import EagleHead, borrowed
from model.mtp.fields import check_config
from model.mtp.layouts import drop_copies, fill, read_head

KINDS = {"eh_proj": "state", "[eh]norm": "norm"}  # see corner.KINDS
ONE_LAYER = {  # config fields that list what a model's layers are, and the head's one is
    "layer_types": ["full_attention"],  # also of hybrid models
    "mlp_layer_types": ["sparse"],
    "mlp_only_layers": [],
    "first_k_dense_replace": 0,
    "decoder_sparse_step": 1,
}


def layer_config(config):
    """The config of a target as of a model with the head's layer alone."""
    config = copy.deepcopy(config)
    for name, value in ONE_LAYER.items():
        if getattr(config, name, None) is not None:
            setattr(config, name, value)
    config.num_hidden_layers = 1
    return config


class MtpModule(nn.Module):
    """The head's tensors; the target's embedding and lm_head are borrowed, not owned.

    config        of layer_config()
    hidden_first  the linear layer reads [state; embedding], not [embedding; state]
    normed        what is read in place of the target's states is the output behind the norm
    attention     which of transformers' registry the layer calls
    """

    def __init__(self, config, hidden_first=False, normed=True, attention: str = NAME):
        from transformers import AutoModelForCausalLM

        super().__init__()
        self.hidden_first, self.normed = hidden_first, normed
        register()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation=attention, trust_remote_code=trusted()
            )
        decoder, epsilon = model.get_decoder(), getattr(config, "rms_norm_eps", None)
        parts = [getattr(decoder, name, None) for name in ("layers", "norm", "rotary_emb")]
        if epsilon is None or None in parts:
            raise BadInput(
                f"model type {config.model_type}: its decoder has no layers of RMS norms and "
                "rotary positions, which an MTP head is made of"
            )
        self.layer = decoder.layers[0]
        norms = [type(decoder.norm)(config.hidden_size, eps=epsilon) for _ in range(3)]
        self.enorm, self.hnorm, self.norm = norms
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.borrowed = (None, None)  # a tuple: no submodules, no parameters

    def rows(self, tokens: Tensor, states: Tensor) -> Tensor:
        """What the layer reads, [S, r, H], of tokens [S, r] and states [S, r, H]."""
        embedded = self.borrowed[0](tokens).to(states.dtype)
        pair = [self.enorm(embedded), self.hnorm(states)]
        return self.eh_proj(torch.cat(pair[::-1] if self.hidden_first else pair, -1))

    def through(self, rows: Tensor, rotary, mask: Tensor | None, **more) -> Tensor:
        """The layer, and the norm where it is `normed`: [S, r, H] -> [S, r, H]."""
        out = self.layer(rows, attention_mask=mask, position_embeddings=rotary, **more)
        out = out[0] if isinstance(out, tuple) else out
        return self.norm(out) if self.normed else out

    def forward(self, inputs, rotary, mask, place) -> Tensor:
        """inputs (tokens [S, r], states [S, r, H]) -> states [S, r, H]; the rest as CachedHead
        gives it."""
        columns, slots = place
        rows = self.rows(*inputs)
        return self.through(rows, rotary, mask, cache_columns=columns, cache_slots=slots)

    def logits(self, states: Tensor) -> Tensor:
        """[.., H] -> [.., V] by the target's lm_head."""
        return self.borrowed[1](states if self.normed else self.norm(states))


def rotary_of(model, config):
    """(rows, positions [S, r]) -> cos and sin, as the target makes them for full attention."""
    rotary = type(model.get_decoder().rotary_emb)(config)
    kinds = getattr(config, "rope_parameters", None) or {}
    return rotary, {"layer_type": "full_attention"} if "full_attention" in kinds else {}


class OneLayer:
    """A head's layer as attention_modules() calls a model."""

    def __init__(self, module: MtpModule, config, rotary, dtype, device):
        self.module, self.config, self.rotary = module, config, rotary
        self.dtype, self.device = dtype, device

    def __call__(self, token, position_ids, use_cache, cache_columns):
        size = *token.shape, self.config.hidden_size
        rows = torch.zeros(size, dtype=self.dtype, device=self.device)
        self.module.through(
            rows, self.rotary(rows, position_ids), None, cache_columns=cache_columns
        )


class MtpHead(EagleHead):
    """The head with its cache, as EAGLE's drafters use heads.

    gain  [H]: the weights of the target's final norm, by which its states are divided again; None =
          they are read as they are
    """

    def __init__(self, module, config, target, draft_ids=None, gain: Tensor | None = None):
        device = torch.device(target.device)
        rotary, kind = rotary_of(target.model, config)
        self.rotary = partial(rotary.to(device), **kind)
        layers = attention_modules(OneLayer(module, config, self.rotary, target.dtype, device))
        CachedModel.__init__(self, layers, device, target.dtype, target.runtime)
        choose_products(module, device)  # from here on as CachedHead, whose layers are Llama's
        self.module, self.config, self.gain = module, config, gain
        self.target_config = target.config
        self.forward = self.runtime.compiled(module.forward)
        self.step = self.runtime.captured(self._rows)
        self.draft_ids, self.vocab_size = draft_ids or DraftIds(), target.vocab_size

    def facts(self) -> dict:
        return {
            "target_state": "normed" if self.gain is None else "plain",
            "chained_state": "normed" if self.module.normed else "plain",
            "concat": "state first" if self.module.hidden_first else "embedding first",
            **super().facts(),
        }

    def features(self, hidden: dict) -> Tensor:
        """What rows read of the target, [S, r, H]."""
        states = super().features(hidden)
        return states if self.gain is None else states / self.gain


def final_gain(target) -> Tensor:
    """Weights [H] of the target's final norm, whatever the norm stores.

    A state before that norm is normed by the head again, which forgets its length: what stands
    behind the norm, divided by its weights, gives the same rows.
    """
    norm = target.model.get_decoder().norm
    ones = torch.ones(target.config.hidden_size, dtype=torch.float64, device=target.device)
    with torch.inference_mode():
        gain = copy.deepcopy(norm).to(target.device, torch.float64)(ones)
    if (gain == 0).any():
        raise BadInput(
            "target state plain (--target-state): the target's final norm has weights of 0"
        )
    return gain.to(target.dtype)


def load_mtp(
    path: str,
    target,
    ids: Tensor | None = None,
    target_state: str | None = None,
    chained_state: str = "normed",
    own: bool = False,
) -> MtpHead:
    """A published head, of the target's own checkpoint or of a folder of its own.

    ids: of the target's that it drafts, None = all. target_state, chained_state: whether what it
    reads is normed (behind the final norm; behind its own) or plain (before); None: as the layout
    has it. own: the config.json there is the target's, which has been read.
    """
    origin = target.origin
    if target.rope is not None:
        kind = target.config.model_type
        raise BadInput(f"model type {kind}: longrope's factors are not supported with MTP heads")
    file = read_head(path, origin.config.num_hidden_layers)
    config = layer_config(origin.config)
    if not own:
        place = f"{path}/config.json"
        check_config(file.checkpoint.config, place, origin.model.config, origin.config, config)
    wiring = file.layout.hidden_first, chained_state == "normed"

    def make(config):
        return MtpModule(config, *wiring)

    with torch.device("meta"):
        module = make(config)
    drop_copies(file, origin.model)
    fill(file, module, origin.dtype, origin.device)
    module, config = target.grown(module, config, make, KINDS)
    module.borrowed = (borrowed(target, "input"), borrowed(target, "output", ids))
    plain = (target_state or file.layout.target_state) == "plain"
    gain = final_gain(target) if plain else None
    return MtpHead(module.eval(), config, target, DraftIds(ids), gain)
