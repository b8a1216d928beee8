"""Answer files and their pairing: what is read, what is refused and with which words."""

import json
import math

import pytest
from answer_samples import (
    base_lines,
    compared,
    failed,
    in_slot,
    line,
    meta,
    method_lines,
    task,
    write,
    write_pair,
)

from evaluation.answers.foreign import read_any
from evaluation.answers.meta import AnswerError
from evaluation.answers.reader import read_answers


@pytest.mark.parametrize(
    "name, counts, message",
    [
        ("drafted", [1, 2], "drafted has not one entry for each decoding step"),
        ("depth", [1, 2, 3, 4], "depth has not one entry for each decoding step"),
        ("depth", [4, 4, 1 << 31], "depth is above drafted"),
    ],
)
def test_drafts_are_held_to_the_steps(tmp_path, name, counts, message):
    lines = method_lines()
    lines[0]["choices"][0] |= {"drafted": [[4, 4, 4]], "depth": [[4, 4, 4]]}
    read_answers(write(tmp_path / "m.jsonl", lines))
    lines[0]["choices"][0][name] = [counts]
    with pytest.raises(AnswerError, match=f"line 1: choice 0: {message}"):
        read_answers(write(tmp_path / "m.jsonl", lines))


def test_order_of_lines_does_not_matter(tmp_path):
    method, base = write_pair(tmp_path)
    turned = write(tmp_path / "t" / "m.jsonl", method_lines()[::-1], meta("m"))
    assert compared(turned, base)["tasks"] == compared(method, base)["tasks"]


def test_failed_questions_are_left_out_on_both_sides(tmp_path):
    lines = [method_lines()[0], failed(2, "qa")]
    method = write(tmp_path / "m.jsonl", lines, meta("m"))
    base = write(tmp_path / "base.jsonl", base_lines(), meta("base"))
    result = compared(method, base)
    assert result["left_out"]["failed_in_method"] == [2] and result["questions"] == 1
    assert "1 question: 2 (first error: CUDA out of memory second line)" in result["notes"][0]
    assert task(result, "overall")["base_tokens_per_s"] == pytest.approx(2)
    write(method, [failed(1, "translation"), failed(2, "qa")])
    with pytest.raises(AnswerError, match="no question was answered.*first error: CUDA out of"):
        compared(method, base)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda q: q.update(category="rag"), "category rag, in the baseline qa"),
        (lambda q: q["choices"].append({**q["choices"][0], "index": 1}), "number of choices"),
        (lambda q: q["choices"][0].update(prompt_tokens=[12]), "prompt of 12 tokens"),
    ],
)
def test_foreign_question_files_are_refused(tmp_path, change, message):
    lines = method_lines()
    change(lines[1])
    base = write(tmp_path / "base.jsonl", base_lines())
    with pytest.raises(AnswerError, match=message):
        compared(write(tmp_path / "m.jsonl", lines), base)


