"""Lines of an answer file whose content is on the disk alone."""

import json

import pytest

from model.common.errors import BadInput
from model.common.records.lines import Lines


def filled(path, num=3):
    lines = Lines(path)
    lines.write([])
    for number in range(num):
        lines.add({"question_id": number, "text": "ä" * number})
    return lines


def content(path):
    return [json.loads(line)["question_id"] for line in path.read_text().splitlines()]


def test_lines_are_read_back_from_the_file(tmp_path):
    lines = filled(tmp_path / "a.jsonl")
    assert list(lines) == [0, 1, 2] and len(lines) == 3 and 1 in lines and 7 not in lines
    assert lines.record(2) == {"question_id": 2, "text": "ää"}
    lines.write([2, 0], {0: {"question_id": 0, "text": "new"}})
    assert content(tmp_path / "a.jsonl") == [2, 0] and lines.record(0)["text"] == "new"
    lines.add({"question_id": 5})
    assert content(tmp_path / "a.jsonl") == [2, 0, 5] and lines.record(5) == {"question_id": 5}
    assert set(map(type, lines.places.values())) == {tuple}  # no line is held


@pytest.mark.parametrize("foreign", [False, True])
def test_a_file_that_is_gone_is_written_anew(tmp_path, foreign):
    path = tmp_path / "a.jsonl"
    lines = filled(path)
    path.unlink()
    if foreign:
        path.write_text("other\n")
    lines.add({"question_id": 3})
    assert content(path) == [0, 1, 2, 3] == list(lines)


def test_a_file_that_was_cut_is_not_written_over(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = filled(path)
    with path.open("r+b") as file:
        file.truncate(5)
    with pytest.raises(BadInput, match=f"{path}: changed under the run"):
        lines.write([1, 0])
    assert path.read_bytes() == b'{"que' and not path.with_name("a.jsonl.part").exists()
