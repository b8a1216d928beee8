"""What a run measures of its device and steps: the probe, bytes counted by hand, their keeping."""

import json

import pytest
import torch
from answer_samples import base_lines, meta, run_tool
from conftest import make_model
from harness_runs import COMMON, answer, messages, read, read_meta, run

from model.common.contract.sequence import EmptyDrafter
from model.common.records import bandwidth as probes
from model.common.records.writer import AnswerFile
from model.common.shards import take_over
from model.common.target.model import Target
from model.common.target.offload import LayerStream, Offload


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
    elsewhere = [(*layer[:-1], torch.device("meta")) for layer in target.layers[:1]]
    monkeypatch.setattr(target, "layers", elsewhere + target.layers[1:])
    assert "spread over 2 devices" in probes.step_reads(target)["no_bound"]
    monkeypatch.undo()
    target.config.num_local_experts = 4
    assert "mixture of experts" in probes.step_reads(target)["no_bound"]
    target.config.num_local_experts = 1

    def refuse(*_):
        raise RuntimeError("no such attention\nmore")

    monkeypatch.setattr(probes, "_cache_reads", refuse)
    no_cache = "no KV cache to measure: no such attention"
    assert probes.step_reads(target) == {"no_bound": no_cache}


@pytest.mark.parametrize("part", ["bandwidth", "step_reads", "_read_of"])
def test_a_failing_probe_ends_no_run(model_dir, question_file, tmp_path, capfd, monkeypatch, part):
    """The run goes on without the figure, and the table says why there is no bound."""

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 1 GiB")

    monkeypatch.setattr(probes, part, fail)
    paths = [tmp_path / f"{method}.jsonl" for method in ("vanilla", "pld")]
    for path in paths:
        found = answer(path.stem, model_dir, question_file, path, "--model-id", path.stem)
        assert not any("error" in record for record in found)
        err = capfd.readouterr().err
        assert err.count("bandwidth probe: OutOfMemoryError: CUDA out of memory. Tried") == 1
        facts = read_meta(path)
        assert facts["environment"]["bandwidth"] is None
        assert "CUDA out of memory" in facts["step_reads"]["no_bound"]
    files = ["--base-path", paths[0], "--file-path", paths[1]]
    table = run_tool("evaluation/speed.py", *files, "--resamples", 50)
    assert table.returncode == 0, table.stderr
    assert "no bound: the probe failed: OutOfMemoryError: CUDA out of memory" in table.stdout


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
    probe = {"unit": "GB/s", "buffer_bytes": 1 << 28, "read": 2.0, "copy": 1.0}
    reads = {"weight_bytes": {"float32": 400}, "embedding_row_bytes": 6, "num_layers": 1, "kv": []}
    plain, told = meta("a"), meta("a") | {"step_reads": reads, "run_s": {"decode": 3.0}}
    told["environment"]["bandwidth"] = probe
    file = AnswerFile(tmp_path / "a.jsonl", plain)
    part = AnswerFile(tmp_path / "a.shard0.jsonl", told)
    part.add(base_lines()[0])
    take_over(file, part.path)
    assert [record["question_id"] for record in read(file.path)] == [1]
    after = read_meta(file.path)
    assert after["step_reads"] == reads and after["run_s"] == told["run_s"]
    assert after["environment"]["bandwidth"] == probe
    assert after["environment"]["host"] == plain["environment"]["host"]


def test_a_failing_warm_up_is_said_once(model_dir, question_file, tmp_path, capfd):
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
    (line,) = messages(capfd)
    assert line.startswith("warm-up: RuntimeError: not yet please")
