"""NASD: counts, fillers, back-off and chains by hand and against a recount."""

import random

import pytest
import torch
from conftest import make_model, make_prompts
from oracle import decode, outputs
from steps import chain_step, prompt_step
from tiny_methods import build

from model.common.contract.drafter import Needs
from model.common.contract.sequence import EmptyDrafter
from model.common.errors import BadInput
from model.common.loop.sampling import Sampler, warp
from model.common.target.model import Target
from model.nasd.drafter import NASDDrafter, NASDSequence, NGramStore, likely

STEADY = Sampler()


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


def text_store(ids, n, min_context=1):
    """A store that has read a text."""
    sequence = NASDSequence(n, min_context, 5)
    sequence.start(ids)
    return sequence.store


def draft(ids, n, num_draft, min_context=1):
    sequence = NASDSequence(n, min_context, num_draft)
    sequence.start(ids)
    return sequence.propose()


def recount(events, n, min_context):
    """Counts and best tokens from all (text before, tokens) events, one context at a time."""
    contexts = {
        tuple(before[len(before) - size :])
        for before, _ in events
        for size in range(min_context, n)
        if size <= len(before)
    }
    counts, best = {}, {}
    for context in contexts:
        seen = [
            token
            for before, tokens in events
            if tuple(before[max(len(before) - len(context), 0) :]) == context
            for token in tokens
        ]
        counts[context] = {token: seen.count(token) for token in seen}
        leader = seen[0]
        for end in range(1, len(seen) + 1):
            if seen[:end].count(seen[end - 1]) > seen[:end].count(leader):
                leader = seen[end - 1]
        best[context] = leader
    return counts, best


def text_events(ids):
    return [(ids[:end], [ids[end]]) for end in range(len(ids))]


def test_counts():
    store = text_store([1, 2, 3, 1, 2, 4, 1, 2, 4], n=3)
    assert store.counts[1, 2] == {3: 1, 4: 2}
    assert store.best[1, 2] == 4
    store = text_store([1, 2, 3, 1, 2, 4], n=3)
    assert store.best[1, 2] == 3  # a tie keeps the first
    store.learn([1, 2], [4])
    assert store.best[1, 2] == 4


def test_fillers():
    store = NGramStore(n=3)
    store.learn([1, 2], [7])
    store.learn([1, 2], [7, 8, 9])
    assert store.counts[1, 2] == {7: 2, 8: 1, 9: 1} and store.best[1, 2] == 7
    store.learn([1, 2], [8, 7, 9])
    store.learn([1, 2], [8, 7, 9])
    assert store.counts[1, 2] == {7: 4, 8: 3, 9: 3} and store.best[1, 2] == 7
    store.learn([1, 2], [8])
    assert store.counts[1, 2][8] == 4 and store.best[1, 2] == 7
    store.learn([1, 2], [8])
    assert store.best[1, 2] == 8


@pytest.mark.parametrize("min_context, short", [(1, (6, 1)), (2, None)])
def test_backing_off(min_context, short):
    store = NGramStore(4, min_context)
    store.learn([2, 3], [5])
    store.counts.pop((3,), None)  # forget what a shorter context learned from it
    store.best.pop((3,), None)
    store.learn([3], [6])
    assert store.query([9, 2, 3]) == (5, 2)
    assert store.query([8, 3]) == short
    assert store.query([]) is None


def test_adaptive_n_goes_down_and_up_again():
    store = text_store([1, 2, 3, 4, 9, 3, 5, 6], n=4)
    text, trace = [8, 4], []
    while found := store.query(text):
        trace.append(found)
        text.append(found[0])
    assert trace == [(9, 1), (3, 2), (5, 3), (6, 3)]  # (token, length of the context)


@pytest.mark.parametrize(
    "ids, n, num_draft, min_context, expected",
    [
        ([1, 2, 3, 4, 1], 4, 3, 1, [2, 3, 4]),
        ([1, 2, 3, 4, 1], 2, 9, 1, [2, 3, 4, 1, 2, 3, 4, 1, 2]),  # loops are capped
        ([1, 2, 3, 4, 5], 4, 3, 1, []),  # an unseen token ends the draft
        ([1, 2, 3, 4, 1], 4, 3, 2, []),  # as published: contexts of two and more
        ([1, 2, 3, 4, 1, 2], 4, 3, 2, [3, 4, 1]),
        ([1, 2, 3, 4, 1, 2], 4, 3, 3, []),  # one level only
        ([1], 5, 3, 1, []),
        ([1, 2], 5, 3, 1, []),
        ([2, 2], 5, 3, 1, [2, 2, 2]),
    ],
)
def test_chain(ids, n, num_draft, min_context, expected):
    assert draft(ids, n, num_draft, min_context) == expected


@pytest.mark.parametrize("n, min_context", [(2, 1), (3, 1), (4, 2), (5, 1), (5, 4)])
def test_store_and_drafts_equal_a_recount(n, min_context):
    dice = random.Random(n)
    for trial in range(12):
        letters = 2 + trial % 4
        sequence = NASDSequence(n, min_context, 6)
        ids = [dice.randrange(letters) for _ in range(dice.randint(1, 15))]
        sequence.start(list(ids))
        events = text_events(ids)
        for _ in range(3):
            new = [dice.randrange(letters) for _ in range(dice.randint(1, 4))]
            fillers = [dice.sample(range(letters), 2) for _ in new]
            sequence.observe(new, fillers)
            for token, best in zip(new, fillers):
                events += [(list(ids), [token]), (list(ids), best)]
                ids.append(token)
        counts, best = recount(events, n, min_context)
        assert sequence.store.counts == counts
        assert sequence.store.best == best
        text, expected = list(ids), []
        while len(expected) < 6:
            known = [tuple(text[-size:]) for size in range(n - 1, min_context - 1, -1)]
            known = [context for context in known if context in best]
            if not known:
                break
            expected.append(best[known[0]])
            text.append(expected[-1])
        assert sequence.propose() == expected == sequence.propose()


