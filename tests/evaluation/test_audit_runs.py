"""audit_sampling.py on answer files: real runs end to end, penalties, refusals."""

import dataclasses
import json
import shutil
import subprocess

import pytest
from answer_samples import (
    assert_refused,
    base_lines,
    meta,
    report_file,
    report_of,
    run_tool,
    write,
)
from harness_runs import answer
from safetensors.torch import load_file, save_file

from evaluation import audit_sampling
from evaluation.sampling import scoring
from evaluation.sampling.token_law import MARGINS
from model.common.loop import verify

SAMPLED = ["--temperature", 0.6, "--top-p", 0.9]


@pytest.fixture
def audit(capsys):
    """audit(paths, flags=) -> what a process of the tool would be, run in this one."""

    def call(*paths, flags=()):
        capsys.readouterr()
        argv = [*paths, "--device", "cpu", "--num-threads", 1, "--json", report_file(), *flags]
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
    results = {result["label"]: result for result in report_of(done)["results"]}
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


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_every_precision_is_audited(audit, model_dir, question_file, tmp_path, dtype):
    path = tmp_path / "vanilla.jsonl"
    flags = [*SAMPLED, "--num-choices", 3, "--dtype", dtype, "--model-id", "vanilla"]
    answer("vanilla", model_dir, question_file, path, *flags)
    done = audit(path)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = report_of(done)["results"]
    assert result["margin"] >= MARGINS[dtype] and result["meta_sha256"]


def test_the_margin_is_the_targets_own_where_that_is_larger(audit, sampled, monkeypatch):
    """What a target's readings differ by is tolerated; a target of no fixed law is not audited."""
    (before,) = report_of(audit(sampled["vanilla"]))["results"]
    assert before["margin"] == MARGINS["float32"]
    honest = scoring.calibrate

    def rough(*given, **changes):
        return dataclasses.replace(honest(*given), **changes)

    monkeypatch.setattr(scoring, "calibrate", lambda *given: rough(*given, maximum=0.3))
    (after,) = report_of(audit(sampled["vanilla"]))["results"]
    assert after["margin"] == pytest.approx(0.3)  # twice the largest change, of two logits
    odd = {"change": 2.0, "ulps": 9.0, "limit": 0.1, "reading": "trees"}
    odd |= {"where": f"{sampled['vanilla']}: question 11", "position": 3}
    monkeypatch.setattr(scoring, "calibrate", lambda *given: rough(*given, odd=odd))
    assert_refused(audit(sampled["vanilla"]), sampled["vanilla"], "differ by 2 logits")


def test_an_impossible_token_is_named(audit, sampled, tmp_path):
    lines = [json.loads(line) for line in sampled["vanilla"].read_text().splitlines()]
    ids = lines[2]["choices"][1]["output_ids"][0]
    ids[5] = 200 if ids[5] != 200 else 201
    content = json.loads(sampled["vanilla"].with_suffix(".meta.json").read_text())
    path = write(tmp_path / "vanilla.jsonl", lines, content)
    done = audit(path)
    assert done.returncode == 1
    (result,) = report_of(done)["results"]
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
    (theirs,) = report_of(done)["results"]
    (ours,) = report_of(audit(sampled["sps"]))["results"]
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
    assert_refused(done, path, "question 11 choice ", "the target's logits are not finite")


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
    results = report_of(audit(one, four))["results"]
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
    results = report_of(done)["results"]
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
            (found,) = report_of(audit(path))["results"]
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
    for name, wrong in (("top_k", 1.5), ("top_p", [0.9]), ("repetition_penalty", 0)):
        asked = content | {"shared": content["shared"] | {name: wrong}}
        changed = write(tmp_path / "c.jsonl", lines, asked)
        assert_refused(audit(changed), changed, f"its meta says {name} {wrong}: a")
    for name, wrong in (("dtype", "float99"), ("scale_to", "8b")):
        asked = content | {"arguments": content["arguments"] | {name: wrong}}
        changed = write(tmp_path / "c.jsonl", lines, asked)
        assert_refused(audit(changed), wrong)
    content["shared"]["weights_sha256"] = "00"
    changed = write(tmp_path / "c.jsonl", lines, content)
    assert_refused(audit(changed), changed, "weights_sha256")
