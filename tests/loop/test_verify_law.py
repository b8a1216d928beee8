"""verify.py keeps the target's law under sampling, and the tests would see it if it did not.

Every law is over whole words of three tokens, so that positions after refusals, after full accepts
and across steps are in it.
"""

import pytest
import torch
from laws import LEVEL, detectable, p_value
from markov import START, Proposer, V, sample, tables, word_counts, word_law, written_out

from model.common.contract.drafter import Draft
from model.common.loop import verify
from model.common.loop.sampling import Sampler, draw

pytestmark = pytest.mark.slow

NUM = 60_000
TREE = [-1, -1, 0, 0, 1, 1]
WIDE = [-1, -1, -1, 0, 0, 1]  # nodes in the order of levels; DEEP has a child before a sibling
DEEP = [-1, 0, 0, -1, 3, 3, -1]
KINDS = {
    "chain": (Proposer([-1, 0]), verify.rejection),
    "siblings drawn alike": (Proposer(TREE), verify.multi_round),
    "distinct siblings": (Proposer(WIDE, distinct=True), verify.multi_round),
    "distinct, depth first": (Proposer(DEEP, distinct=True), verify.multi_round),
    "guessed chain": (Proposer([-1, 0], guesses=True), verify.token_matching),
    "guessed tree": (Proposer(WIDE, distinct=True, guesses=True), verify.token_matching),
}
CASES = ["same", "uniform", "disjoint", "one-hot", "other one-hot"]
WARPS = {"temperature": (0.7, 0, 1.0), "top-k": (1.0, 3, 1.0), "top-p": (1.0, 0, 0.8)}


def fit(case, warped, words):
    """p-value of words under the case's law."""
    law = word_law(tables(case)[0], warped, words.shape[1])
    return p_value(word_counts(words), law)


def test_power():
    """The words' tests find any bias of 2.7 % in total variation, of 2.1 % where top-k is 3."""
    assert detectable(NUM, V**3) < 0.027
    assert detectable(NUM, 3**3) < 0.021


