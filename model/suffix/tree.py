"""How often every short substring of some growing sequences occurs, and drafts from these counts.

count(w) is the number of places at which the token string w, of at most max_depth tokens, ends in
the stored sequences; occurrences may overlap, and one at a sequence's end counts though nothing
follows it yet. A drafted path d1 .. dk after a match w has the chance count(w d1 .. dk) / count(w),
which is what SuffixDecoding's product of child over parent along a path comes to.

The published structure is a suffix tree of that depth, at max_depth node visits a token. This is a
suffix automaton, whose states are the classes of substrings that occur at the same places: all of a
class have the same count and continuations, so that a token costs as many visits as its suffixes
have classes, mostly some ten, and a draft looks at each class once. Some 500 bytes a token.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

WIDE = 32  # children of a state from which on frequent ones are remembered


@dataclass(frozen=True)
class Limits:
    """Published names. A match of m tokens may be followed by factor * m + offset drafted ones.

    max_depth       longest substring counted (tokens): match and path together
    max_tokens      tokens of a draft, whatever the match
    min_token_prob  least chance of a drafted token
    as_tree         draft the likeliest tokens as a tree, not the likeliest path
    """

    max_depth: int = 64
    factor: float = 1.0
    offset: float = 0.0
    min_token_prob: float = 0.1
    max_tokens: int = 32
    as_tree: bool = False

    def tokens_after(self, match: int) -> int:
        """Tokens drafted at most after a match of so many."""
        return max(min(self.max_tokens, int(match * self.factor + self.offset + 1e-6)), 0)

    def path_after(self, match: int) -> int:
        """Of these, most on one path."""
        return min(self.tokens_after(match), self.max_depth - match)

    @property
    def longest_path(self) -> int:
        """Most tokens of any path."""
        return max(map(self.path_after, range(1, self.max_depth)))

    @property
    def max_nodes(self) -> int:
        """Most tokens of any draft."""
        return self.tokens_after(self.max_depth - 1) if self.as_tree else self.longest_path


@dataclass
class Candidate:
    """A draft; tokens, chances and parents stand in order, parent -1 = the newest token.

    score  sum of the chances: tokens expected to be accepted
    match  tokens of the context that the draft goes on from
    depth  of the deepest token
    """

    tokens: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    score: float = 0.0
    match: int = 0
    depth: int = 0


class SuffixTree:
    """Counted substrings of several sequences, each with a name, that grow and are removed.

    Of each state are kept its transitions, the length of its longest substring, the link to the
    state of the longest suffix that occurs at more places, and its count. Counts are right for
    states with a substring of at most max_depth tokens; no others are read.

    >>> tree = SuffixTree(Limits())
    >>> tree.extend("a", [1, 2, 3, 4, 1, 2, 3, 5, 1, 2])
    >>> tree.count([1, 2]), tree.count([1, 2, 3])
    (3, 2)
    >>> tree.draft([5, 1, 2]).tokens
    [3, 4]
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.longest = [limits.path_after(match) for match in range(limits.max_depth)]
        self.clear()

    def clear(self) -> None:
        """Forget all sequences."""
        self.next: list[dict[int, int]] = [{}]
        self.link, self.length, self.counts = [-1], [0], [0]
        self.sequences: dict = {}  # name -> tokens
        self.ends: dict = {}  # name -> (state of the whole, state of its last max_depth tokens)
        self.num_removed = 0  # tokens whose states are still there
        self.frequent: dict[int, list[int]] = {}  # wide state -> tokens that often follow

    # --- sequences ---

    def extend(self, name, tokens) -> None:
        """Append tokens to a sequence, which begins with its first ones."""
        sequence = self.sequences.setdefault(name, [])
        whole, short = self.ends.get(name, (0, 0))
        for token in tokens:
            sequence.append(token)
            whole, before = self._append(whole, token), short
            short = self._move(before, token)
            self._count(short, 1)
            if self.frequent:
                self._note(before, token)
        self.ends[name] = whole, short

    def remove(self, name) -> None:
        """Take back what a sequence counted.

        Its states stay until half of all tokens are removed ones; then the others are read anew,
        which costs a constant amount of work per removed token, but all of it in this call: seconds
        for millions of tokens.
        """
        tokens, state = self.sequences.pop(name), 0
        self.ends.pop(name)
        for token in tokens:
            state = self._move(state, token)
            self._count(state, -1)
        self.frequent.clear()  # what follows is rarer, and so its rivals are not
        self.num_removed += len(tokens)
        if self.num_removed > self.counts[0]:
            kept = self.sequences
            self.clear()
            for name, tokens in kept.items():
                self.extend(name, tokens)

    def _move(self, state: int, token: int) -> int:
        """The state after one of max_depth tokens at most and a token that follows there."""
        state = self.next[self._suffix(state, self.limits.max_depth)][token]
        return self._suffix(state, self.limits.max_depth)

    def _suffix(self, state: int, size: int) -> int:
        """The state of the longest suffix of at most `size` tokens; splits may have moved it."""
        while state and self.length[self.link[state]] >= size:
            state = self.link[state]
        return state

    def _count(self, state: int, by: int) -> None:
        """Count one more or one fewer occurrence of a state's substrings and all their suffixes."""
        counts, link = self.counts, self.link
        while state >= 0:
            counts[state] += by
            state = link[state]

    def _append(self, last: int, token: int) -> int:
        """The state of a sequence with one more token; last: that of the sequence."""
        following, link, length = self.next, self.link, self.length
        target = following[last].get(token)
        if target is not None:  # some sequence has gone on like this
            return target if length[target] == length[last] + 1 else self._split(last, token)
        state = self._new({}, length[last] + 1, 0, 0)
        while last >= 0 and token not in following[last]:
            following[last][token] = state
            last = link[last]
        if last >= 0:
            target = following[last][token]
            fits = length[target] == length[last] + 1
            link[state] = target if fits else self._split(last, token)
        return state

    def _split(self, at: int, token: int) -> int:
        """A state of its own for what `at` reaches by token, and for the suffixes of that."""
        following, link = self.next, self.link
        target = following[at][token]
        known = following[target].copy(), self.length[at] + 1, link[target], self.counts[target]
        link[target] = clone = self._new(*known)
        while at >= 0 and following[at].get(token) == target:
            following[at][token] = clone
            at = link[at]
        return clone

    def _new(self, following: dict, length: int, link: int, count: int) -> int:
        self.next.append(following)
        self.length.append(length)
        self.link.append(link)
        self.counts.append(count)
        return len(self.link) - 1

    # --- drafts ---

    def count(self, tokens) -> int:
        """Occurrences of at most max_depth tokens; of none: tokens stored."""
        state = 0
        for token in tokens:
            state = self.next[state].get(token)
            if state is None:
                return 0
        return self.counts[state]

    def match(self, context) -> tuple[int, int]:
        """(tokens, state) of the longest suffix of at most max_depth tokens that occurs."""
        state = size = 0
        for token in context:
            following = self.next[state].get(token)
            while state and not (following and self.counts[following]):
                state = self.link[state]
                size = self.length[state]
                following = self.next[state].get(token)
            if following and self.counts[following]:
                state, size = following, size + 1
        return size, state

    def draft(self, context, name=None) -> Candidate:
        """The draft of the best score after any suffix of the context; ties: the longest match.

        The suffix is shorter than the context, of which max_depth tokens at most are read.
        name: of a sequence that stands at the context's end, so that little has to be looked up
        """
        window = context[-self.limits.max_depth :][1:]
        if name in self.ends and len(self.sequences[name]) >= len(window):
            size, state = len(window), self._suffix(self.ends[name][1], len(window))
        else:
            size, state = self.match(window)
        while state and not self.next[state]:
            state = self.link[state]
        size, states = min(size, self.length[state]), {}
        for match in range(size, 0, -1):
            states[match] = state = self._suffix(state, match)
        best, done = Candidate(), {}
        grow = self._tree if self.limits.as_tree else self._path
        for match in sorted(states, key=lambda match: (self.longest[match], match), reverse=True):
            if self.longest[match] < best.score or not self.longest[match]:
                break  # a draft's score is at most its longest path
            if match < done.get(states[match], 0):
                continue  # a longer match of the same class has had more tokens
            done[states[match]] = match
            found = grow(states[match], match)
            if found.tokens and (found.score, found.match) > (best.score, best.match):
                best = found
        return best

    def _path(self, state: int, match: int) -> Candidate:
        """The likeliest token, then the likeliest after it, and so on."""
        counts, total = self.counts, self.counts[state]
        tokens, found = [], []
        while len(tokens) < self.longest[match]:
            most, token, child = 0, -1, 0
            for other, reached in self._children(state):
                count = counts[reached]
                if count > most or count == most and other < token:
                    most, token, child = count, other, reached
            if not most or most / total < self.limits.min_token_prob:
                break
            tokens.append(token)
            found.append(most)
            state = child
        size = len(tokens)
        chances = [count / total for count in found]
        parents = list(range(-1, size - 1))
        return Candidate(tokens, chances, parents, sum(found) / total, match, size)

    def _tree(self, state: int, match: int) -> Candidate:
        """The likeliest tokens, each after its parent; of equals the shallower, then smaller."""
        counts, total = self.counts, self.counts[state]
        limits, tokens, parents, found, depths = self.limits, [], [], [], []
        heap: list[tuple] = []

        def offer(above: int, parent: int, path: tuple) -> None:
            for token, child in self._children(above):
                if counts[child] and counts[child] / total >= limits.min_token_prob:
                    line = (*path, token)
                    heapq.heappush(heap, (-counts[child], len(line), line, child, parent))

        offer(state, -1, ())
        while heap and len(tokens) < limits.tokens_after(match):
            count, depth, path, child, parent = heapq.heappop(heap)
            tokens.append(path[-1])
            parents.append(parent)
            found.append(-count)
            depths.append(depth)
            if match + depth < limits.max_depth:
                offer(child, len(tokens) - 1, path)
        chances = [count / total for count in found]
        depth = max(depths, default=0)
        return Candidate(tokens, chances, parents, sum(found) / total, match, depth)

    def _children(self, state: int):
        """(token, state) of all that may follow with min_token_prob, and of some that may not.

        Of a state with many children those are remembered, from when they are first asked for; a
        token can only become one of them when it is read after the state once more.
        """
        children = self.next[state]
        if len(children) <= WIDE:
            return children.items()
        if state not in self.frequent:
            tokens = [token for token in children if self._is_frequent(state, token)]
            if len(tokens) > WIDE:  # min_token_prob is next to nothing
                return children.items()
            self.frequent[state] = tokens
        return [(token, children[token]) for token in self.frequent[state]]

    def _is_frequent(self, state: int, token: int) -> bool:
        """Whether a token follows with min_token_prob."""
        count = self.counts[self.next[state][token]]
        return count / self.counts[state] >= self.limits.min_token_prob

    def _note(self, state: int, token: int) -> None:
        """Remember a token that has just been read after a state and after all its suffixes."""
        while state >= 0:
            tokens = self.frequent.get(state)
            if tokens is not None and token not in tokens and self._is_frequent(state, token):
                tokens.append(token)
                if len(tokens) > WIDE:  # most of them were frequent once
                    del self.frequent[state]
            state = self.link[state]
