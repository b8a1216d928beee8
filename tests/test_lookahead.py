"""Lookahead: tree and window as published, drafts against a slow reference, answers vanilla's."""

import random
import subprocess
import sys

import pytest
import torch
from conftest import make_model, make_prompts

from model.common import args as arguments
from model.common.contract import trees as tree
from model.common.contract.drafter import Drafter, EmptyDrafter, Needs
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.lookahead import inference_lookahead as script
from model.lookahead.drafter import LookaheadDrafter, Pool, Trajectory

SIZES = [(7, 5, 7), (5, 4, 2), (15, 5, 15), (10, 3, 10), (20, 7, 20)]  # window, level, guess
LOOPY = {"vocab_size": 11, "num_hidden_layers": 2}  # a random model that soon repeats itself


@pytest.fixture(scope="module")
def target():
    return Target(make_model(**LOOPY))


def loopy_prompts(num=4):
    return make_prompts(num, vocab_size=11)


def lookahead(window=4, level=4, guess=3, **settings):
    return LookaheadDrafter(window, level, guess, "cpu", **settings)


def decode(target, drafter, prompts, limit=40, batch=1, stop=None, sampler=None):
    turns = []
    for begin in range(0, len(prompts), batch):
        part = prompts[begin : begin + batch]
        seeds = list(range(begin, begin + len(part)))
        stop = stop or StopRules()
        turns += generate(target, drafter, part, sampler or Sampler(), seeds, stop, limit)
    return [turn.output_ids for turn in turns], [turn.accept_lengths for turn in turns]


class Recording(Drafter):
    """Keeps every draft with what was committed before it; before(drafter, committed) each step."""

    def __init__(self, inner, before=None):
        self.inner, self.needs, self.before = inner, inner.needs, before
        self.drafts = []

    def start(self, prefill, max_lengths, sampler):
        self.inner.start(prefill, max_lengths, sampler)
        self.committed = [list(ids) for ids in prefill.host_ids]

    def propose(self):
        draft = self.inner.propose()
        self.drafts.append((draft, [list(ids) for ids in self.committed]))
        if self.before:
            self.before(draft, self.committed)
        return draft

    def observe(self, step):
        self.inner.observe(step)
        for ids, new in zip(self.committed, step.host_ids):
            ids.extend(new)


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


def plain(model):
    """A model that can be called without our masks."""
    model.set_attn_implementation("sdpa")
    return model


@pytest.mark.parametrize("from_text", [False, True])
@pytest.mark.parametrize("size", [(4, 4, 3), (3, 2, 2), (1, 5, 1), (5, 3, 9)])
@torch.inference_mode()
def test_drafts_equal_a_slow_reference(target, size, from_text):
    drafter = Recording(lookahead(*size, seed=5, from_text=from_text))
    prompts, model = loopy_prompts(2), plain(make_model(**LOOPY))
    ids, accepted = decode(target, drafter, prompts, 20, batch=2)
    width, num_guessed = size[1] - 1, 0
    for row, prompt in enumerate(prompts):
        slow = SlowLookahead(model, prompt + ids[row][:1], *size, 5, from_text)
        for number, length in enumerate(accepted[row]):
            draft, committed = drafter.drafts[number]
            committed = committed[row]
            window, candidates = slow.draft(committed)
            tokens, probes = draft.tokens[row].tolist(), drafter.inner.num_probes
            assert tokens[:probes] == window + [-1] * (probes - len(window))
            guesses = [tokens[i : i + width] for i in range(probes, len(tokens), width)]
            filler = [[-1] * width] * (size[2] - len(candidates))
            assert guesses == [list(gram) for gram in candidates] + filler
            num_guessed += len(candidates)
            slow.step(committed, (prompt + ids[row])[len(committed) :][:length])
    assert num_guessed > 10


