"""The suffix automaton of a growing token list: the longest suffix that occurred before, and where.

A state stands for all substrings with the same set of end positions. Of each state are kept its
transitions, the length of its longest substring, the link to the state of the longest suffix that
has more end positions, and the earliest end position. Text x1 x2 ... xN has at most 2 N states.

A dict per state is what was fastest on the host: 1.5 us and 540 bytes a token over 32k tokens of
the mini corpus; an open-addressing table of (state, token) in flat arrays took 6.9 us, 135 bytes.
"""

from __future__ import annotations


class SuffixAutomaton:
    """Built online, amortised O(1) per token.

    A position is the number of tokens up to and including it, so text[first:] is what followed.

    >>> automaton = SuffixAutomaton()
    >>> automaton.extend([5, 6, 7, 9, 5, 6])
    >>> automaton.match()
    2
    >>> automaton.copy(3, climb=True)
    [7, 9, 5]
    """

    def __init__(self):
        self.text: list[int] = []
        self.next: list[dict[int, int]] = [{}]
        self.link, self.length, self.first = [-1], [0], [0]
        self.last = 0  # the state of the whole text

    def extend(self, tokens) -> None:
        """Append tokens."""
        following, link, length, first = self.next, self.link, self.length, self.first
        last, end = self.last, len(self.text)
        self.text.extend(tokens)
        for token in tokens:
            end += 1
            state, at = len(link), last
            following.append({})
            length.append(end)
            first.append(end)
            while at >= 0 and token not in following[at]:
                following[at][token] = state
                at = link[at]
            target = following[at][token] if at >= 0 else 0
            if at >= 0 and length[target] != length[at] + 1:
                link.append(state + 1)
                self._split(at, token, target)
            else:
                link.append(target)
            last = state
        self.last = last

    def _split(self, at: int, token: int, target: int) -> None:
        """A new state for the suffixes of `target` up to the one that `at` reaches by token."""
        following, link = self.next, self.link
        clone = len(link)
        following.append(following[target].copy())
        link.append(link[target])
        self.length.append(self.length[at] + 1)
        self.first.append(self.first[target])
        link[target] = clone
        while at >= 0 and following[at].get(token) == target:
            following[at][token] = clone
            at = link[at]

    def match(self) -> int:
        """Length of the longest suffix that ends at an earlier position too."""
        return self.length[self.link[self.last]] if self.last else 0

    def copy(self, num: int, climb: bool = False) -> list[int]:
        """Up to num tokens after the earliest occurrence of that suffix, the last token left out.

        climb: go to shorter suffixes, whose earliest occurrence may be older, until one has more
        than num tokens after it or the shortest is reached. The last token is the root of the
        draft; it is matched but not copied (the published look-up comes before it is text).
        """
        if not self.last:
            return []
        end = len(self.text) - 1
        link, first = self.link, self.first
        state = link[self.last]
        while climb and link[state] > 0 and first[state] + num >= end:
            state = link[state]
        if not state:
            return []
        return self.text[first[state] : min(first[state] + num, end)]
