"""What a model does to its LM head's outputs: most families nothing, some a factor, some a cap.

Granite divides them by logits_scaling, Cohere multiplies them by logit_scale, Gemma 2 caps them at
+-final_logit_softcapping. The LM head alone, which draft heads borrow and learn from, has the same
best token and another law.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.errors import BadInput
from model.common.target.self_check import ROUNDING

TOKENS = 8  # that check_logits() reads


def logit_factor(config) -> float:
    """What a model of a text config multiplies its LM head's outputs by."""
    kind, scaling = config.model_type, getattr(config, "logits_scaling", None) or 1.0
    if kind.startswith("cohere"):
        return config.logit_scale or 1.0
    if kind == "falcon_h1":
        return config.lm_head_multiplier
    return scaling if kind == "hyperclovax" else 1 / scaling  # Granite and MiniCPM3 divide


def logits_of(scores: Tensor, config) -> Tensor:
    """A model's logits [.., V] of its LM head's outputs [.., V]; gradients flow through."""
    factor = logit_factor(config)
    scores = scores if factor == 1 else scores * factor
    cap = getattr(config, "final_logit_softcapping", None)
    return scores if cap is None else torch.tanh(scores / cap) * cap


@torch.no_grad()
def check_logits(model) -> None:
    """Raise BadInput where a transformers model's logits are not logits_of() its LM head's outputs.

    Asked before heads are trained on it: they would learn another law.
    """
    config = model.config.get_text_config()
    ids = torch.arange(min(TOKENS, config.vocab_size), device=model.device).unsqueeze(0)
    states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    ours = logits_of(model.get_output_embeddings()(states).float(), config)
    own = model(input_ids=ids, use_cache=False).logits.float()
    known = own.isfinite()  # half precision may overflow; -inf rules a token out
    if not known.any():
        return
    error = (ours - own)[known].abs().max() / own[known].std()
    if not error <= ROUNDING.get(model.dtype, 0.5):
        raise BadInput(
            f"model type {config.model_type}: its logits are not its LM head's outputs, and what "
            "stands between them is not known; heads cannot learn its law"
        )
