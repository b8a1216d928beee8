"""Which accept lengths several witnesses of one answer allow."""

import itertools
import random

import pytest

from model.engine.evidence import Totals, place, run_contradiction, weigh


def known(found, source, *checked):
    """The accept lengths of a Finding whose evidence is as named."""
    assert found.evidence == {"source": source, "checked": list(checked), "disagree": None}
    return found.accept_lengths


def test_listed_steps_stand_among_those_without_a_draft():
    listed = [2, 3], [4, 4]
    found = weigh([1, 3, 1, 4], 9, listed, Totals(5, 2), Totals(5, 2))
    assert known(found, "per_step", "summary", "usage", "counters") == [3, 1, 4]
    assert found.drafted == [4, 0, 4] and found.steps == 3


def test_an_event_may_hold_several_steps():
    found = weigh([4, 5], 9, ([2, 3], [4, 4]))
    assert known(found, "per_step", "usage") == [3, 4, 1]
    plain = weigh([1, 2, 3], 6, None, None, Totals(0, 0))
    assert known(plain, "usage", "counters") == [1, 1, 1, 1, 1]


def test_a_step_is_never_in_two_events():
    found = weigh([1, 1, 1, 1], 4, ([2, 0], [4, 4]))
    assert found.accept_lengths is None and found.steps is None
    assert "steps of 3, 1 tokens, events of 1, 1, 1" in found.evidence["disagree"]
    fewer = weigh([1, 1, 1, 1], 4, None, Totals(2, 1))
    assert fewer.evidence["disagree"] and fewer.accept_lengths is None


def test_the_last_step_may_have_been_cut():
    assert known(weigh([1, 3, 2], 6, ([2, 3], [4, 4])), "per_step", "usage") == [3, 2]
    assert known(weigh([1, 3, 2], 6, None, Totals(5, 2, 4)), "summary", "usage") == [3, 2]
    assert weigh([1, 3, 2], 6, None, Totals(9, 2, 4)).evidence["disagree"]


def test_totals_that_differ_leave_no_accept_lengths():
    found = weigh([1, 3, 2], 6, ([2, 1], [4, 4]), Totals(3, 2), Totals(4, 2))
    assert found.accept_lengths is None
    assert found.evidence["disagree"].startswith("per_step: 3 drafted tokens accepted in 2 steps; ")
    assert "counters: 4 " in found.evidence["disagree"]
    assert weigh([1, 3, 2], 6, None, Totals(3, 2), Totals(3, 3)).evidence["disagree"]


def test_totals_alone_give_the_number_of_steps():
    found = weigh(None, 9, None, Totals(4, None))
    assert found.accept_lengths is None and found.steps == 4
    merged = weigh([1, 8], 9, None, Totals(4, 3))
    assert merged.steps == 4 and merged.evidence["source"] == "summary"
    assert merged.evidence["checked"] == []


def test_events_alone_are_no_steps():
    """One of several tokens may be several steps: nobody knows."""
    for grown in ([1, 2, 1, 3], None):
        found = weigh(grown, 7)
        assert found.evidence is None and found.accept_lengths is None and found.steps is None


def test_a_server_that_never_drafts_has_steps_of_one_token():
    assert known(weigh([1, 2, 1, 3], 7, plain=True), "usage", "plain") == [1] * 6
    assert known(weigh(None, 7, plain=True), "plain") == [1] * 6
    found = weigh([1, 2, 1, 3], 7, None, Totals(2, 1), plain=True)
    assert found.accept_lengths is None and found.accepted is None
    assert found.evidence["disagree"] == (
        "summary: 2 drafted tokens accepted in 1 steps; plain: 0 drafted tokens accepted in 0 steps"
    )


def test_a_run_is_held_to_the_counters_over_it():
    assert weigh([1, 3, 2], 6, None, Totals(5, 2, 4)).accepted == 5  # two behind the end
    assert run_contradiction([5, 0, 4], Totals(9, 5)) is None
    assert run_contradiction([5, None, 4], Totals(7, 5)) is None  # one that nobody knows
    assert run_contradiction([5, 0, 4], None) is None
    assert run_contradiction([5, 0, 4], Totals(8, 5)) == (
        "the run's answers: 9 drafted tokens accepted;"
        " counters: 8 drafted tokens accepted in 5 steps"
    )


def test_an_answer_of_one_token_has_no_step():
    assert known(weigh([1], 1, ([], [])), "per_step", "usage") == []
    assert known(weigh([1], 1, None, Totals(0, 0)), "summary", "usage") == []
    assert known(weigh([1], 1, plain=True), "usage", "plain") == []


def slow_place(groups, lengths):
    """Whether any sequence of steps has the lengths in order and fills every group."""
    total = sum(groups)
    cuts = {sum(groups[: n + 1]) for n in range(len(groups))}
    for cut in range(lengths[-1] if lengths else 1):
        steps = [*lengths[:-1], lengths[-1] - cut] if lengths else []
        plain = total - sum(steps)
        if plain < 0:
            continue
        for places in itertools.combinations(range(len(steps) + plain), len(steps)):
            if cut and places[-1] != len(steps) + plain - 1:
                continue
            row = [1] * (len(steps) + plain)
            for place_of, length in zip(places, steps):
                row[place_of] = length
            if cuts <= set(itertools.accumulate(row)):
                return True
    return False


@pytest.mark.parametrize("seed", range(20))
def test_placing_finds_what_trying_everything_finds(seed):
    chance = random.Random(seed)
    for _ in range(30):
        groups = [chance.randint(1, 4) for _ in range(chance.randint(1, 4))]
        lengths = [chance.randint(1, 4) for _ in range(chance.randint(0, 4))]
        found = place(groups, lengths)
        assert (found is not None) == slow_place(groups, lengths), (groups, lengths)
        if found is None:
            continue
        steps = [length for length, _ in found]
        cuts = set(itertools.accumulate(groups))
        assert cuts <= set(itertools.accumulate(steps)) and sum(steps) == sum(groups)
        own = [length for length, drafted in found if drafted]
        assert own[:-1] == lengths[:-1] and all(n == 1 for n, drafted in found if not drafted)
        assert len(own) == len(lengths) and (not own or 1 <= own[-1] <= lengths[-1])
        assert not own or own[-1] == lengths[-1] or found[-1] == (own[-1], True)
