"""report.py without a browser: its numbers are speed.py's, and its page holds no foreign markup."""

import base64
import json
import re
import zlib
from html.parser import HTMLParser

import pytest
from answer_samples import assert_refused, report_of, run_tool, write
from conftest import make_tokenizer
from page_files import HOSTILE, QUESTIONS, hostile_files, lines, make_run, own_meta
from served_files import load_meta, random_lines, server_line

from evaluation import report as report_tool
from evaluation.answers.meta import AnswerError
from evaluation.answers.reader import read_answers
from evaluation.pictures import answers as viewer
from evaluation.pictures.document import document
from evaluation.pictures.files import names_of
from evaluation.pictures.page import BEGIN
from evaluation.pictures.published import read_published
from evaluation.pictures.steps import acceptance, turns_of
from evaluation.pictures.views import PAIRED, Settings
from evaluation.speedup.comparison import compare

REPORT, SPEED = "evaluation/report.py", "evaluation/speed.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Files of a run by name."""
    return make_run(tmp_path_factory.mktemp("run"))


def shown(paths, **options):
    """document() of some files, with few resamples."""
    found, _ = document([read_answers(path) for path in paths], Settings(500, 0), **options)
    return found


def data_of(page):
    """(document, packed answers) of a page's text."""
    blocks = re.findall(r'<script type="application/json" id="\w+">(.*?)</script>', page, re.S)
    return tuple(map(json.loads, blocks))


def unpacked(entry):
    """A question of the viewer out of [id, category, packed]."""
    return json.loads(zlib.decompress(base64.b64decode(entry[2]), -zlib.MAX_WBITS))


def test_numbers_are_those_of_speed_for_every_baseline_and_task(run):
    cold, hot = shown(run.values())["groups"]
    assert [cold["settings"]["temperature"], hot["settings"]["temperature"]] == [0.0, 0.6]
    names = [file["name"] for file in cold["files"]]
    assert cold["baselines"] == ["0", "1"] and names[:2] == ["vanilla", "vanilla-compile"]
    for base in ("vanilla", "vanilla-compile"):
        view = cold["views"][str(names.index(base))]
        methods = [run[names[row["file"]].removesuffix(" (lossy)")] for row in view["rows"]]
        args = "--base-path", run[base], "--resamples", 500, "--allow", "runtime"
        results = report_of(run_tool(SPEED, *args, "--file-path", *methods))["results"]
        for row, result in zip(view["rows"], results, strict=True):
            for task in result["tasks"]:
                mine = row["tasks"][task["task"]]
                assert mine["speedup"] == task["speedup"]["mean_ratio"]
                assert mine["decode"] == task["decode_speedup"]["mean_ratio"]
                assert mine["accepted"] == task["mean_accepted"]["over_steps"]
            overall = row["tasks"]["overall"]
            assert overall["profile"] | {"pays": None} == result["profile"] | {"pays": None}
            assert overall["identity"] == result["time_identity"]
            assert row["roofline"] == result["roofline"]
            assert row["drift"]["state"] == result["drift"]["state"]
    assert len(view["rows"]) == 5 and not view["not_compared"]


def test_places_are_those_that_speed_tells_apart(run):
    group = shown(run.values())["groups"][0]
    names = [file["name"] for file in group["files"]]
    view = group["views"]["0"]
    places = [[names[number] for number in place] for place in view["ranked"]["overall"]]
    assert places[0] == ["fast", "near"] and ["slow"] in places

    for other, apart in (("near", False), ("typical", True)):
        pair = [read_answers(run[name]) for name in ("fast", other)]
        entry = compare(*pair, 500, 0)["tasks"][-1]["speedup"]["mean_ratio"]
        assert (entry["low"] > 1) == apart


def test_a_baseline_of_other_settings_is_refused(run, tmp_path):
    out = "--output", tmp_path / "page.html", "--resamples", 10
    for files in ([run["fast-hot"]], [run["fast-hot"], run["vanilla"]]):
        done = run_tool(REPORT, *files, "--base-path", run["vanilla"], *out)
        assert_refused(done, "no FILE is of its settings: temperature 0.0, in fast-hot.jsonl 0.6")
    fine = run_tool(REPORT, run["fast-hot"], run["fast"], "--base-path", run["vanilla"], *out)
    assert fine.returncode == 0 and not fine.stderr
    assert run_tool(REPORT, run["vanilla"], "--base-path", run["vanilla"], *out).returncode == 0


