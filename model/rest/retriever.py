"""Longest suffix match in a datastore, and the heaviest prefixes of what followed its hits.

Everything is exact: a node's weight is the number of hits whose continuation begins with it.
"""

from __future__ import annotations

import time

import numpy as np

from model.common.contract.sequence import Guess
from model.rest import search
from model.rest.datastore import Datastore


class Retriever:
    """Draft trees out of a datastore; reads only the pages that a lookup touches.

    shortest, longest  suffix lengths that count as a match (tokens)
    depth              longest continuation (tokens)
    num_nodes          nodes of a tree at most
    """

    def __init__(self, store: Datastore, shortest=2, longest=16, depth=10, num_nodes=64):
        self.store, self.shortest, self.longest = store, shortest, longest
        self.depth, self.num_nodes = depth, num_nodes
        self.tokens = np.asarray(store.tokens)  # plain views of the maps: the same pages
        self.suffixes = np.asarray(store.suffixes)
        self.firsts, self.sizes = np.array(store.chunks, np.int64).T.copy()
        self.lows, self.highs = np.empty_like(self.firsts), np.empty_like(self.firsts)
        self.nodes = np.empty((5, num_nodes), np.int64)
        self.forget()
        self._compile()

    def forget(self) -> None:
        """Begin the count of lookups and their seconds anew."""
        self.num_lookups, self.seconds = 0, 0.0

    def lookup(self, ids: list[int]) -> Guess:
        """The tree after a sequence's ids; empty where no suffix of it occurs."""
        begin = time.perf_counter()
        tokens, parents, _, depths = self.tree(*self.match(ids))
        self.num_lookups += 1
        self.seconds += time.perf_counter() - begin
        return Guess(tokens, parents, max(depths)) if tokens else Guess()

    def _compile(self) -> None:
        """Compile the loops, or read them from numba's cache: outside every timed region."""
        self.match([int(self.tokens[0])] * self.longest)
        first = int(self.firsts[0])
        self.tree(1, [(first, first, first + 1)])

    def match(self, ids: list[int]) -> tuple[int, list[tuple[int, int, int]]]:
        """Length of the longest suffix of ids that occurs (0: none), and its hits.

        These are ranges of suffixes.bin with their chunk's first place: (first, low, high).
        """
        query = np.array(ids[-self.longest :], np.int64)
        foreign = np.flatnonzero(query >= self.store.separator)
        if len(foreign):  # ids that no tokenizer gives, of a padded vocabulary
            query = query[foreign[-1] + 1 :]
        size = search.match(
            self.tokens,
            self.suffixes,
            self.firsts,
            self.sizes,
            query,
            self.shortest,
            self.lows,
            self.highs,
        )
        ranges = zip(self.firsts.tolist(), self.lows.tolist(), self.highs.tolist())
        return size, [(first, low, high) for first, low, high in ranges if low < high]

    def tree(self, size: int, found) -> tuple[list[int], list[int], list[int], list[int]]:
        """(tokens, parents, weights, depths) of the heaviest prefixes of the continuations.

        In order of weight, then depth (shallow first), then token ids, which puts parents before
        children. size, found: what match() says.
        """
        if not found:
            return [], [], [], []
        firsts, lows, highs = np.array(found, np.int64).T.copy()
        most, room = self.num_nodes, np.empty((2, self.num_nodes + 1, len(found)), np.int64)
        num = search.heaviest(
            self.tokens,
            self.suffixes,
            firsts + size,
            lows,
            highs,
            self.depth,
            self.store.separator,
            self.nodes,
            room[0],
            room[1],
        )
        ids, above, weights, depths, ranked = self.nodes[:, :num].tolist()
        place = dict(zip(ranked, range(num)))
        place[most] = -1
        columns = [[values[slot] for slot in ranked] for values in (ids, above, weights, depths)]
        columns[1] = [place[parent] for parent in columns[1]]
        return tuple(columns)
