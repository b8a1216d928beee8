"""SD2's chain commits the target's law; best tokens under the rule for drawn ones, as published, do
not. Three tokens: p = (.5, .3, .2), q = (.6, .3, .1)."""

from types import SimpleNamespace

import pytest
import torch
from draft_models import ScriptedModel
from laws import LEVEL, p_value
from steps import prompt_step

from model.common.loop import verify
from model.common.loop.sampling import Sampler
from model.sd2.chain import SortedChainDrafter

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


@pytest.mark.parametrize(
    "guess, published, law",
    [("sample", False, P), ("argmax", False, P), ("argmax", True, torch.tensor([5 / 6, 0, 1 / 6]))],
)
def test_three_tokens(guess, published, law):
    sampler, target = Sampler(temperature=1.0), SimpleNamespace(vocab_size=3, device="cpu")
    sampler.reserve(NUM, "cpu")
    sampler.begin(list(range(NUM)), list(range(NUM)), [4] * NUM)
    drafter = SortedChainDrafter(ThreeTokens(), target, "constant", 1, guess)
    drafter.reserve(NUM, 10, sampler)
    drafter.start(prompt_step([[0, 0, 0]] * NUM))
    draft = drafter.propose()
    if published:
        draft.probs = Q.expand(NUM, 1, 3)
    tokens = verify.choose(sampler, draft)(P.log().expand(NUM, 2, 3)).tokens[:, 0]
    counts = torch.bincount(tokens, minlength=3)
    assert p_value(counts, law) > LEVEL and (p_value(counts, P) < LEVEL) == published