def test_history_of_the_baselines_answers_is_the_same_footing(tmp_path):
    base = write(tmp_path / "b.jsonl", base_lines(), meta("base", history_sha256=None))
    digest = read_answers(base).sha256
    method = write(tmp_path / "m.jsonl", method_lines(), meta("m", history_sha256=digest))
    assert compared(method, base)["allowed"][0]["field"] == "history_sha256"
    write(method, method_lines(), meta("m", history_sha256="of another file"))
    with pytest.raises(AnswerError, match="history_sha256"):
        compared(method, base)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"index": 0', '"index" 0', "line 1: broken JSON"),
        ('"wall_time": [1.5]', '"wall_time": [-1.5]', "negative"),
        ('"wall_time": [1.5]', '"wall_time": [0]', "wall_time of 0 s"),
        ('"wall_time": [1.5]', '"wall_time": [1e999]', "infinite"),
        ('"wall_time": [1.5]', '"wall_time": [0.4]', "prefill_s is longer"),
        ('"wall_time": [1.5]', '"wall_time": "1.5"', "no list of 1 turns"),
        ('"new_tokens": [5]', '"new_tokens": [6]', "new_tokens is 6, but"),
        ('"decoding_steps": [3]', '"decoding_steps": [2]', "line 1"),
        ("[7, 8, 9, 10, 11]", "[7, 8]", "no list of 5 ids"),
        ('"commit_s"', '"commits"', "commit_s is missing"),
        ('"question_id": 1,', "", "question_id is missing"),
        ('"question_id": 1,', '"question_id": true,', "question_id is missing"),
        ('"category": "qa"', '"category": 7', "line 2: category is no string"),
        ('"model_id": "m"', '"model_id": "n"', "several model_ids"),
        ('"choices": [{', '"choices": [], "old": [{', "no choices and no"),
        ('{"question_id": 2', '{"question_id": 1', "line 2: question_id 1 stands on line 1"),
    ],
)
def test_broken_lines_are_refused_with_a_place(tmp_path, old, new, message):
    path = write(tmp_path / "m.jsonl", method_lines())
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(AnswerError, match=message) as refusal:
        read_answers(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_what_is_no_answer_file_is_refused(tmp_path):
    path, whole = write(tmp_path / "m.jsonl", method_lines(), meta("m")), tmp_path / "m.meta.json"
    with pytest.raises(AnswerError, match=f"{tmp_path}: a directory"):
        read_answers(tmp_path)
    text = path.read_text()
    for content, message in (
        ("", "no answers in it"),
        (text[:20], "no answers in it"),
        ("[1]\n", "line 1: not a JSON object"),
    ):
        path.write_text(content)
        with pytest.raises(AnswerError, match=f"{path}: {message}"):
            read_answers(path)
    path.write_text(text)
    for content, message in (
        (json.dumps({**meta("m"), "schema": 2}), "m.meta.json: schema 2"),
        ("{", "m.meta.json: broken JSON"),
    ):
        whole.write_text(content)
        with pytest.raises(AnswerError, match=message):
            read_answers(path)


@pytest.mark.parametrize(
    "part, message",
    [
        ({"arguments": {"template_args": 1 << 63}}, "template_args is no dict"),
        ({"arguments": {"scale_to": ["7b"]}}, "scale_to is no str"),
        ({"arguments": {"history": 7}}, "history is no str"),
        ({"arguments": {"prompt_max_length": "x"}}, "prompt_max_length is no int"),
        ({"questions": {"1": 5}}, "questions: 1: 5 is no pair of hashes"),
        ({"questions": {"1": "ab"}}, "questions: 1: 'ab' is no pair"),
        ({"placement": {"target": 3}}, "target is no dict"),
        ({"placement": {"drafter": {"cuda:0": 7}}}, "cuda:0 is no dict"),
        ({"placement": {"peak_bytes": []}}, "peak_bytes is no dict"),
    ],
)
def test_parts_of_a_meta_of_another_kind(tmp_path, part, message):
    path = write(tmp_path / "m.jsonl", method_lines(), meta("m") | part)
    with pytest.raises(AnswerError, match=f"m.meta.json: {message}"):
        read_answers(path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, None),
        ({"begin_s": [1.0, 2.0]}, "begin_s is no list of 1 turns"),
        ({"begin_s": ["now"]}, "begin_s is no list of times"),
        ({"begin_s": [-1.0]}, "begin_s holds a negative"),
        ({"step_end_s": [0.75, 1.0, 1.5]}, "step_end_s is no list of 1 turns"),
        ({"step_end_s": [0.75]}, "step_end_s is no list of times"),
        ({"step_end_s": [[0.75, 1.5]]}, "step_end_s .* not one for each decoding step"),
        ({"step_end_s": [[1.0, 0.75, 1.5]]}, "step_end_s falls"),
        ({"step_end_s": [[0.75, 1.0, 1.6]]}, "step_end_s is later than wall_time"),
        ({"slot": ["a"]}, "slot is no list of counts"),
    ],
)
def test_slots_and_step_ends_are_checked(tmp_path, changes, message):
    lines = method_lines()
    only = in_slot(lines[0], 1, 1.7e9, [0.75, 1.0, 1.5])["choices"][0]
    only |= changes
    path = write(tmp_path / "m.jsonl", lines)
    if message:
        with pytest.raises(AnswerError, match=f"line 1: choice 0: {message}"):
            read_answers(path)
        return
    read, old = (question.choices[0] for question in read_answers(path).questions.values())
    assert (read.begin_s, read.step_end_s) == ([1.7e9], [[0.75, 1.0, 1.5]])
    assert read.slot == [1] and read.batch is None
    assert (old.begin_s, old.step_end_s, old.slot, old.batch) == (None, None, None, [0])


def without_counts(path):
    """read_any() of a file that only it can read."""
    text = path.read_text()
    path.write_text(text.replace('"new_tokens"', '"tokens"'))
    with pytest.raises(AnswerError, match="new_tokens is missing"):
        read_answers(path)
    answers = read_any(path)
    path.write_text(text)
    return answers


@pytest.mark.parametrize("read", [read_answers, without_counts])
@pytest.mark.parametrize("value, word", [(math.nan, "NaN"), (-math.inf, "-Infinity")])
def test_numbers_that_are_not_finite_are_failures(tmp_path, read, value, word):
    """Of their question alone; what the line itself says of it goes before."""
    lines = [*method_lines(), failed(3, "qa")]
    lines[0]["choices"][0]["wall_time"][0] = value
    lines[2]["choices"] = [{"wall_time": [value]}]
    found = read(write(tmp_path / "m.jsonl", lines)).questions
    errors = [question.error for question in found.values()]
    assert errors == [f"{word} in the place of a number", None, "CUDA out of memory\nsecond line"]
    base = write(tmp_path / "base.jsonl", base_lines())
    result = compared(tmp_path / "m.jsonl", base, common=True)
    assert result["left_out"]["failed_in_method"] == [1, 3] and result["questions"] == 1
    lines = method_lines()
    lines[0]["choices"][0]["turns"] = ["NaN and Infinity are words"]
    assert not read(write(tmp_path / "n.jsonl", lines)).questions[1].error


