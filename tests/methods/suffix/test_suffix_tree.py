"""SuffixDecoding's tree: counts and drafts by hand, against a recount, and what they cost."""

import random

import pytest
from suffix_slow import check_counts, check_drafts, check_shape, count

import model.suffix.tree
from model.suffix.tree import Limits, SuffixTree

S = [1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3, 4, 6, 1, 2]
ONCE = [1, 2, 3, 4, 5, 6, 1, 2, 3]
A, B, CONTEXT = [7, 1, 2, 8, 8, 8, 8], [7, 1, 2, 8, 8, 9], [5, 5, 7, 1, 2]


def tree_of(*texts, **limits):
    tree = SuffixTree(Limits(**limits))
    for name, text in enumerate(texts):
        tree.extend(name, text)
    return tree


def after(tree, match):
    """The path draft after a match that is given."""
    found, (size, state) = [], tree.match(match)
    assert size == len(match)
    path = tree._path(state, size)
    for token, chance in zip(path.tokens, path.chances):
        found.append((token, chance))
    return found


# --- by hand ---


def test_counts():
    tree = tree_of(S)
    strings = [(), (1,), (2,), (1, 2), (2, 3), (1, 2, 3), (2, 3, 4), (2, 3, 5), (6, 1, 2), (9,)]
    assert [tree.count(string) for string in strings] == [15, 4, 4, 4, 3, 3, 2, 1, 1, 0]


def test_a_repeated_pattern():
    tree = tree_of(S)
    assert after(tree, [2]) == [(3, 0.75)]
    assert after(tree, [1, 2]) == [(3, 0.75), (4, 0.5)]
    assert after(tree, [6, 1, 2]) == []
    found = tree.draft(S, 0)
    assert (found.tokens, found.match, found.score) == ([3, 4], 2, 1.25)


def test_an_offset():
    tree = tree_of(S, offset=2.0)
    (first, second, third) = after(tree, [2])
    assert (first, second, third[1]) == ((3, 0.75), (4, 0.5), 0.25)
    found = tree.draft(S, 0)
    assert (found.match, found.score, found.tokens[:2], len(found.tokens)) == (2, 1.75, [3, 4], 4)
    assert found.tokens[2:] in ([1, 2], [6, 1])


def test_as_a_tree():
    found = tree_of(S, as_tree=True).draft(S, 0)
    assert (found.tokens, found.parents, found.depth) == ([3, 4], [-1, 0], 2)


def test_seen_once_is_one_half():
    """The occurrence at the end counts too, so that no pattern of one sight is certain."""
    tree = tree_of(ONCE)
    assert after(tree, [3]) == [(4, 0.5)]
    assert after(tree, [2, 3]) == [(4, 0.5), (5, 0.5)]
    found = tree.draft(ONCE, 0)
    assert (found.tokens, found.chances, found.match) == ([4, 5, 6], [0.5] * 3, 3)


def test_answers_of_others():
    tree = tree_of(A, B)
    assert after(tree, [2]) == [(8, 1)] and after(tree, [1, 2]) == [(8, 1), (8, 1)]
    found = tree.draft(CONTEXT)
    assert (found.tokens[:2], found.chances, found.match) == ([8, 8], [1, 1, 0.5], 3)
    assert found.score == 2.5 and tree_of(CONTEXT).draft(CONTEXT, 0).tokens == []
    found = tree_of(A, B, as_tree=True, offset=2.0).draft(CONTEXT)
    lines = {(): -1}
    for node, (token, parent) in enumerate(zip(found.tokens, found.parents)):
        line = next(line for line, at in lines.items() if at == parent)
        lines[(*line, token)] = node
    assert set(lines) == {(), (8,), (8, 8), (8, 8, 8), (8, 8, 9), (8, 8, 8, 8)}
    assert found.chances == [1, 1, 0.5, 0.5, 0.5] and found.score == 3.5
    assert (found.match, found.depth) == (3, 4)


def test_nothing_follows():
    for text in ([], [4], [1, 2, 3, 4]):
        assert tree_of(text).draft(text, 0).tokens == []
    assert tree_of([4, 4]).draft([4, 4], 0).tokens == [4]  # the shorter match, the longer context


def test_match_and_path_together_have_the_depth():
    """A match of 63 leaves one token, so that a cycle is drafted from a match of 32."""
    text = list(range(100)) * 2
    found = tree_of(text).draft(text[:140], None)
    assert (found.match, len(found.tokens), found.score) == (32, 32, 32)
    found = tree_of(text, max_tokens=5).draft(text[:140], None)
    assert found.match == 59 and len(found.tokens) == 5  # the longest of equal scores
    assert tree_of(text, max_depth=9).draft(text[:140]).tokens == [*range(40, 44)]


def test_a_chance_of_the_threshold_is_enough():
    text = [*[1, 2] * 3, *[1, 3] * 27, 1]
    for share, tokens in ((3 / 31, [3, 2]), (3.01 / 31, [3])):
        tree = tree_of(text, max_depth=2, as_tree=True, offset=1.0, min_token_prob=share)
        assert tree.draft(text, 0).tokens == tokens


