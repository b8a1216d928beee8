"""equal.py: verdicts, places of the first difference, exit status, refusals."""

from answer_samples import (
    DATA,
    assert_refused,
    base_lines,
    choice,
    failed,
    meta,
    method_lines,
    report_of,
    run_tool,
    write,
)

from evaluation.answers.differences import file_verdicts
from evaluation.answers.reader import read_answers


def equal(*args, **kwargs):
    return run_tool("evaluation/equal.py", *args, **kwargs)


def pair(folder, lines, lossy=False, **shared):
    """(baseline's file, other's file) where the other has these lines."""
    base = write(folder / "base.jsonl", base_lines(), meta("base", "vanilla"))
    return base, write(folder / "m.jsonl", lines, meta("m", lossy=lossy, **shared))


def with_ids(record, ids, turn=0):
    """Give a turn of a line other ids, its text and lengths with them."""
    first = record["choices"][0]
    first["output_ids"][turn] = ids
    first["turns"][turn] = " ".join(f"t{i}" for i in ids)
    first["new_tokens"][turn] = len(ids)
    first["accept_lengths"][-1] += len(ids) - 1 - sum(first["accept_lengths"])
    return record


def test_equal_files(tmp_path):
    base, other = pair(tmp_path, method_lines()[::-1])
    done = equal(base, other)
    assert done.returncode == 0 and done.stderr == ""
    expected = "EQUAL: m: 2 of 2 questions, 2 of 2 turns, 8 tokens (token ids)"
    assert done.stdout.splitlines()[0] == expected
    document = report_of(done)
    assert document["schema"] == 1 and document["not_compared"] == []
    assert document["results"][0]["equal"] and "judgement" not in document["results"][0]


def test_command_of_spec_bench_works_as_it_stands(tmp_path):
    pair(tmp_path, method_lines())
    args = ("--file-path", f"{tmp_path}/", "--jsonfile1", "base.jsonl", "--jsonfile2", "m.jsonl")
    assert equal(*args).returncode == 0
    assert equal(*args[2:], cwd=tmp_path).returncode == 0


def test_first_differing_token_is_named(tmp_path):
    lines = method_lines()
    with_ids(lines[0], [7, 8, 90, 10, 11])
    with_ids(lines[1], [7, 8])["choices"][0]["finish_reason"] = ["length"]
    base, other = pair(tmp_path, lines)
    done = equal(base, other)
    assert done.returncode == 1
    verdict, first, second = done.stdout.splitlines()
    assert verdict == "NOT EQUAL: m: 0 of 2 questions, 0 of 2 turns, 0 tokens (token ids)"
    place = 'question 1 (translation) choice 0 turn 0 token 2: 90 "t7 t8 t90 t10 t11", baseline 9'
    assert place in first and "finish stop, baseline stop" in first
    assert "question 2 (qa) choice 0 turn 0 token 2: end of answer" in second
    assert "baseline 9" in second and "finish length, baseline stop" in second
    records = report_of(done)["results"][0]["differences"]
    assert [(r["position"], r["base"], r["other"]) for r in records] == [(2, 9, 90), (2, 9, None)]
    assert len(equal(base, other, "--max-print", "0").stdout.splitlines()) == 2


def test_later_turns_say_that_their_prompt_may_differ(tmp_path):
    turns = [([1], [0.5]), ([1], [0.5])]
    lines, changed = base_lines()[:1], base_lines()[:1]
    lines[0]["choices"], changed[0]["choices"] = [choice(turns)], [choice(turns)]
    changed[0]["choices"][0]["output_ids"] = [[7, 9], [7, 9]]
    base = write(tmp_path / "b.jsonl", lines)
    (verdict,) = file_verdicts(
        read_answers(base), read_answers(write(tmp_path / "m.jsonl", changed))
    )
    assert [d.after_difference for d in verdict.differences] == [False, True]
    assert verdict.differences[0].base_text is None  # the same text from other ids
    assert not verdict.equal and verdict.turns == 2


def test_missing_extra_and_failed_questions_are_differences(tmp_path):
    lines = [method_lines()[0], {**method_lines()[1], "question_id": 3}]
    done = equal(*pair(tmp_path, lines))
    assert done.returncode == 1
    assert "question 2 (qa): missing in this file" in done.stdout
    assert "question 3 (qa): not in the baseline" in done.stdout
    done = equal(*pair(tmp_path, [method_lines()[0], failed(2, "qa")]))
    assert done.returncode == 1
    assert (
        "question 2 (qa): failed in this file only: CUDA out of memory second line" in done.stdout
    )
    base = write(tmp_path / "base.jsonl", [base_lines()[0], failed(2, "qa", "base")], meta("base"))
    done = equal(base, tmp_path / "m.jsonl")
    assert done.returncode == 0 and "1 of 1 questions" in done.stdout
    assert "1 failed on both sides, not compared" in done.stdout
    both = write(tmp_path / "none.jsonl", [failed(1, "qa"), failed(2, "qa")])
    assert_refused(equal(both, both), both, "nothing to compare")


