"""SD2 samples the target's law, by rejection and by matching; the published rule does not."""

import pytest
import torch
from laws import LEVEL, p_value
from test_decode_law import NUCLEUS, TINY, answer_law, fits, sampled, tiny

from model.common.contract.drafter import Draft
from model.common.loop import verify
from model.common.loop.sampling import Sampler
from model.sd2.chain import SortedChainDrafter
from model.sd2.exits import SortedDraft
from model.sd2.tree import SortedTreeDrafter

COOL_NUCLEUS = (0.6, 0, 0.9)
THRESHOLDS = [0.4, 0.0]


@pytest.fixture(scope="module")
def target():
    return tiny(0, 2)


@pytest.fixture(scope="module")
def plain():
    model = tiny(0, 2).model
    model.set_attn_implementation("eager")
    return model


def small_draft(thresholds=THRESHOLDS):
    """The target's weights with noise; its first layer alone is an exit."""
    model, generator = tiny(0, 2).model, torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return SortedDraft(model, [1, 2], list(thresholds), "eager")


def chain(target, guess):
    return SortedChainDrafter(small_draft(), target, "constant", 3, guess)


@pytest.mark.parametrize(
    "guess, settings", [("sample", COOL_NUCLEUS), ("sample", NUCLEUS), ("argmax", COOL_NUCLEUS)]
)
def test_chains_keep_the_law(target, plain, guess, settings):
    drafter = chain(target, guess)
    answers, mean = sampled(target, drafter, settings, batches=3)
    assert 1.2 < mean < 3 and min(drafter.counts) > 1000
    assert min(fits(answers, answer_law(plain, 5, settings))) > LEVEL


def test_trees_keep_the_law(target, plain):
    drafter = SortedTreeDrafter(small_draft([0.45, 0.0]), TINY["vocab_size"], 6, 2, 2)
    answers, mean = sampled(target, drafter, COOL_NUCLEUS, batches=3)
    assert mean > 1.2 and int(drafter.counts.min()) > 1000
    assert min(fits(answers, answer_law(plain, 5, COOL_NUCLEUS))) > LEVEL


class Published(SortedChainDrafter):
    """The reference's rule: best tokens, accepted as if they had been drawn."""

    def _choose(self, logits, node):
        return logits.argmax(-1), self.sampler.warp(logits), None


class Peeking(SortedChainDrafter):
    """A fault: a drawn token decides whether the draft goes deeper."""

    def _choose(self, logits, node):
        token, law, sure = super()._choose(logits, node)
        drawn = law.gather(1, token.unsqueeze(1))
        return torch.where(drawn.squeeze(1) < 0.4, law.argmax(-1), token), law, sure


@pytest.mark.parametrize("fault", [Published, Peeking])
def test_faults_are_seen(target, plain, fault):
    drafter = fault(small_draft(), target, "constant", 3, "sample")
    answers, _ = sampled(target, drafter, COOL_NUCLEUS, batches=2)
    assert min(fits(answers, answer_law(plain, 5, COOL_NUCLEUS))) < LEVEL


# --- three tokens: p = (.5, .3, .2), q = (.6, .3, .1) ---

P, Q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.6, 0.3, 0.1])
NUM = 20_000


class ThreeTokens(SortedDraft):
    """A draft of three tokens that says q wherever it is asked."""

    def __init__(self):
        pass

    device, vocab_size, exits, reads_per_row = torch.device("cpu"), 3, [1], 0

    def forget(self):
        pass

    def read(self, tokens, live, num_scored=1):
        return Q.log().expand(len(tokens), 1, 3), [0] * len(tokens)


def first_tokens(guess):
    """The first token that NUM drafts of one token commit for a target that says p."""
    drafter = SortedChainDrafter(ThreeTokens(), Three, "constant", 1, guess)
    drafter.sampler = sampler = Sampler(temperature=1.0)
    sampler.start(list(range(NUM)), 4, "cpu")
    drafter.running = [True] * NUM
    drafter.lengths, drafter.left = [1] * NUM, []
    token, law, _ = drafter._choose(drafter._read(torch.zeros(NUM, 1, dtype=torch.long), 0), 0)
    draft = Draft.chain(token.unsqueeze(1), None if law is None else law.unsqueeze(1))
    logits = P.log().expand(NUM, 2, 3)
    return verify.choose(sampler, draft)(logits).tokens[:, 0], draft, sampler


class Three:
    """A target of three tokens."""

    vocab_size, static_shapes = 3, False


@pytest.mark.parametrize("guess", ["sample", "argmax"])
def test_three_tokens(guess):
    tokens, _, _ = first_tokens(guess)
    assert p_value(torch.bincount(tokens, minlength=3), P) > LEVEL


def test_three_tokens_as_published():
    """Best tokens under the rule for drawn ones give (5/6, 0, 1/6)."""
    _, draft, sampler = first_tokens("argmax")
    draft.probs = Q.expand(NUM, 1, 3)
    tokens = verify.choose(sampler, draft)(P.log().expand(NUM, 2, 3)).tokens[:, 0]
    counts = torch.bincount(tokens, minlength=3)
    assert p_value(counts, P) < LEVEL
    assert p_value(counts, torch.tensor([5 / 6, 0.0, 1 / 6])) > LEVEL
