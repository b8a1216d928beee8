"""Whatever is drafted, the loop's ids are those of transformers' generate, in five families.

Drafters are scripted here; what every method keeps of it is in conformance/.
"""

import pytest
import torch
from conftest import FAMILIES, make_prompts
from oracle import (
    DRAFTERS,
    Chain,
    Gaps,
    Masks,
    StaticTree,
    Window,
    answers,
    decode,
    new_target,
    outputs,
)

from model.common.contract.sequence import EmptyDrafter

LIMIT = 24
DEPTHS = {Chain: 5, StaticTree: 4, Window: 4, Masks: 3, Gaps: 2}  # of the oracle's branch
BATCHES = [([0], 2), ([2], 99), ([0, 1, 2, 3], 3)]  # prompts, and how many tokens are told right


def prompts_of(rows):
    prompts = make_prompts(4)
    return [prompts[row] for row in rows]


def known_of(family, rows, dtype=torch.float32):
    known = answers(family, dtype)
    return [known[row] for row in rows]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def target(family):
    return new_target(family)


def test_references_are_worth_comparing(family):
    """Answers of many different tokens, four different ones, longer than window and bucket."""
    known = answers(family)
    assert all(len(set(ids)) >= 12 for ids in known)
    assert len({tuple(ids) for ids in known}) == 4
    window = FAMILIES[family].get("sliding_window", 0)
    assert len(make_prompts(4)[2]) > window and 33 + LIMIT < 64 < 33 + 40


@pytest.mark.parametrize("rows", [[0], [2], [0, 1, 2, 3]], ids=str)
def test_vanilla_is_transformers(family, target, rows):
    turns = decode(target, EmptyDrafter(), prompts_of(rows), 40)
    assert outputs(turns) == known_of(family, rows)
    assert all(turn.accept_lengths == [1] * 39 and turn.drafted == [0] * 39 for turn in turns)


@pytest.mark.parametrize("rows, right", BATCHES, ids=str)
@pytest.mark.parametrize("scripted", DRAFTERS[1:], ids=lambda kind: kind.__name__)
def test_drafts_change_nothing(family, target, scripted, rows, right):
    known = known_of(family, rows)
    turns = decode(target, scripted(known, right), prompts_of(rows), LIMIT)
    assert outputs(turns) == [ids[:LIMIT] for ids in known]
    for turn in turns:
        *steps, last = turn.accept_lengths
        if scripted in DEPTHS:
            full = 1 + min(right, DEPTHS[scripted])
            assert set(steps) == {full} and last <= full
        else:
            assert len({*steps, last}) > 1


@pytest.mark.parametrize("right", range(6))
@pytest.mark.parametrize("scripted", [Chain, StaticTree], ids=lambda kind: kind.__name__)
def test_an_oracle_of_k_tokens_commits_k_and_the_bonus(scripted, right):
    known = known_of("llama", [0, 1, 2, 3])
    turns = decode(new_target(), scripted(known, right), prompts_of(range(4)), 31)
    full = 1 + min(right, DEPTHS[scripted])
    steps, rest = divmod(30, full)
    wanted = [full] * steps + [rest] * (rest > 0)
    assert [turn.accept_lengths for turn in turns] == [wanted] * 4
