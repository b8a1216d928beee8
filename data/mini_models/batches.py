"""Conversations as token ids with loss weights, grouped by length into batches."""

import random

from data.mini_bench.generate import conversations, held_out
from data.mini_models.build_tokenizer import ASSISTANT, messages
from model.common.prompts.templates import by_length

MAX_LENGTH = 512
POOL = 1024  # conversations that are sorted by length together


def encode(tokenizer, examples, prompt_weight):
    """Examples -> [(ids, weights)]: weight 1 where an answer's token or its end is predicted."""
    texts = [tokenizer.apply_chat_template(messages(e), tokenize=False) for e in examples]
    assistant, end = tokenizer.convert_tokens_to_ids([ASSISTANT, tokenizer.eos_token])
    rows = []
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        weights, answering = [], False
        for token in ids:
            weights.append(1.0 if answering else prompt_weight)
            answering = token == assistant or (answering and token != end)
        rows.append((ids[:MAX_LENGTH], weights[:MAX_LENGTH]))
    return rows


def collate(rows, pad_id):
    """Pad on the right -> (input_ids [B, T], weights [B, T]); a causal model needs no mask then."""
    import torch

    longest = max(len(ids) for ids, _ in rows)
    input_ids = [ids + [pad_id] * (longest - len(ids)) for ids, _ in rows]
    weights = [w + [0.0] * (longest - len(w)) for _, w in rows]
    return torch.tensor(input_ids), torch.tensor(weights)


def training_steps(tokenizer, seed, prompt_weight, micro_tokens, micro_per_step, shares=None):
    """Yield endless optimizer steps, each a list of groups of rows; the same for a seed.

    Groups hold similar lengths, to pad little; a step mixes several, to mix the topics.
    """
    rng = random.Random(seed)
    stream = conversations(None, seed, shares)
    groups = []
    while True:
        rows = encode(tokenizer, [next(stream) for _ in range(POOL)], prompt_weight)
        groups += by_length(rows, micro_tokens)
        rng.shuffle(groups)
        while len(groups) >= micro_per_step:
            yield [groups.pop() for _ in range(micro_per_step)]


def validation_groups(tokenizer, micro_tokens):
    """The held-out questions with their answers, in groups; prompts carry no weight."""
    return by_length(encode(tokenizer, held_out(), 0.0), micro_tokens)