@pytest.mark.parametrize("read", [read_answers, without_counts])
@pytest.mark.parametrize("cut", [-2, -40, -400])
def test_a_half_written_last_line_is_ignored(tmp_path, read, cut):
    path = write(tmp_path / "m.jsonl", method_lines())
    path.write_text(path.read_text()[:cut])
    answers = read(path)
    assert list(answers.questions) == [1]
    warning = f"{path}: its half-written last line is ignored (the run was cut off)"
    assert answers.warnings.count(warning) == 1
    path.write_text(path.read_text() + "\n")  # a line that somebody ended is no such line
    with pytest.raises(AnswerError, match="line 2: broken JSON"):
        read_answers(path)


@pytest.mark.parametrize("category", [None, "", "  ", "absent"])
def test_no_category_is_that_of_the_other_side(tmp_path, category):
    """A name of its own, and in a comparison the other file's."""
    lines, base = method_lines(), write(tmp_path / "base.jsonl", base_lines())
    for record in lines:
        record["category"] = category
        if category == "absent":
            del record["category"]
    method = write(tmp_path / "m.jsonl", lines)
    assert {question.task for question in read_answers(method).questions.values()} == {
        "uncategorized"
    }
    tasks = [row["name"] for row in compared(method, base)["tasks"]]
    assert tasks == ["Translation", "QA", "Overall"]
    assert [row["name"] for row in compared(base, method)["tasks"]] == tasks
    alone = compared(method, method)["tasks"]
    assert [row["name"] for row in alone] == ["uncategorized", "Overall"]


def test_only_several_turns_are_multi_turn(tmp_path):
    turn = ([1, 1], [0.5, 0.5])
    lines = [line(1, "math", [turn]), line(2, "math", [turn, turn]), line(3, "qa", [turn, turn])]
    path = write(tmp_path / "m.jsonl", lines)
    rows = compared(path, path)["tasks"]
    assert [row["name"] for row in rows] == ["Multi-turn", "QA", "math", "Overall"]
    assert [row["questions"] for row in rows] == [1, 1, 1, 3]


def words(text):
    """A tokenizer of words that puts a begin-of-sequence token before them."""
    return 1 + len(text.split())


def test_tokens_that_nobody_counted(tmp_path):
    """new_tokens of 0 beside ids or a text: the ids count, else the texts of both sides."""
    method, base = method_lines(), base_lines()
    base[1]["choices"][0]["new_tokens"] = [0]
    ours = write(tmp_path / "m.jsonl", method), write(tmp_path / "base.jsonl", base)
    answers = read_answers(ours[1])
    assert answers.questions[2].choices[0].new_tokens == [3]
    assert any("new_tokens is 0 in turns that have token ids" in w for w in answers.warnings)
    ratio = task(compared(*ours), "overall")["speedup"]["mean_ratio"]["value"]
    assert ratio == pytest.approx(11 / 6)
    for record in (*method, *base):
        del record["choices"][0]["output_ids"]
        record["choices"][0]["turns"][0] += " and more"
    theirs = write(tmp_path / "m.jsonl", method), write(tmp_path / "base.jsonl", base)
    with pytest.raises(AnswerError, match="base.jsonl: new_tokens is 0 in 1 turns .*--tokenizer"):
        compared(*theirs)
    result = compared(*theirs, count_tokens=words)
    note = "base.jsonl: new_tokens is 0 in 1 turns that have a text: on both sides the tokens are"
    assert [line for line in result["notes"] if line.startswith(note)]
    row = task(result, "overall")  # 7 and 5 words in 1.5 and 0.75 s, and in 2.5 and 1.5 s
    assert row["tokens_per_s"] == pytest.approx((7 / 1.5 + 5 / 0.75) / 2)
    assert row["base_tokens_per_s"] == pytest.approx((7 / 2.5 + 5 / 1.5) / 2)
    method[0]["choices"][0] |= {"new_tokens": [0], "turns": [""]}  # nothing said, nothing counted
    base[1]["choices"][0]["new_tokens"] = [3]
    write(theirs[0], method), write(theirs[1], base)
    result = compared(*theirs)
    assert task(result, "overall")["new_tokens"] == 3
    note = "answered with no token in the method, in its means as 0 tokens/s: 1 question: 1"
    assert note in result["notes"] and not any("no token in the base" in n for n in result["notes"])


def test_spec_bench_variants_are_read(tmp_path):
    lines = method_lines()
    for record in lines:
        first = record["choices"][0]
        for name in list(first):
            if name not in ("index", "turns", "decoding_steps", "new_tokens", "wall_time"):
                del first[name]
        first["idxs"] = first.pop("decoding_steps")
        first["accept_lengths:"] = [2] * sum(first["idxs"])
    answers = read_answers(write(tmp_path / "m.jsonl", lines))
    assert answers.questions[1].choices[0].accept_lengths == [2, 2, 2]
    assert any("'idxs'" in warning for warning in answers.warnings)
    for record in lines:
        del record["choices"][0]["accept_lengths:"]
    bare = write(tmp_path / "m.jsonl", lines)
    assert task(compared(bare, bare), "overall")["mean_accepted"] is None