NARROW = [(0.7, 0, 1.0), (1.0, 0, 0.8), (1.3, 2, 1.0), (1.0, 5, 0.6), (1.0, 0, 0.9, 0.2)]


@pytest.mark.parametrize("settings", NARROW)
def test_likely_tokens_are_what_the_sampler_leaves(settings):
    logits = torch.randn(200, 11, generator=torch.Generator().manual_seed(3)) * 2
    ids = likely(logits, 4, Sampler(*settings))
    probs = warp(logits, *settings)
    values, best = probs.topk(4, dim=-1)
    assert torch.equal(ids, best.masked_fill(values == 0, -1))
    assert (ids[:, 0] >= 0).all()
    assert torch.equal(likely(logits, 4, STEADY), logits.topk(4).indices)
    assert likely(logits, 40, STEADY).shape == (200, 11)


def test_rejected_drafts_leave_no_trace(target):
    """What was learned is the text and the target's best in the place of its tokens."""
    for prompt in ([7, 8, 9] * 6, make_prompts(2)[1]):
        drafter = NASDDrafter(n=4, filler_top_k=3)
        (turn,) = decode(target, drafter, [prompt], 24)
        assert outputs(decode(target, EmptyDrafter(), [prompt], 24)) == [turn.output_ids]
        (sequence,), text = drafter.sequences, prompt + turn.output_ids
        assert sequence.ids == text
        best = target.prefill([0], torch.tensor([text]), [len(text)], Needs(prompt_topk=3)).topk[0]
        events = text_events(text[: len(prompt) + 1])
        for end in range(len(prompt) + 1, len(text)):
            events += [(text[:end], [text[end]]), (text[:end], best[end - 1].tolist())]
        assert (sequence.store.counts, sequence.store.best) == recount(events, 4, 1)


@pytest.mark.parametrize("warm", [False, True])
def test_stores_of_slots(warm):
    """One for all that lives on, or one each that begins empty with every prompt."""
    drafter = NASDDrafter(n=2, filler_top_k=1, warm=warm)
    drafter.reserve(2, 64, Sampler())
    drafter.start(prompt_step([[1, 5, 6], [2, 7]]))
    first, other = (sequence.store for sequence in drafter.sequences)
    assert (first is other) == warm
    drafter.start(prompt_step([[3, 4]], slots=[0]))
    texts = [{(3,): {4: 1}}, {(2,): {7: 1}}]
    every = {(1,): {5: 1}, (5,): {6: 1}, **texts[1], **texts[0]}
    wanted = [every] * 2 if warm else texts
    assert [sequence.store.counts for sequence in drafter.sequences] == wanted
    drafter.reserve(2, 64, Sampler())
    drafter.start(prompt_step([[8, 8]], slots=[0]))
    assert drafter.sequences[0].store.counts == (
        {**every, (8,): {8: 1}} if warm else {(8,): {8: 1}}
    )
    drafter.forget()
    assert not (warm and drafter.sequences[0].store.counts)


def test_a_second_turn_begins_with_the_prompt_alone():
    """As published: the runners-up of the first turn are forgotten, its text is in the prompt."""
    drafters = [NASDDrafter(n=2, filler_top_k=2) for _ in range(2)]
    text = [1, 5, 6, 2, 3]
    for drafter in drafters:
        drafter.reserve(1, 64, Sampler())
    drafters[0].start(prompt_step([[1, 5]]))
    step = chain_step([[6]])
    step.logits = torch.zeros(1, 1, 9)
    step.logits[0, 0, 6], step.logits[0, 0, 7] = 2.0, 1.0
    drafters[0].observe(step)
    assert drafters[0].sequences[0].store.counts[5,] == {6: 2, 7: 1}
    for drafter in drafters:
        prompt = prompt_step([text])
        prompt.continues = [True]
        drafter.start(prompt)
    stores = [drafter.sequences[0].store for drafter in drafters]
    assert stores[0].counts == stores[1].counts == text_store(text, 2).counts


@pytest.mark.parametrize("batch", [1, 3])
def test_fillers_of_committed_rows_only(batch):
    drafter = NASDDrafter(n=2, filler_top_k=2)
    drafter.reserve(batch, 64, Sampler())
    drafter.start(prompt_step([[1, 5]] * batch))
    step = chain_step([[6, 7], [6], []][:batch])
    step.logits = torch.zeros(batch, 3, 9)
    for row, (first, second) in enumerate([(6, 7), (7, 8), (8, 2)]):
        step.logits[:, row, first], step.logits[:, row, second] = 2.0, 1.0
    drafter.observe(step)
    stores = [sequence.store.counts for sequence in drafter.sequences]
    assert stores[0] == {(1,): {5: 1}, (5,): {6: 2, 7: 1}, (6,): {7: 2, 8: 1}}
    assert stores[1:] == [{(1,): {5: 1}, (5,): {6: 2, 7: 1}}, {(1,): {5: 1}}][: batch - 1]


@pytest.mark.parametrize("flags", [["--n", "1"], ["--num-draft", "0"], ["--filler-top-k", "x"]])
def test_flags_out_of_range(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        build("nasd", "x", None, flags)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_min_context_has_to_be_below_n():
    with pytest.raises(BadInput, match="--min-context 4 is not below --n 4"):
        build("nasd", "x", None, ["--min-context", "4"])
