"""merge.py: parts of a run, made by question ranges, as the file of the whole run."""

import copy
import json
import shutil

import pytest
from answer_samples import assert_refused, line, meta, report_of, run_tool, task, write
from harness_runs import answer, ids_of, read, read_meta, timeless

from evaluation import merge
from evaluation.answers.meta import AnswerError
from evaluation.answers.reader import read_answers

RANGES = ((None, 2), (2, 4), (4, None))


def flags_of(begin, end):
    flags = [] if begin is None else ["--question-begin", begin]
    return flags + ([] if end is None else ["--question-end", end])


@pytest.fixture(scope="module")
def made(tmp_path_factory, model_dir, question_file):
    """A folder with a whole run, the same in three parts, and a baseline."""
    folder = tmp_path_factory.mktemp("parts")
    answer("vanilla", model_dir, question_file, folder / "base.jsonl")
    answer("pld", model_dir, question_file, folder / "whole.jsonl")
    for number, span in enumerate(RANGES):
        answer("pld", model_dir, question_file, folder / f"{number}.jsonl", *flags_of(*span))
    return folder


@pytest.fixture
def parts(made, tmp_path):
    """The folder's files in a folder of their own."""
    shutil.copytree(made, tmp_path / "parts")
    return [tmp_path / "parts" / f"{number}.jsonl" for number in range(3)]


def merged(parts, *flags):
    out = parts[0].with_name("merged.jsonl")
    return out, run_tool("evaluation/merge.py", *parts, "--output", out, *flags)


def speed(method, *flags):
    base = method.with_name("base.jsonl")
    done = run_tool("evaluation/speed.py", "--file-path", method, "--base-path", base, *flags)
    assert done.returncode == 0, done.stderr
    return report_of(done)["results"][0]


def test_merged_parts_are_the_whole_run(parts, model_dir, question_file):
    out, done = merged(parts[::-1])  # in any order
    assert (done.returncode, done.stderr) == (0, "")
    whole = out.with_name("whole.jsonl")
    assert read(out) == [record for part in parts for record in read(part)]
    assert ids_of(read(out)) == ids_of(read(whole))
    metas = [read_meta(path) for path in (out, whole)]
    for field in ("shared", "selection", "questions", "num_questions", "method_args"):
        assert metas[0][field] == metas[1][field]
    assert metas[0]["run_s"] == {
        name: pytest.approx(sum(read_meta(part)["run_s"][name] for part in parts))
        for name in ("decode", "harness")
    }
    both, alone = speed(out), [speed_of_part(part) for part in parts]
    assert task(both, "overall")["new_tokens"] == sum(row["new_tokens"] for row in alone)
    assert task(both, "overall")["wall_s"] == pytest.approx(sum(row["wall_s"] for row in alone))
    before = read(out)
    assert answer("pld", model_dir, question_file, out) == before  # nothing is left to do


def speed_of_part(part):
    """The totals of a part against the baseline's file, by its own lines."""
    choices = [record["choices"][0] for record in read(part)]
    return {
        name: sum(sum(choice[field]) for choice in choices)
        for name, field in (("new_tokens", "new_tokens"), ("wall_s", "wall_time"))
    }


def test_what_is_missing_is_said_and_can_be_answered(parts, model_dir, question_file):
    write(parts[2], read(parts[2])[:1], read_meta(parts[2]))
    out, done = merged([parts[2], parts[0]])
    assert done.returncode == 1
    lines = ["no part has questions 2 to 3 of the question file, from 0"]
    lines += ["without an answer: 1 question: 16"]
    assert report_of(done)["missing"] == lines
    assert done.stderr == "".join(f"warning: {out}: {text}\n" for text in lines)
    before = {record["question_id"]: record for record in read(out)}
    after = answer("pld", model_dir, question_file, out)
    assert timeless(after) == timeless(read(out.with_name("whole.jsonl")))
    assert [record for record in after if record["question_id"] in before] == [*before.values()]


def test_pairs_are_merged_by_a_call_of_their_own(model_dir, question_file, tmp_path):
    """A share of the questions: none of the others is missing."""
    parts = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for part, span in zip(parts, RANGES):
        same = "--paired", 2, "--model-id", "m"
        answer("pld", model_dir, question_file, part, *flags_of(*span), *same)
    pairs = [part.with_name(f"{part.stem}-paired-baseline.jsonl") for part in parts]
    for own, out in ((parts, "whole.jsonl"), (pairs, "whole-paired-baseline.jsonl")):
        done = run_tool("evaluation/merge.py", *own, "--output", tmp_path / out)
        assert (done.returncode, done.stderr) == (0, "")
    assert [record["question_id"] for record in read(tmp_path / out)] == [11, 13, 15]
    before = (tmp_path / out).read_bytes()
    answer("pld", model_dir, question_file, tmp_path / "whole.jsonl", *same)
    assert (tmp_path / out).read_bytes() == before
    answer("pld", model_dir, question_file, parts[2], "--question-begin", 4, "--overwrite")
    done = run_tool("evaluation/merge.py", *parts, "--output", tmp_path / "x.jsonl")
    assert_refused(done, "not of one run")


