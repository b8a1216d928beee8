"""Tiny targets whose every sampled answer can be enumerated, and many answers of the loop.

Five tokens take several steps, so positions are drafted, refused and drafted again with the same
uniforms.
"""

import torch
from conftest import make_model
from laws import count_words, p_value, transformers_probs
from slow_penalties import penalised

from model.common.loop.decode import generate
from model.common.loop.penalties import NO_PENALTIES
from model.common.loop.sampling import Sampler, seed_of
from model.common.loop.turns import StopRules
from model.common.target.model import Target

V = 11
PROMPT = [3, 1, 4]
BATCH, NUM_BATCHES = 2000, 10
NUM = BATCH * NUM_BATCHES
TINY = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
FULL, NUCLEUS, COOL = (1.0, 0, 1.0), (1.0, 0, 0.8), (0.8, 6, 1.0)


def tiny(seed, layers):
    """A random model whose laws are neither flat nor certain, and differ between seeds."""
    return Target(make_model("llama", seed, 0.45, num_hidden_layers=layers, **TINY))


def plain_model(seed=0, layers=2):
    """transformers' model of tiny(), with its own attention."""
    model = tiny(seed, layers).model
    model.set_attn_implementation("eager")
    return model


@torch.inference_mode()
def answer_law(model, length, settings):
    """Probability of every answer of `length` tokens, [V ** length], without a cache.

    settings: of a Sampler, penalties (counted here anew) among them
    """
    penalties = settings[4] if len(settings) > 4 else NO_PENALTIES
    law, answers = torch.ones(1, dtype=torch.float64), torch.tensor([PROMPT])
    for _ in range(length):
        logits = model(input_ids=answers, use_cache=False, logits_to_keep=1).logits[:, -1].double()
        if penalties:
            texts = zip(logits, answers[:, len(PROMPT) :].tolist())
            logits = torch.stack([penalised(row, PROMPT, text, penalties) for row, text in texts])
        law = (law.unsqueeze(1) * transformers_probs(logits, *settings[:4])).flatten()
        following = torch.arange(logits.shape[1]).repeat(len(answers)).unsqueeze(1)
        answers = torch.cat([answers.repeat_interleave(logits.shape[1], 0), following], 1)
    return law


def sampled(target, drafter, settings, length=5, batches=NUM_BATCHES, **more):
    """(answers [batches * BATCH, length], mean accept length), each answer with its own seed."""
    rows, lengths = [], []
    for number in range(batches):
        seeds = [seed_of(0, number * BATCH + row, 0, 0) for row in range(BATCH)]
        given = target, drafter, [PROMPT] * BATCH, Sampler(*settings), seeds, StopRules(), length
        turns = generate(*given, **more)
        rows += [turn.output_ids for turn in turns]
        lengths += [turn.accept_lengths for turn in turns]
    mean = sum(map(sum, lengths)) / sum(map(len, lengths))
    return torch.tensor(rows), mean


def fits(answers, law):
    """p-values of the first three tokens' law and of the last two's."""
    first = law.view(V**3, -1).sum(1)
    last = law.view(V**3, V * V).sum(0)
    return (
        p_value(count_words(answers[:, :3], V), first),
        p_value(count_words(answers[:, 3:], V), last),
    )
