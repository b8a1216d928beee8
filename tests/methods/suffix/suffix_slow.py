"""SuffixDecoding by its definition: substrings counted by looking at every place, drafts from that.

And the checks that hold model/suffix/tree.py to it; each raises AssertionError where a tree is
wrong. A text is a list of token ids, texts are those that are stored.
"""

import random

from model.suffix.tree import Limits


def count(texts, string) -> int:
    """Places where the string ends, overlapping or not; of the empty one: tokens stored."""
    size = len(string)
    if not size:
        return sum(map(len, texts))
    starts = ((text, at) for text in texts for at in range(len(text) - size + 1))
    return sum(text[at : at + size] == string for text, at in starts)


def followers(texts, match, path, limits) -> list[tuple[int, int]]:
    """(minus the count, token) of all that may follow match and path."""
    if len(match) + len(path) >= limits.max_depth:
        return []
    total = count(texts, match)
    letters = sorted({token for text in texts for token in text})
    counted = [(count(texts, [*match, *path, token]), token) for token in letters]
    return [(-n, token) for n, token in counted if n and n / total >= limits.min_token_prob]


def path_draft(texts, match, limits):
    """(tokens, parents, score) of the likeliest path after a match; ties: the smaller id."""
    path, found = [], []
    while len(path) < limits.tokens_after(len(match)):
        ranked = followers(texts, match, path, limits)
        if not ranked:
            break
        path.append(min(ranked)[1])
        found.append(-min(ranked)[0])
    return path, list(range(-1, len(path) - 1)), sum(found) / count(texts, match)


def tree_draft(texts, match, limits):
    """The same of the likeliest tokens as a tree; ties: the shallower, then the smaller ids."""
    chosen, found, open_ = [()], [], []
    while len(chosen) <= limits.tokens_after(len(match)):
        open_ += [
            (n, len(chosen[-1]), (*chosen[-1], token))
            for n, token in followers(texts, match, chosen[-1], limits)
        ]
        if not open_:
            break
        best = min(open_)
        open_.remove(best)
        chosen.append(best[2])
        found.append(-best[0])
    tokens = [path[-1] for path in chosen[1:]]
    parents = [chosen.index(path[:-1]) - 1 for path in chosen[1:]]
    return tokens, parents, sum(found) / count(texts, match)


def draft(texts, context, limits):
    """(tokens, parents, score, match) of the best score; ties: the longest match."""
    context, best = context[-limits.max_depth :], ([], [], 0.0, 0)
    for size in range(1, len(context)):
        match = context[-size:]
        if not count(texts, match):
            break
        grow = tree_draft if limits.as_tree else path_draft
        found = grow(texts, match, limits)
        if found[0] and found[2] >= best[2]:
            best = *found, size
    return best


def some_limits(dice) -> Limits:
    """Settings of all kinds, small."""
    return Limits(
        dice.choice([3, 5, 8, 16]),
        dice.choice([0.5, 1, 2]),
        dice.choice([-1, 0, 2]),
        dice.choice([0, 0.1, 0.3]),
        dice.choice([2, 5, 32]),
        dice.random() < 0.5,
    )


def histories(seed: int, num: int, make_tree):
    """(tree, texts by name, limits, dice) after every change of `num` random histories.

    Sequences begin, grow side by side, copy one another and are removed, the oldest first.
    """
    dice = random.Random(seed)
    for _ in range(num):
        limits, letters = some_limits(dice), dice.choice([1, 2, 3, 9])
        tree, texts = make_tree(limits), {}
        for step in range(40):
            if texts and dice.random() < 0.15:
                oldest = next(iter(texts))
                del texts[oldest]
                tree.remove(oldest)
            else:
                name = dice.choice(list(texts)) if texts and dice.random() < 0.7 else step
                new = [dice.randrange(letters) for _ in range(dice.randint(0, 4))]
                if texts and dice.random() < 0.3:
                    other = dice.choice(list(texts.values()))
                    new = other[-3:] + other[: dice.randint(0, 8)]
                texts.setdefault(name, []).extend(new)
                tree.extend(name, new)
            yield tree, texts, limits, dice


def check_counts(make_tree, num: int = 60) -> None:
    """Every substring up to the depth, after any appends and removals."""
    for tree, texts, limits, dice in histories(0, num, make_tree):
        stored = list(texts.values())
        assert tree.count([]) == count(stored, [])
        for text in stored:
            at = dice.randrange(len(text) + 1)
            string = text[at : at + dice.randint(1, limits.max_depth)]
            assert tree.count(string) == count(stored, string)
        for text in stored[:1]:  # one that may not be there
            strange = text[-2:] + text[:1]
            assert tree.count(strange) == count(stored, strange)


def check_drafts(make_tree, num: int = 30) -> int:
    """Token for token, behind whole sequences and other contexts; how many were not empty."""
    drafted = 0
    for tree, texts, limits, dice in histories(1, num, make_tree):
        for name, text in [*texts.items()][-2:]:
            before = [dice.randrange(3) for _ in range(dice.randint(0, 3))]
            cut = text[: dice.randint(0, len(text))]
            for context, end in ((before + text, name), (before + cut, None), (text, name)):
                found = tree.draft(context, end)
                wanted = draft(list(texts.values()), context, limits)
                assert (found.tokens, found.parents, found.score, found.match) == wanted
                check_shape(found, limits)
                drafted += bool(found.tokens)
    return drafted


def check_shape(found, limits) -> None:
    """What holds of every draft, whatever it says."""
    size = len(found.tokens)
    assert size == len(found.parents) == len(found.chances) <= limits.tokens_after(found.match)
    assert size <= limits.max_nodes and found.depth <= limits.longest_path
    depths = []
    for node, parent in enumerate(found.parents):
        assert -1 <= parent < node
        depths.append(1 if parent < 0 else 1 + depths[parent])
        assert parent < 0 or found.chances[node] <= found.chances[parent]
    assert found.depth == max(depths, default=0)
    assert found.match + found.depth <= limits.max_depth
    assert abs(found.score - sum(found.chances)) < 1e-9
    assert all(chance >= limits.min_token_prob for chance in found.chances)
