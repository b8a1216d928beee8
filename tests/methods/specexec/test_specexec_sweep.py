"""SpecExec's flags and the sweep: refusals, the product of lists, the table and its files."""

import csv
import json
from argparse import Namespace

import pytest
from harness_runs import COMMON, read, refusal, refused

from model.common import args as arguments
from model.specexec import inference_specexec, sweep
from model.specexec.flags import Shape, shape_of

SPECINFER = ["--gen-type", "specinfer"]
BEST = [*SPECINFER, "--draws", "best"]
NAMES = "beams max_h budget minLP branch t0 t1 tree_h tree_size min_CLP exp_time gen_rate gen_speed"


def parsed(*flags, add_args=inference_specexec.add_args):
    parser = arguments.make_parser("specexec", "", add_args)
    draft = [] if "zero" in flags else ["--drafter-path", "d"]
    return parser.parse_args(["--model-path", "m", *draft, *map(str, flags)])


# --- flags ---


def test_defaults():
    assert shape_of(parsed(), 1000) == Shape(128, 32, 128, 32)
    assert shape_of(parsed("--max-budget", 16), 20) == Shape(16, 32, 16, 20)
    assert shape_of(parsed("--gen-type", "specinfer"), 1000) == Shape(8, 16, 128)
    assert shape_of(parsed("--gen-type", "zero"), 1000) is None


def test_every_flag_arrives():
    flags = ["--max-budget", 2048, "--max-num-beams", 64, "--max-beam-len", 7]
    flags += ["--max-branch-width", 9, "--min-log-prob", -8.5, "--decay", 0.9]
    flags += ["--draft-temperature", 0.7]
    shape = Shape(64, 7, 2048, 9, -8.5, 0.9, 0.7)
    assert shape_of(parsed(*flags), 1000) == shape
    flags = ["--gen-type", "specinfer", "--max-num-beams", 3, "--max-beam-len", 2, "--replacement"]
    assert shape_of(parsed(*flags), 1000) == Shape(3, 2, 6, replacement=True)
    assert shape_of(parsed("--min-log-prob", 0), 1000).min_log_prob == 0
    flags = ["--gen-type", "specinfer", "--draws"]
    assert shape_of(parsed(*flags, "best"), 1000) == Shape(8, 16, 128, best=True)
    assert shape_of(parsed(*flags, "sample"), 1000) == Shape(8, 16, 128)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--max-budget", 2049], "--max-budget: 2049: a number from 1 to 2048"),
        (["--decay", 0], "--decay"),
        (["--min-log-prob", 1], "--min-log-prob"),
        (["--draft-temperature", 0], "--draft-temperature"),
        (["--max-budget", 8, "--max-num-beams", 9], "--max-num-beams 9 is more than"),
        (["--max-branch-width", 259], "--max-branch-width 259: both models know 258 tokens"),
        (["--replacement"], "--replacement says nothing to --gen-type specexec"),
        (["--draws", "best"], "--draws says nothing to --gen-type specexec"),
        ([*SPECINFER, "--max-budget", 8], "--max-budget says nothing"),
        ([*SPECINFER, "--decay", 1], "--decay says nothing"),
        ([*SPECINFER, "--min-log-prob", 0], "--min-log-prob says nothing"),
        ([*SPECINFER, "--max-num-beams", 259], "--max-num-beams 259: both models know 258"),
        ([*BEST, "--replacement"], "--replacement says nothing to --draws best"),
        ([*BEST, "--draft-temperature", 2], "--draft-temperature says nothing to --draws best"),
        (["--gen-type", "zero"], "--drafter-path says nothing"),
        (["--offload", "disk"], "--offload-folder"),
        (["--offload-buffers", 3], "--offload-buffers needs --offload"),
    ],
)
def test_refusals(capfd, paths, flags, words):
    line = refused(capfd, paths, "--drafter-path", paths["draft"], *flags, method="specexec")
    assert words in line


# --- the sweep ---


def test_lists_and_their_product():
    flags = ["--max-num-beams", "16, 32,none", "--max-budget", "64,128", "--output", "o"]
    args = parsed(*flags, "--model-id", "m", "--min-log-prob=-3,none", add_args=sweep.add_args)
    assert args.max_num_beams == [16, 32, None] and args.min_log_prob == [-3.0, None]
    runs = sweep.combinations(args)
    values = [(r.max_num_beams, r.max_budget, r.min_log_prob) for r in runs]
    assert values[:4] == [(16, 64, -3.0), (16, 64, None), (16, 128, -3.0), (16, 128, None)]
    assert len(values) == len(set(values)) == 12 == len({run.answer_file for run in runs})
    assert runs[0].model_id == "m-specexec-16-none-64--3-none"


def test_a_warning_for_large_grids(capfd):
    lists = {"max_num_beams": [1, 2], "max_beam_len": [1, 2], "max_budget": [1, 2]}
    given = {name: lists.get(name) for name in sweep.SWEPT}
    args = Namespace(model_id="m", gen_type="specexec", output="o", **given)
    assert len(sweep.combinations(args)) == 8
    assert "8 runs" in capfd.readouterr().err


def swept(*flags):
    with pytest.raises(SystemExit) as ended:
        sweep.main([str(flag) for flag in flags])
    return ended.value.code


@pytest.fixture
def where(model_dir, draft_dir, question_file):
    flags = ["--model-path", model_dir, "--drafter-path", draft_dir, *COMMON]
    return [*flags, "--question-file", question_file, "--max-new-tokens", 12, "--model-id", "m"]


