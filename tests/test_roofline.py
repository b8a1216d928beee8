"""What bounds a step: bytes counted by hand, bounds worked out by hand, labels, old files."""

import json
import math

import pytest
import torch
from answer_samples import (
    assert_refused,
    base_lines,
    compared,
    last_json,
    line,
    meta,
    method_lines,
    run_tool,
    write,
)
from conftest import make_model
from harness_runs import COMMON, answer, read, read_meta, run

from evaluation.answers import read_answers
from evaluation.meta import AnswerError
from evaluation.roofline import EMPTY, bound_line, roofline, share_text
from model.common.records import bandwidth as probes
from model.common.records.writer import AnswerFile
from model.common.shards import take_over
from model.common.target.model import Target
from model.common.target.offload import LayerStream, Offload

WEIGHTS = {"float32": 400_000_000, "uint8": 100_000_000}
KV = [
    {"layers": 2, "bytes_per_token": 600_000, "window": None},
    {"layers": 1, "bytes_per_token": 300_000, "window": 12},
]
READS = {"weight_bytes": WEIGHTS, "embedding_row_bytes": 6_000, "num_layers": 3, "kv": KV}


def measured(model_id="base", rate=2.0, small=None, reads=READS, method="vanilla"):
    """A meta with what a run measures; small: the probe at the weights' size."""
    content = meta(model_id, method)
    probes = {"unit": "GB/s", "buffer_bytes": 1 << 28, "read": rate, "copy": 1.0}
    content["environment"]["bandwidth"] = probes | ({"read_weights": small} if small else {})
    return content | {"step_reads": reads, "run_s": {"decode": 3.0, "harness": 1.0}}


def apart(lines, model_id=None):
    """Lines whose questions were decoded one at a time."""
    for record in lines:
        record["choices"][0]["batch"] = [record["question_id"]]
        record["model_id"] = model_id or record["model_id"]
    return lines


def baseline(folder, lines=None, **options):
    path = write(folder / "base.jsonl", apart(base_lines()) if lines is None else lines)
    path.with_name("base.meta.json").write_text(json.dumps(measured(**options)))
    return path


def bound_of(path):
    answers = read_answers(path)
    return roofline(answers, list(answers.questions.values()))


def test_bound_by_hand(tmp_path):
    """Cached tokens before the steps: 11 .. 14 and 11, 12; in the window 11, 12, 12, 12, 11, 12."""
    bound = bound_of(baseline(tmp_path))
    kv = (600_000 * 73 + 300_000 * 70) / 6
    assert bound["kv_bytes"] == pytest.approx(kv)
    assert bound["weight_bytes"] == 500_000_000
    assert bound["step_ms"] == pytest.approx(500)
    assert bound["bound_ms"] == pytest.approx((500e6 + 6e3 + kv) / 2e9 * 1e3)
    assert bound["share"] == pytest.approx(bound["bound_ms"] / 500)
    assert bound["gb_per_s"] == 2 and bound["no_bound"] is None
    line = bound_line("base", bound)
    assert "step 500.000 ms, bound 255.403 ms (500.0 MB of weights, 10.8 MB of KV" in line
    assert line.endswith("at 51.1 % of the bound")


@pytest.mark.parametrize("rate, label", [(2.0, None), (2.04, None), (2.05, "launch-bound")])
def test_twice_the_bound_is_launch_bound(tmp_path, rate, label):
    bound = bound_of(baseline(tmp_path, rate=rate))
    assert bound["label"] == label
    assert ("launch-bound" in share_text(bound)) == bool(label)


def test_weights_in_a_cache_are_held_to_the_cache(tmp_path):
    """The faster of the two probes counts, and a step beyond its bound is not hidden."""
    assert bound_of(baseline(tmp_path, small=20.0))["gb_per_s"] == 20
    assert bound_of(baseline(tmp_path, small=1.0))["gb_per_s"] == 2
    bound = bound_of(baseline(tmp_path, rate=0.5))
    assert bound["share"] > 1 and "beyond it" in bound_line("base", bound)


def test_a_batch_reads_its_weights_once(tmp_path):
    """Questions of 4 and 2 steps together: 4 steps of 0.5 s, 6 rows and 6 caches in all."""
    bound = bound_of(baseline(tmp_path, lines=base_lines()))
    kv = (600_000 * 73 + 300_000 * 70) / 4
    assert bound["step_ms"] == pytest.approx(500)
    assert bound["bound_ms"] == pytest.approx((500e6 + 6 / 4 * 6e3 + kv) / 2e9 * 1e3)


def test_reports_say_how_good_the_baseline_is(tmp_path):
    base = baseline(tmp_path, rate=8.0)
    method = write(tmp_path / "m.jsonl", apart(method_lines()), meta("m"))
    args = ("--file-path", method, base, "--base-path", base)
    done = run_tool("evaluation/speed.py", *args)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("at 12.8 % of the bound: launch-bound") == 2
    summary = [line for line in done.stdout.splitlines() if line.startswith(("m ", "base "))]
    assert [line.endswith("12.8 % launch-bound") for line in summary[-2:]] == [True, True]
    result = last_json(done)["results"][0]["roofline"]
    assert result["label"] == "launch-bound" and result["share"] == pytest.approx(0.1277, abs=1e-4)
    markdown = run_tool("evaluation/speed.py", *args, "--markdown").stdout.splitlines()
    assert "Baseline of its bound" in markdown[0] and "| 12.8 % launch-bound |" in markdown[2]


