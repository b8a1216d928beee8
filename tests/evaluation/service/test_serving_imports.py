"""Result files of other tools: samples written by hand after their documented fields."""

import json

import pytest
from answer_samples import DATA, report_of, run_tool

from evaluation.answers.meta import AnswerError
from evaluation.service import figures
from evaluation.service.imports import read_runs

SAMPLES = DATA / "serving"


def figures_of(name, slo=None):
    """Figures of every run of a sample."""
    return [figures.figures_of(run, slo) for run in read_runs(SAMPLES / name)]


def changed(folder, name, change):
    """The sample's first object after change(object), in a file of its own."""
    text = (SAMPLES / name).read_text()
    record = json.loads(text.splitlines()[1] if name == "profile_export.jsonl" else text)
    change(record)
    path = folder / name
    path.write_text(json.dumps(record))
    return path


def test_vllm_with_waits_at_the_client(tmp_path):
    (found,) = figures_of("vllm.json", {"ttft": 0.3, "e2e": 1})
    assert (found["rate"], found["requests"], found["failed"]) == (2.0, 4, 1)
    # from the arrival: the third request waited 0.25 s at the client
    assert found["ttft"]["mean"] == pytest.approx((0.25 + 0.5 + 0.25 + 0.125) / 3)
    assert found["e2e"]["max"] == pytest.approx(1.25)
    assert found["lag"]["mean"] == pytest.approx(0.25 / 3)
    assert found["tpot"]["mean"] == pytest.approx((0.5 / 3 + 0.75 / 4) / 2)
    assert found["chunk_gap"]["n"] == 5 and found["itl"] is None
    # arrivals at 100, 100.5, 100.75 and 102, ends at 100.75, 101.75 and 101.125
    assert (found["busy_s"], found["wall_s"]) == (pytest.approx(1.75), pytest.approx(2.0))
    assert found["token_throughput"] == pytest.approx(10 / 1.75)
    assert (found["goodput"]["met"], found["goodput"]["share"]) == (1, 0.25)
    assert found["acceptance"] == {"mean_accepted": 1.8, "rate": pytest.approx(0.4)}
    assert found["slots"]["max"] == 2 and found["slots"]["num"] is None
    path = changed(tmp_path, "vllm.json", lambda r: r.pop("queue_times"))
    older = figures.figures_of(read_runs(path)[0])
    assert older["ttft"]["mean"] == pytest.approx(0.875 / 3)
    assert any("from the sending" in note for note in older["notes"])


def test_vllm_errors_are_their_last_line_and_no_token_is_a_failure(tmp_path):
    (run,) = read_runs(SAMPLES / "vllm.json")
    assert run.requests[3].error == "TimeoutError: no answer"
    path = changed(tmp_path, "vllm.json", lambda r: r["errors"].__setitem__(3, ""))
    (run,) = read_runs(path)
    assert run.requests[3].error == "no token came" and len(run.answered) == 3


def test_vllm_chunks_of_one_token_are_gaps_between_tokens(tmp_path):
    def single(record):
        record["itls"][1] = [0.25, 0.25, 0.125, 0.125]

    (run,) = read_runs(changed(tmp_path, "vllm.json", single))
    assert figures.figures_of(run)["itl"]["n"] == 7


def test_aggregates_of_several_runs_in_one_file():
    first, second = figures_of("vllm_appended.json", {"ttft": 1.0})
    assert (first["rate"], second["rate"]) == (1.0, float("inf"))
    assert (first["requests"], first["failed"], first["failure_rate"]) == (10, 1, 0.1)
    assert first["ttft"] == {"mean": 0.02, "std": 0.003, "p50": 0.018, "p99": 0.04}
    assert first["chunk_gap"]["mean"] == 0.007 and first["itl"] is None
    assert (first["wall_s"], first["token_throughput_wall"]) == (10.0, 8.0)
    for name in ("busy_s", "token_throughput", "slots", "e2e", "joules_per_token"):
        assert first[name] is None
    assert first["goodput"]["share"] is None  # nobody knows which requests met it
    assert second["tpot"] is None and second["new_tokens"] == 90


def test_sglang_of_its_own_server_shares_gaps_and_of_others_does_not():
    own, other, summary = figures_of("sglang.jsonl")
    assert own["itl"]["n"] == 6 and own["chunk_gap"] is None
    assert own["tpot"]["mean"] == pytest.approx((0.375 / 4 + 0.5 / 2) / 2)
    assert own["e2e"]["mean"] == pytest.approx((0.625 + 1.0) / 2)
    assert (own["requests"], own["failed"]) == (3, 1)
    assert own["acceptance"] == {"mean_accepted": 2.5}
    for name in ("busy_s", "slots", "peak_queue", "lag", "queue"):
        assert own[name] is None  # it does not say when a request was sent
    assert own["token_throughput_wall"] == 4.0 and own["wall_s"] == 2.0
    assert other["chunk_gap"]["n"] == 2 and other["itl"] is None
    assert any("taken at the tokens asked for" in note for note in other["notes"])
    assert summary["itl"]["p95"] == 0.055 and summary["chunk_gap"] is None
    assert summary["e2e"]["p99"] == 0.9


