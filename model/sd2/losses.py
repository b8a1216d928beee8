"""Cross-entropies of a draft's exits: what is trained, and what the comparison prints."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def exit_states(model, ids: Tensor, exits: list[int]) -> list[Tensor]:
    """States [B, T, H] after the shared norm, of right-padded ids [B, T], one per exit."""
    decoder = model.model
    out = decoder(input_ids=ids, use_cache=False, output_hidden_states=True)
    return [
        decoder.norm(out.hidden_states[layer])
        if layer < len(decoder.layers)
        else out.last_hidden_state
        for layer in exits
    ]


def exit_losses(model, ids: Tensor, chosen: Tensor, exits: list[int]) -> list[tuple]:
    """(mean cross-entropy, accuracy) of every exit; 0 where nothing is chosen.

    chosen [B, T] bool: rows that have to predict the token behind them.
    """
    labels = ids.roll(-1, 1)[chosen]
    num_labels, found = max(len(labels), 1), []
    for states in exit_states(model, ids, exits):
        logits = model.lm_head(states[chosen]).float()
        loss = cross_entropy(logits, labels, reduction="sum") / num_labels
        right = (logits.detach().argmax(-1) == labels).sum() / num_labels
        found.append((loss, right))
    return found


@torch.no_grad()
def mean_losses(model, batches, exits: list[int]) -> dict:
    """{exit: {"cross_entropy", "accuracy"}} over all answers' tokens of batches of rows."""
    from model.common.prompts.templates import collate

    sums, weight = torch.zeros(len(exits), 2, dtype=torch.float64), 0
    for rows in batches:
        ids, mask, _ = collate(rows)
        chosen = torch.zeros_like(mask)
        chosen[:, :-1] = mask[:, 1:]
        found = exit_losses(model, ids.to(model.device), chosen.to(model.device), exits)
        tokens = int(chosen.sum())
        sums += torch.tensor([[float(loss), float(right)] for loss, right in found]) * tokens
        weight += tokens
    means = (sums / max(weight, 1)).tolist()
    return {
        layer: {"cross_entropy": loss, "accuracy": right}
        for layer, (loss, right) in zip(exits, means)
    }