@pytest.mark.parametrize("window, level, guess", SIZES)
def test_tree_of_a_full_window(window, level, guess):
    """Which rows read which, and where they stand, by the published table."""
    drafter = lookahead(window, level, guess)
    num_rows = (window + guess) * (level - 1)
    assert drafter.shapes()[0][0] + 1 == num_rows
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
    known = tree.ancestors(drafter.parents[-1])
    assert torch.equal(known, expected)
    places = [a + b if kind == "window" else b for kind, a, b in names]
    assert (known.sum(-1) - 1).tolist() == places
    assert drafter.probe.tolist() == [kind == "window" for kind, _, _ in names[1:]]


@pytest.mark.parametrize("size, rows, ones", [((7, 5, 7), 56, 252), ((5, 4, 2), 21, 78)])
def test_published_counts(size, rows, ones):
    known = tree.ancestors(lookahead(*size).parents[-1])
    assert known.shape == (rows, rows) and known.sum() == ones


def test_published_positions():
    depths = tree.ancestors(lookahead(5, 4, 2).parents[-1]).sum(-1) - 1
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
        depths = tree.ancestors(drafter.parents[held]).sum(-1) - 1
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


def counting_target(modulus, vocab_size=61):
    """After token t comes t + 1, after modulus - 1 comes 0."""
    model = make_model(vocab_size=vocab_size, num_hidden_layers=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1)
        one_hot = torch.eye(vocab_size, 64)
        model.get_input_embeddings().weight.copy_(one_hot)
        head = torch.zeros(vocab_size, 64)
        head[[(t + 1) % modulus for t in range(modulus)], range(modulus)] = 1
        model.lm_head.weight.copy_(head)
    return Target(model)


@pytest.mark.parametrize("seed", range(4))
def test_a_whole_match_counts_its_bonus(seed):
    """Three steps fill, one or two only pool; published code keeps 4 tokens of a whole match."""
    target, drafter = counting_target(4), lookahead(7, 5, 7, seed=seed)
    ids, accepted = decode(target, drafter, [[0, 1, 2, 3, 0, 1]], 1 + 5 + 30)
    assert accepted in ([[1] * 4 + [5] * 6 + [1]], [[1] * 5 + [5] * 6])
    assert ids == [[(2 + i) % 4 for i in range(36)]]


def test_prompt_ngrams_match_from_the_first_step():
    drafter = lookahead(7, 5, 7, from_text=True)
    _, accepted = decode(counting_target(4), drafter, [[0, 1, 2, 3] * 3], 1 + 30)
    assert accepted == [[5] * 6]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("size", [(7, 5, 7), (4, 4, 0), (3, 2, 2), (1, 3, 1)])
def test_answers_are_vanillas(target, size, batch):
    prompts = loopy_prompts()
    expected, _ = decode(target, EmptyDrafter(), prompts)
    ids, accepted = decode(target, lookahead(*size), prompts, batch=batch)
    assert ids == expected
    assert [1 + sum(lengths) for lengths in accepted] == [40] * 4
    most = max(max(lengths) for lengths in accepted)
    assert most == 1 if size[2] == 0 else 1 < most <= size[1]
    assert all(lengths[: size[1] - 2] == [1] * (size[1] - 2) for lengths in accepted)


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma3_text"])
def test_other_families(family):
    target = Target(make_model(family, **{**LOOPY, "num_hidden_layers": 3}))
    expected, _ = decode(target, EmptyDrafter(), loopy_prompts())
    assert decode(target, lookahead(from_text=True), loopy_prompts(), batch=4)[0] == expected


def test_seeds_change_drafts_and_not_answers(target):
    prompts = loopy_prompts(3)
    expected, _ = decode(target, EmptyDrafter(), prompts, 24)
    runs = [decode(target, lookahead(seed=seed), prompts, 24, 3) for seed in range(10)]
    assert all(ids == expected for ids, _ in runs)
    assert len({str(accepted) for _, accepted in runs}) > 1


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("from_text", [False, True])
def test_sampled_answers_are_vanillas(target, batch, from_text):
    prompts, sampler = loopy_prompts(), Sampler(1.0, top_p=0.8)
    expected, _ = decode(target, EmptyDrafter(), prompts, sampler=sampler)
    drafter = lookahead(7, 3, 7, from_text=from_text)
    ids, accepted = decode(target, drafter, prompts, batch=batch, sampler=sampler)
    assert ids == expected
    assert sum(map(len, accepted)) < 0.95 * 4 * 39


