"""Spans of time that overlap: their union, how many are open at once, whose a moment is."""

import itertools


def levels(spans):
    """[(begin, end, number of open spans)] of spans [(begin, end)], half open, without zero ones.

    >>> levels([(0, 2), (1, 3)])
    [(0, 1, 1), (1, 2, 2), (2, 3, 1)]
    """
    edges = {}
    for begin, end in spans:
        if end > begin:
            edges[begin] = edges.get(begin, 0) + 1
            edges[end] = edges.get(end, 0) - 1
    found, open_spans = [], 0
    for begin, end in itertools.pairwise(sorted(edges)):
        open_spans += edges[begin]
        if open_spans:
            found.append((begin, end, open_spans))
    return found


def peak(spans):
    """The most spans that are open at once."""
    return max((number for *_, number in levels(spans)), default=0)


def shares(spans):
    """Seconds of each span where every moment is shared equally among the spans that are open.

    They sum to the length of the spans' union.

    >>> shares([(0, 2), (1, 3)])
    [1.5, 1.5]
    """
    passed, total = {}, 0.0  # moment -> what a span that is open all along would have by then
    for begin, end, number in levels(spans):
        passed[begin] = total
        total += (end - begin) / number
        passed[end] = total
    return [passed[end] - passed[begin] if end > begin else 0.0 for begin, end in spans]


def merged(spans):
    """The union of spans as spans that do not touch, in their order.

    >>> merged([(5, 6), (0, 2), (1, 3), (3, 4)])
    [(0, 4), (5, 6)]
    """
    found = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found