def test_table_and_files(capfd, where, tmp_path):
    out = tmp_path / "sweep"
    flags = ["--max-budget", "8,16", "--max-num-beams", "4,8", "--max-beam-len", 3]
    assert swept(*where, *flags, "--output", out) == 0
    lines = [line.strip("| ").split(" | ") for line in capfd.readouterr().out.splitlines()]
    assert lines[0] == [*NAMES.split(), "mem_use"]
    assert [line[:5] for line in lines[2:6]] == [
        [beams, "3", budget, "-", "32"] for beams in "48" for budget in ("8", "16")
    ]
    document = json.loads((out / "summary.json").read_text())
    assert set(document["units"]) == set(lines[0]) and len(document["rows"]) == 4
    assert document["arguments"]["max_budget"] == [8, 16]
    with (out / "summary.csv").open() as table:
        shown = list(csv.DictReader(table))
    for row, cells in zip(document["rows"], shown):
        assert float(cells["gen_rate"]) == row["gen_rate"]
        assert 0.5 <= row["tree_h"] <= 3 and row["tree_size"] <= row["budget"]
        assert row["min_CLP"] < 0 < row["t0"] and row["t1"] > 0 and row["mem_use"] > 0
        assert row["gen_rate_micro"] * row["steps"] == pytest.approx(row["tokens"])
        records = read(out / row["answer_file"])
        assert row["questions"] == len(records) == 6 and row["failed"] == 0
        assert row["tokens"] == sum(sum(r["choices"][0]["accept_lengths"]) for r in records)
        rates = [r["choices"][0]["accept_lengths"] for r in records]
        assert row["gen_rate"] == pytest.approx(sum(sum(n) / len(n) for n in rates) / 6)


def test_rows_count_their_own_passes(where, tmp_path):
    """Not those of loading, of warm-ups, or of the rows before."""
    flags = ["--max-budget", "8,8", "--max-beam-len", 3, "--offload", "ram", "--warmup", 1]
    assert swept(*where, *flags, "--output", tmp_path / "sweep") == 0
    first, second = json.loads((tmp_path / "sweep" / "summary.json").read_text())["rows"]
    turns = 7  # each with a prefill
    assert first["offload_passes"] == second["offload_passes"] == first["steps"] + turns
    assert first["offload_copies"] == second["offload_copies"] > 0


def test_a_row_by_hand(monkeypatch):
    times = {"new_tokens": [1], "wall_time": [9.0]}
    choice = {
        **times,
        "accept_lengths": [3, 1, 2],
        "drafted": [[4, 4], [1]],
        "depth": [[2, 3], [1]],
    }
    choice |= {"draft_s": [[0.1, 0.2], [0.3]], "verify_s": [[1.0, 1.0], [1.0]]}
    choice |= {"commit_s": [[0.0, 0.5], [0.1]]}
    short = {**times, "accept_lengths": [4], "drafted": [[8]], "depth": [[4]], "draft_s": [[1.0]]}
    short |= {"verify_s": [[2.0]], "commit_s": [[1.0]]}
    answers = [{"choices": [choice]}, {"choices": [short]}]
    run = parsed("--min-log-prob", "-3")
    run.model_id, run.answer_file = "m", "folder/m.jsonl"
    facts = {"mean_lowest_score": -2.5}
    row = sweep.summary(run, Shape(2, 3, 8, 4), answers, facts, 9.0, 0.5)
    assert row["t0"] == pytest.approx((0.2 + 1.0) / 2) and row["t1"] == pytest.approx(2.1)
    assert row["gen_rate"] == 3 and row["gen_rate_micro"] == 10 / 4
    assert row["gen_speed"] == pytest.approx((6 / 4.2 + 4 / 4) / 2)
    assert row["gen_speed_micro"] == pytest.approx(10 / 8.2)
    assert (row["tree_h"], row["tree_size"]) == (3, 5.5) and row["min_CLP"] == -2.5
    assert (row["questions"], row["steps"], row["tokens"]) == (2, 4, 10)


def test_specinfer_and_zero_rows(capfd, where, tmp_path):
    flags = ["--gen-type", "specinfer", "--max-num-beams", "1,3", "--max-beam-len", 2]
    assert swept(*where, *flags, "--temperature", 1, "--output", tmp_path / "si") == 0
    rows = json.loads((tmp_path / "si" / "summary.json").read_text())["rows"]
    assert [row["tree_size"] for row in rows] == pytest.approx([2, 6], rel=0.4)
    assert {row["budget"] for row in rows} == {row["branch"] for row in rows} == {None}
    where = [flag for flag in where if flag != where[3]]
    where.remove("--drafter-path")
    assert swept(*where, "--gen-type", "zero", "--output", tmp_path / "zero") == 0
    (row,) = json.loads((tmp_path / "zero" / "summary.json").read_text())["rows"]
    assert row["gen_rate"] == 1 and row["tree_size"] == 0 and row["min_CLP"] is None


def test_sweeps_that_cannot_be_made(capfd, where, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    out = ["--output", tmp_path / "out", "--overwrite"]
    for flags, words in (
        (["--output", tmp_path / "full"], "not empty"),
        (["--output", tmp_path / "full" / "x"], "cannot be written"),
        ([*out, "--answer-file", "a"], "--answer-file"),
        ([*out, "--paired", 1], "--paired"),
        ([*out, "--max-budget", "4,"], "--max-budget"),
        ([*out, "--max-num-beams", "4,16", "--max-budget", "16,8"], "--max-num-beams 16"),
    ):
        assert words in refusal(capfd, swept(*where, *flags))
