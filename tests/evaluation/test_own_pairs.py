"""Methods of runs with --paired 1: places by their speedups, and bounds of their own pairs."""

import numpy as np
import pytest
from page_files import QUESTIONS, make_paired_run
from test_report import shown

from evaluation.answers.reader import read_answers
from evaluation.pictures import figures
from evaluation.pictures.document import document
from evaluation.pictures.ranking import Ranking
from evaluation.pictures.views import PAIRED, Settings, own_pairs
from evaluation.speedup.intervals import few_questions
from evaluation.speedup.metrics import question_columns


def test_methods_with_own_pairs_are_told_apart_by_their_speedups(tmp_path):
    files = [read_answers(path) for path in make_paired_run(tmp_path).values()]
    found, (group,) = document(files, Settings(500, 0))
    view = found["groups"][0]["views"][PAIRED]
    assert view["ranked"] == {task: [[0, 1], [2]] for task in ("qa", "rag", "overall")}
    pairs = dict(own_pairs(group))
    by_pairs = Ranking(group, Settings(500, 0), pairs)
    by_speed = Ranking(group, Settings(500, 0))
    assert by_speed.ratio_of_speeds(0, 1, "overall")["value"] > 1.8, "two speeds of the machine"
    assert not by_speed.told_apart(1, 2, "overall") and by_pairs.told_apart(1, 2, "overall")

    ids = list(files[0].questions)
    speeds = np.array(
        [
            question_columns([side.questions[i] for i in ids]).speed
            for side in (files[0], pairs[0], files[2], pairs[2])
        ]
    )
    draws = np.random.default_rng(0).integers(QUESTIONS, size=(500, QUESTIONS))

    def ratio(rows):
        ours, our_base, theirs, their_base = speeds[:, rows].mean(axis=1)
        return (ours / our_base) / (theirs / their_base)

    value, ends = ratio(np.arange(QUESTIONS)), np.percentile([*map(ratio, draws)], [2.5, 97.5])
    entry = by_pairs.ratio_of_speedups(0, 2, "overall")
    wanted = [value, *(value * (ends / value) ** few_questions(QUESTIONS))]
    assert [entry["value"], entry["low"], entry["high"]] == pytest.approx(wanted)
    speedups = [row["tasks"]["overall"]["speedup"]["value"] for row in view["rows"]]
    assert entry["value"] == pytest.approx(speedups[0] / speedups[2])


def test_methods_whose_questions_differ_share_a_place(tmp_path):
    files = [read_answers(path) for path in make_paired_run(tmp_path).values()]
    (group,) = document(files, Settings(100, 0))[1]
    pairs = dict(own_pairs(group))
    for number, half in ((0, range(0, QUESTIONS, 2)), (2, range(1, QUESTIONS, 2))):
        for answers in (group.files[number], pairs[number]):
            for i in half:
                del answers.questions[i]
    ranking = Ranking(group, Settings(100, 0), pairs)
    assert ranking.ratio_of_speedups(0, 2, "overall") is None
    assert not ranking.told_apart(0, 2, "overall") and ranking.told_apart(1, 2, "overall")


def test_each_of_own_pairs_has_its_own_bound(tmp_path):
    (group,) = shown(make_paired_run(tmp_path).values())["groups"]
    rows = {row["file"]: row["roofline"] for row in group["views"][PAIRED]["rows"]}
    bounds = [rows[number]["bound_ms"] for number in range(3)]
    assert bounds[1] == pytest.approx(2 * bounds[0]) and bounds[2] == bounds[0]
    assert rows[1]["step_ms"] == pytest.approx(2 * rows[0]["step_ms"], rel=0.02)
    pytest.importorskip("matplotlib")
    figure = figures.bound(figures.Picture(group, PAIRED, "overall", 3.3))
    drawn = [line.get_xdata()[0] for line in figure.axes[0].get_lines()]
    places = group["views"][PAIRED]["ranked"]["overall"]
    assert drawn == [bounds[number] for place in places for number in place]
