"""SpecDec++'s reports: the published fields, the rates, and both commands on tiny models."""

import json

import pytest
from harness_runs import COMMON, read, write
from specdecpp_dirs import specdecpp_dir

from model.specdecpp import rates, report

PUBLISHED = {
    "id",
    "spec_time",
    "num_mismatched_tokens",
    "num_LM_call",
    "generated_length",
    "target_time",
    "draft_time",
    "generated_length_target",
    "generated_length_draft",
}


def choice(**changed):
    """Two turns: 3 and 1 steps, drafts of 4, 4, 2 and 3 tokens."""
    return {
        "index": 0,
        "turns": ["a", "b"],
        "decoding_steps": [3, 1],
        "new_tokens": [9, 3],
        "wall_time": [1.5, 0.5],
        "accept_lengths": [5, 1, 2, 2],
        "output_ids": [[0] * 9, [0] * 3],
        "drafted": [[4, 4, 2], [3]],
        "depth": [[4, 4, 2], [3]],
        "draft_s": [[0.1, 0.2, 0.1], [0.1]],
        "verify_s": [[0.2, 0.2, 0.2], [0.3]],
        **changed,
    }


def record(question_id=7, **changed):
    return {"question_id": question_id, "category": "qa", "choices": [choice(**changed)]}


def test_counts():
    found = report.counts([record()])
    assert (found["new_tokens"], found["calls"], found["drafted"]) == (12, 6, 13)
    assert found["refused"] == (4 - 4) + (4 - 0) + (2 - 1) + (3 - 1)
    assert found["drafted"] == found["new_tokens"] - found["calls"] + found["refused"]
    assert found["wall_time"] == 2.0 and found["commit_s"] == 0
    assert found["draft_s"] == pytest.approx(0.5) and found["verify_s"] == pytest.approx(0.9)


def test_rates_are_sums_over_sums():
    short = {"new_tokens": [2], "decoding_steps": [1], "accept_lengths": [1], "drafted": [[5]]}
    row = rates.rates_of([record(), record(8, **short, wall_time=[2.0])])
    assert row["discard_rate"] == pytest.approx((7 + 5) / 14)
    assert row["verification_rate"] == pytest.approx((6 + 2) / 14)
    assert row["mean_drafted"] == pytest.approx(18 / 5)
    assert row["mean_accepted"] == pytest.approx(11 / 5)
    assert row["tokens_per_s"] == pytest.approx(14 / 4)


def test_fixed_lengths_at_a_verification_rate():
    pairs = [(0.5, 0.1), (0.3, 0.5), (0.4, 0.2)]
    fixed = [{"verification_rate": calls, "discard_rate": refused} for calls, refused in pairs]
    assert rates.discard_of_fixed(fixed, 0.35) == pytest.approx(0.35)
    assert rates.discard_of_fixed(fixed, 0.4) == pytest.approx(0.2)
    assert rates.discard_of_fixed(fixed, 0.45) == pytest.approx(0.15)
    for outside in (0.29, 0.51):
        assert rates.discard_of_fixed(fixed, outside) is None
    assert rates.discard_of_fixed([], 0.4) is None


def test_examples_have_the_published_fields():
    plain = {"accept_lengths": [1] * 10, "drafted": [[0] * 8, [0] * 2]}
    target = {7: record(wall_time=[3.0, 1.0], **plain)}
    first, second = report.examples({7: record(), 9: record(9)}, target, {}, [7, 8, 9])
    assert PUBLISHED <= set(first) == set(second)
    assert (first["id"], second["id"]) == (0, 2)  # 8 failed
    assert first["spec_time"] == 2.0 and first["num_mismatched_tokens"] == 7
    assert first["num_LM_call"] == 6 and first["generated_length"] == 12
    assert first["target_time"] == 4.0 and first["generated_length_target"] == 12
    for name in ("draft_time", "generated_length_draft"):
        assert first[name] == second[name] == report.NOT_RUN
    assert second["target_time"] == report.NOT_RUN


