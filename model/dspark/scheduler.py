"""Which drafted tokens of a batch are worth their verification, by confidence and cost.

Source: Cheng et al., arXiv 2607.05147, algorithm 1
"""

from __future__ import annotations

import argparse


def schedule(confidence: list[list[float]], rates: list[float]) -> tuple[list[int], float]:
    """(drafted tokens to verify of each sequence, expected tokens a time) of a batch.

    Tokens are admitted by the chance that decoding gets to them and takes them, the likelier first,
    up to the first one that does not raise expected tokens times the rate of steps. That it is the
    first, and not the best of all stops, keeps a token from deciding whether it is looked at.

    confidence  of each running sequence and slot: chance of acceptance, those before accepted
    rates       steps a time of 1, 2, ... rows in all; beyond them nothing is admitted

    >>> schedule([[0.9, 0.8, 0.3], [0.5, 0.4, 0.2]], [1, 1, 0.95, 0.9, 0.85, 0.78, 0.7, 0.6])
    ([2, 1], 3.502)
    """
    chances = []
    for sequence, slots in enumerate(confidence):
        chance = 1.0
        for slot, own in enumerate(slots):
            chance *= own
            chances.append((-chance, slot, sequence))
    num_rows, expected = len(confidence), float(len(confidence))
    lengths = [0] * num_rows
    best = expected * (rates[num_rows - 1] if num_rows <= len(rates) else 0.0)
    for chance, _, sequence in sorted(chances):
        if num_rows >= len(rates):
            break
        value = (expected - chance) * rates[num_rows]
        if value <= best:
            break
        num_rows, expected, best = num_rows + 1, expected - chance, value
        lengths[sequence] += 1
    return lengths, round(best, 9)


def read_rates(text: str) -> list[float]:
    """Argument type: positive numbers separated by commas."""
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise argparse.ArgumentTypeError(f"{text}: positive numbers separated by commas are needed")
    return rates
