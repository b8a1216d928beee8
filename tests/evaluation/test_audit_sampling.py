"""audit_sampling.py: its level, its power, its columns, real runs end to end, refusals."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from answer_samples import assert_refused, base_lines, last_json, meta, run_tool, write
from harness_runs import answer
from power_sampling import FAULTS, NULL, SETTINGS, p_values
from safetensors.torch import load_file, save_file
from scipy import stats

from evaluation import audit_sampling
from evaluation.sampling import evidence, token_law
from evaluation.sampling.evidence import Evidence, detectable_argmax, ks_test
from evaluation.sampling.token_law import Sampling
from model.common.loop import verify
from model.common.loop.sampling import draw, seed_of, warp

RUNS = 500
SAMPLED = ["--temperature", 0.6, "--top-p", 0.9]
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


@pytest.mark.parametrize("fault", ["bonus not warped", "acceptance unwarped"])
def test_an_unwarped_draw_is_impossible_under_top_p(fault):
    proposer, rule, shared = FAULTS[fault]
    found = p_values(proposer, rule, WARPED, 20, shared, seed=3)
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


# the tool


@pytest.fixture
def audit(capsys):
    """audit(paths, flags=) -> what a process of the tool would be, run in this one."""

    def call(*paths, flags=()):
        capsys.readouterr()
        argv = [*paths, "--device", "cpu", "--num-threads", 1, *flags]
        try:
            status = audit_sampling.main([str(part) for part in argv])
        except SystemExit as ended:
            status = ended.code
        said = capsys.readouterr()
        return subprocess.CompletedProcess(argv, status, said.out, said.err)

    return call


@pytest.fixture(scope="module")
def sampled(model_dir, draft_dir, question_file, tmp_path_factory):
    """{method: answer file} of real runs, and one of a rule that forgets the residual."""
    folder = tmp_path_factory.mktemp("sampled")
    flags = [*SAMPLED, "--num-choices", 5]
    own = {"sps": ["--drafter-path", draft_dir, "--num-draft", 3]}
    paths = {name: folder / f"{name}.jsonl" for name in ("vanilla", "pld", "sps", "broken")}
    for name, path in paths.items():
        method = "sps" if name == "broken" else name
        with pytest.MonkeyPatch.context() as patch:
            if name == "broken":
                patch.setattr(verify, "_residual", lambda target, proposal: proposal)
            named = ["--model-id", name, *own.get(method, [])]
            answer(method, model_dir, question_file, path, *flags, *named)
    return paths


def test_real_runs(audit, sampled):
    done = audit(*sampled.values())
    assert done.returncode == 1, done.stderr
    results = {result["label"]: result for result in last_json(done)["results"]}
    verdicts = {name: result["verdict"] for name, result in results.items()}
    assert verdicts.pop("broken") == "REJECTED"
    assert set(verdicts.values()) == {"CONSISTENT"}
    assert results["vanilla"]["impossible"]["tokens"] == 0
    assert results["vanilla"]["free_tokens"] > 500
    assert results["vanilla"]["tests"] == results["pld"]["tests"] != results["sps"]["tests"]
    (note,) = results["pld"]["notes"]
    assert note.startswith("the same answers as") and "vanilla.jsonl" in note
    assert results["sps"]["notes"] == []
    for result in results.values():  # three files of their own, three tests: nine p-values
        for test in result["tests"].values():
            assert min(1, test["p"]) <= test["p_holm"] <= min(1, 9 * test["p"]) + 1e-12
    smallest = min(
        (test["p"], test["p_holm"]) for r in results.values() for test in r["tests"].values()
    )
    assert smallest[1] == pytest.approx(9 * smallest[0])
    assert 0 < results["sps"]["detectable_argmax_share"] < 0.5
    assert done.stdout.splitlines()[0].split()[0] == "answers"
    exact = run_tool("evaluation/audit_sampling.py", sampled["vanilla"], sampled["sps"])
    assert exact.returncode == 0 and exact.stderr == ""
    assert "of best tokens in place of draws" in exact.stdout


def test_an_impossible_token_is_named(audit, sampled, tmp_path):
    lines = [json.loads(line) for line in sampled["vanilla"].read_text().splitlines()]
    ids = lines[2]["choices"][1]["output_ids"][0]
    ids[5] = 200 if ids[5] != 200 else 201
    content = json.loads(sampled["vanilla"].with_suffix(".meta.json").read_text())
    path = write(tmp_path / "vanilla.jsonl", lines, content)
    done = audit(path)
    assert done.returncode == 1
    (result,) = last_json(done)["results"]
    first = result["impossible"]["first"]
    assert result["verdict"] == "REJECTED"
    assert first == {"question_id": 13, "choice": 1, "turn": 0, "position": 5, "id": ids[5]}
    assert "question 13 choice 1 turn 0 token 5: id 20" in done.stdout
    content.update(lossy=True, acceptance="typical (lossy)")
    done = audit(write(path, lines, content))
    assert done.returncode == 0 and "LOSSY BY DESIGN" in done.stdout


def test_files_of_other_writers(audit, sampled, tmp_path, model_dir, question_file):
    """Without a meta the flags say what was asked; the result is the same."""
    lines = [json.loads(line) for line in sampled["sps"].read_text().splitlines()]
    path = write(tmp_path / "theirs.jsonl", lines)
    asked = ["--model-path", model_dir, "--question-file", question_file, "--dtype", "float32"]
    done = audit(path, flags=[*asked, *SAMPLED])
    assert done.returncode == 0, done.stderr
    (theirs,) = last_json(done)["results"]
    (ours,) = last_json(audit(sampled["sps"]))["results"]
    assert theirs["tests"] == ours["tests"]
    assert_refused(audit(path, flags=SAMPLED), path, "give --model-path")
    assert_refused(audit(path, flags=asked), path, "give --temperature")
    assert_refused(audit(path, flags=[*asked[:2], *asked[4:], *SAMPLED]), "give --bench-name")
    unwarped = audit(path, flags=[*asked, "--temperature", 0.6, "--top-p", 0.5])
    assert unwarped.returncode == 1 and "impossible tokens: " in unwarped.stdout


def test_a_target_whose_logits_are_no_numbers_convinces_nobody(
    audit, sampled, tmp_path, model_dir, question_file
):
    lines = [json.loads(line) for line in sampled["sps"].read_text().splitlines()]
    path = write(tmp_path / "theirs.jsonl", lines)
    broken = shutil.copytree(model_dir, tmp_path / "model")
    weights = load_file(broken / "model.safetensors")
    weights["lm_head.weight"][3] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    asked = ["--model-path", broken, "--question-file", question_file, "--dtype", "float32"]
    done = audit(path, flags=[*asked, *SAMPLED])
    assert_refused(done, path, "question 11 choice 0 turn 0", "the target's logits are not finite")


def test_repeated_draws_count_once(audit, sampled, tmp_path):
    """A file whose choices were all drawn with the same numbers is one choice's evidence."""
    lines = [json.loads(line) for line in sampled["vanilla"].read_text().splitlines()]
    single, copied = [], []
    for line in lines:
        first = line["choices"][0]
        single.append({**line, "choices": [first]})
        copied.append({**line, "choices": [{**first, "index": i} for i in range(4)]})
    content = json.loads(sampled["vanilla"].with_suffix(".meta.json").read_text())
    one = write(tmp_path / "one.jsonl", single, content)
    four = write(tmp_path / "four.jsonl", copied, content)
    results = last_json(audit(one, four))["results"]
    assert results[0]["tests"] == results[1]["tests"]
    assert any("counted once" in note for note in results[1]["notes"])


