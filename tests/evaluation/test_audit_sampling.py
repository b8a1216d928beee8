"""audit_sampling.py: its level, its power, its columns against slow references."""

import numpy as np
import pytest
import torch
from power_sampling import FAULTS, NULL, SETTINGS, p_values
from scipy import stats

from evaluation.sampling import evidence, token_law
from evaluation.sampling.evidence import Evidence, detectable_argmax, ks_test
from evaluation.sampling.token_law import Sampling
from model.common.loop.sampling import draw, seed_of, warp

RUNS = 500
WARPED = SETTINGS["T 0.6, top-p 0.9"]


def uniforms(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, num, dtype=torch.float64, generator=generator)


def drawn(num, settings, seed=0, width=7):
    """(logits [num, width], tokens drawn from their warped laws)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, width, generator=generator) * 1.5
    at = torch.rand(num, dtype=torch.float64, generator=generator)
    return logits, draw(warp(logits, *settings), at)


# the level: 500 simulated files a rule


@pytest.mark.parametrize("kind", NULL)
def test_false_alarms_come_at_the_nominal_rate(kind):
    """Within what 500 runs of a correct audit give with chance 0.999, from above and below."""
    proposer, rule = NULL[kind]
    found = p_values(proposer, rule, WARPED, RUNS, sequences=120, seed=1)
    assert found["impossible"] == [1.0] * RUNS
    for name in (*evidence.TESTS, "audit"):
        for level in (0.05, 0.01):
            alarms = sum(p <= level for p in found[name])
            assert alarms <= stats.binom.isf(0.0005, RUNS, level), (name, level)
        if name != "audit":  # Holm's own level is a bound
            assert sum(p <= 0.05 for p in found[name]) >= stats.binom.ppf(0.0005, RUNS, 0.05)
            assert stats.kstest(found[name], "uniform").pvalue > 1e-4


# the power: files of 200 or 1000 answers, about 600 and 3,000 tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, settings, sequences, power",
    [
        ("bonus is the argmax", "T 1, top-k 3", 200, 0.9),
        ("bonus is the argmax", "T 0.7", 1000, 0.9),
        ("bonus not warped", "T 0.7", 4000, 0.5),
        ("no residual", "T 0.7", 200, 0.8),
        ("uniform not rescaled", "T 0.7", 400, 0.9),
        ("acceptance unwarped", "T 0.7", 1000, 0.9),
        ("top-p off by one", "T 0.6, top-p 0.9", 200, 0.9),
        ("drafter peeks", "T 0.7", 200, 0.9),
        ("typical acceptance", "T 0.7", 200, 0.9),
    ],
)
def test_planted_faults_are_found(fault, settings, sequences, power):
    proposer, rule, shared = FAULTS[fault]
    runs = 20
    found = p_values(proposer, rule, SETTINGS[settings], runs, shared, sequences, seed=2)
    assert sum(p <= 0.01 for p in found["audit"]) >= power * runs


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("fault", ["bonus not warped", "acceptance unwarped"])
def test_an_unwarped_draw_is_impossible_under_top_p(fault, dtype):
    proposer, rule, shared = FAULTS[fault]
    margin = token_law.MARGINS[dtype]
    found = p_values(proposer, rule, WARPED, 20, shared, seed=3, margin=margin)
    assert found["impossible"] == [0.0] * 20


def test_the_promised_share_of_best_tokens_is_found():
    """A mixture at the share that is printed is found in 80 % of the files, at half of it not."""
    settings, level, num, runs = (1.0, 0, 1.0), 0.01, 1500, 60
    rejected, promised = {1.0: 0, 0.5: 0}, []
    for run in range(runs):
        logits, drawn_tokens = drawn(num, settings, seed=run)
        v, sampling = uniforms(num, run), Sampling(*settings)
        exact = token_law.token_law(logits, drawn_tokens, v, sampling)
        promised.append(detectable_argmax(Evidence.of(exact), level))
        at = torch.rand(num, generator=torch.Generator().manual_seed(900 + run))
        for part in rejected:
            tokens = torch.where(at < part * promised[-1], logits.argmax(-1), drawn_tokens)
            law = token_law.token_law(logits, tokens, v, sampling)
            tests = evidence.run_tests(Evidence.of(law))
            rejected[part] += min(tests["surprisal"]["p"], tests["pit-mass"]["p"]) <= level
    assert 0.05 < min(promised) and max(promised) < 0.2
    assert rejected[1.0] >= 0.75 * runs and rejected[0.5] <= 0.6 * runs


# the columns


@pytest.mark.parametrize("settings", SETTINGS.values())
def test_columns_against_a_slow_reference(settings):
    logits, tokens = drawn(40, settings)
    logits[:20] = logits[:20].round()  # ties
    tokens[:20] = draw(warp(logits[:20], *settings), uniforms(20, 1)[0])
    v = uniforms(40)
    law = token_law.token_law(logits, tokens, v, Sampling(*settings))
    probs = warp(logits, *settings).double()
    for i, x in enumerate(tokens.tolist()):
        p = probs[i].numpy()
        some = p > 0
        surprises = -np.log(p[some])
        mean = (p[some] * surprises).sum()
        assert law.surprise[i].item() == pytest.approx(-np.log(p[x]))
        assert law.entropy[i].item() == pytest.approx(mean)
        assert law.variance[i].item() == pytest.approx(
            (p[some] * (surprises - mean) ** 2).sum(), abs=1e-9
        )
        assert law.third[i].item() == pytest.approx(
            (p[some] * (surprises - mean) ** 3).sum(), abs=1e-9
        )
        assert law.best[i].item() == pytest.approx(p.max())
        order = sorted(range(len(p)), key=lambda token: (-p[token], token))
        ahead = sum(p[token] for token in order[: order.index(x)])
        assert law.by_mass[i].item() == pytest.approx(ahead + v[0, i].item() * p[x])
        assert law.by_id[i].item() == pytest.approx(p[:x].sum() + v[1, i].item() * p[x])
    assert not law.impossible.any() and not law.tolerated.any()


def test_tokens_outside_the_support():
    """Impossible, unless rounding alone keeps them out; the rest of the file is still tested."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(4, 1)
    tokens = torch.tensor([0, 1, 2, 3])
    law = token_law.token_law(logits, tokens, uniforms(4), Sampling(1.0, 2))
    assert law.impossible.tolist() == [False, False, True, True]
    law = token_law.token_law(logits, tokens, uniforms(4), Sampling(1.0, 0, 0.8))
    assert law.impossible.tolist() == [False, False, True, True]
    law = token_law.token_law(logits, tokens, uniforms(4), Sampling(1.0, min_p=0.2))
    assert law.impossible.tolist() == [False, False, True, True]  # e^-1 and e^-2 of the best
    assert not token_law.token_law(logits, tokens, uniforms(4), Sampling(1.0)).impossible.any()
    close = torch.tensor([[2.0, 1.0, 0.99, -1.0]]).repeat(4, 1)  # 2 could be 1 after rounding
    for margin, tolerated in ((0.01, True), (0.001, False)):
        least = Sampling(1.0, min_p=float(np.exp(-1.0)) + 1e-6, margin=margin)
        law = token_law.token_law(close, tokens, uniforms(4), least)
        assert law.tolerated.tolist() == [False, True, tolerated, False]
        assert law.impossible.tolist() == [False, False, not tolerated, True]
    for settings in ((1.0, 2), (1.0, 0, 0.7)):
        strict = token_law.token_law(close, tokens, uniforms(4), Sampling(*settings))
        assert strict.impossible.tolist() == [False, False, True, True]
        lax = Sampling(*settings, **({"top_p": 1.0} if len(settings) < 3 else {}), margin=0.01)
        law = token_law.token_law(close, tokens, uniforms(4), lax)
        assert law.tolerated.tolist() == [False, False, True, False]
        assert law.impossible.tolist() == [False, False, False, True]
        assert law.surprise[2].isfinite() and law.surprise[3].isinf()


