"""NASD: counts, fillers, back-off and chains by hand and against a recount; ids equal vanilla's."""

import random
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_prompts
from tiny_methods import decode
from test_pld import cycle_target

from model.common import args as arguments
from model.common.contract.drafter import Draft, EmptyDrafter, Needs
from model.common.errors import BadInput
from model.common.loop import verify
from model.common.loop.sampling import Sampler, warp
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.nasd import inference_nasd
from model.nasd.drafter import NASDDrafter, NASDRow, NGramStore, likely

STEADY = Sampler()


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


@pytest.fixture(scope="module")
def baseline(target):
    """Vanilla's answers to ragged prompts, two of them repetitive."""
    prompts = [*make_prompts(4), [7, 8, 9] * 6, [3]]
    return prompts, decode(target, EmptyDrafter(), prompts, StopRules(), 24)[0]


def text_store(ids, n, min_context=1):
    """A store that has read a text."""
    row = NASDRow(n, min_context, 5)
    row.start(ids)
    return row.store


def draft(ids, n, num_draft, min_context=1):
    row = NASDRow(n, min_context, num_draft)
    row.start(ids)
    return row.propose()


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
        row = NASDRow(n, min_context, 6)
        ids = [dice.randrange(letters) for _ in range(dice.randint(1, 15))]
        row.start(list(ids))
        events = text_events(ids)
        for _ in range(3):
            new = [dice.randrange(letters) for _ in range(dice.randint(1, 4))]
            fillers = [dice.sample(range(letters), 2) for _ in new]
            row.observe(new, fillers)
            for token, best in zip(new, fillers):
                events += [(list(ids), [token]), (list(ids), best)]
                ids.append(token)
        counts, best = recount(events, n, min_context)
        assert row.store.counts == counts
        assert row.store.best == best
        text, expected = list(ids), []
        while len(expected) < 6:
            known = [tuple(text[-size:]) for size in range(n - 1, min_context - 1, -1)]
            known = [context for context in known if context in best]
            if not known:
                break
            expected.append(best[known[0]])
            text.append(expected[-1])
        assert row.propose() == expected == row.propose()


@pytest.mark.parametrize("settings", [(0.7, 0, 1.0), (1.0, 0, 0.8), (1.3, 2, 1.0), (1.0, 5, 0.6)])
def test_likely_tokens_are_what_the_sampler_leaves(settings):
    temperature, top_k, top_p = settings
    logits = torch.randn(200, 11, generator=torch.Generator().manual_seed(3)) * 2
    ids = likely(logits, 4, Sampler(temperature, top_k, top_p))
    probs = warp(logits, temperature, top_k, top_p)
    values, best = probs.topk(4, dim=-1)
    assert torch.equal(ids, best.masked_fill(values == 0, -1))
    assert (ids[:, 0] >= 0).all()
    assert torch.equal(likely(logits, 4, STEADY), logits.topk(4).indices)
    assert likely(logits, 40, STEADY).shape == (200, 11)


def test_rejected_drafts_leave_no_trace(target):
    for prompt in ([7, 8, 9] * 6, make_prompts(2)[1]):
        drafter = NASDDrafter(n=4, filler_top_k=3)
        ids, _ = decode(target, drafter, [prompt], StopRules(), 24)
        row = drafter.active[0]
        text = row.ids  # the last step is observed whole, beyond the limit
        assert text[: len(prompt) + 24] == prompt + ids[0] and len(text) - len(prompt) - 24 < 6
        best = target.prefill(torch.tensor([text]), [len(text)], 64, Needs(prompt_topk=3)).topk[0]
        events = text_events(text[: len(prompt) + 1])
        for end in range(len(prompt) + 1, len(text)):
            events += [(text[:end], [text[end]]), (text[:end], best[end - 1].tolist())]
        assert (row.store.counts, row.store.best) == recount(events, 4, 1)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("n, filler_top_k", [(2, 1), (2, 3), (3, 3), (4, 1), (5, 3)])
def test_ids_equal_vanilla(target, baseline, n, filler_top_k, batch):
    prompts, expected = baseline
    drafter = NASDDrafter(n=n, filler_top_k=filler_top_k)
    ids, accepted = decode(target, drafter, prompts, StopRules(), 24, batch)
    assert ids == expected
    assert [1 + sum(lengths) for lengths in accepted] == [24] * len(prompts)


@pytest.mark.parametrize("filler_top_k", [1, 3])
def test_sampled_ids_equal_vanilla(target, filler_top_k):
    prompts, sampler = make_prompts(4), Sampler(1.0, top_p=0.8)
    expected, _ = decode(target, EmptyDrafter(), prompts, StopRules(), 20, 1, sampler)
    for batch in (1, 4):
        drafter = NASDDrafter(filler_top_k=filler_top_k)
        assert decode(target, drafter, prompts, StopRules(), 20, batch, sampler)[0] == expected