FLAGS = ["--temperature", 0.25, "--min-p", 0.03, "--num-choices", 4, "--ignore-eos"]
PENALTIES = {"repetition_penalty": 0.3, "presence_penalty": -0.4, "frequency_penalty": -0.2}


@pytest.fixture(scope="module")
def penalised(model_dir, draft_dir, question_file, tmp_path_factory):
    """{method: answer file} with penalties, min-p, a system's message and no end but the limit."""
    folder = tmp_path_factory.mktemp("penalised")
    own = {"vanilla": [], "sps": ["--drafter-path", draft_dir, "--num-draft", 3]}
    flags = [*FLAGS, "--system-prompt", "Be brief."]
    for name, value in PENALTIES.items():
        flags += [f"--{name.replace('_', '-')}", value]
    for name, more in own.items():
        path = folder / f"{name}.jsonl"
        answer(name, model_dir, question_file, path, *flags, "--model-id", name, *more)
    return {name: folder / f"{name}.jsonl" for name in own}


def test_penalised_runs_are_held_to_the_penalised_law(audit, penalised, tmp_path):
    """Honest files are consistent; the same answers are not what their metas say otherwise."""
    done = audit(*penalised.values())
    assert done.returncode == 0, done.stdout + done.stderr
    results = last_json(done)["results"]
    assert all(r["settings"].items() >= {**PENALTIES, "min_p": 0.03}.items() for r in results)
    lines = [json.loads(line) for line in penalised["sps"].read_text().splitlines()]
    content = json.loads(penalised["sps"].with_suffix(".meta.json").read_text())
    for name, value in {**dict.fromkeys(PENALTIES), "min_p": 0.3, "system_prompt": None}.items():
        changed = {**content, "shared": {**content["shared"], name: value}}
        changed["arguments"] = {**content["arguments"], name: value}
        path = write(tmp_path / f"{name}.jsonl", lines, changed)
        if name == "system_prompt":
            assert_refused(audit(path), path, "prompts")
        else:
            (found,) = last_json(audit(path))["results"]
            assert found["verdict"] == "REJECTED", name


