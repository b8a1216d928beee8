"""SAM-Decoding's automaton of the text against brute force, and what it copies by hand."""

import random
import sys

import pytest
from samd_checks import PERIODIC, automaton, ends, longest_known_suffix, random_texts

from model.samd.automaton import SuffixAutomaton


def test_longest_repeated_suffix_and_its_earliest_end():
    for text in random_texts(60, seed=1):
        grown = SuffixAutomaton()
        for end in range(1, len(text) + 1):
            grown.extend([text[end - 1]])
            suffix = longest_known_suffix(text[:end], text[: end - 1])
            # one that overlaps its earlier occurrence counts too
            assert grown.match() == len(suffix)
            state = grown.link[grown.last]
            assert grown.first[state] == (ends(text[:end], suffix)[0] if suffix else 0)
            assert len(grown.link) <= 2 * end


def test_states_are_the_classes_of_substrings():
    for text in random_texts(40, seed=2, longest=20):
        grown = automaton(text)
        classes = {}
        for begin in range(len(text)):
            for end in range(begin + 1, len(text) + 1):
                part = text[begin:end]
                state = 0
                for token in part:
                    state = grown.next[state][token]
                classes.setdefault(tuple(ends(text, part)), {})[tuple(part)] = state
        for found, parts in classes.items():
            (state,) = set(parts.values())
            assert grown.length[state] == max(map(len, parts))
            assert grown.length[grown.link[state]] == min(map(len, parts)) - 1
            assert grown.first[state] == found[0]
        assert len(classes) == len(grown.link) - 1
        edges = {(found, text[end]) for found in classes for end in found if end < len(text)}
        assert len(edges) + len(set(text)) == sum(map(len, grown.next))


@pytest.mark.parametrize(
    "text, root, n_predicts, match, draft",
    [
        ([1, 5, 6, 7, 8, 9, 2, 5, 6, 7], 8, 6, 4, [9, 2, 5, 6, 7]),
        (PERIODIC, 8, 4, 9, [9, 5, 6]),
        (PERIODIC, 8, 8, 9, [9, 5, 6, 7, 8, 9, 5]),
        (PERIODIC, 3, 4, 0, []),
        ([7, 1, 2, 3, 4, 5, 6, 8, 1, 2, 3, 4], 5, 12, 5, [6, 8, 1, 2, 3, 4]),
        ([1, 2, 3, 4, 5, 6, 1, 2, 3, 9, 9, 9, 1, 2], 3, 4, 3, [4, 5, 6]),
        ([4, 4, 4], 4, 4, 3, [4, 4]),
        ([], 4, 4, 0, []),
    ],
)
def test_copies_that_climb(text, root, n_predicts, match, draft):
    grown = automaton([*text, root])
    assert grown.match() == match
    assert grown.copy(n_predicts - 1, climb=True) == draft


def test_climbing_equals_a_search():
    for text in random_texts(60, seed=5):
        end = len(text) - 1
        for num in (1, 3, 8):
            known = {}  # earliest end -> nothing: the ends of ever shorter suffixes, no repeats
            for size in range(len(longest_known_suffix(text, text[:-1])), 0, -1):
                known.setdefault(ends(text, text[len(text) - size :])[0])
            places = list(known)
            roomy = [place for place in places if place + num < end] or places[-1:]
            expected = text[roomy[0] : min(roomy[0] + num, end)] if roomy else []
            assert automaton(text).copy(num, climb=True) == expected
            plain = text[places[0] : min(places[0] + num, end)] if places else []
            assert automaton(text).copy(num) == plain


@pytest.mark.parametrize("kind", ["random", "constant"])
def test_building_is_linear(kind):
    """In lines of code executed, which no other work on the machine changes."""
    dice = random.Random(9)
    text = [dice.randrange(1000) if kind == "random" else 7 for _ in range(12_000)]

    def lines(num):
        executed = 0

        def trace(frame, event, arg):
            nonlocal executed
            executed += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            automaton(text[:num])
        finally:
            sys.settrace(before)
        return executed

    assert 12_000 < lines(12_000) < 5 * lines(3_000)  # quadratic: 16