def test_equal_counts_go_to_the_smaller_id():
    for text in ([1, 5, 1, 4, 1], [1, 4, 1, 5, 1]):
        assert tree_of(text).draft(text, 0).tokens == [4]


# --- against a recount ---


def test_counts_equal_a_recount():
    check_counts(SuffixTree)


@pytest.mark.parametrize("wide", [1, 2, 32])
def test_drafts_equal_a_slow_reference(wide, monkeypatch):
    """Also where the children of a state are remembered, which small alphabets do not need."""
    monkeypatch.setattr(model.suffix.tree, "WIDE", wide)
    assert check_drafts(SuffixTree) > 500


def test_bulk_is_incremental():
    dice = random.Random(3)
    text = [dice.randrange(3) for _ in range(300)]
    bulk, slow = tree_of(text, max_depth=8), tree_of(max_depth=8)
    for token in text:
        slow.extend(0, [token])
    assert (bulk.next, bulk.link, bulk.counts) == (slow.next, slow.link, slow.counts)


def test_what_is_removed_is_forgotten():
    tree = tree_of(A, B, S)
    for name, left in ((0, [B, S]), (2, [B]), (1, [])):
        tree.remove(name)
        assert list(tree.sequences.values()) == left and tree.count([]) == count(left, [])
    assert (tree.next, tree.counts, tree.ends) == ([{}], [0], {})


def test_states_of_removed_sequences_do_not_pile_up():
    """A store of five texts has the states of ten at most, after any number of them."""
    dice = random.Random(5)
    tree, most = tree_of(), 0
    for name in range(400):
        tree.extend(name, [dice.randrange(1000) for _ in range(50)])
        if name >= 5:
            tree.remove(name - 5)
        most = max(most, len(tree.link))
    assert most <= 2 * 50 * (2 * 5 + 2)


# --- a defect ---


class NoOverlaps(SuffixTree):
    """Planted defect: an occurrence that overlaps the one before it is not counted."""

    def clear(self):
        super().clear()
        self.now, self.last_end = 0, {}

    def _count(self, state, by):
        self.now += 1
        while state >= 0:
            if self.now - self.last_end.get(state, -99) >= self.length[state]:
                self.counts[state] += by
                self.last_end[state] = self.now
            state = self.link[state]


@pytest.mark.parametrize("check", [check_counts, check_drafts])
def test_a_defect_is_seen(check):
    with pytest.raises(AssertionError):
        check(NoOverlaps)


# --- cost ---


class Visits(list):
    """Links that count how often one is followed."""

    num = 0

    def __getitem__(self, place):
        self.num += 1
        return super().__getitem__(place)


def stream(num_tokens, seed):
    """Zipf tokens; now and then a piece of earlier text."""
    dice, text = random.Random(seed), []
    while len(text) < num_tokens:
        if len(text) > 100 and dice.random() < 1 / 40:
            at = dice.randrange(len(text) - 50)
            text += text[at : at + dice.randint(5, 40)]
        else:
            text.append(int(32000 * dice.random() ** 4))
    return text[:num_tokens]


def visits(text, sizes, step=1):
    """Links followed per token read and per draft in the 500 tokens before each size."""
    tree, found = tree_of(), []
    tree.extend(0, text[: sizes[0] - 500])
    for size in sizes:
        at = tree.count([])
        tree.extend(0, text[at : size - 500])
        tree.link, read, drafts = Visits(tree.link), 0, 0
        for at in range(size - 500, size):
            tree.extend(0, [text[at]])
            read, tree.link.num = read + tree.link.num, 0
            context = text[max(at - 63, 0) : at + 1]
            check_shape(tree.draft(context, 0), tree.limits)
            drafts, tree.link.num = drafts + tree.link.num, 0
        tree.link = list(tree.link)
        found.append((read / 500, drafts / 500))
    return found


def test_a_token_costs_the_same_in_a_long_text():
    """Links grow with the length of a usual match, which hardly grows; never above the depth."""
    first, *_, last = visits(stream(32768, 0), [2048, 8192, 32768])
    assert all(late < 1.5 * early for early, late in zip(first, last))
    for text in ([7] * 9000, [7, 8] * 4500):  # as many classes as there can be
        (early, late) = visits(text, [1000, 9000])
        assert late[0] <= 1.01 * early[0] < 5 * 64 and late[1] <= 1.01 * early[1]


def test_frequent_children_are_not_looked_for_again(monkeypatch):
    """A token with ten thousand successors: its children are read once, not at every draft."""
    text = [token for other in range(10000) for token in (1, 2 + other % 9000)]
    tree = tree_of(text)
    reads = 0
    healthy = SuffixTree._is_frequent

    def counted(self, state, token):
        nonlocal reads
        reads += 1
        return healthy(self, state, token)

    monkeypatch.setattr(SuffixTree, "_is_frequent", counted)
    for _ in range(200):
        tree.extend(0, [1])
        tree.draft([9, 1], None)
        tree.extend(0, [2])
    assert tree.draft([9, 1]).tokens == [] and 9000 < reads < 10000
    tree.extend(0, [1, 2] * 1200)  # now 2 follows often enough
    assert tree.draft([9, 1]).tokens == [2]
