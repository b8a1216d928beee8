"""Check of sampling: the first tokens of many seeded answers follow the law found by enumeration.

A G-test of words of LENGTH tokens, at temperature 0.6 with top-p 0.9 on 16 tokens. A word has its
own seed, hundreds are rows of one batch. Level: FAMILY is the chance that any of the methods is
called wrong when all are right (Holm's rule over the cases); seeds are fixed, so that a test which
fails once fails always.

Power: NUM words over the cells of this law find a total variation of detectable_variation(), below
10 %, with chance POWER, whatever it looks like; test_law.py holds it to that. Point guesses are
judged more sharply and by fewer words: token matching has to commit, seed for seed, what the
baseline draws, so that a bias which changes a share x of the words is found with chance
1 - (1 - x) ** NUM_GUESSED: one percent with chance POWER.
"""

from __future__ import annotations

import functools

import pytest
import torch
from laws import detectable, transformers_probs
from scipy import stats
from slow_penalties import penalised

from conformance.cases import CASES, VOCAB, Case, World
from model.common.loop import verify
from model.common.loop.penalties import NO_PENALTIES, Penalties
from model.common.loop.sampling import TARGET, Sampler, draw, seed_of

SETTINGS = (0.6, 0, 0.9, 0.0, NO_PENALTIES)  # of a Sampler
PENALISED = (0.8, 0, 1.0, 0.05, Penalties(1.3, 0.2, 0.4))
PROMPT = [2, 14, 3, 0, 5, 9, 13, 4, 6, 12, 0, 5, 3, 14, 2, 3, 8, 0, 5]  # with text to copy
LENGTH = 4  # the prefill's token, and three that take one to three steps
BATCH, NUM, NUM_GUESSED = 500, 4000, 500
NUM_PENALISED = 1000
FAMILY, POWER = 1e-3, 0.99
LEVEL = FAMILY / len(CASES)  # of a case alone: Holm's first step
LONG, NUM_LONG = 16, 60  # tokens and answers in which drafts are looked for
FEWEST = 5  # words a cell is expected to hold, else it is pooled with others


def following(world: World, words: list[tuple], settings) -> torch.Tensor:
    """Law of the token behind each word, [N, V]: transformers' own model and warpers."""
    logits = world.logits([[*PROMPT, *word] for word in words])
    if settings[4]:
        rows = [penalised(row, PROMPT, word, settings[4]) for row, word in zip(logits, words)]
        logits = torch.stack(rows)
    return transformers_probs(logits, *settings[:4])


@functools.cache
def law_of(world: World, settings=SETTINGS) -> dict[tuple, float]:
    """Probability of every word that can occur."""
    law = {(): 1.0}
    for _ in range(LENGTH):
        words = list(law)
        law = {
            (*word, token): law[word] * chance
            for word, line in zip(words, following(world, words, settings).tolist())
            for token, chance in enumerate(line)
            if chance > 0
        }
    return law


def g_test(words, law: dict[tuple, float]) -> float:
    """p-value of words under a law; 0 where one cannot occur. Rare cells are pooled."""
    counts = dict.fromkeys(law, 0)
    for word in words:
        if word not in counts:
            return 0.0
        counts[word] += 1
    cells, pool = [], [0, 0.0]
    for word, count in counts.items():
        expected = law[word] * len(words)
        if expected >= FEWEST:
            cells.append((count, expected))
        else:
            pool = [pool[0] + count, pool[1] + expected]
    if pool[1] < FEWEST and cells:  # too small to be judged alone
        count, expected = cells.pop()
        pool = [pool[0] + count, pool[1] + expected]
    cells.append(tuple(pool))
    seen, expected = torch.tensor(cells, dtype=torch.float64).unbind(1)
    statistic = 2 * torch.special.xlogy(seen, seen / expected).sum().item()
    return float(stats.chi2.sf(statistic, len(cells) - 1))


@functools.cache
def baseline_words(world: World, settings=SETTINGS) -> list[tuple]:
    """What plain sampling of the target's own logits gives the first seeds, without a draft."""
    positions = []
    for row in range(NUM_GUESSED):
        sampler = Sampler(*settings)
        sampler.reserve(1, torch.device("cpu"))
        sampler.begin([0], [seed_of(0, row, 0, 0)], [LENGTH + 1])
        positions.append(sampler.table[TARGET, 0, :LENGTH])
    uniforms, words = torch.stack(positions), [()] * NUM_GUESSED
    for place in range(LENGTH):
        known = {word: None for word in words}
        laws = dict(zip(known, following(world, list(known), settings)))
        lines = torch.stack([laws[word] for word in words])
        tokens = draw(lines, uniforms[:, place]).tolist()
        words = [(*word, token) for word, token in zip(words, tokens)]
    return words