def test_missing_choices_and_turns_are_differences(tmp_path):
    lines = method_lines()
    lines[0]["choices"].append({**lines[0]["choices"][0], "index": 1})
    lines[1]["choices"] = [choice([([2], [0.25]), ([1], [0.25])])]
    base, other = pair(tmp_path, lines)
    verdicts = file_verdicts(read_answers(base), read_answers(other))
    assert [[d.kind for d in v.differences] for v in verdicts] == [["choices"], ["turns"]]
    done = equal(base, other)
    assert "question 1 (translation): choices [0, 1], baseline [0]" in done.stdout
    assert "question 2 (qa) choice 0: 2 turns, baseline 1" in done.stdout


def test_texts_are_compared_where_there_are_no_ids(tmp_path):
    lines = method_lines()
    for record in lines:
        del record["choices"][0]["output_ids"]
    lines[1]["choices"][0]["turns"] = ["t7 t8 tX"]
    done = equal(*pair(tmp_path, lines))
    assert done.returncode == 1
    assert "NOT EQUAL: m: 1 of 2 questions, 1 of 2 turns" in done.stdout
    assert "(texts, no token ids)" in done.stdout
    assert "question 2 (qa) choice 0 turn 0 character 7: 'X'" in done.stdout


def test_what_was_asked_must_agree_and_how_it_was_run_may_not(tmp_path):
    base, other = pair(tmp_path, method_lines(), weights_sha256="bb")
    assert_refused(equal(base, other), other, 'weights_sha256: "bb", baseline "aa"')
    done = equal(base, other, "--allow", "weights_sha256")
    assert done.returncode == 0 and "differs in weights_sha256" in done.stdout
    base, other = pair(tmp_path, method_lines(), dtype="float16", batch_size=4)
    done = equal(base, other)
    assert done.returncode == 0
    assert 'note: differs in dtype: "float16", baseline "float32"' in done.stdout
    assert "note: differs in batch_size: 4, baseline 1" in done.stdout


def test_sampling_and_lossy_methods_are_said(tmp_path):
    base, other = pair(tmp_path, method_lines(), temperature=0.7, lossy=True)
    done = equal(base, other, "--allow", "temperature")
    assert done.stdout.startswith("EQUAL: m (lossy): ")
    assert "temperature 0.7: answers are sampled" in done.stdout
    assert "equality is not claimed (lossy)" in done.stdout


def test_several_files_and_one_that_cannot_be_compared(tmp_path):
    base, other = pair(tmp_path, method_lines())
    changed = method_lines()
    with_ids(changed[1], [7, 8, 10])
    differing = write(tmp_path / "d.jsonl", changed, meta("m"))
    done = equal(base, other, differing)
    verdicts = [text.split(":")[0] for text in done.stdout.splitlines() if "EQUAL" in text[:9]]
    assert done.returncode == 1 and verdicts == ["EQUAL", "NOT EQUAL"]
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question_id": 1')
    done = equal(base, broken, other)
    assert_refused(done, broken, "no answers in it")
    assert "EQUAL: m:" in done.stdout and len(report_of(done)["not_compared"]) == 1


def test_refusals(tmp_path):
    base, _ = pair(tmp_path, method_lines())
    assert_refused(equal(base), "one file alone")
    assert_refused(equal(), "name two answer files")
    assert_refused(equal(base, base, "--jsonfile1", "x"), "--jsonfile1")


def test_ids_that_are_texts_in_one_file(tmp_path):
    """Said by both tools, where every question would be missing on both sides."""
    base, _ = pair(tmp_path, method_lines())
    lines = [{**line, "question_id": str(line["question_id"])} for line in base_lines()]
    other = write(tmp_path / "texts.jsonl", lines, meta("base", "vanilla"))
    said = "question_ids are numbers in one and texts in the other"
    assert_refused(equal(base, other), said)
    assert_refused(run_tool("evaluation/speed.py", "--file-path", other, "--base-path", base), said)


def test_files_of_spec_bench_are_compared_by_text():
    done = equal(DATA / "spec_bench_vanilla.jsonl", DATA / "spec_bench_vanilla.jsonl")
    assert done.returncode == 0 and "480 of 480 questions, 560 of 560 turns" in done.stdout
    assert "not written by this project" in done.stderr
