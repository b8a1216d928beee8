"""EAGLE's sampling: draws without replacement, and the law of whole answers."""

import itertools

import pytest
import torch
from conftest import make_model
from eagle_checks import config_dir
from eagle_dirs import eagle_dir
from laws import LEVEL, count_words, detectable, p_value
from tiny_laws import BATCH, PROMPT, TINY, answer_law

from model.common.contract.static_tree import StaticTree
from model.common.heads.vocabulary import DraftIds
from model.common.loop import verify
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler, draw, hashed_uniforms, seed_of, warp
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.eagle.drafter import StaticEagleDrafter, draw_distinct
from model.eagle.head import load_eagle

pytestmark = pytest.mark.slow

V, LENGTH, NUM_BATCHES = 5, 5, 6
DRAFTED = [0, 2, 4]
PATHS = [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0), (1, 0, 0)]
SETTINGS = {
    "T 0.5": (0.5, 0, 1.0),
    "T 1": (1.0, 0, 1.0),
    "T 1.5": (1.5, 0, 1.0),
    "top-p": (1.0, 0, 0.8),
    "T 1.5, top-p": (1.5, 0, 0.8),
}
GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, SplitMix64's increment


# --- draws without replacement ---


def grid(num, dim):
    """Midpoints of a grid over the unit cube, [num ** dim, dim]."""
    points = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    return torch.cartesian_prod(*[points] * dim)


@pytest.mark.parametrize("num, dim, near", [(400, 2, 2e-3), (60, 3, 4e-3)])
def test_draws_by_enumeration(num, dim, near):
    """Ordered draws from all uniforms: q(a) q(b) / (1 - q(a)) ..., and never one twice."""
    q = torch.tensor([0.35, 0.05, 0.3, 0.1, 0.2], dtype=torch.float64)
    uniforms = grid(num, dim)
    ids, given = draw_distinct(q.expand(len(uniforms), V), uniforms)
    law = torch.zeros(V**dim, dtype=torch.float64)
    for code, word in enumerate(itertools.product(range(V), repeat=dim)):
        left, chance = 1.0, float(len(set(word)) == dim)
        for token in word:
            chance *= q[token].item() / left
            left = max(left - q[token].item(), 1e-9)
        law[code] = chance
    found = count_words(ids, V).double() / len(ids)
    assert (found[law == 0] == 0).all() and abs(law.sum() - 1) < 1e-9
    assert (found - law).abs().max() < near
    assert torch.allclose(given.sum(-1), torch.ones(1, dtype=torch.float64))
    for j in range(dim):
        rest = q.repeat(len(ids), 1).scatter(1, ids[:, :j], 0.0)
        assert torch.allclose(given[:, j], rest / rest.sum(-1, keepdim=True))


def test_fewer_tokens_than_draws():
    """top-p leaves two tokens, or one: the draws behind them are inert and say nothing."""
    logits = torch.tensor([[0.5, 0.4, 0.06, 0.04], [0.95, 0.02, 0.02, 0.01]]).log()
    probs = warp(logits, 1.0, 0, 0.8)
    for uniform in (0.0, 0.3, 0.999, 1 - 2.0**-53):
        uniforms = torch.full((2, 4), uniform, dtype=torch.float64)
        ids, given = draw_distinct(probs, uniforms)
        assert sorted(ids[0].tolist()) == [-1, -1, 0, 1] and ids[0, 2:].tolist() == [-1, -1]
        assert ids[1].tolist() == [0, -1, -1, -1]
        assert (given[0, 2:] == 0).all() and (given[1, 1:] == 0).all()
        assert given[0, 1].max() == 1 and torch.isfinite(given).all()


# --- whole answers ---


def tiny():
    return make_model("llama", 0, 0.45, num_hidden_layers=2, **{**TINY, "vocab_size": V})


@pytest.fixture(scope="module")
def target():
    return Target(tiny())


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = config_dir(tmp_path_factory.mktemp("t"), hidden_size=16, vocab_size=V)
    widths = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24}
    return eagle_dir(tmp_path_factory.mktemp("eagle"), folder, scale=0.3, **widths)


@pytest.fixture(scope="module")
def head(target, path):
    return load_eagle(path, target)


@pytest.fixture(scope="module")
def small_head(target, path):
    """Drafts three of the five ids (--draft-vocab): the others are never proposed."""
    return load_eagle(path, target, torch.tensor(DRAFTED))


@pytest.fixture(scope="module")
def laws():
    """{settings: probability of every answer, [V] * LENGTH}"""
    model = tiny()
    model.set_attn_implementation("eager")
    return {
        name: answer_law(model, LENGTH, how).view([V] * LENGTH) for name, how in SETTINGS.items()
    }


def sampled(target, drafter, settings):
    """(answers [n, LENGTH], accept lengths), each answer with a seed of its own."""
    turns = []
    for number in range(NUM_BATCHES):
        seeds = [seed_of(0, number * BATCH + row, 0, 0) for row in range(BATCH)]
        given = [PROMPT] * BATCH, Sampler(*settings), seeds, StopRules(), LENGTH
        turns += generate(target, drafter, *given)
    lengths = [length for turn in turns for length in turn.accept_lengths]
    return torch.tensor([turn.output_ids for turn in turns]), lengths


def fits(answers, law):
    """p-values of the words of three tokens at the beginning, in the middle and at the end."""
    found = []
    for begin in range(LENGTH - 2):
        others = [axis for axis in range(LENGTH) if not begin <= axis < begin + 3]
        words = count_words(answers[:, begin : begin + 3], V)
        found.append(p_value(words, law.sum(others)))
    return found


