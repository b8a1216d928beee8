"""Question files: the forms that are read, what is refused, and how questions are chosen."""

import gzip
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from model.common.errors import BadInput
from model.common.prompts.question_forms import PLACEHOLDER
from model.common.prompts.questions import (
    MT_BENCH,
    group_of,
    join_ids,
    read_questions,
    select,
    split_ids,
)

GOOD = {"question_id": 1, "category": "qa", "turns": ["Why?"]}
SELECTION = ("question_begin", "question_end", "question_ids", "categories", "limit_per_category")


def text_of(record):
    return record if isinstance(record, str) else json.dumps(record, ensure_ascii=False)


def written(tmp_path, *records, name="question.jsonl"):
    path = tmp_path / name
    path.write_text("".join(text_of(record) + "\n" for record in records), encoding="utf-8")
    return path


def said(*messages, names=("from", "value")):
    return [dict(zip(names, message)) for message in messages]


def chat(*messages):
    return {"messages": said(*messages, names=("role", "content"))}


def bench():
    """Two questions of every MT-Bench topic, then three of two other categories; ids from 81."""
    topics = [(topic, ["?", "?"]) for topic in MT_BENCH for _ in range(2)]
    others = [("qa", ["?"])] * 3 + [("rag", ["?"])] * 3
    return [
        {"question_id": 81 + i, "category": category, "turns": turns}
        for i, (category, turns) in enumerate(topics + others)
    ]


def chosen(questions=None, **flags):
    args = SimpleNamespace(**(dict.fromkeys(SELECTION) | flags))
    return [question["question_id"] for question in select(questions or bench(), args)]


