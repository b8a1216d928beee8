"""What SAM-Decoding's tests share: automata, slow references, the drafter of a command line."""

import random

import pytest

from model.common import args as arguments
from model.samd import drafter as samd_drafter
from model.samd import inference_samd
from model.samd.automaton import SuffixAutomaton
from model.samd.build_sam import build
from model.samd.static import HEAVY, StaticAutomaton

PERIODIC = [5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6, 7]
CORPUS = [[11, 12, 13, 14], [11, 12, 13, 15], [11, 12, 13, 14], [11, 12, 16]]


def automaton(text) -> SuffixAutomaton:
    built = SuffixAutomaton()
    built.extend(text)
    return built


def static(documents, separator=2, drafts_end_at=None) -> StaticAutomaton:
    """A static automaton in memory; drafts_end_at: another separator for drafts than documents'."""
    ends = separator if drafts_end_at is None else drafts_end_at
    return StaticAutomaton(build(documents, separator), ends)


def random_texts(num, seed, longest=40):
    dice = random.Random(seed)
    for trial in range(num):
        letters = 1 + trial % 5
        yield [dice.randrange(letters) for _ in range(dice.randint(1, longest))]


def ends(text, part):
    """End positions of a substring, counted from 1."""
    size = len(part)
    return [i + size for i in range(len(text) - size + 1) if text[i : i + size] == part]


def longest_known_suffix(text, known):
    """The longest suffix of `text` that occurs in `known`."""
    for size in range(len(text), 0, -1):
        if ends(known, text[len(text) - size :]):
            return text[len(text) - size :]
    return []


def slow_tree(text, match, num, separator):
    """The best-first tree by counting substrings: tokens, parents, depths."""
    letters = sorted(set(text))
    tokens, parents, depths = [], [], []
    frontier = []  # (count, order found, line, parent)
    found = 0

    def offer(line, parent):
        nonlocal found
        following = [(-len(ends(text, [*match, *line, c])), c) for c in letters]
        for count, token in sorted(following)[:HEAVY]:
            if count:
                found += 1
                frontier.append((count, found, [*line, token], parent))

    offer([], -1)
    while frontier and len(tokens) < num:
        best = min(frontier)
        frontier.remove(best)
        _, _, line, parent = best
        if depths.count(len(line)) == HEAVY:
            continue
        tokens.append(line[-1])
        parents.append(parent)
        depths.append(len(line))
        if line[-1] != separator:
            offer(line, len(tokens) - 1)
    return tokens, parents, depths


def make(target, *flags, corpus=None):
    """The drafter of a command line, with a corpus in memory."""
    parser = arguments.make_parser("samd", inference_samd.__doc__, inference_samd.add_args)
    own = ["--static-path", "x"] if corpus else []
    args = parser.parse_args(["--model-path", "x", *flags, *own])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samd_drafter, "load_tokenizer", lambda path: None)
        patch.setattr(StaticAutomaton, "open", lambda folder, tokenizer: corpus)
        return inference_samd.build(args, target)
