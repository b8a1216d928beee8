"""The benchmark scripts that are run by hand, on a few tokens, so that they do not rot."""

import json
import types

import bench_batch
import bench_drafters
import bench_energy
import bench_engines
import bench_gpu
import bench_load
import bench_overhead
import bench_trees
import board_sizes
import drift_rates
import pytest
import torch

pytestmark = pytest.mark.slow

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


def rows_of(main, argv, path):
    """Rows that a script that does not judge writes into --output."""
    main([*argv, "--output", str(path)])
    return json.loads(path.read_text())["rows"]


def test_bench_energy(capsys, tmp_path):
    path = tmp_path / "out.json"
    flags = ["--questions", "2", "--max-new-tokens", "8", "--rounds", "1", "--output", str(path)]
    status, out = ended(bench_energy.main, flags, capsys)
    document = json.loads(path.read_text())
    assert status == (0 if document["share"] < 0.01 else 1)
    assert 0 < document["sample_processor_s"] < 0.01 and min(document["tokens_per_s"]) > 0
    assert out.startswith("meters: ") and "of the busy time at 0.1 s" in out


def test_bench_batch(capsys, tmp_path):
    flags = ["--questions", "4", "--batches", "2,4", "--max-new-tokens", "10", "--rounds", "1"]
    path = tmp_path / "out.json"
    status, out = ended(bench_batch.main, [*flags, "--output", str(path)], capsys)
    assert status == 0 and "{" not in out
    document = json.loads(path.read_text())
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


def test_drift_rates(capsys, tmp_path):
    """What is marked is a matter of the machine; 24 questions would be needed to rely on it."""
    flags = ["--runs", "1", "--limit-per-category", "1", "--max-new-tokens", "16"]
    flags += ["--paired", "2", "--busy", "1", "--output", str(tmp_path / "out.json")]
    status, _ = ended(drift_rates.main, flags, capsys)
    document = json.loads((tmp_path / "out.json").read_text())
    assert [row["kind"] for row in document["rows"]] == ["honest", "slowed"]
    for row in document["rows"]:
        assert row["pairs"] == 3 and row["moved"] > 0
        assert document["rates"][row["kind"]] == row["marked"]
    assert status == int(document["rates"] != {"honest": 0, "slowed": 1})


def test_board_sizes(capsys, tmp_path):
    board_sizes.main(["--sizes", "6x40,12x40", "--accepted", "2"])
    head, small, large = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "file" and small.startswith("6x40, 2 a step")
    assert [line.split()[-3] for line in (small, large)] == ["1", "1"]
    assert float(small.split()[4]) < float(large.split()[4])
    (tmp_path / "a.jsonl").write_bytes(board_sizes.synthetic(3, 20, 1.0))
    board_sizes.main([str(tmp_path / "a.jsonl")])
    assert "a.jsonl" in capsys.readouterr().out


@pytest.mark.parametrize("other, dtype, status", [(2, "float32", 0), (3, "float32", 1),
                                                  (3, "float16", 0)])  # fmt: skip
def test_bench_batch_fails_where_ids_differ(capsys, tmp_path, other, dtype, status):
    """In float32: near-ties of others flip."""
    contenders = []
    for method, last in (("vanilla", 2), ("pld", other)):
        contender = bench_batch.Contender(method, 1, ())
        contender.answers, contender.speeds = [[1], [last]], [2.0, 9.0, 4.0]
        contenders.append(contender)
    flags = ["--methods", "pld", "--batches", "1", "--dtype", dtype, "--flags", "pld=--n 2 --x"]
    args = bench_batch.parse_args([*flags, "--output", str(tmp_path / "out.json")])
    assert args.methods == ["vanilla", "pld"] and args.flags == {"pld": "--n 2 --x"}
    assert bench_batch.report(contenders, args) == status
    printed = capsys.readouterr().out
    assert f"ids as vanilla {4 if other == 2 else 3}/4" in printed
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert rows[0]["tokens_per_s"] == 4  # the median


def test_bench_overhead(tmp_path):
    """What is inside and outside the forwards adds up, and a draft model's reads are inside."""
    flags = ["--methods", "vanilla,sps", "--runtime", "eager", "--max-new-tokens", "8"]
    rows = rows_of(bench_overhead.main, [*flags, "--rounds", "1"], tmp_path / "out.json")
    assert [row["method"] for row in rows] == ["vanilla", "sps"]
    phases = [f"{phase}_outside_ms" for phase in ("draft", "verify", "commit", "rest")]
    for row in rows:
        assert row["outside_ms"] == pytest.approx(sum(row[name] for name in phases), abs=0.003)
        assert 0 < row["outside_ms"] < row["forwards_ms"]
    assert rows[0]["draft_forwards_ms"] == 0 < rows[1]["draft_forwards_ms"]


