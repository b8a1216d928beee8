"""The retriever's loops, compiled by numba on first use and cached beside this file.

Compiled because a lookup is hundreds to thousands of dependent reads of the maps: with bisect and
numpy calls instead, the same trees took 5 to 8 times the time (10 million tokens, 0.4 ms a lookup).

A chunk is given by its first place, both in tokens and in suffixes; every chunk ends in the
separator, which is greater than any token, so that no comparison runs beyond it.
"""

import numpy as np
from numba import njit


@njit(cache=True)
def _bound(tokens, suffixes, first, query, low, high, upper):
    """The first of the sorted places [low, high) whose suffix is not below the query, or, with
    upper, is above all that begin with it."""
    while low < high:
        middle = (low + high) // 2
        at = first + suffixes[middle]
        below = upper
        for i in range(len(query)):
            token = tokens[at + i]
            if token != query[i]:
                below = token < query[i]
                break
        if below:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
def _begins(tokens, at, query):
    """Whether the tokens at a place begin with the query."""
    for i in range(len(query)):
        if tokens[at + i] != query[i]:
            return False
    return True


@njit(cache=True)
def match(tokens, suffixes, firsts, sizes, query, shortest, lows, highs):
    """Length of the query's longest suffix that occurs, 0 if none of `shortest` tokens does.

    Writes each chunk's range of hits into lows and highs [chunks]. Where m tokens occur so do the
    last m - 1 of them, hence the length is found by bisection; chunks after the first hit are asked
    upward from the best length, since they seldom know a longer one.
    """
    best = 0
    for chunk in range(len(firsts)):
        first, end = firsts[chunk], firsts[chunk] + sizes[chunk]
        lows[chunk] = highs[chunk] = first
        known, high, at = max(best, shortest) - 1, len(query), -1
        while known < high:
            middle = known + 1 if best else (known + high + 1) // 2
            suffix = query[len(query) - middle :]
            place = _bound(tokens, suffixes, first, suffix, first, end, False)
            if place < end and _begins(tokens, first + suffixes[place], suffix):
                known, at = middle, place
            else:
                high = middle - 1
        if at >= 0:
            if known > best:
                lows[:chunk] = highs[:chunk]
                best = known
            suffix = query[len(query) - best :]
            lows[chunk] = at
            highs[chunk] = _bound(tokens, suffixes, first, suffix, at, end, True)
    return best


@njit(cache=True)
def _advance(tokens, suffixes, base, token, low, high):
    """The first of the places [low, high) whose suffix has at least `token` at the offset that base
    includes; costs the logarithm of the way."""
    step = 1
    while low + step <= high and tokens[base + suffixes[low + step - 1]] < token:
        low += step
        step *= 2
    high = min(high, low + step - 1)
    while low < high:
        middle = (low + high) // 2
        if tokens[base + suffixes[middle]] < token:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
def _next_child(tokens, suffixes, bases, here, ends, least, after):
    """The next token that follows at least `least` hits; -1 = none.

    here, ends [chunks]: what is left of the parent's ranges. Moves `here` to the token's first hits
    and `after` behind its last. In each of C chunks the place ceil(least / C) - 1 ahead holds some
    token; one smaller than all of these has fewer hits than that in every chunk, so too few.
    """
    ahead = (least + len(bases) - 1) // len(bases) - 1
    token = np.int64(1) << 62
    for chunk in range(len(bases)):
        if here[chunk] + ahead < ends[chunk]:
            there = tokens[bases[chunk] + suffixes[here[chunk] + ahead]]
            token = min(token, np.int64(there))
    if token == np.int64(1) << 62:
        return -1
    for chunk in range(len(bases)):
        low, high = here[chunk], ends[chunk]
        here[chunk] = _advance(tokens, suffixes, bases[chunk], token, low, high)
        after[chunk] = _advance(tokens, suffixes, bases[chunk], token + 1, here[chunk], high)
    return token


@njit(cache=True)
def _parents_of(level, levels, ages, num, found):
    """Write the kept nodes of a level into found, oldest first; returns how many there are."""
    count = 0
    for slot in range(num):
        if levels[slot] == level:
            at = count
            while at > 0 and ages[found[at - 1]] > ages[slot]:
                found[at] = found[at - 1]
                at -= 1
            found[at] = slot
            count += 1
    return count


@njit(cache=True)
def _total(begins, ends):
    """Hits in all chunks' ranges."""
    total = 0
    for chunk in range(len(begins)):
        total += ends[chunk] - begins[chunk]
    return total


@njit(cache=True)
def _rank(ranked, num, slot, weights):
    """Put the youngest node behind all that weigh as much; the last of num ranks is free."""
    at = num - 1
    while at > 0 and weights[ranked[at - 1]] < weights[slot]:
        ranked[at] = ranked[at - 1]
        at -= 1
    ranked[at] = slot


@njit(cache=True)
def heaviest(tokens, suffixes, firsts, lows, highs, depth, separator, nodes, begins, ends):
    """Write the heaviest prefixes of the hits' continuations; returns how many there are.

    firsts: where the continuations count from (first place of the chunk + matched length), lows and
    highs the ranges of hits, all [chunks]. A prefix weighs as many hits as begin with it, over all
    chunks. nodes [5, n] become token, parent's slot (n: none), weight, depth, and slots in order of
    weight, then depth (shallow first), then token ids, so that parents stand before children.
    begins and ends [n + 1, chunks] are room for the nodes' own ranges of hits.

    Level by level, in the order of token ids, so that age breaks ties. A child weighs no more than
    its parent and is younger: only kept nodes are expanded, and once n are kept only children
    heavier than the lightest are looked for, in strides of that weight. Hence the cost follows the
    tree and not the number of hits.
    """
    ids, above, weights, levels, ranked = nodes
    most, num, born = len(ids), 0, 0
    ages, found = np.zeros(most, np.int64), np.full(most, most)
    here, after, bases = np.empty_like(lows), np.empty_like(lows), firsts.copy()
    begins[most], ends[most] = lows, highs  # the root, parent of level 1
    num_parents = 1
    for level in range(1, depth + 1):
        oldest = born
        for index in range(num_parents):
            parent = found[index]
            if parent < most and ages[parent] >= oldest:
                continue  # no longer kept: a node of this level has its slot
            here[:] = begins[parent]
            while True:
                least = weights[ranked[most - 1]] + 1 if num == most else 1
                token = _next_child(tokens, suffixes, bases, here, ends[parent], least, after)
                if token < 0 or token == separator:  # which is the last of the children
                    break
                weight = _total(here, after)
                if weight >= least:
                    slot = ranked[most - 1] if num == most else num
                    num = min(num + 1, most)
                    ids[slot], above[slot], weights[slot] = token, parent, weight
                    levels[slot], ages[slot] = level, born
                    _rank(ranked, num, slot, weights)
                    begins[slot], ends[slot] = here, after
                    born += 1
                here[:] = after
        num_parents = _parents_of(level, levels, ages, num, found)
        bases += 1
    return num
