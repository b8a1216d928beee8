"""SpecDec++ keeps the target's law whatever its head says; a rule that peeks does not."""

import pytest
import torch
from laws import LEVEL
from specdecpp_dirs import make_head
from tiny_laws import COOL, FULL, NUCLEUS, answer_law, fits, sampled, tiny

from model.common.contract.drafter import Draft
from model.specdecpp.drafter import SpecDecPPDrafter


@pytest.fixture(scope="module")
def target():
    return tiny(0, 2)


@pytest.fixture(scope="module")
def draft():
    return tiny(1, 1)


@pytest.fixture(scope="module")
def plain():
    model = tiny(0, 2).model
    model.set_attn_implementation("eager")
    return model


def flat(states):
    """A head that says the same of every token."""
    return torch.full((len(states),), 0.7)


def steep(states):
    """A head that is certain of everything, and right by chance only."""
    return (states[:, 0] > 0).float()


RANDOM = make_head(16, 3, True, scale=0.5, lean=0.5).accepted


@pytest.mark.parametrize(
    "head, settings, bounds",
    [(flat, FULL, (1, 4)), (RANDOM, NUCLEUS, (1, 4)), (steep, COOL, (2, 4))],
    ids=["constant", "random", "adversarial"],
)
def test_any_head_keeps_the_law(target, draft, plain, head, settings, bounds):
    drafter = SpecDecPPDrafter(draft, target, head, 0.45, bounds)
    answers, mean = sampled(target, drafter, settings, batches=6)
    assert 1.2 < mean < 3
    assert min(fits(answers, answer_law(plain, 5, settings))) > LEVEL


class Peeking(SpecDecPPDrafter):
    """A fault: a token that its own probability makes doubtful is taken out again."""

    def propose(self):
        draft = super().propose()
        if draft.probs is None:  # empty
            return draft
        index = draft.tokens.clamp(min=0).unsqueeze(2)
        doubtful = draft.probs.gather(2, index).squeeze(2) < 0.3
        tokens = draft.tokens.masked_fill(doubtful.cumsum(1) > 0, -1)
        return Draft(tokens, probs=draft.probs)


def test_a_rule_that_peeks_is_seen(target, draft, plain):
    drafter = Peeking(draft, target, flat, 0.45, (1, 4))
    answers, _ = sampled(target, drafter, FULL, batches=3)
    assert min(fits(answers, answer_law(plain, 5, FULL))) < LEVEL


def test_a_cut_before_a_token_it_looked_at_is_seen(target, draft, plain):
    class Cutting(SpecDecPPDrafter):
        def propose(self):
            draft = super().propose()
            if draft.probs is None:  # empty
                return draft
            odd = (draft.tokens % 2 == 1).cumsum(1) > 0
            return Draft(draft.tokens.masked_fill(odd, -1), probs=draft.probs)

    drafter = Cutting(draft, target, flat, 0.45, (1, 4))
    answers, _ = sampled(target, drafter, FULL, batches=3)
    assert min(fits(answers, answer_law(plain, 5, FULL))) < LEVEL