def test_a_baseline_that_drafts_is_named_as_speed_does(run, tmp_path):
    args = "--base-path", run["near"], "--resamples", 10
    done = run_tool(REPORT, run["fast"], *args, "--output", tmp_path / "page.html")
    said = done.stderr.removeprefix("warning: ").strip()
    assert re.fullmatch(r"the baseline near commits \d\.\d{3} tokens per step: .*", said)
    assert f"note: {said}" in run_tool(SPEED, "--file-path", run["fast"], *args).stdout
    pytest.importorskip("matplotlib")
    drawn = run_tool("evaluation/plot.py", run["fast"], *args, "--output", tmp_path / "figures")
    assert drawn.returncode == 0 and said in drawn.stderr


def test_a_run_with_all_pairs_has_them_as_a_baseline(run, tmp_path):
    method = write(tmp_path / "m.jsonl", lines("m", 3, 0.02, 1), own_meta("m", "pld"))
    own = own_meta("m-paired-baseline", "vanilla") | {"pairs_of": "m"}
    write(tmp_path / "m-paired-baseline.jsonl", lines("m-paired-baseline", 1, 0.03, 2), own)
    (group,) = shown([method])["groups"]
    assert group["baselines"] == [PAIRED]
    base = lines("vanilla", 1, 0.02, 0), own_meta("vanilla", "vanilla")
    both = [method, write(tmp_path / "vanilla.jsonl", *base)]
    assert shown(both)["groups"][0]["baselines"] == [PAIRED, "1"]
    done = run_tool(SPEED, "--file-path", method, "--paired", "--resamples", 500)
    ratio = report_of(done)["results"][0]["tasks"][-1]["speedup"]["mean_ratio"]
    assert group["views"][PAIRED]["rows"][0]["tasks"]["overall"]["speedup"] == ratio
    some = shown([run["fast"], run["vanilla"]])["groups"][0]
    assert some["baselines"] == ["1"], "pairs of half of the questions are no baseline"
    assert len(some["views"]["1"]["rows"][0]["moves"]) == QUESTIONS // 2


def test_a_difference_is_listed_with_both_continuations(run):
    group = shown([run["vanilla"], run["slow"], run["fast"]])["groups"][0]
    by_name = {group["files"][row["file"]]["name"]: row for row in group["views"]["0"]["rows"]}
    assert by_name["fast"]["verdict"]["equal"] and not by_name["fast"]["verdict"]["differences"]
    verdict = by_name["slow"]["verdict"]
    (found,) = verdict["differences"]
    assert (verdict["differing"], found["question_id"], found["position"]) == (1, 3, 7)
    assert (found["base"], found["other"]) == (9, 90)
    assert found["before"].endswith("w8 w9") and found["base_text"].startswith(" w10")
    assert found["other_text"].startswith("0 w10")


def test_acceptance_by_hand(tmp_path):
    one = lines("m", 1, 0.02, 0)[:1]
    choice = one[0]["choices"][0]
    lengths, depth = [3, 1, 2, 2], [2, 2, 0, 3]
    choice |= {"accept_lengths": lengths, "decoding_steps": [4], "new_tokens": [9]}
    choice |= {"output_ids": [list(range(9))], "depth": [depth], "drafted": [[4, 4, 0, 4]]}
    times = [[0.1] * 4]
    choice |= {"draft_s": times, "verify_s": times, "commit_s": times}
    choice |= {"step_end_s": [[1.0, 2.0, 3.0, 4.0]], "wall_time": [4.0]}
    answers = read_answers(write(tmp_path / "m.jsonl", one, own_meta("m", "pld")))
    (turn,) = turns_of(answers.questions[0])
    assert turn.spans == [(0, 1), (1, 4), (4, 5), (5, 7), (7, 9)]
    found = acceptance(answers.questions.values())
    assert found["overall"] == found["qa"]
    # the last step is left out: of two drafts two deep one had its first and second accepted
    assert found["qa"]["position"] == [[1, 2], [1, 2]]
    assert found["qa"]["output"] == [[8, 4]]


