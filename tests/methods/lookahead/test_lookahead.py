"""Lookahead: tree and window as published, drafts against a slow reference."""

import random

import pytest
import torch
from conftest import make_model, make_prompts
from counting import counting_target
from oracle import decode, outputs
from recording import Recording
from steps import chain_step, prompt_step
from tiny_methods import build

from model.common.contract.sequence import EmptyDrafter
from model.common.contract.trees import ancestors
from model.common.target.model import Target
from model.lookahead.drafter import LookaheadDrafter, Pool, Trajectory, tree_parents

SIZES = [(7, 5, 7), (5, 4, 2), (15, 5, 15), (10, 3, 10), (20, 7, 20)]  # window, level, guess
LOOPY = {"vocab_size": 11, "num_hidden_layers": 2}  # a random model that soon repeats itself


@pytest.fixture(scope="module")
def target():
    return Target(make_model(**LOOPY))


def loopy_prompts(num=4):
    return make_prompts(num, vocab_size=11)


def lookahead(window=4, level=4, guess=3, **settings):
    return LookaheadDrafter(window, level, guess, "cpu", **settings)


def tree_of(drafter, held=-1):
    """Ancestors of the rows of a draft whose window holds so many rows (default: all)."""
    return ancestors(torch.tensor(drafter.parents[held]))


class SlowLookahead:
    """The method by its definition, on lists: one plain forward per element of the window.

    cells  (row, distance from the root in tokens) -> token
    log    every n-gram ever pooled, in order; its pool is what the log says
    """

    def __init__(self, model, ids, window, level, guess, seed=0, from_text=False):
        self.model, self.window, self.level, self.guess = model, window, level, guess
        first = random.Random(seed).choices(ids[:-1], k=window + level - 3)
        self.cells = {(0, distance): token for distance, token in enumerate(first, start=1)}
        self.num_rows, self.log, self.from_text = 1, [], from_text
        if from_text:
            self.log += [tuple(ids[i : i + level]) for i in range(len(ids) - level + 1)]

    def draft(self, committed):
        """(window tokens, candidates)."""
        found = []
        for gram in reversed(self.log):
            if gram[0] == committed[-1] and gram not in found and len(found) < self.guess:
                found.insert(0, gram)
        return [token for _, token in sorted(self.cells.items())], [gram[1:] for gram in found]

    def step(self, committed, new):
        """Iterate the window once, then take in the committed tokens."""
        columns = self.window + self.level - 1 - self.num_rows
        for i in range(columns):
            top = [self.cells[0, distance] for distance in range(1, i + 1)]
            below = [self.cells[row, row + i] for row in range(1, self.num_rows)]
            logits = self.model(torch.tensor([committed + top + below])).logits[0, -1]
            successor = int(logits.argmax())
            self.cells[self.num_rows, self.num_rows + i] = successor
            if self.num_rows == self.level - 1:
                self.log.append(((committed + top)[-1], *below, successor))
        up = 1 if self.num_rows == self.level - 1 else 0
        moved = {(row - up, at - 1): token for (row, at), token in self.cells.items()}
        self.cells = {
            (row, at): token for (row, at), token in moved.items() if row >= 0 and at >= max(row, 1)
        }
        self.num_rows += 1 - up
        if self.from_text:
            ids, begin = committed + new, len(committed) + 1 - self.level
            grams = [tuple(ids[i : i + self.level]) for i in range(max(begin, 0), len(ids))]
            self.log += [gram for gram in grams if len(gram) == self.level]


