"""Question files: what is read, refused and chosen."""

import json
from types import SimpleNamespace

import pytest

from model.common.errors import BadInput
from model.common.prompts.questions import MT_BENCH, group_of, read_questions, select

GOOD = {"question_id": 1, "category": "qa", "turns": ["Why?"]}


def written(tmp_path, *lines):
    path = tmp_path / "question.jsonl"
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines),
        encoding="utf-8",
    )
    return path


def bench():
    """Two questions of every MT-Bench topic, then three of two other categories; ids from 81."""
    categories = [topic for topic in MT_BENCH for _ in range(2)] + ["qa"] * 3 + ["rag"] * 3
    return [
        {"question_id": 81 + i, "category": c, "turns": ["?"]} for i, c in enumerate(categories)
    ]


def chosen(**flags):
    names = ("question_begin", "question_end", "question_ids", "categories", "limit_per_category")
    args = SimpleNamespace(**(dict.fromkeys(names) | flags))
    return [question["question_id"] for question in select(bench(), args)]


def test_reading(tmp_path):
    second = {"question_id": 2, "category": "rag", "turns": ["a\u2028b", "c"], "reference": ["x"]}
    path = written(tmp_path, GOOD, "", json.dumps(second, ensure_ascii=False), "  ")
    assert read_questions(path) == [GOOD, second]


@pytest.mark.parametrize(
    "line, word",
    [
        ("{", "not JSON"),
        ("nonsense", "not JSON"),
        ("[]", "question_id"),
        ("3", "question_id"),
        (GOOD | {"question_id": "1"}, "question_id"),
        (GOOD | {"question_id": 1.5}, "question_id"),
        ({"category": "qa", "turns": ["?"]}, "question_id"),
        (GOOD | {"question_id": 2, "turns": []}, "turns"),
        (GOOD | {"question_id": 2, "turns": "?"}, "turns"),
        (GOOD | {"question_id": 2, "turns": [1]}, "turns"),
        ({"question_id": 2, "category": "qa"}, "turns"),
        ({"question_id": 2, "turns": ["?"]}, "category"),
        (GOOD | {"question_id": 2, "category": None}, "category"),
        (GOOD, "question_id 1 occurs twice"),
    ],
)
def test_broken_lines_are_named_with_their_number(tmp_path, line, word):
    path = written(tmp_path, GOOD, "", line)
    with pytest.raises(BadInput) as refused:
        read_questions(path)
    assert str(refused.value).startswith(f"{path}:3: ")
    assert word in str(refused.value)


def test_empty_and_missing_files(tmp_path):
    with pytest.raises(BadInput, match="no questions"):
        read_questions(written(tmp_path, ""))
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(BadInput, match="no such question file"):
            read_questions(path)


def test_missing_public_bench_says_how_to_get_it(tmp_path):
    with pytest.raises(BadInput, match=r"data/download\.py spec_bench"):
        read_questions(tmp_path / "spec_bench" / "question.jsonl")


def test_group_of():
    assert {group_of(topic) for topic in MT_BENCH} == {"mt_bench"}
    assert len(MT_BENCH) == 8
    for category in ("qa", "rag", "math_reasoning", "summarization", "translation"):
        assert group_of(category) == category


def test_all_without_flags():
    assert chosen() == list(range(81, 103))


def test_begin_and_end_count_lines():
    assert chosen(question_begin=2, question_end=4) == [83, 84]
    assert chosen(question_end=1) == [81]
    assert chosen(question_begin=20, question_end=1000) == [101, 102]


def test_ids_keep_the_files_order():
    assert chosen(question_ids="99,81, 90") == [81, 90, 99]


def test_categories():
    assert chosen(categories="qa") == [97, 98, 99]
    assert chosen(categories="mt_bench") == list(range(81, 97))
    assert chosen(categories="rag,writing") == [81, 82, 100, 101, 102]


def test_limit_counts_the_topics_as_one_category():
    assert chosen(limit_per_category=2) == [81, 82, 97, 98, 100, 101]


def test_flags_apply_one_after_another():
    flags = {"question_begin": 1, "categories": "mt_bench,rag", "limit_per_category": 1}
    assert chosen(**flags) == [82, 100]
    assert chosen(**flags, question_ids="83,84,101") == [83, 101]


@pytest.mark.parametrize(
    "flags, word",
    [
        ({"question_ids": "81,500"}, "500"),
        ({"question_ids": "81,a"}, "a"),
        ({"question_ids": "99", "question_end": 3}, "99"),
        ({"categories": "qa,nope"}, "nope"),
        ({"question_begin": 30}, "no question is left"),
        ({"question_begin": 5, "question_end": 5}, "no question is left"),
        ({"question_begin": 18, "categories": "writing"}, "no question is left"),
    ],
)
def test_choices_that_leave_nothing_are_refused(flags, word):
    with pytest.raises(BadInput, match=word):
        chosen(**flags)
