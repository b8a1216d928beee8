"""Training of block drafters: DFlash's loss written out, and that memory is bounded by pieces."""

import math

import pytest
import torch
from test_head_training import batch_of, training

from model.dflash import blocks
from model.dflash import training as block_training

BLOCKS = ["--mask-token-id", "3", "--block-size", "5", "--num-layers", "2"]
SECOND = ["--conv-kernel-size", "2", "--selector-rank", "4", "--selector-top-k", "5"]
METHODS = {  # (method, flags)
    "dflash": ("dflash", []),
    "d-pace": ("dflash", ["--loss", "kl", "--weights", "d-pace"]),
    "dflash2": ("dflash", SECOND),
    "dspark": ("dspark", ["--markov-rank", "4"]),
    "dspark, rnn": ("dspark", ["--markov-rank", "4", "--markov-head", "rnn"]),
}
FEW = 800  # numbers of a piece: two blocks of five rows behind texts of 14 tokens, four heads


def test_dflash_loss():
    """Slot k behind token s learns token s + k of the answer, with the weight exp(-(k - 1) / 2)."""
    method, target = training("dflash", *BLOCKS, "--slot-decay", "2", "--anchors", "99")
    batch, terms, weights = batch_of(method, target), [], []
    text = method.text(batch)
    for b in range(3):
        length = int(batch.lengths[b])
        for s in range(length // 2, length - 1):  # answers are the second halves
            root = batch.ids[b : b + 1, s : s + 1]
            states = text.states(torch.tensor([[s]]), root, slice(b, b + 1))[0, 0]
            for k in range(1, min(5, length - s)):
                law = target.lm_head(states[k - 1]).log_softmax(-1)
                terms.append(-law[batch.ids[b, s + k]])
                weights.append(math.exp(-(k - 1) / 2))
    weights = torch.tensor(weights)
    loss, metrics = method.loss(batch)
    assert torch.allclose(loss, (weights * torch.stack(terms)).sum() / weights.sum(), atol=1e-5)
    assert torch.allclose(metrics["cross_entropy"], torch.stack(terms).mean(), atol=1e-5)


def outcome(method, batch):
    """(loss, metrics, gradients, held-out chains) of a batch, its anchors drawn by one seed."""
    torch.manual_seed(7)
    method.module.zero_grad()
    loss, metrics = method.loss(batch)
    loss.backward()
    gradients = {name: part.grad.clone() for name, part in method.module.named_parameters()}
    with torch.no_grad():
        return loss.detach(), metrics, gradients, method.drafts(batch, 3)


@pytest.mark.parametrize("name", METHODS)
def test_pieces_bound_the_largest_tensor_and_change_nothing(name, monkeypatch):
    """Neither logits nor attention weights have more numbers; loss, gradients and chains stay."""
    kind, flags = METHODS[name]
    method, target = training(kind, *BLOCKS, "--anchors", "6", *flags)
    batch, sizes = batch_of(method, target), {"logits": [], "weights": []}
    logits, attended = method.logits, blocks.attended

    def seen_logits(states):
        found = logits(states)
        sizes["logits"].append(found.numel())
        return found

    def seen_attention(key, value, rotary, attention, rows, masks):
        num_rows = rows.shape[:3].numel() * attention.q_proj.out_features // attention.head_dim
        sizes["weights"].append(num_rows * (key.shape[2] + rows.shape[2]))
        return attended(key, value, rotary, attention, rows, masks)

    monkeypatch.setattr(method, "logits", seen_logits)
    monkeypatch.setattr(blocks, "attended", seen_attention)
    loss, metrics, gradients, chains = outcome(method, batch)
    assert min(max(found) for found in sizes.values()) > FEW  # all at once
    for found in sizes.values():
        found.clear()
    monkeypatch.setattr(block_training, "PIECE", FEW)
    other = outcome(method, batch)
    assert max(max(found) for found in sizes.values()) <= FEW
    assert torch.allclose(loss, other[0], atol=1e-5) and metrics.keys() == other[1].keys()
    for metric, value in metrics.items():
        assert torch.allclose(value.float(), other[1][metric].float(), atol=1e-5), metric
    for parameter, gradient in gradients.items():
        assert torch.allclose(gradient, other[2][parameter], atol=1e-5), parameter
    assert torch.equal(chains, other[3]) and (chains >= 0).any()