@pytest.mark.parametrize("from_text", [False, True])
@pytest.mark.parametrize("size", [(4, 4, 3), (3, 2, 2), (1, 5, 1), (5, 3, 9), (4, 4, 0)])
@torch.inference_mode()
def test_drafts_equal_a_slow_reference(target, size, from_text):
    """In two slots, of which one is filled again while the other's window is full."""
    window, level, guess = size
    recording = Recording(lookahead(*size, seed=5, from_text=from_text))
    prompts, model = loopy_prompts(3), make_model(**LOOPY)
    model.set_attn_implementation("sdpa")
    turns = decode(target, recording, prompts, 20, num_slots=2)
    assert outputs(turns) == outputs(decode(target, EmptyDrafter(), prompts, 20))
    width, num_guessed, probes = level - 1, 0, recording.inner.num_probes
    for prompt, turn in zip(prompts, turns):
        text, first = prompt + turn.output_ids, prompt + turn.output_ids[:1]
        drafts = [one for one in recording.drafts if one.ids[: len(first)] == first]
        assert len(drafts) == len(turn.accept_lengths)
        slow = SlowLookahead(model, first, *size, 5, from_text)
        for one, length in zip(drafts, turn.accept_lengths):
            elements, candidates = slow.draft(one.ids)
            assert one.tokens[:probes] == elements + [-1] * (probes - len(elements))
            guesses = [one.tokens[i : i + width] for i in range(probes, len(one.tokens), width)]
            filler = [[-1] * width] * (guess - len(candidates))
            assert guesses == [list(gram) for gram in candidates] + filler
            columns = window + level - 1 - slow.num_rows
            assert one.parents == tree_parents(columns, slow.num_rows, probes, level, guess)
            num_guessed += len(candidates)
            slow.step(one.ids, text[len(one.ids) :][:length])
    assert num_guessed > 10 or not guess


@pytest.mark.parametrize("window, level, guess", SIZES)
def test_tree_of_a_full_window(window, level, guess):
    """Which rows read which, and where they stand, by the published table."""
    drafter = lookahead(window, level, guess)
    num_rows = (window + guess) * (level - 1)
    assert drafter.max_nodes + 1 == num_rows and drafter.max_depth == level - 1
    names = [("window", k, i) for k in range(level - 1) for i in range(window)]
    names += [("guess", e, j) for e in range(guess) for j in range(1, level)]
    expected = torch.zeros(num_rows, num_rows, dtype=torch.bool)
    for query, (kind, a, b) in enumerate(names):
        for key, (other, c, d) in enumerate(names):
            if kind == "window":
                top = other == "window" and c == 0 and d <= b
                expected[query, key] = top or (other == "window" and 1 <= c <= a and d == b)
            else:
                expected[query, key] = key == 0 or (other == "guess" and c == a and d <= b)
    known = tree_of(drafter)
    assert torch.equal(known, expected)
    places = [a + b if kind == "window" else b for kind, a, b in names]
    assert (known.sum(-1) - 1).tolist() == places
    assert drafter.probe.tolist() == [kind == "window" for kind, _, _ in names[1:]]


@pytest.mark.parametrize("size, rows, ones", [((7, 5, 7), 56, 252), ((5, 4, 2), 21, 78)])
def test_published_counts(size, rows, ones):
    known = tree_of(lookahead(*size))
    assert known.shape == (rows, rows) and known.sum() == ones


def test_published_positions():
    depths = tree_of(lookahead(5, 4, 2)).sum(-1) - 1
    positions = [*range(10, 15), *range(11, 16), *range(12, 17), *([11, 12, 13] * 2)]
    assert (10 + depths).tolist() == positions


@pytest.mark.parametrize("window, level, guess", SIZES)
def test_window_of_a_target_that_answers_positions(window, level, guess):
    """Rows have the published lengths while they fill; answered tokens are their own positions."""
    row = Trajectory([7, 7, 7, 3], (window, level, guess), seed=0, from_text=False)
    drafter, root = lookahead(window, level, guess), 3
    for number in range(2 * level):
        held = len(row.rows)
        assert held == min(number + 1, level - 1)
        if number < level - 1:
            extra = level - 1 - held
            assert [len(line) for line in row.rows] == [window - 1 + extra] + [window + extra] * (
                held - 1
            )
        depths = tree_of(drafter, held).sum(-1) - 1
        last = slice((held - 1) * drafter.lengths[held], held * drafter.lengths[held])
        row.advance((root + depths[last] + 1).tolist(), [root + 1])
        root += 1
        for k, line in enumerate(row.rows):
            if k or number >= level - 2:
                assert line == list(range(root + max(k, 1), root + max(k, 1) + len(line)))


def test_pool_forgets_the_least_recently_added():
    pool = Pool(2)
    for rest in ((1, 1), (2, 2), (1, 1)):
        pool.add(9, rest)
    assert pool.after(9) == [(2, 2), (1, 1)]
    pool.add(9, (3, 3))
    assert pool.after(9) == [(1, 1), (3, 3)]
    assert pool.after(8) == []