def test_pages_hold_texts_as_texts(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "target")
    files, asked = hostile_files(tmp_path, tokenizer)
    args = ["--tokenizer-path", tmp_path / "target", "--question-file", asked, "--resamples", 100]
    done = run_tool(REPORT, *files, *args, "--output", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith(BEGIN) and done.stdout.splitlines()[-1].startswith("page: ")
    tags = Tags(page)
    assert tags.names.count("script") == 3 and not {"img", "svg"} & set(tags.names)
    assert not [name for name in tags.attributes if name.startswith("on")]
    for block in re.findall(r'id="(?:data|answers)">(.*?)</script>', page, re.S):
        assert not set("<>&\u2028\u2029") & set(block)
    found, packed = data_of(page)
    assert found["groups"][0]["settings"]["target"] == HOSTILE[1]
    questions = [unpacked(entry) for entry in packed[0]]
    by_id = {question["id"]: question for question in questions}
    assert by_id["failed"]["failed"] == {"0": HOSTILE[1], "1": HOSTILE[1]}
    for number, text in enumerate(HOSTILE[:9]):
        question = by_id[f"{text} {number}"]
        answer = question["turns"][0]["answers"][0]
        assert "".join(answer["pieces"]) == text.replace("\u2028", "\\u2028").replace(
            "\u2029", "\\u2029"
        )
    escaped = by_id[f"{HOSTILE[9]} 9"]["turns"][0]["answers"][0]["pieces"]
    assert "".join(escaped) == "\\x1b[31mred\\x1b]0;title\\x07\\u202eevil"


class Tags(HTMLParser):
    """Names of a page's elements and attributes, as a browser's parser finds them."""

    def __init__(self, page):
        super().__init__()
        self.names, self.attributes = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [name for name, _ in attrs]


def test_a_page_stays_within_its_bytes_and_says_what_it_left_out(run, tmp_path):
    page = tmp_path / "page.html"
    full = run_tool(REPORT, *run.values(), "--resamples", 100, "--output", page)
    assert full.returncode == 0, full.stderr
    found, packed = data_of(page.read_text(encoding="utf-8"))
    assert [group["viewer"]["questions"] for group in found["groups"]] == [QUESTIONS] * 2
    size = page.stat().st_size - sum(len(entry[2]) for group in packed for entry in group) // 2
    small = ["--max-bytes", size, "--resamples", 100, "--output", page]
    assert run_tool(REPORT, *run.values(), *small).returncode == 0
    found, packed = data_of(page.read_text(encoding="utf-8"))
    kept = found["groups"][0]["viewer"]["questions"]
    assert 0 < kept < QUESTIONS == found["groups"][0]["viewer"]["of"]
    assert 3 in [entry[0] for entry in packed[0]], "the question that differs comes first"
    assert page.stat().st_size <= size


def test_equal_answers_stand_once(run):
    files = {i: read_answers(run[name]) for i, name in enumerate(("vanilla", "fast", "slow"))}
    same = viewer.question_content(2, files)["turns"][0]
    assert len(same["answers"]) == 1 and [one[1] for one in same["by"]] == [0, 0, 0]
    other = viewer.question_content(3, files)["turns"][0]
    assert len(other["answers"]) == 2 and [one[1] for one in other["by"]] == [0, 0, 1]


def test_load_runs_show_serving_figures(tmp_path):
    paths = []
    for method in ("vanilla", "pld"):
        for rate in ("1", "4"):
            name = f"{method}-rate-{rate}"
            found = [one | {"model_id": name} for one in random_lines(30, int(rate))]
            paths.append(
                write(tmp_path / f"{name}.jsonl", found, load_meta(name, method, rate=rate))
            )
    load = shown(paths, slo={"ttft": 0.5})["load"]
    assert [(one["label"], len(one["points"])) for one in load["series"]] == [
        ("vanilla-rate", 2),
        ("pld-rate", 2),
    ]
    done = run_tool(
        "evaluation/serving.py", *paths, "--slo", "ttft=0.5", "--json", tmp_path / "s.json"
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "s.json").read_text())
    by_label = {one["label"]: one for one in told["runs"]}
    for point in (point for one in load["series"] for point in one["points"]):
        assert point["ttft"] == by_label[point["label"]]["ttft"]
        assert point["good"] == by_label[point["label"]]["goodput"]["share"]
    assert load["knees"] == told["knees"]
    assert shown([paths[0]])["load"]["knees"] == []