@pytest.mark.parametrize("dtype", token_law.MARGINS)
def test_rounding_moves_odds_and_not_the_mass(dtype):
    """Far behind a nucleus of 0.999 a token stays impossible, whatever the precision."""
    logits = torch.tensor([[7.0, 7.0, 0.0, -1.0]]).log_softmax(-1)  # the two best: 0.9994
    sampling = Sampling(0.6, 0, 0.9, margin=token_law.MARGINS[dtype])
    far = token_law.token_law(logits, torch.tensor([2]), uniforms(1), sampling)
    assert far.impossible.all()
    # by hand: 0.9 of the mass above is 9 : 1; a shift of s makes it 9 e^-s : 1, just below or above
    shift = 2 * sampling.margin / 0.6
    for odds, tolerated in ((9 * np.exp(0.9 * shift), True), (9 * np.exp(1.1 * shift), False)):
        pair = 0.6 * torch.tensor([[odds, 1.0]], dtype=torch.float64).log()
        near = token_law.token_law(pair, torch.tensor([1]), uniforms(1), sampling)
        assert near.tolerated.tolist() == [tolerated]


def test_surprisal_of_a_fair_coin_and_a_biased_one():
    """By hand: laws (1/2, 1/2) and (3/4, 1/4); the fair coin has no variance in its surprisal."""
    logits = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.75, 0.25]], dtype=torch.float64).log()
    tokens = torch.tensor([1, 1, 0])
    law = token_law.token_law(logits, tokens, uniforms(3), Sampling(1.0))
    found = Evidence.of(law)
    mean = -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    variance = 0.75 * 0.25 * np.log(3) ** 2  # the surprisal takes two values that differ by log 3
    z, p = evidence.surprisal_test(found)
    assert z == pytest.approx((np.log(4) + np.log(4 / 3) - 2 * mean) / (2 * variance) ** 0.5)
    assert p == pytest.approx(2 * stats.norm.sf(abs(z)))
    third = 2 * (0.25 * 0.75**3 - 0.75 * 0.25**3) * np.log(3) ** 3
    assert found.skewness == pytest.approx(third / (2 * variance) ** 1.5)


