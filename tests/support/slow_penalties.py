"""Penalties as they are defined, token by token, from a prefix that is counted anew."""

from collections import Counter

import torch


def penalised(logits, prompt, answer, penalties):
    """Logits [V] behind prompt and answer (ids), in float64."""
    scores = logits.double().tolist()
    for token in {*prompt, *answer}:
        score, strength = scores[token], penalties.repetition
        scores[token] = score / strength if score > 0 else score * strength
    for token, count in Counter(answer).items():
        scores[token] -= penalties.presence + penalties.frequency * count
    return torch.tensor(scores, dtype=torch.float64)


@torch.inference_mode()
def penalised_answer(model, prompt, length, penalties):
    """Greedy ids of transformers' model, every token from the whole text."""
    answer = []
    for _ in range(length):
        ids = torch.tensor([[*prompt, *answer]])
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]
        answer.append(int(penalised(logits, prompt, answer, penalties).argmax()))
    return answer
