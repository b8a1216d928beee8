"""SpecDec++'s reports: the published fields, the rates, and both commands on tiny models."""

import json
from types import SimpleNamespace

import pytest
from harness_runs import COMMON, answer, read, run, write
from specdecpp_dirs import specdecpp_dir

from model.common.errors import BadInput
from model.specdecpp import report

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
        "draft_s": [[0.1, 0.2, 0.1], [0.1]],
        "verify_s": [[0.2, 0.2, 0.2], [0.3]],
        **changed,
    }


def record(question_id=7, **changed):
    return {"question_id": question_id, "category": "qa", "choices": [choice(**changed)]}


def test_counts():
    found = report.counts(choice())
    assert (found["generated"], found["calls"], found["drafted"]) == (12, 6, 13)
    assert found["refused"] == (4 - 4) + (4 - 0) + (2 - 1) + (3 - 1)
    assert found["drafted"] == found["generated"] - found["calls"] + found["refused"]
    assert found["seconds"] == 2.0
    assert found["draft"] == pytest.approx(0.5) and found["verify"] == pytest.approx(0.9)
    assert found["commit"] == 0


def test_rates_are_sums_over_sums():
    short = {"new_tokens": [2], "decoding_steps": [1], "accept_lengths": [1], "drafted": [[5]]}
    rows = report.rates_of({7: record(), 8: record(8, **short, wall_time=[2.0])})
    assert rows["discard_rate"] == pytest.approx((7 + 5) / 14)
    assert rows["verification_rate"] == pytest.approx((6 + 2) / 14)
    assert rows["mean_drafted"] == pytest.approx(18 / 5)
    assert rows["mean_accepted"] == pytest.approx(11 / 5)
    assert rows["tokens_per_s"] == pytest.approx(14 / 4)


def test_fixed_lengths_at_a_verification_rate():
    pairs = [(0.5, 0.1), (0.3, 0.5), (0.4, 0.2)]
    fixed = [{"verification_rate": calls, "discard_rate": refused} for calls, refused in pairs]
    assert report.discard_of_fixed(fixed, 0.35) == pytest.approx(0.35)
    assert report.discard_of_fixed(fixed, 0.4) == pytest.approx(0.2)
    assert report.discard_of_fixed(fixed, 0.45) == pytest.approx(0.15)
    for outside in (0.29, 0.51):
        assert report.discard_of_fixed(fixed, outside) is None
    assert report.discard_of_fixed([], 0.4) is None


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
    report.main(["examples", "--answers", answers, "--output", str(output)])
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
        report.main(["examples", "--answers", str(path), "--output", str(tmp_path / "r.json")])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("report_specdecpp: ") and words in line


def test_flags_that_rates_sets_are_refused(tmp_path, capsys):
    argv = ["rates", "--model-path", "m", "--drafter-path", "d", "--head-path", "h"]
    for more, words in (
        (["--num-draft", "3"], "--num-draft is set by this command"),
        (["--answer-file=x"], "--answer-file=x is set by this command"),
        (["--bound", "5", "2"], "--bound 5 2: the first is above the second"),
    ):
        with pytest.raises(SystemExit) as end:
            report.main([*argv, *more])
        assert end.value.code == 2 and words in capsys.readouterr().err


def inside(command, **_):
    """A method's script without a process of its own."""
    assert command[1] == "-m"
    method = command[2].split(".")[1]
    assert command[2] == f"model.{method}.inference_{method}"
    return SimpleNamespace(returncode=run(method, *command[3:]), stderr="")


def test_the_rates_command(model_dir, draft_dir, question_file, tmp_path, capsys, monkeypatch):
    """One fixed length and one threshold; a second call reads what is there."""
    monkeypatch.setattr(report, "subprocess", SimpleNamespace(run=inside, PIPE=None))
    argv = ["rates", "--model-path", model_dir, "--drafter-path", draft_dir]
    argv += ["--head-path", specdecpp_dir(draft_dir), "--question-file", question_file, *COMMON]
    argv += ["--max-new-tokens", "12", "--lengths", "3", "--thresholds", "0.4"]
    argv += ["--answers-dir", str(tmp_path)]
    report.main(argv)
    *lines, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)["rows"]
    assert list(rows) == ["K = 3", "h = 0.4"] and len(lines) == 4
    for row, path in zip(rows.values(), ("K=3.jsonl", "h=0.4.jsonl")):
        choices = [choice for record in read(tmp_path / path) for choice in record["choices"]]
        generated = sum(sum(choice["new_tokens"]) for choice in choices)
        drafted = sum(sum(map(sum, choice["drafted"])) for choice in choices)
        passes = sum(len(c["accept_lengths"]) + len(c["new_tokens"]) for c in choices)
        assert row["verification_rate"] == pytest.approx(passes / generated)
        assert row["discard_rate"] == pytest.approx((drafted - generated + passes) / generated)
    assert rows["K = 3"]["generated"] == rows["h = 0.4"]["generated"]
    before = [path.read_bytes() for path in sorted(tmp_path.glob("*.jsonl"))]
    report.main(argv)
    assert before == [path.read_bytes() for path in sorted(tmp_path.glob("*.jsonl"))]
    assert capsys.readouterr().out.splitlines()[-1] == last


def test_a_run_that_fails_is_one_line(model_dir, draft_dir, question_file, tmp_path):
    args = report.make_parser().parse_args(
        ["rates", "--model-path", model_dir, "--drafter-path", draft_dir, "--head-path", "./none"]
        + ["--lengths", "--thresholds", "0.5", "--answers-dir", str(tmp_path)]
    )
    with pytest.raises(BadInput, match="h=0.5: .*no such model directory"):
        report.show_rates(args, ["--question-file", question_file, *COMMON])


def test_answers_of_the_script(model_dir, draft_dir, question_file, tmp_path):
    """Greedy ids are vanilla's for every schedule, and `none` drafts nothing."""
    vanilla = answer("vanilla", model_dir, question_file, tmp_path / "v.jsonl")
    for schedule in ("ada", "constant", "heuristic", "none"):
        own = ["--drafter-path", draft_dir, "--schedule", schedule]
        own += ["--head-path", specdecpp_dir(draft_dir)] if schedule == "ada" else []
        found = answer("specdecpp", model_dir, question_file, tmp_path / f"{schedule}.jsonl", *own)
        for one, other in zip(found, vanilla, strict=True):
            assert one["choices"][0]["output_ids"] == other["choices"][0]["output_ids"]
        drafted = sum(sum(map(sum, record["choices"][0]["drafted"])) for record in found)
        assert (drafted == 0) == (schedule == "none")
