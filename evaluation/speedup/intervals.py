"""95 % intervals: Student's point, what few questions widen, proportions."""

import math

Z = 1.959963984540054


def student(freedom):
    """The 97.5 % point of Student's t, by its expansion around the normal's (error below 0.2 %).

    >>> [round(student(n), 2) for n in (1, 2, 3, 10)]
    [12.71, 4.3, 3.18, 2.23]
    """
    if freedom < 3:  # known in closed form
        return (math.tan(0.475 * math.pi), 0.95 * math.sqrt(2 / (1 - 0.95**2)))[freedom - 1]
    z = Z
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


def few_questions(number):
    """By what the bootstrap's interval of a mean of so many questions is too narrow.

    It knows neither that a sample's spread is smaller than the truth's, by sqrt(n / (n - 1)), nor
    that the spread itself is a guess, which Student's t has. Source: T. Hesterberg, What Teachers
    Should Know About the Bootstrap (2015), arXiv 1411.5279.

    >>> [round(few_questions(n), 2) for n in (2, 4, 10, 60)]
    [9.17, 1.87, 1.22, 1.03]
    """
    return student(number - 1) / student(math.inf) * math.sqrt(number / (number - 1))


def wilson(hits, trials):
    """Wilson's score interval of a proportion.

    >>> [round(limit, 4) for limit in wilson(0, 10)]
    [0.0, 0.2775]
    """
    share, square = hits / trials, Z * Z / trials
    middle = share + square / 2
    half = Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def newcombe(hits, trials, base_hits, base_trials):
    """95 % interval of hits / trials - base_hits / base_trials.

    Examples (a) and (h) of his table II:

    >>> [round(limit, 4) for limit in newcombe(56, 70, 48, 80)]
    [0.0524, 0.3339]
    >>> [round(limit, 4) for limit in newcombe(10, 10, 0, 10)]
    [0.6075, 1.0]
    """
    share, base = hits / trials, base_hits / base_trials
    (low, high), (base_low, base_high) = wilson(hits, trials), wilson(base_hits, base_trials)
    down = math.hypot(share - low, base_high - base)
    up = math.hypot(high - share, base - base_low)
    return share - base - down, share - base + up
