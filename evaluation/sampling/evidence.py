"""The tests of an audit of sampled answers, on columns of numbers; see audit_sampling.py.

surprisal  sum of -log p(x) - H(p) over its standard deviation: a martingale, normal in the limit
           (P. Hall, C. Heyde, Martingale Limit Theory and Its Application, 1980, theorem 3.2)
pit-mass   Kolmogorov-Smirnov distance of the u (see token_law.py) from uniform, the vocabulary
           ordered by probability
pit-id     the same with the vocabulary in its own order: the order in which an inverse-CDF sampler
           walks, so that a random number that was read before, used twice or wrongly rescaled shows

Why two orders: a bias towards likely or unlikely tokens moves the first and averages out of the
second; a bias of the random numbers moves the second (tests/evaluation/power_sampling.py prints
both).

Answers end when an end token is drawn, so the number of tokens is random, too. The sums (for a KS
test: of 1{u <= x} - x at every x) are martingales over the tokens, stopped at that token: their
mean stays 0 and their variance is that of the expected number (Wald). Dividing by the number found
is right in the limit of many turns (F. Anscombe, Large-Sample Theory of Sequential Estimation,
1952).
"""

import math
from dataclasses import dataclass, fields
from statistics import NormalDist

import numpy as np

TESTS = ("surprisal", "pit-mass", "pit-id")
POWER = 0.8
SURE = 0.99
GRID = np.linspace(0.01, 0.99, 99)  # places of u at which the argmax family is laid out
MIN_FREE = 100  # tokens with a choice below which no limit theorem is relied on
NORMAL = NormalDist()


@dataclass
class Evidence:
    """Columns [n] of a file's possible tokens; see token_law.TokenLaw."""

    surprise: np.ndarray
    entropy: np.ndarray
    variance: np.ndarray
    third: np.ndarray
    best: np.ndarray
    by_mass: np.ndarray
    by_id: np.ndarray

    @classmethod
    def of(cls, law) -> "Evidence":
        """From the columns of a TokenLaw."""
        keep = ~law.impossible
        return cls(*(getattr(law, field.name)[keep].numpy() for field in fields(cls)))

    @property
    def free(self) -> np.ndarray:
        """Tokens [n] with a choice: no token had the mass SURE.

        Known from the prefix, so that leaving the others out of a test leaves the laws of these as
        they are; the others' u are as good as noise, three of four in a low-temperature text.
        """
        return self.best < SURE

    @property
    def skewness(self) -> float:
        """Of the surprisal's sum, were the laws fixed: near 0 where a normal tail may be read."""
        variance = self.variance.sum()
        return float(self.third.sum() / variance**1.5) if variance > 0 else 0.0


def two_sided(z: float) -> float:
    """Chance of a normal number at least as far out as z."""
    return math.erfc(abs(z) / math.sqrt(2))


def kolmogorov(scaled: float) -> float:
    """P(K > scaled) of Kolmogorov's distribution."""
    if scaled < 0.3:  # P(K <= 0.3) < 1e-5
        return 1.0
    terms = (math.exp(-2 * (k * scaled) ** 2) * (-1) ** (k - 1) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * math.fsum(terms)))


def ks_test(u: np.ndarray) -> tuple[float, float]:
    """(D, p) of numbers [n] against uniform on [0, 1].

    Source: M. Stephens, Use of the Kolmogorov-Smirnov Statistics Without Extensive Tables (1970),
    for the scale at finite n.
    """
    if not len(u):
        return 0.0, 1.0
    ordered = np.sort(u)
    steps = np.arange(len(u) + 1) / len(u)
    distance = float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))
    root = math.sqrt(len(u))
    return distance, kolmogorov((root + 0.12 + 0.11 / root) * distance)


def surprisal_test(found: Evidence) -> tuple[float, float]:
    """(z, two-sided p); z is 0 where no surprisal varies."""
    variance = found.variance.sum()
    if variance <= 0:
        return 0.0, 1.0
    z = float((found.surprise - found.entropy).sum() / math.sqrt(variance))
    return z, two_sided(z)


def run_tests(found: Evidence) -> dict:
    """{test: {"statistic", "p"}}."""
    u = found.by_mass[found.free], found.by_id[found.free]
    results = (surprisal_test(found), *map(ks_test, u))
    return {test: {"statistic": value, "p": p} for test, (value, p) in zip(TESTS, results)}


def holm(p_values: list) -> list:
    """Adjusted p-values: those at most alpha are rejected with a family-wise error of alpha.

    Valid however the tests depend on each other. Source: S. Holm, A Simple Sequentially Rejective
    Multiple Test Procedure (1979).

    >>> holm([0.01, 0.04, 0.03]), holm([0.5, 0.9]), holm([])
    ([0.03, 0.06, 0.06], [1.0, 1.0], [])
    """
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def detectable_argmax(found: Evidence, level: float) -> float | None:
    """The share of positions at which a best token in place of a draw is found with power POWER.

    Under (1 - eps) p + eps [best], the mean of the surprisal falls by eps sum(H + log best) and the
    share of u below x rises by eps mean(min(x / best, 1) - x). The better of the two tests at
    `level`, variances as under p, the distance at one x alone (so the power is rather above);
    None where even eps = 1 is not found.
    """
    reach = NORMAL.inv_cdf(POWER)
    found_by = []
    gap = (found.entropy + np.log(found.best)).sum()
    if gap > 1e-9:
        bound = -NORMAL.inv_cdf(level / 2)
        found_by.append((bound + reach) * math.sqrt(found.variance.sum()) / gap)
    best = found.best[found.free]
    shift = np.array([(np.minimum(x / best, 1) - x).sum() for x in GRID])
    if len(best):
        bound = critical_kolmogorov(level) + reach * np.sqrt(GRID * (1 - GRID))
        found_by.append((bound * math.sqrt(len(best)) / shift).min())
    smallest = float(min(found_by, default=math.inf))
    return smallest if smallest <= 1 else None


def critical_kolmogorov(level: float) -> float:
    """The number that Kolmogorov's distribution exceeds with chance `level`, by bisection."""
    low, high = 0.3, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if kolmogorov(middle) > level else (low, middle)
    return high
