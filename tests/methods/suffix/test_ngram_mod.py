"""llama.cpp's ngram-mod: hashes and drafts by hand and against a slow reference."""

import random

import pytest
from steps import chain_step, prompt_step
from tiny_methods import build

from model.suffix import ngram_mod
from model.suffix.ngram_mod import NGramModDrafter, NGramModSequence, NGramTable, Settings

SMALL = Settings(3, 0, 6)


def slot(tokens, num_slots):
    """The place of an n-gram, as published: a polynomial in 64 bits."""
    state = 0
    for token in tokens:
        state = (state * 6364136223846793005 + token) % 2**64
    return state % num_slots


def rolled(table, tokens):
    """The same place from a window that has moved over other tokens before."""
    before, state, text = [3, 1, 4, 1, 5], 0, []
    for token in before + list(tokens):
        left = text[-table.n] if len(text) >= table.n else 0
        state = table.rolled(state, token, left)
        text.append(token)
    return state % table.num_slots


def sequence_of(ids, settings=SMALL, table=None):
    sequence = NGramModSequence(settings, table)
    sequence.start(ids)
    return sequence


@pytest.mark.parametrize(
    "tokens, num_slots, place",
    [
        ((1, 2, 3), 2**22, 3845190),
        ((5, 6, 7), 2**22, 1007778),
        ((1, 2, 3, 4), 2**22, 328274),
        ((0, 0, 0), 2**22, 0),
        (range(1, 25), 2**22, 1449372),
        ((1, 2, 3), 101, 53),
        ((5, 6, 7), 101, 39),
        ((1, 2, 3, 4), 101, 25),
    ],
)
def test_places(tokens, num_slots, place):
    tokens = list(tokens)
    table = NGramTable(len(tokens), num_slots)
    assert rolled(table, tokens) == place == slot(tokens, num_slots)


def test_a_cycle_ends_at_the_cap():
    text = [1, 2, 3, 4, 5, 1, 2, 3]
    assert sequence_of(text, Settings(3, 0, 11)).propose() == [4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4]
    assert len(sequence_of(text).table.slots) == 5


def test_the_last_successor_counts():
    assert sequence_of([1, 2, 3, 4, 1, 2, 3, 9, 1, 2, 3]).propose()[0] == 9


def test_the_table_knows_how_full_it_is():
    """Five n-grams, however often they are read."""
    table = NGramTable(3)
    for _ in range(2):
        sequence_of([1, 2, 3, 4, 5, 6, 7, 8], table=table)
    assert table.facts() == {"table_slots": 2**22, "table_used": 5}


@pytest.mark.parametrize("n_min, draft", [(2, [4, 5]), (3, [])])
def test_short_drafts_are_none(n_min, draft):
    table = NGramTable(3)
    sequence_of([1, 2, 3, 4, 5], table=table)
    sequence = NGramModSequence(Settings(3, n_min, 6), table)
    sequence.start([7, 1, 2, 3])
    assert sequence.propose() == draft == sequence.propose()


def test_too_few_tokens_for_a_hash():
    table = NGramTable(3)
    sequence_of([0, 0, 1, 5], table=table)
    assert sequence_of([1], table=table).propose() == []
    assert sequence_of([0, 0, 1], table=table).propose() == [5]


def test_other_ngrams_of_one_hash_answer():
    """No key is kept; with one slot, whatever came last follows everything."""
    sequence = sequence_of([1, 2, 3, 4, 8], table=NGramTable(3, num_slots=1))
    assert sequence.propose() == [8] * 6


def test_drafts_equal_a_slow_reference():
    dice, drafted = random.Random(2), 0
    for _ in range(60):
        n, letters, size = dice.randint(1, 4), dice.randint(1, 5), dice.choice([1009, 2**22])
        settings = Settings(n, dice.choice([0, 2]), dice.choice([2, 7]))
        table, read = NGramTable(n, size), {}
        for _ in range(3):
            text = [dice.randrange(letters) for _ in range(dice.randint(1, 20))]
            sequence, done = sequence_of(list(text), settings, table), 0
            for step in range(9):
                for end in range(max(n, done), len(text)):
                    read[slot(text[end - n : end], size)] = text[end]
                if step == 8:
                    break
                done, draft = len(text), []
                while len(text) >= n and len(draft) < settings.n_max:
                    token = read.get(slot((text + draft)[-n:], size))
                    if token is None:
                        break
                    draft.append(token)
                draft = draft if len(draft) >= settings.n_min else []
                assert sequence.propose() == draft
                drafted += bool(draft)
                new = draft[: dice.randint(1, 4)] or [dice.randrange(letters)]
                sequence.num_low = 0  # streaks: below
                sequence.observe(new)
                text += new
    assert drafted > 300


def bad_round(sequence):
    """A draft of which nothing is accepted."""
    assert sequence.propose()
    sequence.observe([sequence.ids[-1] + 100])
    sequence.observe([1, 2, 3])
    sequence.num_accepted = 0


def test_a_streak_of_bad_drafts_empties_a_shared_table():
    """Not of what this text says itself; a draft that is accepted ends the streak."""
    table = NGramTable(3)
    sequence_of([1, 2, 3, 7, 7, 7, 7], table=table)
    sequence_of([20, 21, 22, 23], table=table)
    sequence = sequence_of([5, 1, 2, 3], table=table)
    for number in range(9):
        bad_round(sequence)
        if number == 3:
            sequence.propose()
            sequence.num_accepted = sequence.num_drafted
    assert table.get(slot([20, 21, 22], 2**64)) == 23
    sequence.propose()  # the fifth in a row
    assert table.get(slot([20, 21, 22], 2**64)) is None
    assert table.get(slot([1, 2, 3], 2**64)) == sequence.ids[-4]
    own = sequence_of(sequence.ids)
    assert table.slots == own.table.slots


def test_a_table_that_fills_up_is_emptied_for_the_next_text(monkeypatch):
    monkeypatch.setattr(ngram_mod, "FULL", 0.02)
    table = NGramTable(3, num_slots=101)
    sequence_of([1, 2, 3, 4, 5, 6], table=table)
    assert len(table.slots) == 3
    sequence_of([7, 8, 9, 1], table=table)
    assert len(table.slots) == 1


@pytest.mark.parametrize("warm", [False, True])
def test_tables_of_slots(warm):
    drafter = NGramModDrafter(SMALL, warm)
    drafter.reserve(2, 64, None)
    drafter.start(prompt_step([[1, 2, 3, 4, 5], [8, 1, 2]]))
    drafter.observe(chain_step([[6], [3]]))
    wanted = [[-1, -1, -1], [4, 5, 6]] if warm else [[], []]
    assert drafter.propose().tokens.tolist() == wanted
    drafter.reserve(2, 64, None)
    drafter.start(prompt_step([[1, 2, 3]], slots=[0]))
    assert drafter.propose().tokens[0].tolist() == ([4, 5, 6] if warm else [])
    drafter.forget()
    assert drafter.propose().tokens[0].tolist() == []
    assert drafter.facts() == ({"table_slots": 2**22, "table_used": 0} if warm else {})


def test_defaults_are_the_published_ones():
    drafter = build("suffix", "x", None, ["--kind", "ngram-mod", "--state", "warm"])
    assert (drafter.max_nodes, drafter.max_depth, drafter.table.n) == (64, None, 24)
    assert Settings() == Settings(24, 48, 64)
