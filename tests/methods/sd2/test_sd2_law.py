"""SD2's chain keeps the target's law by rejection; the published rule and a fault do not."""

import pytest
import torch
from draft_models import ScriptedModel
from laws import LEVEL, p_value
from steps import prompt_step
from tiny_laws import answer_law, fits, plain_model, sampled, tiny

from model.common.loop import verify
from model.common.loop.sampling import Sampler
from model.sd2.chain import SortedChainDrafter
from model.sd2.exits import SortedDraft

COOL_NUCLEUS = (0.6, 0, 0.9)


@pytest.fixture(scope="module")
def target():
    return tiny(0, 2)


@pytest.fixture(scope="module")
def plain():
    return plain_model()


def small_draft():
    """The target's weights with noise; its first layer alone is an exit."""
    draft, generator = tiny(0, 2), torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in draft.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return SortedDraft(draft, [1, 2], [0.4, 0.0])


def test_chains_keep_the_law(target, plain):
    drafter = SortedChainDrafter(small_draft(), target, "constant", 3, "sample")
    answers, mean = sampled(target, drafter, COOL_NUCLEUS, batches=3)
    assert 1.2 < mean < 3 and min(drafter.counts) > 1000
    assert min(fits(answers, answer_law(plain, 5, COOL_NUCLEUS))) > LEVEL


class Published(SortedChainDrafter):
    """The reference's rule: best tokens, accepted as if they had been drawn."""

    def _choose(self, logits, node):
        return logits.argmax(-1), self.sampler.warp(logits)


class Peeking(SortedChainDrafter):
    """A fault: a drawn token decides whether the draft goes deeper."""

    def _choose(self, logits, node):
        token, law = super()._choose(logits, node)
        drawn = law.gather(1, token.unsqueeze(1))
        return torch.where(drawn.squeeze(1) < 0.4, law.argmax(-1), token), law


@pytest.mark.parametrize("fault", [Published, Peeking])
def test_faults_are_seen(target, plain, fault):
    drafter = fault(small_draft(), target, "constant", 3, "sample")
    answers, _ = sampled(target, drafter, COOL_NUCLEUS, batches=2)
    assert min(fits(answers, answer_law(plain, 5, COOL_NUCLEUS))) < LEVEL


# --- three tokens: p = (.5, .3, .2), q = (.6, .3, .1) ---

P, Q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.6, 0.3, 0.1])
NUM = 20_000


class ThreeTokens(ScriptedModel):
    """A draft of three tokens that says q wherever it is asked."""

    vocab_size, exits, reads_per_row = 3, [1], 0

    def __init__(self):
        super().__init__(None)

    def forget(self):
        pass

    def read(self, tokens, live):
        return Q.log().expand(len(tokens), 1, 3), [0] * len(tokens)


def drafted(guess):
    """(NUM drafts of one token, the sampler of their slots)."""
    sampler = Sampler(temperature=1.0)
    sampler.reserve(NUM, "cpu")
    sampler.begin(list(range(NUM)), list(range(NUM)), [4] * NUM)
    drafter = SortedChainDrafter(ThreeTokens(), Three, "constant", 1, guess)
    drafter.reserve(NUM, 10, sampler)
    drafter.start(prompt_step([[0, 0, 0]] * NUM))
    return drafter.propose(), sampler


def first_tokens(draft, sampler):
    """The first token that each commits for a target that says p."""
    return verify.choose(sampler, draft)(P.log().expand(NUM, 2, 3)).tokens[:, 0]


class Three:
    """A target of three tokens."""

    vocab_size, device = 3, torch.device("cpu")


@pytest.mark.parametrize("guess", ["sample", "argmax"])
def test_three_tokens(guess):
    tokens = first_tokens(*drafted(guess))
    assert p_value(torch.bincount(tokens, minlength=3), P) > LEVEL


def test_three_tokens_as_published():
    """Best tokens under the rule for drawn ones give (5/6, 0, 1/6)."""
    draft, sampler = drafted("argmax")
    draft.probs = Q.expand(NUM, 1, 3)
    counts = torch.bincount(first_tokens(draft, sampler), minlength=3)
    assert p_value(counts, P) < LEVEL
    assert p_value(counts, torch.tensor([5 / 6, 0.0, 1 / 6])) > LEVEL
