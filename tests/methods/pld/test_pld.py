"""PLD: the published lookup table, the index against a rescan, answers equal to the baseline's."""

import random
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_prompts
from counting import counting_target
from transformers import GPT2Config, GPT2LMHeadModel

from model.common.contract.sequence import EmptyDrafter, PerSequence
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.attention import NAME, register
from model.common.target.model import Target
from model.pld.drafter import PLDDrafter

COUNTING = [*range(1, 15), 1, 2, 3]
FRESH = [5, 6, 7, 5, 6, 7]
TWO_HITS = [1, 2, 9, 1, 2, 8, 1, 2]
SEVENS = [7, 7, 7, 7]
ROOMY_SHORTER = [3, 4, *range(50, 61), 2, 3, 4, 1, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


def pld(**settings):
    return PerSequence(lambda: PLDDrafter(**settings), settings.get("num_draft", 10))


def one(target, drafter, prompt, limit=40):
    return generate(target, drafter, [prompt], Sampler(), [0], StopRules(), limit)[0]


def random_prompts(num, seed=3):
    """Prompts of 1 to 40 ids from a small alphabet, so that n-grams recur."""
    dice = random.Random(seed)
    return [[dice.randint(1, 9) for _ in range(1 + 2 * i)] for i in range(num)]


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


def prompt_of(slots, rows):
    """The Step of prompts that begin in these slots."""
    return SimpleNamespace(slots=slots, tokens=torch.zeros(1), host_ids=rows)


def test_slots_are_forgotten_at_start():
    drafter = pld(num_draft=2)
    drafter.reserve(3, 64, None)
    drafter.start(prompt_of([0, 1, 2], [[1, 2, 3, 4, 5, 1, 2], [6, 7, 8, 9, 6, 7], [3] * 5]))
    assert drafter.propose().tokens.tolist() == [[3, 4], [8, 9], [3, 3]]
    drafter.start(prompt_of([1], [[9, 1, 2]]))
    assert drafter.propose().tokens.tolist() == [[3, 4], [-1, -1], [3, 3]]
    drafter.end([0])
    assert drafter.propose().tokens.tolist() == [[-1, -1], [-1, -1], [3, 3]]


def test_unequal_drafts_end_in_inert_rows():
    drafter = pld(num_draft=3, clamp=True)
    drafter.reserve(3, 64, None)
    drafter.start(prompt_of([0, 1, 2], [[1, 2, 3, 4, 1], [5, 5], [6, 7]]))
    assert drafter.propose().tokens.tolist() == [[2, 3, 4], [5, -1, -1], [-1, -1, -1]]


@pytest.fixture(scope="module")
def baseline(target):
    """Vanilla's answers to 20 prompts, of 1 token and more."""
    return [(ids, one(target, EmptyDrafter(), ids, 25).output_ids) for ids in random_prompts(20)]


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("match", ["first", "last"])
def test_ids_equal_vanilla(target, baseline, match, clamp):
    """With the flags that tests/conformance does not run."""
    drafted = 0
    for prompt, output in baseline:
        turn = one(target, pld(num_draft=4, match=match, clamp=clamp), prompt, 25)
        assert turn.output_ids == output
        drafted += sum(turn.drafted)
    assert drafted > 0


def test_steps_are_target_forwards(target, monkeypatch):
    calls = []
    forward, prefill = target.forward, target.prefill
    monkeypatch.setattr(target, "forward", lambda *a: calls.append("step") or forward(*a))
    monkeypatch.setattr(target, "prefill", lambda *a: calls.append("prefill") or prefill(*a))
    turn = one(target, pld(), random_prompts(20)[19])
    assert calls == ["prefill"] + ["step"] * len(turn.accept_lengths)


def test_repeated_output_saves_forwards(target):
    prompt = make_prompts(1)[0]
    output = one(target, EmptyDrafter(), prompt, 40).output_ids
    turn = one(target, pld(), output * 2, 60)
    assert turn.output_ids == one(target, EmptyDrafter(), output * 2, 60).output_ids
    assert 1 + len(turn.accept_lengths) < len(turn.output_ids)
    assert sum(turn.accept_lengths) / len(turn.accept_lengths) > 1


def test_counting_target_accepts_whole_drafts():
    target = counting_target()
    turn = one(target, pld(), [*range(61), 0, 1, 2], 35)
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
    base = one(target, EmptyDrafter(), prompt, 100)
    assert len(base.output_ids) == 24
    assert one(target, pld(), prompt, 100).output_ids == base.output_ids


def test_same_ids_as_transformers_prompt_lookup(target):
    reference = make_model()
    reference.set_attn_implementation("eager")
    for prompt in ([4, 5, 6] * 8, make_prompts(2)[1]):
        output = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            prompt_lookup_num_tokens=10,
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        turn = one(target, pld(), prompt)
        assert turn.output_ids == output[0, len(prompt) :].tolist()
