"""SD2's flags, what is refused, and the comparison of exits."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from conftest import save_model
from harness_runs import COMMON, refused

from model.common import args as arguments
from model.common.errors import BadInput
from model.sd2 import compare, inference_sd2
from model.sd2.flags import resolve, shape_of


def parsed(*flags):
    parser = arguments.make_parser("sd2", "", inference_sd2.add_args)
    return parser.parse_args(["--model-path", "m", "--drafter-path", "d", *map(str, flags)])


def config(**fields):
    return {"num_hidden_layers": 12, **fields}


STORED = config(sd2_exits=[6, 9, 12], sd2_thresholds=[0.4, 0.3, 0])


def test_shapes():
    assert shape_of(parsed()) == {"total_token": 60, "depth": 4, "draft_top_k": 10}
    chain = {"schedule": "heuristic", "num_draft": 5, "guess": "sample"}
    assert shape_of(parsed("--draft", "chain")) == chain
    flags = ["--draft", "chain", "--schedule", "constant", "--num-draft", 3, "--guess", "argmax"]
    assert list(shape_of(parsed(*flags)).values()) == ["constant", 3, "argmax"]
    flags = ["--total-token", 30, "--depth", 2, "--draft-top-k", 4]
    assert list(shape_of(parsed(*flags)).values()) == [30, 2, 4]


def test_exits_and_thresholds_come_from_the_flags_then_the_config():
    assert resolve(parsed(), STORED) == ([6, 9, 12], [0.4, 0.3, 0.0])
    assert resolve(parsed("--thresholds", ".9,.8,0"), STORED) == ([6, 9, 12], [0.9, 0.8, 0.0])
    assert resolve(parsed("--exits", "6"), STORED) == ([6], [0.0])
    assert resolve(parsed("--exits", "3,5"), STORED) == ([3, 5], [0.5, 0.0])
    assert resolve(parsed(), config(sd2_exits=[2, 4])) == ([2, 4], [0.5, 0.0])


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"sd2_exits": [6, 13]}, "sd2_exits 6,13: the draft model has 12 layers"),
        ({"sd2_exits": [6, 6]}, "sd2_exits is .6, 6.: not rising"),
        ({"sd2_exits": "6,9"}, "sd2_exits is '6,9': no list"),
        ({"sd2_exits": [6, 9], "sd2_thresholds": [0.5]}, "sd2_thresholds 0.5: 1 for 2 exits, 6,9"),
        ({"sd2_exits": [6], "sd2_thresholds": [1.5]}, "sd2_thresholds is .1.5.: not from 0"),
    ],
)
def test_configs_that_do_not_fit(fields, words):
    with pytest.raises(BadInput, match=words):
        resolve(parsed(), config(**fields))


@pytest.fixture(scope="module")
def sorted_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("sorted"), seed=5, sd2_exits=[1, 3])


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--num-draft", 3], "--num-draft says nothing to --draft tree"),
        (["--draft", "chain", "--depth", 3], "--depth says nothing to --draft chain"),
        (["--exits", "1,9"], "--exits 1,9: the draft model has 3 layers"),
        (["--exits", "3,1"], "--exits: 3,1: layer counts from 1 on that rise are needed"),
        (["--exits", "x"], "--exits: x: layer counts from 1 on that rise are needed"),
        (["--thresholds", "1.1"], "--thresholds: 1.1: numbers from 0 to 1 are needed"),
        (["--thresholds", "0.5"], "--thresholds 0.5: 1 for 2 exits"),
        (["--draft-top-k", 300], "--draft-top-k 300: both models know 258 tokens"),
        (["--depth", 600], "--depth: a draft 601 deep"),
        (["--draft", "chain", "--num-draft", 512], "--num-draft: a draft 512 deep"),
    ],
)
def test_refusals(paths, sorted_dir, capfd, flags, words):
    assert words in refused(capfd, paths, "--drafter-path", sorted_dir, *flags, method="sd2")


@pytest.mark.parametrize(
    "shape, words",
    [
        ({"words": ("zebra",), "sd2_exits": [3]}, "'zebra' is 258 in the first"),
        ({"family": "qwen3", "sd2_exits": [3]}, "of type qwen3, llama is needed"),
        ({}, "config.json: no sd2_exits"),
    ],
)
def test_draft_models_that_do_not_fit(paths, tmp_path, capfd, shape, words):
    other = save_model(tmp_path / "other", **shape)
    capfd.readouterr()  # progress of writing it
    assert words in refused(capfd, paths, "--drafter-path", other, method="sd2")


# --- the comparison ---


def compared(capsys, *flags, code=0):
    with pytest.raises(SystemExit) as ended:
        compare.main([str(flag) for flag in flags])
    said = capsys.readouterr()
    assert ended.value.code == code, said.err
    return said


def test_comparison(model_dir, sorted_dir, question_file, tmp_path, capsys):
    data = tmp_path / "held_out.jsonl"
    chat = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello there"}]
    data.write_text(json.dumps({"conversations": chat}) + "\n")
    control = save_model(tmp_path / "control", seed=6, sd2_exits=[1, 3])
    flags = ["--model-path", model_dir, "--drafter-path", sorted_dir, "--control-path", control]
    flags += ["--question-file", question_file, "--max-new-tokens", 8, *COMMON, "--data", data]
    flags += ["--depth", 2, "--draft-top-k", 3, "--output", tmp_path / "kept"]
    path = tmp_path / "rows.json"
    lines = compared(capsys, *flags, "--json", path).out.strip().splitlines()
    rows = json.loads(path.read_text())["rows"]
    assert [row["name"] for row in rows] == ["exit 1", "exit 3", "adaptive"] * 2
    assert [row["draft"] for row in rows] == [sorted_dir] * 3 + [control] * 3
    assert [row["exits"] for row in rows[:3]] == [[1], [3], [1, 3]]
    for row in rows:
        assert row["mean_accepted"] >= 1 and row["tokens"] == 7 * 8 and row["tokens_per_s"] > 0
        assert ("cross_entropy" in row) == (row["name"] != "adaptive")
        forwards = row["draft_layer_forwards"]
        assert row["layer_forwards_per_token"] == pytest.approx(forwards / row["tokens"])
    assert rows[0]["layer_forwards_saved"] == pytest.approx(2 / 3)
    assert rows[1]["layer_forwards_saved"] == 0 <= rows[2]["layer_forwards_saved"] <= 2 / 3
    assert rows[0]["cross_entropy"] != rows[1]["cross_entropy"] != rows[3]["cross_entropy"]
    assert len(lines) == 2 + len(rows) and len(list((tmp_path / "kept").glob("*.jsonl"))) == 6


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--paired", "1"], "--paired cannot go with a comparison"),
        (["--answer-file", "x"], "--answer-file cannot go with a comparison"),
        (["--data", "nowhere.jsonl"], "--data nowhere.jsonl: no such file"),
        (["--exits", "5"], "--exits 5: the draft model has 3 layers"),
        (["--num-draft", "5"], "--num-draft says nothing to --draft tree"),
    ],
)
def test_comparisons_that_cannot_be_made(model_dir, sorted_dir, capsys, flags, words):
    own = ["--model-path", model_dir, "--drafter-path", sorted_dir, *COMMON, *flags]
    err = compared(capsys, *own, code=2).err.strip().splitlines()
    assert words in err[-1] and "Traceback" not in "".join(err)


def test_a_summary_of_nothing_is_none():
    row = compare.summary([], {"draft_layer_forwards": 0, "draft_layer_forwards_saved": 0}, 1.0)
    assert row["mean_accepted"] is row["tokens_per_s"] is row["layer_forwards_saved"] is None


def test_a_drafts_rows_are_planned_once_per_exit(sorted_dir):
    args = Namespace(**vars(parsed("--thresholds", ".7,0")), control_path=None)
    args.drafter_path = sorted_dir
    found = compare.plans(args, Path("folder"))
    runs = [(layer, run.exits, run.thresholds, depth) for layer, depth, run in found]
    assert runs == [(1, [1], [0.0], 1 / 3), (3, [3], [0.0], 1), (None, [1, 3], [0.7, 0.0], 1)]