@pytest.mark.parametrize("settings", WARPS.values(), ids=list(WARPS))
@pytest.mark.parametrize("kind", KINDS)
def test_law_of_words_warped(kind, settings):
    proposer, rule = KINDS[kind]
    warped = Sampler(*settings).warp
    words, counts = sample("random", proposer, warped, rule, NUM, 3)
    assert set(counts.unique().tolist()) == {1, 2, 3}  # refusals and full accepts
    assert fit("random", warped, words) > LEVEL


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_law_of_words_of_extreme_proposals(kind, case):
    proposer, rule = KINDS[kind]
    warped = Sampler(0.7).warp
    words, counts = sample(case, proposer, warped, rule, NUM // 2, 3, seed=1)
    if case == "disjoint":
        assert counts.max() == 1
    elif case == "same" and not proposer.guesses:
        assert counts.min() == 1 + proposer.depth
    else:
        assert counts.max() == 1 + proposer.depth and counts.min() == 1
    assert fit(case, warped, words) > LEVEL


@pytest.mark.parametrize("kind", ["chain", "distinct siblings", "guessed tree"])
def test_law_of_words_with_new_uniforms_each_step(kind):
    """The same with independent numbers in every step: reusing a position's is no crutch."""
    proposer, rule = KINDS[kind]
    warped = Sampler(0.9, 4, 0.95).warp
    words, _ = sample("random", proposer, warped, rule, NUM, 3, seed=2, fresh=True)
    assert fit("random", warped, words) > LEVEL


def test_law_over_many_steps():
    """Tokens 5 to 7 of 7, by when positions have been drafted, refused and drafted again."""
    warped = Sampler(1.0).warp
    for kind in ("chain", "distinct siblings"):
        proposer, rule = KINDS[kind]
        words, _ = sample("random", proposer, warped, rule, NUM, 7, seed=3)
        lines = warped(tables("random")[0])
        law = torch.linalg.matrix_power(lines, 5)[START]  # of the fifth token
        for _ in range(2):
            law = (law.view(-1, V, 1) * lines).flatten()
        assert p_value(word_counts(words[:, 4:]), law) > LEVEL


@pytest.mark.parametrize("kind", ["chain", "siblings drawn alike", "guessed tree"])
def test_bonus_and_refusal_by_themselves(kind):
    """Of the first step: the bonus after a full accept follows the target's line of its parent."""
    proposer, rule = KINDS[kind]
    warped = Sampler(1.0, 0, 0.9).warp
    words, counts = sample("random", proposer, warped, rule, 2 * NUM, 3, seed=4)
    lines = warped(tables("random")[0])
    full = counts[:, 0] == 3
    assert full.sum() > NUM / 4
    for last in range(V):
        chosen = words[full & (words[:, 1] == last), 2]
        if len(chosen) > 1000:
            counted = torch.bincount(chosen, minlength=V)
            assert p_value(counted, lines[last]) > LEVEL
    refused = counts[:, 0] == 1  # what follows a refusal follows the line of the refused position
    for last in range(V):
        chosen = words[refused & (words[:, 0] == last), 1]
        if len(chosen) > 1000:
            assert p_value(torch.bincount(chosen, minlength=V), lines[last]) > LEVEL


def typical(logits, draft, warp, uniforms):
    return verify.typical_acceptance(logits, draft, 0.7)


FAULTS = {
    "bonus not warped": written_out("bonus not warped"),
    "no residual": written_out("no residual"),
    "acceptance by unwarped target": written_out("acceptance by unwarped target"),
    "uniform not rescaled": written_out("uniform not rescaled"),
    "typical acceptance": typical,
}


@pytest.mark.parametrize("settings", [(0.7, 0, 1.0), (0.7, 4, 1.0), (0.7, 0, 0.9)])
@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_rules_are_seen(fault, settings):
    warped = Sampler(*settings).warp
    words, _ = sample("random", KINDS["chain"][0], warped, FAULTS[fault], NUM, 3)
    assert fit("random", warped, words) < LEVEL


def test_the_papers_rule_is_ours():
    """Token for token with the same uniforms, on float64 logits."""
    warped = Sampler(0.7, 4, 0.95).warp
    for case in ["random", *CASES]:
        ours = sample(case, Proposer([-1, 0, 1]), warped, verify.rejection, 5000, 4, seed=5)
        theirs = sample(case, Proposer([-1, 0, 1]), warped, written_out(), 5000, 4, seed=5)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_multi_round_on_a_chain_is_rejection():
    warped = Sampler(0.8, 0, 0.95).warp
    chain = Proposer([-1, 0, 1])
    for case in ["random", *CASES]:
        ours = sample(case, chain, warped, verify.multi_round, 5000, 4, seed=6)
        theirs = sample(case, chain, warped, verify.rejection, 5000, 4, seed=6)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_faulty_trees_are_seen(monkeypatch):
    """Siblings without replacement that do not say so, a forgotten residual, shared uniforms."""
    warped = Sampler(0.7).warp
    lying = Proposer(WIDE, hidden_fate=True)
    words, _ = sample("random", lying, warped, verify.multi_round, NUM, 3)
    assert fit("random", warped, words) < LEVEL
    for kind in ("chain", "siblings drawn alike"):  # the drafter draws with the rule's uniform
        words, _ = sample("random", KINDS[kind][0], warped, KINDS[kind][1], NUM, 3, shared=True)
        assert fit("random", warped, words) < LEVEL
    monkeypatch.setattr(verify, "_residual", lambda target, proposal: target)
    proposer, rule = KINDS["siblings drawn alike"]
    words, _ = sample("random", proposer, warped, rule, NUM, 3)
    assert fit("random", warped, words) < LEVEL


@pytest.mark.parametrize(
    "overlap, depth, tokens", [(0.6, 5, 2.383), (0.8, 5, 3.689), (0.6, 1, 1.6)]
)
def test_expected_tokens_per_step(overlap, depth, tokens):
    """(1 - a^(g+1)) / (1 - a) for independent positions whose laws overlap by a."""
    num = 100_000
    assert abs((1 - overlap ** (depth + 1)) / (1 - overlap) - tokens) < 1e-3
    target = torch.tensor([1 - overlap, overlap / 2, overlap / 2, 0.0], dtype=torch.float64)
    proposal = torch.tensor([0.0, overlap / 2, overlap / 2, 1 - overlap], dtype=torch.float64)
    generator = torch.Generator().manual_seed(8)
    uniforms = torch.rand(2, num, 1 + depth, dtype=torch.float64, generator=generator)
    drafted = draw(proposal.expand(num, depth, 4), uniforms[0, :, :depth])
    draft = Draft(drafted, probs=proposal.expand(num, depth, 4))
    logits = target.log().expand(num, 1 + depth, 4)
    counts = verify.rejection(logits, draft, Sampler(1.0).warp, uniforms[1]).count.double()
    error = counts.std() / num**0.5
    assert error < 0.007 and abs(counts.mean() - tokens) < 4 * error


@pytest.mark.parametrize("kind", ["guessed chain", "guessed tree"])
def test_token_matching_commits_the_same_words_whatever_was_drafted(kind):
    """Position by position the baseline's own draws: equal word for word, not only in law."""
    warped = Sampler(0.9, 0, 0.95).warp
    nothing = Proposer([-1], guesses=True)

    def baseline(logits, draft, warp, uniforms):
        empty = Draft(draft.tokens[:, :0])
        return verify.token_matching(logits[:, :1], empty, warp, uniforms)

    proposer, rule = KINDS[kind]
    plain, ones = sample("random", nothing, warped, baseline, 5000, 5, seed=7)
    words, counts = sample("random", proposer, warped, rule, 5000, 5, seed=7)
    assert ones.max() == 1 and counts.max() == 3
    assert torch.equal(words, plain)
