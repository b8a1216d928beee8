"""Chi-square tests of sampled laws, with a stated level and a computed power.

LEVEL is the chance that a correct law fails a test. Seeds are fixed, so a test never fails by
chance twice: what fails is wrong.
"""

import torch
from scipy import optimize, stats

LEVEL = 1e-5
POWER = 0.999


def p_value(counts, law) -> float:
    """Of counts [m] under probabilities [m]; 0 where something impossible was seen.

    Cells expected fewer than 5 times are pooled into one.
    """
    counts, law = counts.double().flatten(), law.double().flatten()
    if counts[law == 0].sum() > 0:
        return 0.0
    expected = law * counts.sum()
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum().view(1)])
    expected = torch.cat([expected[~rare], expected[rare].sum().view(1)])
    if expected[-1] < 5:  # the pool is too small to be judged
        counts, expected = counts[:-1], expected[:-1]
    if len(counts) < 2:
        return 1.0
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    return stats.chi2.sf(statistic, len(counts) - 1)


def detectable(num: int, cells: int, level: float = LEVEL, power: float = POWER) -> float:
    """The total variation that `num` draws over `cells` cells find with chance `power` at `level`.

    Whatever the bias looks like: by Cauchy-Schwarz its noncentrality is at least 4 num TV^2.
    """
    freedom = cells - 1
    bound = stats.chi2.isf(level, freedom)
    noncentrality = optimize.brentq(
        lambda shift: stats.ncx2.sf(bound, freedom, shift) - power, 1e-3, 1e6
    )
    return (noncentrality / (4 * num)) ** 0.5


def count_words(words, vocab_size: int):
    """How often each word occurs: words [N, m] -> [vocab_size ** m], the first token slowest."""
    code = torch.zeros_like(words[:, 0])
    for column in words.unbind(1):
        code = code * vocab_size + column
    return torch.bincount(code, minlength=vocab_size ** words.shape[1])


def transformers_probs(logits, temperature, top_k, top_p, min_p=0.0):
    """The probabilities transformers' generate would sample from."""
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    scores = TemperatureLogitsWarper(temperature)(None, logits) if temperature != 1 else logits
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(None, scores)
    return scores.softmax(-1)