def test_ngrams_of_a_step():
    """The root's is column 0, that of the first row's i-th guess column i; one per column."""
    row = Trajectory([5, 6, 50], (3, 3, 4), seed=0, from_text=False)
    row.rows = [[51, 52], [60, 61, 62]]
    row.advance([70, 71, 72], [80])
    assert row.pool.grams == {50: {(60, 70): None}, 51: {(61, 71): None}, 52: {(62, 72): None}}
    assert row.rows == [[61, 62], [70, 71, 72]]
    assert row.root == 80


def test_ngrams_of_prompt_and_answer():
    row = Trajectory([1, 2, 3, 1, 2, 4], (1, 3, 2), seed=0, from_text=True)
    assert row.pool.grams == {1: {(2, 3): None, (2, 4): None}, 2: {(3, 1): None}, 3: {(1, 2): None}}
    row.rows = [[], [9]]
    row.advance([9], [5, 1])
    assert row.pool.after(2) == [(3, 1), (4, 5)]
    assert row.pool.after(4) == [(9, 9), (5, 1)]
    assert Trajectory([1, 2], (1, 5, 2), seed=0, from_text=True).pool.grams == {}
    row = Trajectory([1, 2, 1], (1, 3, 2), seed=0, from_text=True)
    row.rows = [[], [9]]
    row.advance([9], [5])
    assert row.pool.after(1) == [(2, 1), (9, 9)]  # what was in the text before is not added anew


@pytest.mark.parametrize("seed", range(4))
def test_a_whole_match_counts_its_bonus(seed):
    """Three steps fill, one or two only pool; published code keeps 4 tokens of a whole match."""
    drafter = lookahead(7, 5, 7, seed=seed)
    (turn,) = decode(counting_target(4), drafter, [[0, 1, 2, 3, 0, 1]], 1 + 5 + 30)
    assert turn.accept_lengths in ([1] * 4 + [5] * 6 + [1], [1] * 5 + [5] * 6)
    assert turn.output_ids == [(2 + i) % 4 for i in range(36)]


def test_prompt_ngrams_match_from_the_first_step():
    drafter = lookahead(7, 5, 7, from_text=True)
    (turn,) = decode(counting_target(4), drafter, [[0, 1, 2, 3] * 3], 1 + 30)
    assert turn.accept_lengths == [5] * 6


def test_slots_that_begin_later_have_trees_of_their_own():
    """One mask for the probes; an idle slot's draft is inert; full windows share one tree."""
    drafter = lookahead(4, 4, 3)
    drafter.reserve(3, 64, None)
    drafter.start(prompt_step([[1, 2, 3], [4, 5, 6]], slots=[0, 2]))
    for number in range(2):
        draft = drafter.propose()
        assert draft.tokens[1].tolist() == [-1] * drafter.max_nodes
        assert draft.probe is drafter.probe and draft.depth == 3
        held = [number + 1, 3, number + 1]
        assert draft.tree.parents.tolist() == [drafter.parents[rows] for rows in held]
        step = chain_step([[7], [], [8]])
        step.logits = torch.randn(3, 1 + drafter.max_nodes, 11)
        drafter.observe(step)
    draft = drafter.propose()
    assert draft.tree.parents.tolist() == [drafter.parents[3]] and draft.tree is drafter.full
    drafter.start(prompt_step([[1, 2, 3]], slots=[1]))
    later = drafter.propose()
    assert torch.equal(later.tokens[::2], draft.tokens[::2])
    assert later.tree.parents.tolist() == [drafter.parents[rows] for rows in (3, 1, 3)]
    drafter.end([0, 2])
    assert drafter.propose().tokens[::2].eq(-1).all() and drafter.reads_per_step == 1


@pytest.mark.parametrize("flags", [["--level", "1"], ["--window", "0"], ["--guess", "0"]])
def test_flags_out_of_range(flags, capsys):
    with pytest.raises(SystemExit) as error:
        build("lookahead", "x", None, flags)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert flags[0] in message and message.count("\n") == 1


def test_published_defaults(target):
    drafter = build("lookahead", "x", target, [])
    assert drafter.settings == (7, 5, 7) and not drafter.from_text
