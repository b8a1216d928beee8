"""Published figures and question sets of the leaderboard: their form, and what they say."""

import json

from data.download import SETS
from evaluation.board import questions, store
from evaluation.speedup.comparison import TASK_NAMES

ROOT = store.FOLDER.parents[1]
PUBLISHED = store.FOLDER / "published.jsonl"
FIELDS = {"method", "name", "target", "device", "bench", "settings", "speedup", "accepted"}
FIELDS |= {"source", "counted"}
SOURCE = {"arxiv", "repository", "commit", "branch", "file", "issue"}
TASKS = {*TASK_NAMES.values(), "Overall"}


def rows():
    return [json.loads(line) for line in PUBLISHED.read_text(encoding="utf-8").splitlines()]


def test_every_figure_says_where_it_stands_and_what_it_counts():
    for row in rows():
        assert row.keys() == FIELDS, row
        texts = ("name", "target", "bench", "settings", "counted")
        assert all(isinstance(row[name], str) and row[name].strip() for name in texts), row
        assert row["device"] is None or row["device"].strip()
        assert row["source"].keys() <= SOURCE and {"arxiv", "repository"} & row["source"].keys()
        assert not row["source"].get("repository", "").startswith("http")
        numbers = [*row["speedup"].values(), *row["accepted"].values()]
        assert numbers and all(type(n) is float and 0.5 < n < 30 for n in numbers), row
        assert {*row["speedup"], *row["accepted"]} <= TASKS
        assert all(n >= 1 for n in row["accepted"].values())


def test_methods_are_ours_and_no_figure_stands_twice():
    folders = {path.parent.name for path in (ROOT / "model").glob("*/inference_*.py")}
    found = rows()
    assert {row["method"] for row in found} - {None} <= folders
    key = ("name", "target", "device", "bench", "settings", "source")
    assert len({json.dumps([row[name] for name in key]) for row in found}) == len(found)


def test_spec_benchs_leaderboard_is_whole():
    theirs = [
        row for row in rows() if row["source"].get("repository", "").endswith("hemingkx/Spec-Bench")
    ]
    count = {}
    for row in theirs:
        count[row["device"], row["target"]] = count.get((row["device"], row["target"]), 0) + 1
        assert len(row["speedup"]) == 7 and row["accepted"].keys() == {"Overall"}
    assert sorted(count.values()) == [10, 10, 10, 11]
    (row,) = [r for r in theirs if r["name"] == "EAGLE3"]
    assert row["speedup"]["Overall"] == 3.02 and row["accepted"]["Overall"] == 5.71


def test_question_sets_are_those_that_can_be_fetched():
    kept = json.loads((store.FOLDER / "spec_bench" / "questions.json").read_text())
    assert kept["sha256"] == SETS["spec_bench"].published.sha256
    assert len(kept["questions"]) == 480
    assert list(questions.set_problems(store.FOLDER)) == []
