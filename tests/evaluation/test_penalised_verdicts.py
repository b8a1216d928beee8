"""equal.py reads greedy answers by the logits that they were chosen by, and knows their ends."""

import json

import pytest
from answer_samples import report_of, run_tool
from harness_runs import answer

FLAGS = ["--repetition-penalty", 1.4, "--presence-penalty", 0.5, "--frequency-penalty", 0.3]
FLAGS += ["--system-prompt", "Be brief.", "--ignore-eos", "--num-choices", 1]


@pytest.fixture(scope="module")
def files(model_dir, question_file, tmp_path_factory):
    """(baseline, PLD) under penalties."""
    folder = tmp_path_factory.mktemp("penalised")
    for name in ("vanilla", "pld"):
        out = folder / f"{name}.jsonl"
        answer(name, model_dir, question_file, out, *FLAGS, "--model-id", name)
    return folder / "vanilla.jsonl", folder / "pld.jsonl"


def judged(files, model_dir):
    done = run_tool("evaluation/equal.py", *files, "--model-path", model_dir, "--all")
    return done, report_of(done)["results"][0]["judgement"]


@pytest.mark.slow
def test_penalised_answers_have_no_gaps(files, model_dir):
    """As they were made; by the target's bare logits the same tokens are far from the best."""
    done, found = judged(files, model_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert found["verdict"] == "EXACT"
    worst = max(question["worst"]["gap"] for question in found["questions"])
    assert worst <= found["noise"]["bound"]
    for path in files:
        meta = path.with_suffix(".meta.json")
        content = json.loads(meta.read_text())
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
            content["shared"][name] = None
        meta.write_text(json.dumps(content))
    done, found = judged(files, model_dir)
    assert done.returncode == 1 and found["verdict"] == "BUG", done.stdout + done.stderr
