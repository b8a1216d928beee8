"""--as benchmark-results: four JSON files with the names and units of a published benchmark."""

import copy
import json
import math

import pytest
from answer_samples import assert_refused, run_tool, write
from served_files import (
    BEGAN,
    TICK,
    counted,
    failed_line,
    load_meta,
    random_lines,
    request_line,
    ticks,
)

from evaluation.answers.meta import AnswerError
from evaluation.service.benchmark_results import write_benchmark_results
from evaluation.service.imports import read_runs

METHOD_RESULT = """method total_requests total_batches total_duration total_tokens
    total_prompt_tokens overall_throughput avg_ttft avg_latency avg_acceptance_rate
    batches""".split()
BATCH = "batch_size batch_latency total_tokens avg_ttft avg_latency throughput requests".split()
REQUEST = """prompt_tokens generated_tokens total_tokens ttft total_latency acceptance_rate
    drafts_generated drafts_accepted""".split()
MONITORING = """gpu_ids duration start_time end_time total_energy_consumed total_energy_all_gpus
    average_power peak_power average_utilization average_memory_usage peak_temperature
    total_tokens_generated total_tokens_accepted total_requests tokens_per_joule
    tokens_accepted_per_joule tokens_per_kwh tokens_accepted_per_kwh snapshots""".split()
SNAPSHOT = """timestamp gpu_id power_draw power_limit utilization_gpu utilization_memory memory_used
    memory_total temperature clock_graphics clock_memory total_tokens_generated
    total_tokens_accepted requests_completed throughput avg_ttft avg_latency""".split()


def written(folder, lines, base=None, meta=None, name="out.json"):
    """{file's name: its JSON} of a method's lines, and of a baseline's where given."""
    (run,) = read_runs(write(folder / "m.jsonl", lines, meta or load_meta()))
    bases = []
    if base is not None:
        bases = read_runs(write(folder / "b.jsonl", base, load_meta("b", "vanilla")))
    paths = write_benchmark_results(run, bases, folder / name, None)
    return {path.name: json.loads(path.read_text()) for path in paths}


def numbers(value):
    """Every number in a document, and False for what is neither number, text nor null."""
    if isinstance(value, dict):
        assert all(isinstance(name, str) for name in value)
        return [number for part in value.values() for number in numbers(part)]
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [value] if isinstance(value, int | float) else []


def energy(joules=650.0, seconds=3.0, **device):
    """A meta's energy: one GPU, sampled at 0, 1 and 3 s with 100, 200 and 300 W."""
    samples = {"t_s": [0.0, 1.0, 3.0], "joules": [0.0, 150.0, 650.0], "power_w": [100, 200, 300]}
    samples |= {"utilization": [50, 70, 90], "memory_utilization": [5, 6, 7]}
    samples |= {"memory_used_mib": [100, 200, 300], "temperature_c": [40, 50, 60]}
    samples |= {"clock_graphics_mhz": [1000, 1100, 1200], "clock_memory_mhz": [800, 800, 800]}
    found = {"meter": "nvml power", "device": "NVIDIA H200", "gpu": 0, "timed_j": joules}
    found |= {"mean_w": joules / seconds, "peak_w": 300, "power_limit_w": 700, "utilization": 70}
    found |= {"memory_total_mib": 1000, "memory_used_mib": 300, "temperature_c": 60}
    found |= {"samples": samples} | device
    entry = {"host": "h", "began_s": BEGAN, "ended_s": BEGAN + seconds, "interval_s": 0.1}
    entry |= {"answers": 1, "timed_s": seconds, "timed_j": joules, "run_s": seconds}
    return [entry | {"run_j": joules, "idle_w": 60.0, "devices": [found]}]


def batch_of_two():
    """TTFT 0.1 and 0.3 s, latencies 1 and 2 s, 10 and 30 tokens; the run began 2 s before them."""
    lines = []
    for number, (ttft, latency, tokens) in enumerate([(0.1, 1.0, 10), (0.3, 2.0, 30)]):
        line = request_line(number, 2048, 2048, 0, [(0, tokens - 1)], slot=number)
        choice = line["choices"][0]
        choice |= {"prefill_s": [ttft], "step_end_s": [[latency]], "wall_time": [latency]}
        lines.append(line)
    return lines


def test_means_of_a_batch_and_of_a_run_by_hand(tmp_path):
    found = written(tmp_path, batch_of_two(), meta=load_meta(slots=2))["out_speculative.json"]
    (batch,) = found["batches"]
    assert batch["avg_ttft"] == pytest.approx(0.2) and batch["avg_latency"] == pytest.approx(1.5)
    assert batch["batch_latency"] == pytest.approx(2)
    assert batch["throughput"] == pytest.approx(20) and batch["total_tokens"] == 40
    assert found["total_duration"] == pytest.approx(4)  # from the beginning of the schedule on
    assert found["overall_throughput"] == pytest.approx(10)
    assert found["avg_ttft"] == pytest.approx(0.2) and found["avg_latency"] == pytest.approx(1.5)
    assert found["batches"][0]["requests"][1]["time_per_token"] == pytest.approx(1.7 / 29)