def test_aiperf_records_with_units_waits_and_a_warm_up():
    (found,) = figures_of("profile_export.jsonl")
    assert (found["requests"], found["failed"]) == (3, 1)
    assert found["ttft"]["mean"] == pytest.approx((0.25 + 0.75) / 2)  # the second waited 0.25 s
    assert found["e2e"]["mean"] == pytest.approx((0.75 + 1.25) / 2)
    assert found["tpot"]["mean"] == pytest.approx((0.25 + 0.5 / 4) / 2)
    assert found["chunk_gap"]["n"] == 3 and found["itl"] is None
    assert found["busy_s"] == pytest.approx(2.0) and found["wall_s"] == pytest.approx(2.5)
    (run,) = read_runs(SAMPLES / "profile_export.jsonl")
    assert run.requests[2].error == "Request was cancelled after 0.500 seconds"


def test_aiperf_summary():
    (found,) = figures_of("profile_export_aiperf.json")
    assert (found["requests"], found["failed"]) == (23, 3)
    assert found["tpot"] == {"mean": 0.012, "p50": 0.011, "p99": 0.02}
    assert (found["token_throughput_wall"], found["new_tokens"]) == (80.0, 800.0)
    assert any("called TPOT here" in note for note in found["notes"])


BROKEN = [
    ("vllm.json", lambda r: r["ttfts"].pop(), "lists of different lengths: ttfts 3"),
    ("vllm.json", lambda r: r.update(ttfts=[1, 2, "x", 4]), "ttfts holds what is no time"),
    ("vllm.json", lambda r: r["itls"].__setitem__(0, 5), "itls holds what is no list"),
    ("vllm.json", lambda r: r["itls"].__setitem__(0, [-1]), "itls holds what is no time"),
    ("vllm.json", lambda r: r["output_lens"].__setitem__(0, None), "output_lens holds what is no"),
    ("vllm.json", lambda r: r.update(errors="none"), "errors is no list"),
    ("vllm.json", lambda r: r.update(duration="2"), "duration is no number"),
    ("profile_export.jsonl", lambda r: r["metadata"].pop("request_end_ns"), "request_end_ns is no"),
    (
        "profile_export.jsonl",
        lambda r: r["metrics"]["request_latency"].update(unit="fortnights"),
        "line 1: no time in a known unit",
    ),
    ("profile_export.jsonl", lambda r: r.update(metadata=3), "metadata or metrics is no JSON"),
    (
        "profile_export.jsonl",
        lambda r: r["metadata"].update(benchmark_phase="warmup"),
        "no request behind the warm-up",
    ),
    ("vllm.json", lambda r: r.pop("completed"), "neither an answer file nor a result"),
]


@pytest.mark.parametrize("name, change, message", BROKEN)
def test_broken_results_are_refused_with_a_name(tmp_path, name, change, message):
    path = changed(tmp_path, name, change)
    with pytest.raises(AnswerError, match=message) as refusal:
        read_runs(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", ["", "[1, 2]\n", "{", "hello\n", '{"a": 1}\n', "\x00\xff"])
def test_what_is_none_of_them_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content.encode("latin-1"))
    for place in (path, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(AnswerError) as refusal:
            read_runs(place)
        assert str(place) in str(refusal.value) and "\n" not in str(refusal.value)


def test_files_of_several_tools_stand_side_by_side():
    files = [SAMPLES / name for name in ("vllm.json", "sglang.jsonl", "profile_export.jsonl")]
    done = run_tool("evaluation/serving.py", *files, "--base-path", SAMPLES / "vllm.json")
    assert done.returncode == 0, done.stderr
    report = report_of(done)
    assert [run["source"] for run in report["runs"]] == ["vLLM bench"] + ["SGLang bench"] * 3 + [
        "AIPerf"
    ]
    assert len(report["comparisons"]) == 4  # not with itself
    for result in report["comparisons"]:
        assert not result["paired"] and "another tool's file" in result["why"]
    aiperf = report["comparisons"][-1]["speedup"]
    assert aiperf["ttft"]["value"] == pytest.approx(0.375 / 0.5)
    assert aiperf["token_throughput"]["value"] == pytest.approx((8 / 2.0) / (10 / 1.75))
    summary = report["comparisons"][-2]["speedup"]  # aggregates: a ratio without an interval
    assert summary["ttft"] == {"value": pytest.approx(3.75), "low": None, "high": None}
    assert summary["token_throughput"]["low"] is None
