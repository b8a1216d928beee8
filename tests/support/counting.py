"""A target that counts, whose every answer is known."""

import torch
from conftest import make_model

from model.common.target.model import Target


def counting_target(modulus=61, vocab_size=61):
    """After token t comes t + 1, after modulus - 1 comes 0."""
    model = make_model(vocab_size=vocab_size, num_hidden_layers=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1)
        model.get_input_embeddings().weight.copy_(torch.eye(vocab_size, 64))
        head = torch.zeros(vocab_size, 64)
        head[[(t + 1) % modulus for t in range(modulus)], range(modulus)] = 1
        model.lm_head.weight.copy_(head)
    return Target(model)