def test_the_examples_command(tmp_path, capsys):
    failed = {"question_id": 6, "category": "qa", "choices": [], "error": "too long"}
    answers = write(tmp_path / "a.jsonl", [failed, record()])
    output = tmp_path / "new" / "results.json"
    report.main(["--answers", answers, "--output", str(output)])
    assert capsys.readouterr().out == f"1 questions in {output}\n"
    (only,) = json.loads(output.read_text())
    assert only["id"] == 1 and only["target_time"] == -1


@pytest.mark.parametrize(
    "lines, words",
    [
        (None, "no such file"),
        ("", "no answers in it"),
        ("nothing\n", "broken line"),
        ('{"question_id": 1, "choices": [{"turns": []}]}\n', "not an answer file of this project"),
    ],
)
def test_bad_answers_are_one_line(tmp_path, capsys, lines, words):
    path = tmp_path / "a.jsonl"
    if lines is not None:
        path.write_text(lines)
    with pytest.raises(SystemExit) as end:
        report.main(["--answers", str(path), "--output", str(tmp_path / "r.json")])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith("report_specdecpp: ") and words in line


def run(capsys, argv, code=0):
    """What the rates command says."""
    with pytest.raises(SystemExit) as end:
        rates.main([str(word) for word in argv])
    said = capsys.readouterr()
    assert end.value.code == code, said.err
    return said


@pytest.fixture
def argv(model_dir, draft_dir, question_file, tmp_path):
    flags = ["--model-path", model_dir, "--drafter-path", draft_dir, *COMMON]
    flags += ["--head-path", specdecpp_dir(draft_dir), "--question-file", question_file]
    return [*flags, "--max-new-tokens", 12, "--answers-dir", tmp_path / "kept"]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--num-draft", 3], "--num-draft cannot go with a list"),
        (["--threshold", 0], "--threshold cannot go with a list"),
        (["--schedule", "constant"], "--schedule cannot go with a list"),
        (["--answer-file", "x"], "--answer-file cannot go with a list"),
        (["--bound", 5, 2], "--bound 5 2: the first is above the second"),
        (["--head-path", "./none"], "none: no such model directory"),
        (["--json", "no/x.json"], "--json no/x.json: no file can be written there"),
    ],
)
def test_rates_that_cannot_be_made(argv, capsys, flags, words):
    *_, line = run(capsys, [*argv, *flags], 2).err.strip().splitlines()
    assert line.startswith("rates_specdecpp: ") and words in line


def test_the_rates_command(argv, capsys, tmp_path):
    """One fixed length and one threshold; a second call reads what is there."""
    argv += ["--lengths", 3, "--thresholds", 0.4]
    path = tmp_path / "rates.json"
    lines = run(capsys, [*argv, "--json", path]).out.splitlines()
    rows = json.loads(path.read_text())["rows"]
    assert [row["name"] for row in rows] == ["h = 0.4", "K = 3"] and len(lines) == 4
    for row, name in zip(rows, ("h=0.4.jsonl", "K=3.jsonl")):
        choices = [choice for line in read(tmp_path / "kept" / name) for choice in line["choices"]]
        generated = sum(sum(choice["new_tokens"]) for choice in choices)
        drafted = sum(sum(map(sum, choice["drafted"])) for choice in choices)
        passes = sum(len(c["accept_lengths"]) + len(c["new_tokens"]) for c in choices)
        assert row["verification_rate"] == pytest.approx(passes / generated)
        assert row["discard_rate"] == pytest.approx((drafted - generated + passes) / generated)
    assert rows[0]["generated"] == rows[1]["generated"]
    before = {path: path.read_bytes() for path in tmp_path.glob("kept/*.jsonl")}
    assert run(capsys, argv).out.splitlines() == lines
    more = run(capsys, [*argv, "--lengths", 3, 4, "--json", "-"]).out
    assert len(json.loads(more)["rows"]) == 3
    assert before == {path: path.read_bytes() for path in before}
