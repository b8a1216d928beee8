"""The benchmark scripts that are run by hand, on a few tokens, so that they do not rot."""

import json
import types

import bench_batch
import bench_gpu
import bench_overhead
import pytest
import torch

SHAPE = "384x9x768"  # of the twin: small, with room for the mini target


@pytest.fixture(autouse=True)
def one_thread():
    """The scripts set PyTorch's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def ended(main, argv, capsys):
    """(exit status, stdout) of a script's main()."""
    with pytest.raises(SystemExit) as end:
        main(argv)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return end.value.code, printed.out


def test_bench_batch(capsys):
    flags = ["--questions", "4", "--batches", "2,4", "--max-new-tokens", "10", "--rounds", "1"]
    status, out = ended(bench_batch.main, flags, capsys)
    assert status == 0
    document = json.loads(out.splitlines()[-1])
    assert "ids as vanilla 60/60" in out.splitlines()  # 5 methods at 3 batch sizes
    cells = {(row["method"], row["batch"]): row for row in document["rows"]}
    methods = ("vanilla", "pld", "sps", "medusa", "eagle2")
    assert list(cells) == [(method, batch) for method in methods for batch in (1, 2, 4)]
    for (method, batch), row in cells.items():
        assert row["same_ids"] == 4
        base = cells["vanilla", batch]["tokens_per_s"]
        assert row["speedup"] == pytest.approx(row["tokens_per_s"] / base, abs=0.01)
        assert row["accepted"] == 1 if method == "vanilla" else row["accepted"] > 1
        assert row["idle"] == 0 if batch == 1 else 0 <= row["idle"] < 1


def test_bench_batch_fails_where_ids_differ(capsys):
    def contender(method, batch, answers):
        return types.SimpleNamespace(
            method=method, batch=batch, answers=answers, speeds=[2.0, 9.0, 4.0], idle=0, accepted=1
        )

    argv = ["--methods", "pld", "--batches", "1"]
    same = [contender("vanilla", 1, [[1], [2]]), contender("pld", 1, [[1], [2]])]
    other = [contender("vanilla", 1, [[1], [2]]), contender("pld", 1, [[1], [3]])]
    assert bench_batch.report(same, bench_batch.parse_args(argv)) == 0
    assert "ids as vanilla 4/4" in capsys.readouterr().out
    assert bench_batch.report(other, bench_batch.parse_args(argv)) == 1
    printed = capsys.readouterr().out
    assert "ids as vanilla 3/4" in printed
    assert json.loads(printed.splitlines()[-1])["rows"][0]["tokens_per_s"] == 4  # the median
    half = bench_batch.parse_args([*argv, "--dtype", "float16"])
    assert bench_batch.report(other, half) == 0  # near-ties flip


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--batches", "1,5", "--questions", "4"], "--batches 5: from 1 to --questions 4"),
        (["--batches", "two"], "integers separated by commas"),
        (["--methods", "nothing"], "no method nothing"),
        (["--flags", "nothing=--x"], "no method nothing"),
        (["--questions", "5000", "--batches", "1"], "the bench has"),
    ],
)
def test_bench_batch_refuses_in_one_line(argv, said, capsys):
    with pytest.raises(SystemExit) as end:
        bench_batch.main(argv)
    assert end.value.code == 2
    message = capsys.readouterr().err.splitlines()
    assert said in message[-1]


def test_flags_of_a_method_are_ones_own():
    args = bench_batch.parse_args(["--flags", "sps=--drafter-path x --schedule constant"])
    assert args.method_flags["sps"] == "--drafter-path x --schedule constant"
    assert args.method_flags["medusa"] == bench_batch.FLAGS["medusa"]


def test_bench_overhead(capsys):
    """What is inside and outside the forwards adds up, and a draft model's reads are inside."""
    flags = ["--methods", "vanilla,sps", "--runtime", "eager", "--limit-per-category", "1"]
    bench_overhead.main([*flags, "--max-new-tokens", "8", "--rounds", "1"])
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["method"] for row in rows] == ["vanilla", "sps"]
    phases = [f"{phase}_outside_ms" for phase in ("draft", "verify", "commit", "rest")]
    for row in rows:
        assert row["outside_ms"] == pytest.approx(sum(row[name] for name in phases), abs=0.003)
        assert 0 < row["outside_ms"] < row["forwards_ms"]
    assert rows[1]["forwards_ms"] > rows[0]["forwards_ms"]


@pytest.fixture(autouse=True)
def fresh_budget(monkeypatch):
    """The budget counts from the script's start, which is not that of the test process."""
    monkeypatch.setattr(bench_gpu, "BEGIN", bench_gpu.time.perf_counter())


def gpu_flags(path, *more):
    """A run of bench_gpu.py on the CPU."""
    flags = ["--scale-to", SHAPE, "--device", "cpu", "--dtype", "float32", "--num-threads", "1"]
    return [*flags, "--questions", "2", "--max-new-tokens", "8", "--output", str(path), *more]