def test_certain_tokens_are_no_evidence():
    logits = torch.tensor([[9.0, 0.0], [0.0, 0.0]])
    law = token_law.token_law(logits, torch.tensor([0, 1]), uniforms(2), Sampling(1.0))
    assert Evidence.of(law).free.tolist() == [False, True]  # a fair coin is a choice
    assert evidence.run_tests(Evidence.of(law))["pit-id"]["statistic"] > 0
    law = token_law.token_law(logits, torch.tensor([0, 0]), uniforms(2), Sampling(1.0, 0, 0.5))
    found = Evidence.of(law)  # a nucleus of 0.5 holds one token in both
    assert not found.free.any()
    tests = evidence.run_tests(found)
    assert {test["p"] for test in tests.values()} == {1.0} and found.skewness == 0
    assert detectable_argmax(found, 0.01) is None


def test_the_transform_does_not_use_the_numbers_that_drew_the_tokens():
    theirs = torch.rand(
        2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed_of(0, 11, 0, 1))
    )
    ours = token_law.audit_uniforms(0, 11, 0, 1, 6)
    assert not torch.isclose(ours, theirs).any()
    assert torch.equal(ours, token_law.audit_uniforms(0, 11, 0, 1, 6))
    assert not torch.isclose(ours, token_law.audit_uniforms(0, 11, 1, 1, 6)).any()


def test_kolmogorov_smirnov_against_scipy():
    for num in (30, 300, 3000):
        u = np.random.default_rng(num).random(num) ** 1.05
        distance, p = ks_test(u)
        exact = stats.kstest(u, "uniform", method="exact")
        assert distance == pytest.approx(exact.statistic)
        assert p == pytest.approx(exact.pvalue, rel=0.03)
    critical = evidence.critical_kolmogorov(0.01)
    assert critical == pytest.approx(stats.kstwobign.isf(0.01))
    assert evidence.two_sided(2.5) == pytest.approx(2 * stats.norm.sf(2.5))
