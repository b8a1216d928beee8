"""Draft models for tests: right at times, scripted, and what a plain forward says of them."""

import copy
import sys

import torch
from conftest import make_model


def noisy_copy(scale=0.02, **shape):
    """The target's weights with noise: it is right often, not always."""
    model = make_model(**shape)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


DRAFTS = {  # beside make_model()
    "target": make_model,
    "random": lambda: make_model(seed=1, num_hidden_layers=1),
    "noisy": noisy_copy,
}


def plain(model):
    """The model with transformers' own attention, for references."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    return model


@torch.inference_mode()
def next_logits(model, ids):
    """Of the token after `ids`, read from the beginning without a cache."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


class NoCache:
    """Takes what DraftModel does with a cache."""

    def rewind(self, lengths):
        pass

    def advance(self, count):
        pass

    def clear(self, slots):
        pass


class ScriptedModel:
    """What DraftModel asks of a Target; says(tokens [B, r]) gives logits and hidden states."""

    device, vocab_size = torch.device("cpu"), 97

    def __init__(self, says):
        self.says, self.reads, self.cache = says, 0, NoCache()

    def reserve(self, num_slots, capacity):
        pass

    def limit_after(self, num_prompt):
        return sys.maxsize

    def prefill(self, slots, ids, lengths, needs):
        pass

    def read(self, tokens, ancestors, depths, longest, offset=0, hidden=()):
        logits, states = self.says(tokens)
        self.reads += 1
        return logits, {name: states for name in hidden}