def test_bench_gpu(tmp_path, capsys):
    """All contenders on a small twin: all figures there, all ids vanilla's, nothing dropped."""
    path = tmp_path / "out.json"
    status, out = ended(bench_gpu.main, gpu_flags(path), capsys)
    assert status == 0
    document = json.loads(path.read_text())
    rows = {row["name"]: row for row in document["rows"]}
    assert list(rows) == list(bench_gpu.CONTENDERS)
    for name, row in rows.items():
        if name.endswith(("-eager", "-compiled")):  # what all are without a GPU, and none is
            assert row["status"] == "not run"
            assert f"not run: {row['reason']}" in out
            continue
        assert row["status"] == "ok" and row["ids_same"] == row["ids_compared"] == 2
        assert row["tokens"] == 16 and not row["cut"]
        assert 0 < row["bound_share"] and row["bound_ms"] > 0
        if name == "generate":
            continue
        parts = sum(row[f"{part}_ms"] for part in ("draft", "verify", "commit", "rest"))
        assert parts == pytest.approx(row["step_ms"])
        outside = row["commit_ms"] + row["rest_ms"] + (name == "vanilla") * row["draft_ms"]
        assert row["outside"] == pytest.approx(outside / row["step_ms"])
    assert max(row["speedup"] for row in rows.values() if "speedup" in row) >= 1
    assert rows["eagle2"]["accepted"] > 1.5 > rows["vanilla"]["accepted"] == 1
    assert document["facts"]["parameters"] > 9 * 12 * 384**2 * 0.8
    assert "read bandwidth" in out and str(path) in out


def test_bench_gpu_says_what_did_not_fit(tmp_path, capsys, monkeypatch):
    """A spent budget, a contender that fails: listed, written down, and the rest goes on."""
    path, seen = tmp_path / "out.json", []

    def build(lab, method, target, runtime):
        seen.append(json.loads(path.read_text())["rows"] if path.exists() else None)
        if method == "pld":
            raise RuntimeError("out of\nmemory")
        return real_build(lab, method, target, runtime)

    real_build = bench_gpu.Lab.build
    monkeypatch.setattr(bench_gpu.Lab, "build", build)
    monkeypatch.setattr(bench_gpu, "traceback", types.SimpleNamespace(print_exc=lambda: None))
    names = "vanilla,pld,recycling"
    status, out = ended(bench_gpu.main, gpu_flags(path, "--contenders", names), capsys)
    assert status == 1
    assert "failed: RuntimeError: out of memory" in out
    rows = json.loads(path.read_text())["rows"]
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert [len(rows or ()) for rows in seen] == [0, 1, 2]  # written after each
    monkeypatch.setattr(bench_gpu, "BEGIN", bench_gpu.time.perf_counter() - 60)
    flags = gpu_flags(path, "--contenders", names, "--budget-s", "1")
    status, out = ended(bench_gpu.main, flags, capsys)
    rows = json.loads(path.read_text())["rows"]
    assert status == 0 and [row["status"] for row in rows] == ["ok", "not run", "not run"]
    assert rows[0]["questions"] == 1 and rows[0]["cut"]  # the question in flight is finished
    assert "s of the budget left" in out and "cut after 1" in out


def test_first_differences_and_their_gaps(tmp_path):
    """The gap is the difference of two logits of the target where two answers part."""
    args = bench_gpu.parse_args(gpu_flags(tmp_path / "out.json"))
    lab = bench_gpu.Lab(args)
    target = lab.targets["eager"]
    answer = lab.decoder(target, lab.build("vanilla", target, "eager"), "eager")
    ids = answer(lab.prompts[1], 8).output_ids
    wrong = [*ids[:5], (ids[5] + 1) % 2048, *ids[6:]]
    lab.rows = [{"status": "ok", "output_ids": [[4, 4], ids]}]
    found = lab.compared([[4, 4], wrong])
    assert (found["ids_compared"], found["ids_same"]) == (2, 1)
    (difference,) = found["differences"]
    assert (difference["question"], difference["token"]) == (1, 5)
    with torch.inference_mode():
        read = torch.tensor([lab.prompts[1] + ids[:5]])
        small = target.origin.model  # computes the same, and here by transformers' own attention
        small.set_attn_implementation("sdpa")
        logits = small(read).logits[0, -1]
    gap = float(logits[ids[5]] - logits[wrong[5]])
    assert difference["gap"] == pytest.approx(gap, abs=1e-3) and gap > 0
    assert difference["ulps"] == pytest.approx(gap / lab.ulp(float(logits.max())), rel=1e-3)
    assert lab.ulp(9.5) == 2**-20 and lab.ulp(1.0) == 2**-23
    shorter = lab.compared([[4, 4], ids[:5]])["differences"][0]
    assert shorter["token"] == 5 and shorter["gap"] is None


def test_bench_gpu_refuses_in_one_line(tmp_path, capsys):
    for argv, said in (
        (["--contenders", "pld"], "the first has to be a vanilla"),
        (["--contenders", "vanilla,nothing"], "no nothing"),
        (["--scale-to", "huge"], "huge"),
        (["--output", str(tmp_path / "no" / "file.json")], "no such folder"),
    ):
        with pytest.raises(SystemExit) as end:
            bench_gpu.main(argv)
        assert end.value.code == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