def test_neither_batch_nor_order_matters(target):
    drafter, prompts = lookahead(), loopy_prompts()
    ids, accepted = decode(target, drafter, prompts)
    assert decode(target, drafter, prompts, batch=4) == (ids, accepted)
    assert decode(target, drafter, prompts[::-1]) == (ids[::-1], accepted[::-1])
    assert decode(target, drafter, prompts) == (ids, accepted)


def test_rows_that_end_early_leave_the_others_alone(target):
    prompts = loopy_prompts()
    ids, accepted = decode(target, lookahead(), prompts)
    stop = StopRules(frozenset({ids[0][1]}))
    expected, _ = decode(target, EmptyDrafter(), prompts, stop=stop)
    assert len(expected[0]) < 4 < max(map(len, expected))
    single = decode(target, lookahead(from_text=True), prompts, stop=stop)
    assert single[0] == expected
    assert decode(target, lookahead(from_text=True), prompts, batch=4, stop=stop) == single


def test_eos_inside_a_candidate():
    drafter, stop = lookahead(7, 5, 7, from_text=True), StopRules(frozenset({3}))
    for prompt in ([0, 1, 2, 4, 5, 0], [0, 1, 2, 3, 4, 5, 0]):  # as the bonus, as a candidate
        ids, accepted = decode(counting_target(6), drafter, [prompt], stop=stop)
        assert ids == [[1, 2, 3]] and accepted == [[2]]


@pytest.mark.parametrize("batch", [1, 4])
def test_cache_equals_a_fresh_prefill(target, batch):
    fresh, checked = Target(make_model(**LOOPY)), []

    def columns(held, row, num):
        return torch.cat([storage[:, :, row, :, :num] for storage in held.cache.storage])

    def check(draft, committed):
        for row, ids in enumerate(committed):
            if target.cache.length[row]:
                fresh.prefill(torch.tensor([ids[:-1]]), [len(ids) - 1], 256, Needs())
                expected, held = (
                    columns(t, r, len(ids) - 1) for t, r in ((fresh, 0), (target, row))
                )
                assert torch.allclose(held, expected, atol=1e-4)
                checked.append(row)

    _, accepted = decode(target, Recording(lookahead(), check), loopy_prompts(batch), 24, batch)
    assert len(checked) == sum(map(len, accepted))
    assert max(max(lengths) for lengths in accepted) > 1


def test_one_shape_and_static_trees(target):
    drafter = Recording(lookahead())
    decode(target, drafter, loopy_prompts(), batch=4)
    (num_nodes, *_), inner = drafter.inner.shapes()[0], drafter.inner
    assert {draft.tokens.shape for draft, _ in drafter.drafts} == {(4, num_nodes)}
    assert {id(draft.parents) for draft, _ in drafter.drafts} <= set(map(id, inner.parents))
    assert drafter.drafts[2][0].parents is inner.shapes()[0][1]
    assert all(draft.probe is inner.probe for draft, _ in drafter.drafts)
    assert inner.reads_per_step == 1


@pytest.mark.parametrize("flags", [["--level", "1"], ["--window", "0"], ["--guess", "0"]])
def test_flags_out_of_range(flags, capsys):
    parser = arguments.make_parser("lookahead", script.__doc__, script.add_args)
    with pytest.raises(SystemExit) as error:
        parser.parse_args(["--model-path", "x", *flags])
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert flags[0] in message and message.count("\n") == 1


def test_defaults_and_light_imports(target):
    parser = arguments.make_parser("lookahead", script.__doc__, script.add_args)
    args = parser.parse_args(["--model-path", "x"])
    drafter = script.build(args, target)
    assert drafter.settings == (7, 5, 7) and not drafter.from_text
    code = "import sys, model.lookahead.inference_lookahead; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"