def test_files_without_a_bound_still_work(tmp_path):
    base = write(tmp_path / "base.jsonl", apart(base_lines()), meta("base", "vanilla"))
    method = write(tmp_path / "m.jsonl", apart(method_lines()), meta("m"))
    result = compared(method, base)
    assert result["roofline"] == {**EMPTY, "step_ms": 500.0, "no_bound": "no bound recorded"}
    assert result["method"]["recompiled_turns"] is None
    done = run_tool("evaluation/speed.py", "--file-path", method, "--base-path", base)
    assert "baseline: base: step 500.000 ms: no bound recorded" in done.stdout
    reason = {"no_bound": "the layers are streamed to the device (--offload)"}
    told = bound_of(baseline(tmp_path, reads=reason))
    assert told["share"] is None and "(--offload)" in bound_line("base", told)
    no_probe = json.loads((tmp_path / "base.meta.json").read_text()) | {"step_reads": READS}
    no_probe["environment"]["bandwidth"] = None
    (tmp_path / "base.meta.json").write_text(json.dumps(no_probe))
    assert bound_of(base)["no_bound"] == "no bound: no bandwidth was measured"
    only_prefills = [line(1, "qa", [([], [])], "base")]
    assert bound_of(baseline(tmp_path, lines=only_prefills))["no_bound"].endswith(
        "no step was taken"
    )


@pytest.mark.parametrize(
    "reads, rate",
    [
        ({"weight_bytes": 5}, 1.0),
        ({**READS, "kv": [{"layers": 1}]}, 1.0),
        ({**READS, "embedding_row_bytes": -1}, 1.0),
        (READS, "fast"),
        (READS, -1.0),
    ],
)
def test_broken_measurements_are_named(tmp_path, reads, rate):
    base = baseline(tmp_path, reads=reads, rate=rate)
    with pytest.raises(AnswerError, match="base.jsonl: its meta's step_reads or bandwidth"):
        bound_of(base)
    done = run_tool("evaluation/speed.py", "--file-path", base, "--base-path", base)
    assert_refused(done, "step_reads or bandwidth is broken")


def test_probe_is_positive_and_has_its_unit():
    facts = probes.bandwidth(torch.device("cpu"), 1_000_001)
    assert facts["unit"] == "GB/s" and facts["read_weights_bytes"] == 1_000_000
    assert all(0 < facts[name] < 1e5 for name in ("read", "copy", "read_weights"))
    assert facts["buffer_bytes"] >= probes.SMALLEST
    assert probes.bandwidth(torch.device("cpu"), 1_000_001) == facts  # measured once a process
    assert "read_weights" not in probes.bandwidth(torch.device("cpu"))


def test_probe_halves_what_does_not_fit(monkeypatch):
    real, asked = torch.ones, []

    def small_device(count, **options):
        asked.append(4 * count)
        if 4 * count > 40 << 20:
            raise RuntimeError("out of memory")
        return real(count, **options)

    monkeypatch.setattr(probes.torch, "ones", small_device)
    facts = probes._large.__wrapped__(torch.device("cpu"), 1)
    assert facts["buffer_bytes"] == asked[-1] == 32 << 20 and facts["read"] > 0
    assert asked == [asked[0] >> i for i in range(len(asked))] and len(asked) >= 3
    monkeypatch.setattr(probes, "SMALLEST", 1 << 40)
    assert probes._large.__wrapped__(torch.device("cpu"), 1) is None


def bytes_of(**changes):
    """step_reads of a tiny model: 3 layers, 64 wide, 4 heads and 2 of keys of 16, vocabulary 97."""
    return probes.step_reads(Target(make_model(**changes)))


ATTENTION = 64 * 64 + 2 * 64 * 32 + 64 * 64  # q, k and v, o
LAYER = ATTENTION + 3 * 64 * 96 + 2 * 64  # and the MLP, two norms
STORED = 3 * LAYER + 64 + 97 * 64  # and the last norm, the LM head


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_a_step(tied, dtype):
    """The LM head is read whole, tied or not; of a table only a row."""
    reads = bytes_of(tie_word_embeddings=tied, dtype=dtype)
    size = dtype.itemsize
    assert reads == {
        "weight_bytes": {str(dtype)[6:]: STORED * size},
        "embedding_row_bytes": 64 * size,
        "num_layers": 3,
        "kv": [{"layers": 3, "bytes_per_token": 3 * 2 * 2 * 16 * size, "window": None}],
    }