CHAT = chat(("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho"), ("user", "Bye"))
PARTS = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
SHARED = {"id": "gx_1", "conversations": said(("human", "a"), ("gpt", "b"), ("user", "c"))}
SPEED = {"question_id": "9f", "category": "math", "sub_category": "x", "source": "y"}
CODE = {"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "test": "t"}
TASK = {"instruction": "Say it.", "input": "a word", "output": "b"}


@pytest.mark.parametrize(
    "record, question_id, category, turns",
    [
        (GOOD | {"reference": ["x"]}, 1, "qa", ["Why?"]),
        (GOOD | {"system": "Be brief."}, 1, "qa", ["Why?"]),
        (GOOD | {"question_id": "a/b c"}, "a/b c", "qa", ["Why?"]),
        ({"turns": ["a\u2028b", "c"]}, 0, "uncategorized", ["a\u2028b", "c"]),
        (GOOD | {"category": ""}, 1, "uncategorized", ["Why?"]),
        (GOOD | {"category": None, "question_id": None}, 0, "uncategorized", ["Why?"]),
        (CHAT, 0, "uncategorized", ["Hi", "Bye"]),
        (chat(("user", PARTS), ("assistant", None)), 0, "uncategorized", ["Hi"]),
        (SHARED, "gx_1", "sharegpt", ["a", "c"]),
        (SPEED | {"turns": ["a", "b"]}, "9f", "math", ["a", "b"]),
        (SPEED | {"turns": chat(("user", "a"))["messages"]}, "9f", "math", ["a"]),
        (CODE, "HumanEval/0", "humaneval", ["def f():\n"]),
        ({"question": "How many?", "answer": "so\n#### 3"}, 0, "gsm8k", ["How many?"]),
        ({"question": "Who?", "answer": "She"}, 0, "uncategorized", ["Who?"]),
        (TASK, 0, "alpaca", ["Say it.\n\na word"]),
        (TASK | {"input": ""}, 0, "alpaca", ["Say it."]),
    ],
)
def test_forms_as_published(tmp_path, record, question_id, category, turns):
    """The same from JSON lines, from an array, behind a byte order mark and packed."""
    (found,) = read_questions(written(tmp_path, record, "", "  "))
    system = {"system": "Be brief."} if "Be brief." in text_of(record) else {}
    expected = {"question_id": question_id, "category": category, "turns": turns}
    assert found == expected | system
    array = json.dumps([record], indent=1)
    for content in (array, "\ufeff" + array, "\ufeff" + text_of(record) + "\r\n"):
        assert read_questions(written(tmp_path, content, name="questions.json")) == [found]
    packed = tmp_path / "q.jsonl.gz"
    packed.write_bytes(gzip.compress(text_of(record).encode()))
    assert read_questions(packed) == [found]


def test_forms_of_the_readme(tmp_path):
    """Every example line of data/README.md is read, under the category that stands beside it."""
    text = (Path(__file__).parents[2] / "data" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]* \| `({[^`]*})`[^|]* \| (\w+) \|$", text, re.MULTILINE)
    assert len(rows) == 7
    for line, category in rows:
        (question,) = read_questions(written(tmp_path, line))
        assert question["category"] == json.loads(line).get("category", category)


def test_ids_that_are_missing_are_places(tmp_path):
    path = written(tmp_path, TASK, "", TASK, TASK | {"id": "x"}, TASK)
    assert [question["question_id"] for question in read_questions(path)] == [0, 1, "x", 3]


def test_conversations_that_cannot_be_asked_are_left_out(tmp_path, capsys):
    empty = SHARED | {"id": "e", "conversations": []}
    odd = SHARED | {"id": "o", "conversations": said(("human", "a"), ("robot", "b"))}
    path = written(tmp_path, empty, SHARED, odd)
    assert [question["question_id"] for question in read_questions(path)] == ["gx_1"]
    line = f"{path}: 2 conversations left out, first {path}:1: no message of a user\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    "line, word",
    [
        ("{", "not JSON"),
        ("nonsense", "not JSON"),
        ("[]", "question_id"),
        ("3", "question_id"),
        (GOOD | {"question_id": True}, "question_id True"),
        (GOOD | {"question_id": 1.5}, "question_id 1.5"),
        (GOOD | {"question_id": ""}, "question_id ''"),
        (GOOD | {"question_id": 2, "turns": []}, "turns"),
        (GOOD | {"question_id": 2, "turns": "?"}, "turns"),
        (GOOD | {"question_id": 2, "turns": [1]}, "turns"),
        (GOOD | {"question_id": 2, "turns": ["a", {"role": "user", "content": "b"}]}, "turns"),
        ({"question_id": 2, "category": "qa"}, "needs turns"),
        (GOOD | {"question_id": 2, "category": 7}, "category 7"),
        (GOOD | {"question_id": 2, "system": 7}, "system 7"),
        (GOOD, "question_id 1 occurs twice"),
        (GOOD | {"question_id": "1"}, "question_id 1 occurs twice"),
        (chat(("user", "a"), ("system", "b")), "message 2: a system message that is not the first"),
        (chat(("tool", "a")), "message 1: from 'tool', who is no known speaker"),
        (chat(("user", [{"type": "image_url"}])), "message 1: its content is no text"),
        (chat(("assistant", "a")), "no message of a user"),
        ('{"turns": ["\\ud800"]}', "not Unicode"),
    ],
)
def test_broken_lines_are_named_with_their_number(tmp_path, line, word):
    path = written(tmp_path, GOOD, "", line)
    with pytest.raises(BadInput) as refused:
        read_questions(path)
    assert str(refused.value).startswith(f"{path}:3: ")
    assert word in str(refused.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(BadInput, match="no questions"):
        read_questions(written(tmp_path, ""))
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(BadInput, match="no such question file"):
            read_questions(path)
    with pytest.raises(BadInput, match=r"data/download\.py spec_bench"):
        read_questions(tmp_path / "spec_bench" / "question.jsonl")
    (tmp_path / "half.gz").write_bytes(gzip.compress(b"{}")[:-4])
    with pytest.raises(BadInput, match="half.gz: "):
        read_questions(tmp_path / "half.gz")
    with pytest.raises(BadInput, match="table.parquet: .*pyarrow|no parquet file"):
        read_questions(written(tmp_path, "x", name="table.parquet"))


def test_a_table_of_the_hub(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([SPEED | {"turns": ["a", "b"]}])
    parquet.write_table(table, tmp_path / "test.parquet")
    (found,) = read_questions(tmp_path / "test.parquet")
    assert found == {"question_id": "9f", "category": "math", "turns": ["a", "b"]}


def test_only_several_turns_are_grouped():
    for category in (*MT_BENCH, "qa", "math_reasoning", "uncategorized"):
        single, double = ({"category": category, "turns": ["?"] * n} for n in (1, 2))
        assert group_of(single) == category
        assert group_of(double) == ("mt_bench" if category in MT_BENCH else category)


@pytest.mark.parametrize(
    "flags, ids",
    [
        ({}, [*range(81, 103)]),
        ({"question_begin": 2, "question_end": 4}, [83, 84]),
        ({"question_end": 1}, [81]),
        ({"question_begin": 20, "question_end": 1000}, [101, 102]),
        ({"question_ids": "99,81, 90"}, [81, 90, 99]),
        ({"categories": "qa"}, [97, 98, 99]),
        ({"categories": "mt_bench"}, [*range(81, 97)]),
        ({"categories": "rag, writing"}, [81, 82, 100, 101, 102]),
        ({"limit_per_category": 2}, [81, 82, 97, 98, 100, 101]),
        ({"question_begin": 1, "categories": "mt_bench,rag", "limit_per_category": 1}, [82, 100]),
        ({"question_begin": 1, "question_ids": "83,84,101", "limit_per_category": 1}, [83, 101]),
    ],
)
def test_choosing(flags, ids):
    assert chosen(**flags) == ids


def test_single_turns_of_a_topic_are_no_mt_bench():
    questions = [{"question_id": i, "category": "math", "turns": ["?"] * (1 + i)} for i in (0, 1)]
    assert chosen(questions, limit_per_category=1) == [0, 1]
    assert chosen(questions, categories="mt_bench") == [1]
    assert chosen(questions, categories="math") == [0, 1]


def test_ids_may_be_any_text():
    ids = ["b", "a,x", 'q"1', "two\nlines", 7]
    questions = [{"question_id": i, "category": "qa", "turns": ["?"]} for i in ids]
    assert chosen(questions, question_ids=join_ids(ids[::-1])) == ids
    assert split_ids(join_ids(ids)) == list(map(str, ids))
    assert join_ids([11, 12]) == "11,12"


@pytest.mark.parametrize(
    "flags, word",
    [
        ({"question_ids": "81,500"}, "500"),
        ({"question_ids": "81,a"}, "question a"),
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


def test_placeholders_are_refused_by_name_where_they_are_chosen():
    questions = [*bench(), SPEED | {"turns": [f"{PLACEHOLDER}\n\nAnswer {{question}}"]}]
    assert chosen(questions, question_end=22) == chosen()
    with pytest.raises(BadInput, match="question 9f: 1 of 23 questions are SPEED-Bench's"):
        chosen(questions)
