"""PLD: the published lookup table, and the index against a rescan (ids: conformance/)."""

import random

import pytest
import torch
from counting import counting_target
from oracle import decode, outputs
from transformers import GPT2Config, GPT2LMHeadModel

from model.common.contract.sequence import EmptyDrafter, PerSequence
from model.common.target.attention import NAME, register
from model.common.target.model import Target
from model.pld.drafter import PLDDrafter

COUNTING = [*range(1, 15), 1, 2, 3]
FRESH = [5, 6, 7, 5, 6, 7]
TWO_HITS = [1, 2, 9, 1, 2, 8, 1, 2]
SEVENS = [7, 7, 7, 7]
ROOMY_SHORTER = [3, 4, *range(50, 61), 2, 3, 4, 1, 1, 2, 3, 4]


def pld():
    return PerSequence(PLDDrafter, 10)


def lookup(ids, **settings):
    drafter = PLDDrafter(**settings)
    drafter.start(ids)
    return drafter.propose()


def rescan(ids, max_ngram, num_draft, match, clamp):
    """The lookup by definition: every start of the longest suffix that has a usable earlier one."""
    end = len(ids)
    for size in range(min(max_ngram, end - 1), 0, -1):
        starts = [i for i in range(end - size) if ids[i : i + size] == ids[end - size :]]
        if not clamp:
            starts = [i for i in starts if i + size + num_draft <= end and i + 2 * size < end]
        if starts:
            start = starts[0] if match == "first" else starts[-1]
            return ids[start + size : start + size + num_draft]
    return []


@pytest.mark.parametrize(
    "ids, max_ngram, num_draft, clamp, draft",
    [
        (COUNTING, 3, 10, False, [*range(4, 14)]),
        (COUNTING, 3, 10, True, [*range(4, 14)]),
        (FRESH, 3, 10, False, []),
        (FRESH, 3, 10, True, [5, 6, 7]),
        (FRESH, 2, 10, True, [5, 6, 7]),
        (TWO_HITS, 2, 1, False, [9]),
        (TWO_HITS, 2, 1, True, [9]),
        (SEVENS, 3, 2, False, [7, 7]),
        (SEVENS, 3, 2, True, [7]),
        (ROOMY_SHORTER, 3, 10, False, [*range(50, 60)]),
        (ROOMY_SHORTER, 3, 10, True, [1, 1, 2, 3, 4]),
        ([4], 3, 10, True, []),
        ([4, 4], 3, 10, True, [4]),
        ([4, 4], 3, 10, False, []),
        ([1, 2, 3, 4], 3, 10, True, []),
    ],
)
def test_lookup_table(ids, max_ngram, num_draft, clamp, draft):
    assert lookup(ids, max_ngram=max_ngram, num_draft=num_draft, clamp=clamp) == draft


@pytest.mark.parametrize("clamp", [False, True])
def test_last_match_takes_the_recent_occurrence(clamp):
    assert lookup(TWO_HITS, max_ngram=2, num_draft=1, match="last", clamp=clamp) == [8]


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("match", ["first", "last"])
def test_index_equals_rescan(match, clamp):
    dice = random.Random(7)
    hits = 0
    for trial in range(60):
        max_ngram, num_draft = dice.randint(1, 4), dice.randint(1, 5)
        settings = {"max_ngram": max_ngram, "num_draft": num_draft, "match": match, "clamp": clamp}
        drafter = PLDDrafter(**settings)
        letters = 2 + trial % 4
        ids = [dice.randrange(letters) for _ in range(dice.randint(1, 12))]
        drafter.start(list(ids))
        for _ in range(25):
            draft = drafter.propose()
            assert draft == rescan(ids, **settings)
            assert set(draft) <= set(ids)
            assert len(draft) <= num_draft if clamp else len(draft) in (0, num_draft)
            hits += bool(draft)
            new = [dice.randrange(letters) for _ in range(dice.randint(1, 4))]
            drafter.observe(new)
            ids += new
    assert hits > 500


def test_proposing_twice_changes_nothing():
    drafter = PLDDrafter(num_draft=2)
    drafter.start([1, 2, 3, 4, 1, 2])
    first = drafter.propose()
    first.append(99)
    assert drafter.propose() == [3, 4]


@pytest.mark.parametrize("clamp", [False, True])
def test_state_is_forgotten_at_start(clamp):
    drafter = PLDDrafter(num_draft=2, clamp=clamp)
    drafter.start([1, 2, 3, 4, 5, 1, 2])
    assert drafter.propose() == [3, 4]
    drafter.start([8, 1, 2])
    assert drafter.propose() == []
    assert drafter.ids == [8, 1, 2]


def test_counting_target_accepts_whole_drafts():
    target = counting_target()
    (turn,) = decode(target, pld(), [[*range(61), 0, 1, 2]], 35)
    assert turn.output_ids == [*range(3, 38)]
    assert turn.accept_lengths == [11, 11, 11, 1]


def test_drafts_near_the_end_of_the_context():
    """A model with learned positions has none behind its context."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    model = GPT2LMHeadModel(config).eval()
    register()
    model.set_attn_implementation(NAME)
    target = Target(model)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 4
    base = outputs(decode(target, EmptyDrafter(), [prompt], 100))
    assert len(base[0]) == 24
    assert outputs(decode(target, pld(), [prompt], 100)) == base