def test_verdicts_of_the_target_stand_beside_the_comparison(run, tmp_path):
    report = tmp_path / "equal.json"
    judged = [
        {"file": str(run["slow"]), "judgement": {"verdict": "TIES ONLY"}},
        {"file": str(run["fast"]), "differences": [], "questions": QUESTIONS},
    ]
    report.write_text(json.dumps({"tool": "equal", "schema": 2, "results": judged}))
    words = report_tool.read_verdicts([report])
    group = shown([run[name] for name in ("vanilla", "slow", "fast")], verdicts=words)["groups"][0]
    assert [file["verdict"] for file in group["files"]] == [None, "TIES ONLY", None]


def test_a_servers_answers_without_steps_have_speedups_and_a_text(tmp_path):
    paths = []
    for name, gap in (("vanilla", 4), ("pld", 2)):
        found = [
            server_line(i, 50 * i, 50 * i, 10, [(gap, 1)] * 9) | {"model_id": name}
            for i in range(6)
        ]
        paths.append(write(tmp_path / f"{name}.jsonl", found, load_meta(name, name)))
    (group,) = shown(paths)["groups"]
    (row,) = group["views"]["0"]["rows"]
    overall = row["tasks"]["overall"]
    assert overall["speedup"]["value"] > 1 and overall["identity"] is None
    assert group["files"][1]["acceptance"]["overall"] == {"position": [], "output": []}
    content = viewer.question_content(0, {1: read_answers(paths[1])})
    (turn,) = content["turns"]
    assert turn["answers"] == [{"ids": None, "text": "answer 0"}] and turn["by"][0][2] is None


def test_published_figures_are_those_of_the_files_methods(run, tmp_path):
    path = tmp_path / "published.jsonl"
    common = {"target": "T", "device": None, "bench": "B", "settings": "greedy", "counted": "so"}
    one, other, foreign = (
        {"method": method, "name": method, "speedup": {"Overall": ratio}, **common}
        for method, ratio in (("eagle2", 2.5), ("pld", 1.5), ("else", 9.0))
    )
    source = {"source": {"arxiv": "1"}}
    path.write_text("\n".join(json.dumps(line | source) for line in (one, other, foreign)))
    (found,) = read_published(path, {"eagle2", "pld", None})
    assert (found["title"], found["source"], found["counted"]) == ("T, B, greedy", "arxiv 1", "so")
    assert [row["speedup"] for row in found["rows"]] == [{"Overall": 2.5}, {"Overall": 1.5}]
    broken = ("{", "not JSON"), ("3", "not a JSON object")
    for text, reason in (*broken, ('{"method": "pld", "speedup": 3}', "no object of numbers")):
        path.write_text(text)
        with pytest.raises(AnswerError, match=f"published.jsonl:1: .*{reason}"):
            read_published(path, {"pld"})
    with pytest.raises(AnswerError, match="No such file"):
        read_published(tmp_path / "none", {"pld"})


def test_names_are_short_and_never_twice(run, tmp_path):
    first = read_answers(run["fast"])
    again = read_answers(write(tmp_path / "fast.jsonl", lines("fast", 5, 0.02, 1), None))
    names = names_of([first, again, read_answers(run["typical"])])
    assert len(set(names)) == 3 and names[2] == "typical (lossy)"


def test_bad_input_is_one_line(run, tmp_path):
    other = tmp_path / "other.html"
    other.write_text("<html>mine</html>")
    assert_refused(run_tool(REPORT, run["fast"], "--output", other), "no such page", other)
    assert other.read_text() == "<html>mine</html>"
    out = "--output", tmp_path / "page.html"
    assert_refused(run_tool(REPORT, tmp_path / "none.jsonl", *out), "none.jsonl")
    assert_refused(run_tool(REPORT, run["fast"], "--reports", run["slow"], *out), "--reports")
    broken = tmp_path / "questions.jsonl"
    broken.write_text("{")
    assert_refused(run_tool(REPORT, run["fast"], "--question-file", broken, *out), "not JSON", ":1")
    pairs = run["fast"].with_name("fast-paired-baseline.jsonl")
    assert_refused(run_tool(REPORT, pairs, *out), "only pairs")
    assert_refused(run_tool(REPORT, run["fast"], "--max-bytes", 0, *out), "--max-bytes")
    assert_refused(run_tool(REPORT, run["fast"], "--slo", "ttft=x", *out), "--slo")
    alone = run_tool(REPORT, run["fast"], "--resamples", 10, *out)
    assert alone.returncode == 0 and data_of((tmp_path / "page.html").read_text())[0]
