"""SpecInfer's chains: the laws they are drawn from, and the law of what is sampled with them."""

import pytest
import torch
from conftest import make_model, make_prompts
from laws import LEVEL, count_words, p_value
from oracle import decode, facts, outputs
from recording import Recording
from specexec_slow import live_paths, next_logits, plain
from tiny_laws import COOL, FULL, NUCLEUS, PROMPT, V, answer_law, fits, plain_model, sampled, tiny

from model.common.contract.drafter import Draft
from model.common.contract.sequence import EmptyDrafter
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
    """A fault: the rule is told of other laws than those drawn from, but for first tokens."""

    def _choose(self, logits, level):
        tokens, law = super()._choose(logits, level)
        return tokens, law if level == 0 else torch.full_like(law, 1 / V)


def test_faults_are_seen(target, draft, model):
    drafter = Guessing(TreeReader(draft, target), Shape(3, 3, 9, temperature=0.5))
    answers, _ = sampled(target, drafter, FULL, batches=4)
    assert min(fits(answers, answer_law(model, 5, FULL))) < LEVEL


class Keeping(SpecInferDrafter):
    """Keeps its drafts."""

    def reserve(self, num_slots, capacity, sampler):
        self.drafts = []
        super().reserve(num_slots, capacity, sampler)

    def propose(self):
        self.drafts.append(super().propose())
        return self.drafts[-1]


def test_chains_come_from_the_stated_laws(target, draft):
    drafter, drafted = Keeping(TreeReader(draft, target), Shape(3, 3, 9, temperature=0.7)), []
    recording = Recording(drafter, lambda own, one: drafted.append((one, own.drafts[-1])))
    decode(target, recording, [PROMPT, PROMPT + [5]], 9, Sampler(1.0), seeds=[3, 4])
    law_of, compared = plain(draft.model), 0
    for one, guess in drafted:
        nodes = iter(range(len(one.tokens)))
        firsts = one.tokens[:3]
        assert len(set(firsts)) == len(firsts) or set(firsts) == {-1}
        for path in live_paths(one.tokens, one.parents):
            node = next(nodes)
            if len(path) == 1:
                continue
            logits = next_logits(law_of, one.ids + list(path[:-1]))
            expected = (logits / 0.7).softmax(-1)
            assert torch.allclose(guess.probs[one.slot, node], expected, atol=1e-4)
            assert guess.probs[one.slot, node, path[-1]] > 0
            compared += 1
    assert compared >= 20


@pytest.mark.parametrize("replacement", [False, True])
def test_chains_are_drawn_at_temperature_0_too(target, draft, replacement):
    """Of one text under many seeds: the first two levels of a chain have the draft's law."""
    shape = Shape(3, 2, 6, temperature=0.7, replacement=replacement)
    drafter, num = Keeping(TreeReader(draft, target), shape), 4000
    seeds = [seed_of(0, row, 0, 0) for row in range(num)]
    turns = decode(target, drafter, [PROMPT] * num, 4, seeds=seeds)
    first, root = drafter.drafts[0], turns[0].output_ids[0]
    assert first.probs is None and len({tuple(turn.output_ids) for turn in turns}) == 1
    laws = plain(draft.model)
    law = (next_logits(laws, [*PROMPT, root]) / 0.7).softmax(-1).double()
    after = [(next_logits(laws, [*PROMPT, root, t]) / 0.7).softmax(-1).double() for t in range(V)]
    words = first.tokens[:, [0, 3]]  # the first chain
    if not replacement:
        assert all(len(set(row)) == 3 for row in first.tokens[:, :3].tolist())
    exact = (law.unsqueeze(1) * torch.stack(after)).flatten()
    assert p_value(count_words(words, V), exact) > LEVEL
    assert p_value(count_words(words, V), exact.view(V, V).T.flatten()) < LEVEL


def test_best_chains_are_the_draft_models_best(target, draft):
    """Its best first tokens, each continued by the best ones, under any sampler."""
    law_of = plain(draft.model)
    for sampler in (Sampler(), Sampler(1.0)):
        drafter = Keeping(TreeReader(draft, target), Shape(3, 4, 12, best=True))
        recording = Recording(drafter)
        decode(target, recording, [PROMPT, PROMPT + [5]], 9, sampler)
        assert all(one.probs is None for one in drafter.drafts)
        deep = [one for one in recording.drafts if len(one.tokens) == 12 and -1 not in one.tokens]
        assert len(deep) >= 4
        for one in deep:
            paths = [[t] for t in next_logits(law_of, one.ids).topk(3).indices.tolist()]
            for path in paths:
                while len(path) < 4:
                    path.append(int(next_logits(law_of, one.ids + path).argmax()))
            assert live_paths(one.tokens, one.parents)[-3:] == [tuple(path) for path in paths]


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("beams", [1, 4])
def test_drafts_do_not_depend_on_the_slots(beams, best):
    """Nor do the ids of a greedy run depend on the seed that chains are drawn with."""
    target, draft = Target(make_model()), Target(make_model(seed=1, num_hidden_layers=1))
    prompts, seeds = make_prompts(4), [seed_of(0, row, 0, 0) for row in range(4)]
    drafter = specinfer_drafter(draft, target, beams, 4, best=best)
    base = outputs(decode(target, EmptyDrafter(), prompts, 20))
    for sampler in (Sampler(1.0, top_p=0.95), Sampler()):
        runs = [
            facts(decode(target, drafter, prompts, 20, sampler, seeds=seeds, num_slots=num_slots))
            for num_slots in (1, 2, 4)
        ]
        assert runs[0] == runs[1] == runs[2]
        if sampler.greedy:
            assert [ids for ids, *_ in runs[0]] == base
            other = decode(target, drafter, prompts, 20, sampler, seeds=[9, 8, 7, 6])
            assert outputs(other) == base and (facts(other) == runs[0]) == best


def test_a_perfect_draft_is_accepted_whole():
    target, draft = Target(make_model()), Target(make_model())
    for beams, sampler in ((1, Sampler(1.0)), (3, Sampler(1.0)), (3, Sampler())):
        drafter = specinfer_drafter(draft, target, beams, 4, best=sampler.greedy)
        turns = decode(target, drafter, make_prompts(4), 31, sampler, seeds=[5, 6, 7, 8])
        assert [turn.accept_lengths for turn in turns] == [[5] * 6] * 4
        assert all(turn.drafted[0] == 4 * beams for turn in turns)