def test_bench_trees(tmp_path):
    """Ids are vanilla's; automatic trees say what was expected, fixed ones have their size."""
    flags = ["--methods", "eagle2,medusa", "--trees", "auto", "--questions", "2", "--rounds", "1"]
    flags += ["--max-new-tokens", "16", "--draft-vocabs", "512", "--num-threads", "1"]
    rows = rows_of(bench_trees.main, flags, tmp_path / "out.json")
    trees = ["vanilla", "eagle2 auto", "eagle2 auto, 512 ids", "medusa auto"]
    assert [row["tree"] for row in rows] == trees
    assert all(row["ids_as_vanilla"] == 2 for row in rows) and rows[0]["ratio"] == 1
    assert all(1 < row["accepted"] <= 1 + row["depth"] <= 1 + row["nodes"] for row in rows[1:])
    assert all(row["expected"] > 1 and row["price_s"]["1"] > 0 for row in rows[1:])
    fixed = ["--methods", "eagle2", "--trees", "8", *flags[4:-4], "--num-threads", "1"]
    rows = rows_of(bench_trees.main, fixed, tmp_path / "fixed.json")
    assert [row.get("nodes") for row in rows] == [None, 7] and "expected" not in rows[1]


def test_bench_load(tmp_path, capsys):
    """All requests of all methods and rates have the ids of one slot; every figure is there."""
    flags = ["--methods", "pld", "--questions", "4", "--max-new-tokens", "8", "--duration", "2"]
    flags += ["--shares", "1", "--rounds", "1", "--output", str(tmp_path / "out.json")]
    status, out = ended(bench_load.main, flags, capsys)
    document = json.loads((tmp_path / "out.json").read_text())
    assert status == 0 and "knee of pld" in out
    assert [row["method"] for row in document["rows"]] == ["vanilla"] * 2 + ["pld"] * 2
    for row in document["rows"]:
        assert row["same_ids"] == row["prompts"] > 0 and row["failed"] == 0
        assert row["ttft_p50_ms"] > 0 and row["tokens_per_s"] > 0 and 0 < row["client"] < 1
    assert all(row["ratio"] > 0 for row in document["static"])


def test_bench_drafters(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_drafters, "CONTEXTS", (256, 512))
    flags = ["--vocab-size", "500", "--steps", "2", "--store-tokens", "1000"]
    rows = rows_of(bench_drafters.main, flags, tmp_path / "out.json")
    assert len(rows) == 2 * 7 and all(min(row["us"].values()) > 0 for row in rows)


def test_bench_engines(tmp_path):
    """Transformers' prompt lookup and ours commit the same; passes and accepted tokens add up."""
    flags = ["--methods", "pld", "--runtimes", "eager", "--questions", "3", "--rounds", "1"]
    flags += ["--max-new-tokens", "20", "--count"]
    theirs, ours = rows_of(bench_engines.main, flags, tmp_path / "out.json")
    assert theirs["ids_as_vanilla"] == ours["ids_as_vanilla"] == 3
    assert ours["ratio_to_others"] == pytest.approx(
        ours["tokens_per_s"] / theirs["tokens_per_s"], abs=0.01
    )
    assert ours["passes"] + sum(ours["accepted"]) == 3 * 19


@pytest.mark.parametrize(
    "script, argv, said",
    [
        (bench_batch, ["--batches", "1,5", "--questions", "4"], "--batches 5: from 1 to"),
        (bench_batch, ["--batches", "two"], "integers separated by commas"),
        (bench_batch, ["--methods", "nothing"], "no method nothing"),
        (bench_batch, ["--flags", "nothing=--x"], "no method nothing"),
        (bench_batch, ["--questions", "5000", "--batches", "1"], "the bench has"),
        (bench_load, ["--shares", "0,1"], "a rate is above 0"),
        (bench_load, ["--slo", "ttft"], "ttft=S"),
        (bench_gpu, ["--contenders", "pld"], "the first has to be a vanilla"),
        (bench_gpu, ["--contenders", "vanilla,nothing"], "no nothing"),
        (bench_gpu, ["--scale-to", "huge"], "huge"),
        (bench_gpu, ["--output", "no/file.json"], "no such folder"),
    ],
)
def test_bad_flags_are_refused_in_one_line(script, argv, said, capsys):
    with pytest.raises(SystemExit) as end:
        script.main(argv)
    assert end.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


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