def test_a_part_is_compared_with_the_whole_by_common(parts):
    """Its questions are known to be the baseline's, until one of them has other words."""
    result = speed(parts[1], "--common")
    assert result["questions"] == 2
    assert result["left_out"]["only_in_baseline"] == [11, 12, 15, 16]
    assert [d["field"] for d in result["allowed"]] == ["questions_sha256", "prompts_sha256"]
    content = read_meta(parts[1])
    content["questions"]["13"] = "0 0"
    write(parts[1], read(parts[1]), content)
    base = parts[1].with_name("base.jsonl")
    args = ("--file-path", parts[1], "--base-path", base)
    assert_refused(run_tool("evaluation/speed.py", *args, "--common"), "questions_sha256")


@pytest.mark.parametrize(
    "part, words",
    [
        ({"selection": None}, "question_begin is missing or no number"),
        ({"selection": {"question_begin": 0}}, "question_end is missing or no number"),
        ({"selection": {"question_begin": "a", "question_end": 1}}, "question_begin is missing"),
        ({"run_s": {"decode": "x"}}, "decode is no number"),
    ],
)
def test_a_meta_that_does_not_say_its_range(tmp_path, part, words):
    content = meta("m") | {"questions": {"1": "a -"}, "selection": dict.fromkeys(merge.RANGE)}
    path = write(tmp_path / "m.jsonl", [line(1, "qa", [([2], [0.25])])], content | part)
    with pytest.raises(AnswerError, match=f"m.meta.json: .*{words}"):
        merge.read_parts([path, path])


def test_refusals(parts):
    first, second, _ = parts
    out, done = merged([first])
    assert_refused(done, "one part alone")
    assert_refused(merged([first, out.with_name("whole.jsonl")])[1], "both ask 2 questions: 11, 12")
    base = out.with_name("base.jsonl")
    assert_refused(merged([second, base])[1], "not of one run (method")
    assert_refused(merged([first, second, first])[1], "both ask 2 questions")
    assert not out.exists()
    assert merged([first, second])[1].returncode == 0
    assert_refused(merged([first, second])[1], f"--output {out}", "--overwrite")
    assert merged([first, second], "--overwrite")[1].returncode == 0
    done = run_tool("evaluation/merge.py", first, second, "--output", first, "--overwrite")
    assert_refused(done, "it is one of the parts")
    second.with_suffix(".meta.json").unlink()
    assert_refused(merged([first, second], "--overwrite")[1], second, "no meta beside it")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda m: m["shared"].update(dtype="float16"), "shared.dtype"),
        (lambda m: m["selection"].update(limit_per_category=2), "selection.limit_per_category"),
        (lambda m: m.update(model_id="n"), "model_id"),
        (lambda m: m["method_args"].update(state="warm"), "--state warm"),
    ],
)
def test_parts_differ_in_nothing_but_their_range(tmp_path, change, words):
    """Ids of any kind keep the order of the ranges, whatever the order of the files."""
    files, names = [], (["z", 7], ["a"])
    for number, ids in enumerate(names):
        content, span = meta("m"), ((None, 2), (2, None))[number]
        content["selection"] = dict(zip(merge.RANGE, span))
        content["questions"] = {str(i): f"{i} -" for i in ids}
        lines = [line(i, "qa", [([2], [0.25])]) for i in ids]
        files.append((tmp_path / f"{number}.jsonl", lines, content))
    for path, lines, content in files:
        write(path, lines, content)
    paths = [path for path, _, _ in files[::-1]]
    assert merge.merge(merge.read_parts(paths), tmp_path / "m.jsonl") == []
    assert list(read_answers(tmp_path / "m.jsonl").questions) == ["z", 7, "a"]
    other = copy.deepcopy(files[1][2])
    change(other)
    lines = [record | {"model_id": other["model_id"]} for record in files[1][1]]
    write(paths[0], lines, other)
    with pytest.raises(AnswerError, match=words):
        merge.merge(merge.read_parts(paths), tmp_path / "n.jsonl")
    assert json.loads((tmp_path / "m.meta.json").read_text())["num_questions"] == 3