def test_power():
    """A bias of 6 % in total variation of three tokens is found."""
    assert detectable(BATCH * NUM_BATCHES, V**3) < 0.06


def held_to_the_law(target, head, laws, name):
    """(answers, how many steps committed 0, 1, ... 4 tokens): 1 = no draft token was taken, 4 = a
    path of three to its leaf."""
    drafter = StaticEagleDrafter(head, StaticTree(PATHS, "cpu"))
    answers, lengths = sampled(target, drafter, SETTINGS[name])
    assert min(fits(answers, laws[name])) > LEVEL
    counts = torch.bincount(torch.tensor(lengths), minlength=5)
    assert counts[1] > 1000
    return answers, counts


@pytest.mark.parametrize("name", SETTINGS)
def test_the_law_is_the_targets(target, head, laws, name):
    counts = held_to_the_law(target, head, laws, name)[1]
    assert counts[4] > 100


@pytest.mark.parametrize("name", SETTINGS)
def test_the_law_with_a_draft_vocabulary(target, small_head, laws, name):
    answers, counts = held_to_the_law(target, small_head, laws, name)
    assert counts[4] > 50
    outside = torch.isin(answers, torch.tensor(DRAFTED)).logical_not().double().mean()
    assert 0.1 < outside < 0.9  # ids that only the target can say


def test_laws_of_other_ids_are_seen(target, small_head, laws, monkeypatch):
    """A fault: the law over the drafted ids is taken for one over the first ids."""

    def misplaced(self, laws, vocab_size):
        return torch.nn.functional.pad(laws, (0, vocab_size - laws.shape[-1]))

    monkeypatch.setattr(DraftIds, "laws", misplaced)
    drafter = StaticEagleDrafter(small_head, StaticTree(PATHS, "cpu"))
    answers, _ = sampled(target, drafter, SETTINGS["T 0.5"])
    assert min(fits(answers, laws["T 0.5"])) < LEVEL


def test_the_law_of_a_cut_tree(target, head, laws):
    """A tree from whose leaves nodes were cut (--tree auto) is drawn anew, in fewer draws."""
    drafter = StaticEagleDrafter(head, StaticTree(PATHS, "cpu"), fits_tree=True)
    drafter.resize(5, 2, [(0,), (1,), (2,), (0, 0), (1, 0)])
    answers, lengths = sampled(target, drafter, SETTINGS["T 1"])
    assert min(fits(answers, laws["T 1"])) > LEVEL and max(lengths) == 3


class Careless(Sampler):
    """A fault: numbers of a position are those of the one before, shifted."""

    def spread(self, num):
        return hashed_uniforms(self.seeds + GOLDEN * (1 + self.position), num)


class Forgetful(StaticEagleDrafter):
    """A fault: says that siblings were drawn with replacement."""

    def propose(self):
        draft = super().propose()
        parents = draft.tree.parents[0]
        first = parents.unsqueeze(0) == parents.unsqueeze(1)
        draft.probs = draft.probs[:, first.int().argmax(1)]
        return draft


def unwarped_bonus(logits, draft, settings, uniforms):
    """A fault: behind a path accepted to its leaf the bonus is drawn at temperature 1."""
    accepted = original_rule(logits, draft, settings, uniforms)
    row = accepted.path.gather(1, (accepted.count - 1).unsqueeze(1)).squeeze(1)
    leaf = ~(draft.tree.parents + 1 == row.unsqueeze(1)).any(1)
    scores = logits[torch.arange(len(row)), row]
    plain = draw(
        scores.softmax(-1), uniforms.gather(1, (accepted.count - 1).unsqueeze(1)).squeeze(1)
    )
    bonus = torch.where(leaf, plain, accepted.last)
    accepted.successors.scatter_(1, (accepted.count - 1).unsqueeze(1), bonus.unsqueeze(1))
    return accepted


original_rule = verify.multi_round
FAULTS = ["bonus", "residual", "replacement", "shifted uniforms", "warped twice"]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(target, head, laws, fault, monkeypatch):
    name, kind = "T 0.5", Forgetful if fault == "replacement" else StaticEagleDrafter
    if fault == "bonus":
        monkeypatch.setattr(verify, "multi_round", unwarped_bonus)
    if fault == "residual":
        monkeypatch.setattr(verify, "_residual", lambda target, proposal: target)
    if fault == "shifted uniforms":
        monkeypatch.setattr(Sampler, "spread", Careless.spread)
        name = "T 1.5"
    if fault == "warped twice":
        monkeypatch.setattr(Sampler, "warp", lambda self, logits: warp(logits, 0.6))
    answers, _ = sampled(target, kind(head, StaticTree(PATHS, "cpu")), SETTINGS[name])
    assert min(fits(answers, laws[name])) < LEVEL


def test_nothing_is_drafted_below_what_could_not_be_drawn(target, head):
    """A nucleus of one token: of every node's children only the first, and so on downwards."""
    drafter = StaticEagleDrafter(head, StaticTree(PATHS, "cpu"))
    turns = generate(target, drafter, [PROMPT], Sampler(1.0, 0, 1e-6), [1], StopRules(), 12)
    assert set(turns[0].drafted) == {3}
    greedy = generate(target, drafter, [PROMPT], Sampler(), [1], StopRules(), 12)
    assert turns[0].output_ids == greedy[0].output_ids and set(greedy[0].drafted) == {len(PATHS)}