def num_cells(law: dict[tuple, float]) -> int:
    """Cells of the G-test, the pool of rare words among them."""
    common = [chance for chance in law.values() if chance * NUM >= FEWEST]
    return len(common) + ((1 - sum(common)) * NUM >= FEWEST)


def detectable_variation(world: World) -> float:
    """Total variation distance that a case's test finds with chance POWER."""
    return detectable(NUM, num_cells(law_of(world)), LEVEL, POWER)


def sampled(case: Case, num: int, settings=SETTINGS) -> list:
    """Turns of `num` answers, each with a seed of its own."""
    turns = []
    for begin in range(0, num, BATCH):
        seeds = [seed_of(0, begin + row, 0, 0) for row in range(BATCH)]
        turns += case.decode([PROMPT] * BATCH, LENGTH, sampler=Sampler(*settings), seeds=seeds)
    return turns


def draws_with_laws(case: Case) -> bool:
    """Whether the method says what its nodes were drawn from, so that a rejection rule judges."""
    laws, rule = [], verify.choose

    def noting(sampler, draft, typical=None):
        laws.append(draft.probs is not None)
        return rule(sampler, draft, typical)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "choose", noting)
        case.decode([PROMPT], 16, sampler=Sampler(*SETTINGS))
    return any(laws)


def long_answers(case: Case, drafter=None, settings=SETTINGS) -> list:
    """Turns of fewer and longer answers, in which every method comes to draft."""
    seeds = [seed_of(2, row, 0, 0) for row in range(NUM_LONG)]
    prompts, sampler = [PROMPT] * NUM_LONG, Sampler(*settings)
    return case.decode(prompts, LONG, drafter=drafter, sampler=sampler, seeds=seeds)


@functools.cache
def baseline_answers(world: World, settings=SETTINGS) -> list[list[int]]:
    """Ids of the same answers without a draft."""
    vanilla = Case("vanilla", world=world)
    return [turn.output_ids for turn in long_answers(vanilla, settings=settings)]


def check_law(case: Case) -> float:
    """The law is the target's, at the level of a case alone; returns the p-value.

    Drafts are taken in some steps and refused in others, else there was nothing to judge.
    """
    with_laws = draws_with_laws(case)
    turns = sampled(case, NUM if with_laws else NUM_GUESSED)
    words = [tuple(turn.output_ids) for turn in turns]
    chance = g_test(words, law_of(case.world))
    assert chance >= LEVEL
    turns = long_answers(case)
    lengths = [length for turn in turns for length in turn.accept_lengths]
    if case.method != "vanilla":
        assert min(lengths.count(1), len(lengths) - lengths.count(1)) > 20
    if not with_laws:
        assert words == baseline_words(case.world)
        assert [turn.output_ids for turn in turns] == baseline_answers(case.world)
    return chance


def check_penalised_law(case: Case) -> None:
    """The same with min-p and penalties, which make the law of a row depend on its own prefix.

    Drawn from known laws: a G-test of fewer words. Point guesses: the baseline's own answers, and
    the baseline's are those of the target's own logits.
    """
    if draws_with_laws(case):
        turns = sampled(case, NUM_PENALISED, PENALISED)
        words = [tuple(turn.output_ids) for turn in turns]
        assert g_test(words, law_of(case.world, PENALISED)) >= LEVEL
    elif case.method == "vanilla":
        turns = sampled(case, NUM_GUESSED, PENALISED)
        words = [tuple(turn.output_ids) for turn in turns]
        assert words == baseline_words(case.world, PENALISED)
    else:
        turns = long_answers(case, settings=PENALISED)
        assert [turn.output_ids for turn in turns] == baseline_answers(case.world, PENALISED)
    longest = max(length for turn in turns for length in turn.accept_lengths)
    assert longest == 1 if case.method == "vanilla" else longest > 1


def holm(p_values: dict[str, float]) -> list[str]:
    """Names that Holm's rule rejects at FAMILY, the least likely first."""
    order = sorted(p_values, key=p_values.get)
    for rank, name in enumerate(order):
        if p_values[name] >= FAMILY / (len(order) - rank):
            return order[:rank]
    return order


def check_seeds(case: Case) -> None:
    """Sampled answers depend on the seed alone: not on the batch, nor on the rows beside."""
    seeds, sampler = [seed_of(1, row, 0, 0) for row in range(4)], Sampler(*SETTINGS)
    prompts = [PROMPT, [5], [VOCAB - 1] * 9, PROMPT]

    def run(rows, **more):
        own = [prompts[row] for row in rows]
        turns = case.decode(own, 16, sampler=sampler, seeds=[seeds[row] for row in rows], **more)
        return {row: turn.output_ids for row, turn in zip(rows, turns)}

    together = run([0, 1, 2, 3])
    assert len({tuple(ids) for ids in together.values()}) == 4
    assert run([3, 2, 1, 0], batch=1) == run([2, 0, 3, 1]) == together