def test_penalties_of_other_writers_come_from_flags(audit, penalised, tmp_path, model_dir):
    lines = [json.loads(line) for line in penalised["vanilla"].read_text().splitlines()]
    content = json.loads(penalised["vanilla"].with_suffix(".meta.json").read_text())
    path = penalised["vanilla"]
    assert_refused(audit(path, flags=["--min-p", 0.5]), path, "its meta says min_p 0.03")
    refused = audit(path, flags=["--repetition-penalty", 1.1])
    assert_refused(refused, path, "its meta says repetition_penalty 0.3")
    unset = {**content, "shared": {**content["shared"], "repetition_penalty": None}}
    path = write(tmp_path / "unset.jsonl", lines, unset)
    refused = audit(path, flags=["--repetition-penalty", 1.1])
    assert_refused(refused, path, "its meta says repetition_penalty 1")
    for flag, value in (("--repetition-penalty", 0), ("--min-p", 2), ("--presence-penalty", "nan")):
        assert_refused(audit(path, flags=[flag, value]), f"{flag} {value}")


def test_refusals(audit, sampled, tmp_path):
    greedy = write(tmp_path / "base.jsonl", base_lines(), meta("base", "vanilla"))
    assert_refused(audit(greedy), greedy, "temperature 0", "equal.py")
    path = sampled["vanilla"]
    assert_refused(audit(path, flags=["--temperature", 0.7]), path, "its meta says temperature 0.6")
    assert_refused(audit(path, flags=["--template", "plain"]), path, "prompts")
    assert_refused(audit(path, flags=["--alpha", 0]), "--alpha 0")
    assert_refused(audit(path, flags=["--device", "abacus"]), "--device abacus")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    content = json.loads(path.with_suffix(".meta.json").read_text())
    lines[1]["choices"][0]["prompt_tokens"] = [3]
    changed = write(tmp_path / "c.jsonl", lines, content | {"model_id": "vanilla"})
    assert_refused(audit(changed), "question 12 choice 0 turn 0", "the file says 3")
    lines[1]["choices"][0]["output_ids"] = None
    changed = write(tmp_path / "c.jsonl", lines, content)
    assert_refused(audit(changed), "no output_ids")
    content["shared"]["weights_sha256"] = "00"
    changed = write(tmp_path / "c.jsonl", lines, content)
    assert_refused(audit(changed), changed, "weights_sha256")
