"""SpecExec's SpecInfer mode: its drafts' laws, and the law of what is sampled with them."""

import pytest
import torch
from conftest import make_model, make_prompts
from laws import LEVEL, count_words, p_value
from specexec_slow import Recording, next_logits, paths_of, plain
from test_decode_law import COOL, FULL, NUCLEUS, PROMPT, V, answer_law, fits, sampled, tiny

from model.common.contract.drafter import Draft, EmptyDrafter
from model.common.loop import verify
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler, seed_of
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.specexec.drafter import SpecExecDrafter
from model.specexec.flags import Shape
from model.specexec.reader import TreeReader
from model.specexec.specinfer import SpecInferDrafter, without_replacement


@pytest.fixture(scope="module")
def target():
    return tiny(0, 2)


@pytest.fixture(scope="module")
def draft():
    return tiny(1, 1)


@pytest.fixture(scope="module")
def model():
    return plain(tiny(0, 2).model)


def specinfer_drafter(draft, target, beams=3, length=3, **more):
    return SpecInferDrafter(TreeReader(draft, target), Shape(beams, length, beams * length, **more))


def test_ordered_draws_follow_their_law():
    law = torch.tensor([0.6, 0.3, 0.1, 0.0])
    num = 60000
    uniforms = torch.rand(num, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tokens, laws = without_replacement(law.expand(num, -1), uniforms, 2)
    exact = torch.zeros(4, 4, dtype=torch.float64)
    for first in range(3):
        for second in range(3):
            if first != second:
                exact[first, second] = law[first] * law[second] / (1 - law[first])
    assert p_value(count_words(tokens, 4), exact.flatten()) > LEVEL
    left = law.expand(num, -1).scatter(1, tokens[:, :1], 0.0)
    assert torch.allclose(laws[:, 0], law.expand(num, -1))
    assert torch.allclose(laws[:, 1], left / left.sum(1, keepdim=True))


def test_more_draws_than_tokens_are_inert():
    tokens, laws = without_replacement(torch.tensor([[0.5, 0.5, 0.0]]), torch.rand(1, 3), 3)
    assert sorted(tokens[0].tolist()) == [-1, 0, 1] and tokens[0, 2] == -1
    assert laws[0, 2].sum() == 0


@pytest.mark.parametrize("repeat, hidden", [(False, False), (True, False), (False, True)])
def test_worked_example(repeat, hidden):
    """p = (.2, .5, .3), q = (.6, .3, .1), two draws: p comes out, with and without repeats.

    Hidden, a fault: the second draw's law is stated as if there had been no first.
    """
    p, q, num = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.6, 0.3, 0.1]), 60000
    generator = torch.Generator().manual_seed(2)
    uniforms = torch.rand(num, 4, dtype=torch.float64, generator=generator)
    wide = q.expand(num, -1)
    tokens, laws = without_replacement(wide, uniforms[:, :3], 2)
    if hidden:
        laws = laws[:, :1].expand(-1, 2, -1)
    if repeat:
        tokens = torch.multinomial(q, 2 * num, True, generator=generator).view(num, 2)
        laws = torch.stack([wide, wide], 1)
    chance = torch.rand(num, 2, dtype=torch.float64, generator=generator)
    guess = Draft(tokens, torch.tensor([-1, -1]), 1, laws)
    logits = p.log().expand(num, 3, 3)
    accepted = verify.multi_round(logits, guess, lambda logits: logits.softmax(-1), chance)
    found = p_value(count_words(accepted.tokens[:, :1], 3), p)
    assert found < LEVEL if hidden else found > LEVEL


@pytest.mark.parametrize(
    "settings, more",
    [
        (FULL, {}),
        (NUCLEUS, {"replacement": True}),
        (COOL, {"beams": 2, "length": 4, "temperature": 1.5}),
        (FULL, {"beams": 1}),
        (NUCLEUS, {"beams": 11, "length": 2}),
    ],
    ids=str,
)
def test_sampled_answers_keep_the_law(target, draft, model, settings, more):
    answers, mean = sampled(target, specinfer_drafter(draft, target, **more), settings, batches=3)
    assert 1.2 < mean < 4
    assert min(fits(answers, answer_law(model, 5, settings))) > LEVEL


class Guessing(SpecInferDrafter):
    """A fault: the rule is told of other laws than those drawn from."""

    def _next(self, logits, level):
        tokens, law = super()._next(logits, level)
        return tokens, torch.full_like(law, 1 / V)


def test_faults_are_seen(target, draft, model):
    drafter = Guessing(TreeReader(draft, target), Shape(3, 3, 9, temperature=0.5))
    answers, _ = sampled(target, drafter, FULL, batches=4)
    assert min(fits(answers, answer_law(model, 5, FULL))) < LEVEL


def test_the_tree_mode_keeps_the_law(target, draft, model):
    drafter = SpecExecDrafter(TreeReader(draft, target), Shape(4, 4, 16, 4))
    answers, mean = sampled(target, drafter, NUCLEUS, batches=2)
    assert mean > 1.3
    assert min(fits(answers, answer_law(model, 5, NUCLEUS))) > LEVEL


def test_chains_come_from_the_stated_laws(target, draft):
    recording = Recording(specinfer_drafter(draft, target, temperature=0.7))
    sampler, law_of = Sampler(1.0), plain(draft.model)
    generate(target, recording, [PROMPT, PROMPT + [5]], sampler, [3, 4], StopRules(), 9)
    compared = 0
    for row, committed, room, guess in recording.drafts:
        nodes = iter(range(guess.tokens.shape[1]))
        firsts = guess.tokens[row, :3].tolist()
        assert len(set(firsts)) == 3 or room == 0
        for path in paths_of(guess, row):
            node = next(nodes)
            if len(path) == 1:
                continue
            logits = next_logits(law_of, committed + list(path[:-1]))
            expected = (logits / 0.7).softmax(-1)
            assert torch.allclose(guess.probs[row, node], expected, atol=1e-4)
            assert guess.probs[row, node, path[-1]] > 0
            compared += 1
    assert compared >= 20


@pytest.mark.parametrize("beams", [1, 4])
def test_answers_do_not_depend_on_the_batch(beams):
    target, draft = Target(make_model()), Target(make_model(seed=1, num_hidden_layers=1))
    prompts, seeds = make_prompts(4), [seed_of(0, row, 0, 0) for row in range(4)]
    drafter = specinfer_drafter(draft, target, beams, 4)
    for sampler in (Sampler(1.0, top_p=0.95), Sampler()):
        together = generate(target, drafter, prompts, sampler, seeds, StopRules(), 20)
        for prompt, seed, turn in zip(prompts, seeds, together):
            alone = generate(target, drafter, [prompt], sampler, [seed], StopRules(), 20)[0]
            assert alone.output_ids == turn.output_ids
            assert alone.accept_lengths == turn.accept_lengths
            if sampler.greedy:
                base = generate(target, EmptyDrafter(), [prompt], sampler, [0], StopRules(), 20)
                assert base[0].output_ids == turn.output_ids


def test_a_perfect_draft_is_accepted_whole():
    target, draft = Target(make_model()), Target(make_model())
    prompts = make_prompts(4)
    for beams, sampler in ((1, Sampler(1.0)), (3, Sampler(1.0)), (3, Sampler())):
        drafter = specinfer_drafter(draft, target, beams, 4)
        turns = generate(target, drafter, prompts, sampler, [5, 6, 7, 8], StopRules(), 31)
        assert [turn.accept_lengths for turn in turns] == [[5] * 6] * 4
        assert all(turn.drafted[0] == 4 * beams for turn in turns)
