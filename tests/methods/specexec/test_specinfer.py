"""SpecInfer's chains: the laws they are drawn from, and the law of what is sampled with them."""

import pytest
import torch
from conftest import make_model, make_prompts
from draft_models import next_logits, plain
from laws import LEVEL, count_words, p_value
from oracle import decode
from recording import Recording
from specexec_slow import live_paths
from tiny_laws import COOL, FULL, NUCLEUS, PROMPT, V, answer_law, fits, plain_model, sampled, tiny

from model.common.contract.drafter import Draft
from model.common.contract.trees import Tree
from model.common.loop import verify
from model.common.loop.sampling import Sampler, seed_of
from model.common.target.model import Target
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
    return plain_model()


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
    guess = Draft(tokens, Tree(torch.tensor([-1, -1]), 1), laws)
    logits = p.log().expand(num, 3, 3)
    accepted = verify.multi_round(logits, guess, lambda logits: logits.softmax(-1), chance)
    found = p_value(count_words(accepted.tokens[:, :1], 3), p)
    assert found < LEVEL if hidden else found > LEVEL


@pytest.mark.parametrize(
    "settings, more",
    [
        (FULL, {"replacement": True}),
        (COOL, {"beams": 2, "length": 4, "temperature": 1.5}),
        (NUCLEUS, {"beams": 11, "length": 2}),
    ],
    ids=str,
)
def test_sampled_answers_keep_the_law(target, draft, model, settings, more):
    """With what the conformance tests leave out."""
    answers, mean = sampled(target, specinfer_drafter(draft, target, **more), settings, batches=3)
    assert 1.2 < mean < 4
    assert min(fits(answers, answer_law(model, 5, settings))) > LEVEL


def test_chains_come_from_the_stated_laws(target, draft):
    drafter = specinfer_drafter(draft, target, temperature=0.7)
    recording, law_of, compared = Recording(drafter), plain(draft.model), 0
    decode(target, recording, [PROMPT, PROMPT + [5]], 9, Sampler(1.0), seeds=[3, 4])
    for one in recording.drafts:
        firsts = one.tokens[:3]
        assert len(set(firsts)) == len(firsts) or set(firsts) == {-1}
        for node, path in enumerate(live_paths(one.tokens, one.parents)):
            if len(path) == 1:
                continue
            logits = next_logits(law_of, one.ids + list(path[:-1]))
            assert torch.allclose(one.probs[node], (logits / 0.7).softmax(-1), atol=1e-4)
            assert one.probs[node, path[-1]] > 0
            compared += 1
    assert compared >= 20


@pytest.mark.parametrize("replacement", [False, True])
def test_chains_are_drawn_at_temperature_0_too(target, draft, replacement):
    """Of one text under many seeds: the first two levels of a chain have the draft's law."""
    drafter = specinfer_drafter(draft, target, 3, 2, temperature=0.7, replacement=replacement)
    recording, num = Recording(drafter), 4000
    seeds = [seed_of(0, row, 0, 0) for row in range(num)]
    turns = decode(target, recording, [PROMPT] * num, 4, seeds=seeds)
    root, first = turns[0].output_ids[0], recording.drafts[:num]  # of the first step
    assert first[0].probs is None and len({tuple(turn.output_ids) for turn in turns}) == 1
    tokens = torch.tensor([one.tokens for one in first])
    laws = plain(draft.model)
    law = (next_logits(laws, [*PROMPT, root]) / 0.7).softmax(-1).double()
    after = [(next_logits(laws, [*PROMPT, root, t]) / 0.7).softmax(-1).double() for t in range(V)]
    words = tokens[:, [0, 3]]  # the first chain
    if not replacement:
        assert all(len(set(row)) == 3 for row in tokens[:, :3].tolist())
    exact = (law.unsqueeze(1) * torch.stack(after)).flatten()
    assert p_value(count_words(words, V), exact) > LEVEL
    assert p_value(count_words(words, V), exact.view(V, V).T.flatten()) < LEVEL


def test_best_chains_are_the_draft_models_best(target, draft):
    """Its best first tokens, each continued by the best ones, under any sampler."""
    law_of = plain(draft.model)
    for sampler in (Sampler(), Sampler(1.0)):
        recording = Recording(specinfer_drafter(draft, target, 3, 4, best=True))
        decode(target, recording, [PROMPT, PROMPT + [5]], 9, sampler)
        assert all(one.probs is None for one in recording.drafts)
        deep = [one for one in recording.drafts if len(one.tokens) == 12 and -1 not in one.tokens]
        assert len(deep) >= 4
        for one in deep:
            paths = [[t] for t in next_logits(law_of, one.ids).topk(3).indices.tolist()]
            for path in paths:
                while len(path) < 4:
                    path.append(int(next_logits(law_of, one.ids + path).argmax()))
            assert live_paths(one.tokens, one.parents)[-3:] == [tuple(path) for path in paths]


def test_a_perfect_draft_is_accepted_whole():
    target, draft = Target(make_model()), Target(make_model())
    for beams, sampler in ((1, Sampler(1.0)), (3, Sampler(1.0)), (3, Sampler())):
        drafter = specinfer_drafter(draft, target, beams, 4, best=sampler.greedy)
        turns = decode(target, drafter, make_prompts(4), 31, sampler, seeds=[5, 6, 7, 8])
        assert [turn.accept_lengths for turn in turns] == [[5] * 6] * 4
        assert all(turn.drafted[0] == 4 * beams for turn in turns)