def test_ten_requests_in_four_slots_are_batches_of_four_four_and_two(tmp_path):
    lines = [request_line(n, n, n, 5, [(4, 1)]) for n in range(10)]
    found = written(tmp_path, lines)["out_speculative.json"]
    assert [batch["batch_size"] for batch in found["batches"]] == [4, 4, 2]
    assert found["total_batches"] == 3


def test_energy_by_hand(tmp_path):
    line = request_line(1, 0, 0, 100, [(10, 99)] * 13 + [(10, 12)], drafted=[100] * 14)
    meta = load_meta(slots=1) | {"energy": energy()}
    found = written(tmp_path, [line], meta=meta)["out_gpu.json"]
    assert found["total_energy_consumed"] == {"0": 650.0} and found["total_energy_all_gpus"] == 650
    assert found["total_tokens_generated"] == 1300
    assert found["tokens_per_joule"] == pytest.approx(2)
    assert found["tokens_per_kwh"] == pytest.approx(7.2e6)
    assert found["total_tokens_accepted"] == 1299 - 14
    assert found["tokens_accepted_per_joule"] == pytest.approx(1285 / 650)
    assert found["average_power"]["0"] == pytest.approx(650 / 3)
    assert found["average_memory_usage"] == {"0": pytest.approx(20)}
    assert (found["peak_power"], found["peak_temperature"]) == ({"0": 300}, {"0": 60})
    assert (found["gpu_ids"], found["duration"]) == (["0"], 3.0)


def test_one_sample_gives_no_energy_and_no_division(tmp_path):
    parts = energy(device="NVIDIA H200")
    device = parts[0]["devices"][0]
    for name in ("timed_j", "mean_w", "peak_w", "utilization", "temperature_c"):
        del device[name]
    device["samples"] = {name: values[:1] for name, values in device["samples"].items()}
    parts[0] |= {"timed_s": 0.0, "timed_j": None}
    meta = load_meta(slots=1) | {"energy": parts}
    found = written(tmp_path, [request_line(1, 0, 0, 10, [])], meta=meta)["out_gpu.json"]
    assert found["total_energy_consumed"] == {} == found["average_power"]
    assert "tokens_per_joule" not in found and "total_energy_all_gpus" not in found
    assert len(found["snapshots"]) == 1


@pytest.mark.parametrize("name", ["out.json", "out"])
def test_names_fields_and_finite_numbers(tmp_path, name):
    lines = random_lines(30, 3)
    base = random_lines(30, 3, speed=0.5)
    meta = load_meta() | {"energy": energy()}
    found = written(tmp_path, lines, base, meta, name)
    endings = ["_speculative.json", "_target.json", "_gpu.json"]
    assert list(found) == [name, *(f"out{ending}" for ending in endings)]
    whole = found[name]
    assert whole["speculative"] == found["out_speculative.json"]
    assert whole["target_ar"] == found["out_target.json"]
    assert whole["gpu_monitoring"] == found["out_gpu.json"]
    for document in found.values():
        assert all(math.isfinite(number) for number in numbers(document))
    for method in (whole["speculative"], whole["target_ar"]):
        assert set(METHOD_RESULT) <= method.keys()
        for batch in method["batches"]:
            assert set(BATCH) <= batch.keys()
            for request in batch["requests"]:
                assert set(REQUEST) <= request.keys() or request["error"]
    assert set(MONITORING) <= whole["gpu_monitoring"].keys()
    for snapshot in whole["gpu_monitoring"]["snapshots"][1:]:
        assert set(SNAPSHOT) <= snapshot.keys()
    maps = [part for part in whole["gpu_monitoring"].values() if isinstance(part, dict)]
    assert maps and all(list(part) == ["0"] for part in maps)


def test_totals_are_those_of_the_slow_count_with_failures_in_them(tmp_path):
    lines = random_lines(60, 9)
    slow = counted(lines)
    found = written(tmp_path, lines)["out_speculative.json"]
    requests = [request for batch in found["batches"] for request in batch["requests"]]
    assert (found["total_requests"], len(requests)) == (60, 60)
    failed = [request for request in requests if "error" in request]
    assert found["failed_requests"] == len(failed) == len(slow["failed"]) > 0
    assert found["total_tokens"] == slow["tokens"]
    assert found["avg_ttft"] == pytest.approx(float(sum(slow["ttft"]) / len(slow["ttft"])))
    assert found["avg_latency"] == pytest.approx(float(sum(slow["e2e"]) / len(slow["e2e"])))
    done = [request for request in requests if "error" not in request]
    assert sum(r["drafts_generated"] for r in done) == sum(sum(r["drafted"]) for r in slow["rows"])
    assert sum(r["drafts_accepted"] for r in done) == sum(sum(r["accepted"]) for r in slow["rows"])
    assert all(r["total_tokens"] == r["prompt_tokens"] + r["generated_tokens"] for r in done)
    ends = [float(row["end"]) for row in slow["rows"]]
    ends += [float(end) for _, end in slow["failed"] if end is not None]
    assert found["total_duration"] == pytest.approx(max(ends) - BEGAN)