def test_a_draft_of_probability_half_comes_out_half_the_time():
    num = 20_000
    logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().expand(num, 2, 3)
    uniforms = torch.rand(num, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    guess = draft([0, 1, 0, 1], 2, 1)  # 0
    proposal = Draft.chain(torch.tensor(guess).expand(num, 1))
    accepted = verify.token_matching(logits, proposal, Sampler(1.0).warp, uniforms)
    share = (accepted.tokens[:, 0] == 0).double().mean()
    assert abs(share - 0.5) < 3 * (0.25 / num) ** 0.5


def test_cold_forgets_and_warm_keeps(target):
    prompts = [*make_prompts(3), [7, 8, 9] * 6]

    def lengths(drafter, order):
        return {i: decode(target, drafter, [prompts[i]], StopRules(), 24)[1][0] for i in order}

    cold, again = NASDDrafter(), range(4)
    assert lengths(cold, again) == lengths(cold, reversed(again)) == lengths(cold, again)
    warm = NASDDrafter(warm=True)
    first, second = lengths(warm, again), lengths(warm, again)
    assert all(len(second[i]) <= len(first[i]) for i in again)
    assert sum(map(len, second.values())) < sum(map(len, first.values()))


def test_a_warm_store_is_one_for_all_rows(target):
    drafter = NASDDrafter(warm=True)
    decode(target, drafter, make_prompts(4), StopRules(), 8, 4)
    assert len({id(row.store) for row in drafter.rows}) == 1
    cold = NASDDrafter()
    decode(target, cold, make_prompts(4), StopRules(), 8, 4)
    assert len({id(row.store) for row in cold.rows}) == 4


@pytest.mark.parametrize("eos, lengths", [(3, []), (4, [1]), (6, [3]), (8, [5]), (9, [6])])
def test_eos_in_a_draft_stops_right_there(eos, lengths):
    target, stop = cycle_target(), StopRules(frozenset({eos}))
    ids, accepted = decode(target, NASDDrafter(), [[*range(61), 0, 1, 2]], stop, 30)
    assert ids[0] == [*range(3, eos + 1)]
    assert accepted[0] == lengths


def test_limit_cuts_a_draft():
    ids, accepted = decode(cycle_target(), NASDDrafter(), [[*range(61), 0, 1, 2]], StopRules(), 9)
    assert ids[0] == [*range(3, 12)]
    assert accepted[0] == [6, 2]


def test_static_shapes_are_padded_and_rows_end_inert():
    drafter = NASDDrafter(num_draft=3, pad_to=3)
    rows = [[1, 2, 3, 4, 1], [5, 6], [2, 2]]
    prefill = SimpleNamespace(tokens=torch.zeros(1), host_ids=rows)
    drafter.start(prefill, [], STEADY)
    assert drafter.propose().tokens.tolist() == [[2, 3, 4], [-1, -1, -1], [2, 2, 2]]
    assert drafter.shapes() == [(0, None, 0), (3, None, 0)]


@pytest.mark.parametrize("batch", [1, 3])
def test_fillers_of_committed_rows_only(batch):
    drafter = NASDDrafter(n=2, filler_top_k=2)
    prefill = SimpleNamespace(tokens=torch.zeros(1), host_ids=[[1, 5]] * batch)
    drafter.start(prefill, [], STEADY)
    logits = torch.zeros(batch, 3, 9)
    for row, (first, second) in enumerate([(6, 7), (7, 8), (8, 2)]):
        logits[:, row, first], logits[:, row, second] = 2.0, 1.0
    committed = [[6, 7], [6], []][:batch]
    drafter.observe(SimpleNamespace(host_ids=committed, logits=logits))
    stores = [row.store.counts for row in drafter.active]
    assert stores[0] == {(1,): {5: 1}, (5,): {6: 2, 7: 1}, (6,): {7: 2, 8: 1}}
    assert stores[1:] == [{(1,): {5: 1}, (5,): {6: 2, 7: 1}}, {(1,): {5: 1}}][: batch - 1]


@pytest.mark.parametrize("flags", [["--n", "1"], ["--num-draft", "0"], ["--filler-top-k", "x"]])
def test_flags_out_of_range(flags, capsys):
    parser = arguments.make_parser("nasd", inference_nasd.__doc__, inference_nasd.add_args)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--model-path", "x", *flags])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("min_context", [4, 7])
def test_min_context_has_to_be_below_n(min_context):
    with pytest.raises(BadInput, match=f"--min-context {min_context} is not below --n 4"):
        NASDDrafter(n=4, min_context=min_context)
