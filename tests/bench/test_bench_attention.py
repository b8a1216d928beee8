"""bench_attention.py at tiny sizes: contenders agree with the reference, a wrong mask does not."""

import json
from pathlib import Path

import bench_attention
import pytest
import torch
from answer_samples import report_file

from model.common.target import attention

SMALL = "--columns 64 128 --rows 1 5 --heads 4 --kv-heads 2 --head-dim 16 --rounds 2 --device cpu"
EAGER = ["sdpa-mask", "sdpa-repeated"]  # flex compiles for seconds


def ended(capsys, *more):
    """(exit status, table's lines, JSON document) of a run."""
    before = torch.get_num_threads()
    with pytest.raises(SystemExit) as end:
        path = report_file()
        flags = [*SMALL.split(), "--num-threads", "1", "--contenders", *EAGER, *more]
        flags += ["--output", path]
        bench_attention.main(flags)
    torch.set_num_threads(before)
    lines = capsys.readouterr().out.splitlines()[1:]
    return int(end.value.code), lines, json.loads(Path(path).read_text())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_contenders_agree_with_the_reference(dtype, capsys):
    status, lines, document = ended(capsys, "--dtype", dtype)
    assert status == 0
    rows = document["table"]
    cells = [(row["columns"], row["rows"], row["contender"]) for row in rows]
    assert cells == [(c, r, name) for c in (64, 128) for r in (1, 5) for name in EAGER]
    for row in rows:
        assert row["status"] == "ok" and row["error"] <= bench_attention.TOLERANCE[dtype]
        assert len(row["ms_rounds"]) == 3 and min(row["ms_rounds"][1:]) <= row["ms"]
    assert len({len(line) for line in lines}) == 1 and len(lines) == 9  # aligned, with a head


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_column_too_many_is_wrong(dtype, capsys, monkeypatch):
    """Only trees of more than a row have one to show, and it is not timed then."""

    def planted(allowed, dtype):
        allowed = allowed.clone()
        if allowed.shape[1] > 1:
            allowed[:, 0, allowed[0, 0].int().argmin()] = True  # the root reads its child
        return real(allowed, dtype)

    real = attention.additive
    monkeypatch.setattr(attention, "additive", planted)
    status, lines, document = ended(capsys, "--dtype", dtype, "--columns", "64", "8192")
    assert status == 1
    wrong = [row for row in document["table"] if row["status"].startswith("wrong by")]
    assert [(row["columns"], row["contender"]) for row in wrong if row["rows"] == 5] == [
        (columns, name) for columns in (64, 8192) for name in EAGER
    ]
    assert all("ms" not in row for row in wrong) and "wrong by" in lines[-1]


def test_a_refusal_is_a_line(capsys, monkeypatch):
    """Whatever a kernel raises stands in the table in place of its figures."""
    repeat_kv = "transformers.integrations.sdpa_attention.repeat_kv"

    def refuse(states, copies):
        if copies > 1:
            raise NotImplementedError("no such\nkernel")
        return states

    monkeypatch.setattr(repeat_kv, refuse)
    status, lines, document = ended(capsys)
    assert status == 0
    states = [row["status"] for row in document["table"]]
    assert states == ["ok", "not run: NotImplementedError('no such\\nkernel')"] * 4
    assert "not run: NotImplementedError('no such" in lines[2]