def test_requests_of_which_nothing_was_accepted_stay_in_the_mean(tmp_path):
    lines = [
        request_line(1, 0, 0, 5, [(4, 1)] * 4, drafted=[2] * 4),
        request_line(2, 9, 9, 5, [(4, 3)] * 2, drafted=[4] * 2, slot=1),
        request_line(3, 9, 9, 5, [], slot=2),  # it drafted nothing: it has no rate
    ]
    found = written(tmp_path, lines)["out_speculative.json"]
    rates = [request["acceptance_rate"] for request in found["batches"][0]["requests"]]
    assert rates == [0, 0.5, None] and found["avg_acceptance_rate"] == 0.25
    target = written(tmp_path, lines[2:], meta=load_meta("m", "vanilla"))["out_target.json"]
    assert target["avg_acceptance_rate"] is None and target["method"] == "target_ar"


def test_without_a_meter_there_is_no_monitoring(tmp_path):
    found = written(tmp_path, [request_line(1, 0, 0, 5, [])])
    assert list(found) == ["out.json", "out_speculative.json"]
    assert list(found["out.json"]) == ["speculative"]


def test_snapshots_know_what_had_been_answered_by_then(tmp_path):
    lines = [
        request_line(1, 0, 0, 500, [(500, 4)]),
        request_line(2, 0, 0, 500, [(2000, 4)], slot=1),
    ]
    found = written(tmp_path, lines, meta=load_meta() | {"energy": energy()})["out_gpu.json"]
    done = [(s["requests_completed"], s["total_tokens_generated"]) for s in found["snapshots"]]
    assert done == [(0, 0), (1, 5), (2, 10)]
    assert found["snapshots"][1]["throughput"] == pytest.approx(5)
    assert found["snapshots"][1]["avg_latency"] == pytest.approx(1000 * TICK)
    assert "avg_ttft" not in found["snapshots"][0]


def test_power_comes_from_a_counter_where_no_power_was_sampled(tmp_path):
    parts = energy()
    del parts[0]["devices"][0]["samples"]["power_w"]
    lines = [request_line(1, 0, 0, 10, [])]
    found = written(tmp_path, lines, meta=load_meta() | {"energy": parts})["out_gpu.json"]
    powers = [snapshot.get("power_draw") for snapshot in found["snapshots"]]
    assert powers == [None, 150.0, 250.0]


def test_several_processes_and_both_methods(tmp_path):
    twice = [energy(600.0, 2.0)[0], energy(300.0, 1.0, utilization=40, peak_w=500)[0]]
    twice[1]["began_s"], twice[1]["ended_s"] = ticks(9000), ticks(9000) + 1
    lines = [request_line(1, 0, 0, 10, [(5, 2)], drafted=[3])]
    (run,) = read_runs(write(tmp_path / "m.jsonl", lines, load_meta() | {"energy": twice}))
    rapl = energy(90.0, 3.0, device="package-0")
    del rapl[0]["devices"][0]["gpu"]
    base = load_meta("b", "vanilla") | {"energy": rapl}
    bases = read_runs(write(tmp_path / "b.jsonl", copy.deepcopy(lines), base))
    paths = write_benchmark_results(run, bases, tmp_path / "out.json", None)
    found = json.loads(paths[-1].read_text())
    assert found["total_energy_consumed"] == {"0": 900} and found["duration"] == 3
    assert found["average_power"] == {"0": 300} and found["peak_power"] == {"0": 500}
    assert found["average_utilization"]["0"] == pytest.approx((2 * 70 + 40) / 3)
    assert (found["start_time"], found["end_time"]) == (BEGAN, ticks(9000) + 1)
    assert found["target_ar"]["total_energy_consumed"] == {"package-0": 90}


def test_what_cannot_be_written_so_is_refused(tmp_path):
    lines = [request_line(1, 0, 0, 10, [])]
    one, two = (
        write(tmp_path / f"{name}.jsonl", lines, load_meta(name)) for name in ("one", "two")
    )
    out = tmp_path / "out.json"
    flags = [one, "--as", "benchmark-results", out]
    done = run_tool("evaluation/serving.py", *flags, "--base-path", two)
    assert_refused(done, one, two, "both speculative")
    out.write_text('{"mine": 1}')
    assert_refused(run_tool("evaluation/serving.py", *flags), out, "no such result")
    broken = load_meta() | {"energy": [{"devices": [{"gpu": 0}]}]}
    (run,) = read_runs(write(tmp_path / "m.jsonl", lines, broken))
    with pytest.raises(AnswerError, match="energy is broken"):
        write_benchmark_results(run, [], tmp_path / "new.json", None)


def test_a_run_in_which_every_request_failed(tmp_path):
    found = written(tmp_path, [failed_line(1, 0, 5), failed_line(2, 3)])["out_speculative.json"]
    assert (found["total_requests"], found["failed_requests"], found["total_tokens"]) == (2, 2, 0)
    assert found["avg_ttft"] is None and found["overall_throughput"] == 0