def test_windows_and_stored_forms():
    layer = 2 * 2 * 16 * 4
    hybrid = bytes_of(family="gemma3_text")["kv"]
    assert {(kind["layers"], kind["bytes_per_token"], kind["window"]) for kind in hybrid} == {
        (2, 2 * layer, 8),
        (1, layer, None),
    }
    assert [kind["window"] for kind in bytes_of(family="mistral")["kv"]] == [12]
    model = make_model(tie_word_embeddings=False)
    model.model.layers[0].register_buffer("packed", torch.zeros(1000, dtype=torch.uint8))
    model.model.layers[0].register_buffer("inferred", torch.zeros(9), persistent=False)
    stored = probes.step_reads(Target(model))["weight_bytes"]
    assert stored == {"float32": STORED * 4, "uint8": 1000}


def test_no_bound_where_the_bytes_are_not_known(tmp_path, monkeypatch):
    target = Target(make_model())
    LayerStream(target.model, torch.device("cpu"), Offload("ram"))
    assert "--offload" in probes.step_reads(target, streamed=True)["no_bound"]
    monkeypatch.setattr(target, "layer_devices", [torch.device("cpu"), torch.device("meta")])
    assert "spread over 2 devices" in probes.step_reads(target)["no_bound"]
    monkeypatch.undo()
    target.config.num_local_experts = 4
    assert "mixture of experts" in probes.step_reads(target)["no_bound"]
    target.config.num_local_experts = 1

    def refuse(*_):
        raise RuntimeError("no such attention\nmore")

    monkeypatch.setattr(target, "prefill", refuse)
    no_cache = "no KV cache to measure: no such attention"
    assert probes.step_reads(target) == {"no_bound": no_cache}


def test_a_run_measures_and_its_table_says_so(model_dir, question_file, tmp_path):
    out = tmp_path / "a.jsonl"
    records = answer("vanilla", model_dir, question_file, out, "--paired")
    for path in (out, tmp_path / "a-paired-baseline.jsonl"):
        facts = read_meta(path)
        assert facts["environment"]["bandwidth"]["read"] > 0 and facts["environment"]["host"]
        assert facts["step_reads"]["num_layers"] == 3
        assert facts["runtime_ran"] == "eager"
        assert facts["run_s"]["decode"] > 0 and facts["run_s"]["harness"] > 0
    walls = [sum(c["wall_time"]) for file in (out, path) for r in read(file) for c in r["choices"]]
    assert facts["run_s"]["decode"] == pytest.approx(math.fsum(walls), abs=2e-3)
    assert {n for r in records for c in r["choices"] for n in c["recompiled"]} == {0}
    bound = bound_of(out)
    assert 0 < bound["share"] < 1 and bound["label"] == "launch-bound"


def test_resuming_keeps_what_was_measured(model_dir, question_file, tmp_path):
    """Nothing left to answer: nothing is measured again, and nothing forgotten."""
    out = tmp_path / "a.jsonl"
    answer("vanilla", model_dir, question_file, out)
    facts = read_meta(out)
    facts["environment"]["bandwidth"]["read"] = 12345.0
    facts["run_s"] = {"decode": 1.0, "harness": 2.0}
    out.with_suffix(".meta.json").write_text(json.dumps(facts))
    answer("vanilla", model_dir, question_file, out)
    again = read_meta(out)
    assert again["environment"]["bandwidth"]["read"] == 12345.0
    assert again["run_s"] == facts["run_s"] and again["step_reads"] == facts["step_reads"]
    fresh = {name: part for name, part in facts.items() if name not in ("run_s", "step_reads")}
    file = AnswerFile(tmp_path / "b.jsonl", fresh | {"environment": {"host": "here"}})
    file.keep_measured(facts)
    assert file.meta["environment"]["bandwidth"]["read"] == 12345.0
    assert file.meta["step_reads"] == facts["step_reads"]


def test_workers_hand_over_what_they_measured(tmp_path):
    plain, told = meta("a"), measured("a")
    file = AnswerFile(tmp_path / "a.jsonl", plain)
    part = AnswerFile(tmp_path / "a.shard0.jsonl", told)
    part.add(base_lines()[0])
    take_over(file, part.path)
    assert [record["question_id"] for record in read(file.path)] == [1]
    after = read_meta(file.path)
    assert after["step_reads"] == READS and after["run_s"] == told["run_s"]
    assert after["environment"]["bandwidth"] == told["environment"]["bandwidth"]
    assert after["environment"]["host"] == plain["environment"]["host"]


def test_a_failing_warm_up_is_said_once(model_dir, question_file, tmp_path, capfd):
    from model.common.contract.drafter import EmptyDrafter

    class Shy(EmptyDrafter):
        """Fails the first time."""

        calls = 0

        def start(self, *arguments):
            Shy.calls += 1
            if Shy.calls == 1:
                raise RuntimeError("not yet\nplease")
            super().start(*arguments)

    where = ["--model-path", model_dir, "--question-file", question_file]
    where += ["--answer-file", tmp_path / "a.jsonl", *COMMON, "--warmup", 2]
    assert run("vanilla", *where, "--max-new-tokens", 3, build=lambda *_: Shy()) == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warm-up: RuntimeError: not yet please")
