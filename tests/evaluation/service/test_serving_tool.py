"""serving.py as a command: its tables, its JSON, a result of vLLM's form, and what it refuses."""

import json

import numpy as np
import pytest
from answer_samples import assert_refused, report_file, report_of, run_tool, write
from served_files import TICK, counted, failed_line, load_meta, random_lines, request_line

from evaluation.service import figures
from evaluation.service.imports import read_runs
from evaluation.service.vllm_result import vllm_result
from model.common.records.schema import SERVING

TOOL = "evaluation/serving.py"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Files of a method and of vanilla at three rates, of the same prompts."""
    folder = tmp_path_factory.mktemp("sweep")
    files = {}
    for method, slowness in (("pld", 1), ("vanilla", 3)):
        for rate in (1, 2, 4):
            name = f"{method}-rate-{rate}"
            lines = [
                request_line(n, 1024 * n // rate, 1024 * n // rate, 10, [(slowness * 60, 2)] * rate)
                for n in range(12)
            ]
            lines[3] = failed_line(3, 3072 // rate, 3072 // rate + 100)
            meta = load_meta(name, method, rate=str(rate), arrivals=[n / rate for n in range(12)])
            files[method, rate] = write(folder / f"{name}.jsonl", lines, meta)
    return files


def test_tables_of_a_sweep_against_its_base(sweep):
    files = [sweep["pld", rate] for rate in (1, 2, 4)]
    slo = "ttft=0.2, e2e=0.2"
    done = run_tool(TOOL, *files, "--base-path", sweep["vanilla", 2], "--slo", slo)
    assert done.returncode == 0, done.stderr
    text, report = done.stdout, report_of(done)
    for row in ("pld-rate-1 ", "pld-rate-4 ", "vanilla-rate-2 "):
        assert any(line.startswith(row) for line in text.splitlines())
    assert "good: share of all requests, the failed ones among them, with TTFT <= 0.2 s" in text
    assert "pld-rate-2: paired by request, the schedules being the same; fewer than" in text
    assert "1 failed on a side" in text
    assert "pld-rate-1: unpaired: the schedules differ in rate, arrivals" in text
    assert [run["rate"] for run in report["runs"]] == [2, 1, 2, 4]  # the base is first
    by_name = {result["run"]: result for result in report["comparisons"]}
    both = by_name["pld-rate-2"]["speedup"]
    assert both["tpot"]["value"] == pytest.approx(3) and both["ttft"]["value"] == pytest.approx(1)
    (knee,) = report["knees"]
    assert knee["label"] == "pld-rate" and knee["knee"] is None  # one of twelve failed
    assert "below 1 a second" in text
    requests = report["runs"][3]["per_request"]
    assert len(requests) == 12 and requests[3]["error"] and not requests[3]["met_slo"]
    assert requests[0]["itl"] == [30 * TICK] * 8 and requests[0]["accept_lengths"] == [2] * 4
    assert requests[0]["e2e"] == pytest.approx(250 * TICK)


def test_the_compact_table_stands_for_the_full_ones(sweep, tmp_path):
    """--details has what is printed without it, behind what was there."""
    files = [
        sweep["pld", 1],
        sweep["pld", 2],
        "--base-path",
        sweep["vanilla", 1],
        sweep["vanilla", 2],
    ]
    slo = ["--slo", "ttft=0.2"]
    whole = run_tool(TOOL, *files, *slo)
    details = tmp_path / "details.txt"
    details.write_text("before\n", encoding="utf-8")
    brief = run_tool(TOOL, *files, *slo, "--details", details)
    assert details.read_text(encoding="utf-8") == "before\n" + whole.stdout
    rows = {line.split()[0]: line for line in brief.stdout.splitlines()}
    requests, failed = rows["pld-rate-2"].split()[1:3]
    assert (requests, failed) == ("12", "1") and "91.7 %" in rows["pld-rate-2"]
    assert "3.000" in rows["pld-rate-2"] and "3.000" not in rows["vanilla-rate-2"]
    assert "no interval where there are fewer than 30 requests" in brief.stdout
    assert len(brief.stdout.splitlines()) < len(whole.stdout.splitlines()) / 3
    assert_refused(run_tool(TOOL, *files, "--details", tmp_path), "--details")


def test_a_run_that_was_cut_off_says_so(tmp_path):
    lines = [request_line(n, 1024 * n, 1024 * n, 10, [(60, 2)]) for n in range(3)]
    path = write(tmp_path / "a.jsonl", lines, load_meta("a", "pld", num_requests=40))
    assert "a: 3 of 40 requests of the schedule: the run was cut off" in run_tool(TOOL, path).stdout
    path = write(tmp_path / "b.jsonl", lines, load_meta("b", "pld", num_requests=3))
    assert "cut off" not in run_tool(TOOL, path).stdout


def test_every_run_is_held_to_the_base_of_its_schedule(sweep):
    files = {method: [sweep[method, rate] for rate in (1, 2, 4)] for method in ("pld", "vanilla")}
    bases = files["vanilla"][::-1]
    again = bases[0].parent / "." / ".." / bases[0].parent.name / bases[0].name
    done = run_tool(TOOL, *files["pld"], again, "--base-path", *bases, "--resamples", 20)
    assert done.returncode == 0, done.stderr
    report = report_of(done)
    pairs = [(r["run"][-1], r["base"][-1], r["paired"]) for r in report["comparisons"]]
    assert pairs == [("1", "1", True), ("2", "2", True), ("4", "4", True)]
    assert len(report["runs"]) == 6  # a base that is among the files stands there once
    assert [knee["label"] for knee in report["knees"]] == ["vanilla-rate", "pld-rate"]


def test_a_run_that_no_base_fits_is_a_line_and_the_others_go_on(tmp_path):
    lines = [request_line(n, 100 * n, 100 * n, 10, [(60, 2)]) for n in range(3)]
    files = {
        name: write(tmp_path / f"{name}.jsonl", lines, load_meta(name, method, slots))
        for name, method, slots in (
            ("pld", "pld", 4),
            ("base", "vanilla", 4),
            ("wide", "pld", 8),
            ("wide-base", "vanilla", 8),
        )
    }
    pld, base, wide, wide_base = files.values()
    done = run_tool(TOOL, pld, wide, "--base-path", base)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = f"{wide} and {base} are not comparable: batch_size: 8, baseline 4"
    assert done.stdout.splitlines()[-1] == line
    report = report_of(done)
    assert report["incomparable"] == [line] and len(report["runs"]) == 3
    assert [(one["run"], one["base"]) for one in report["comparisons"]] == [("pld", "base")]
    done = run_tool(TOOL, pld, wide, "--base-path", base, wide_base)
    assert done.returncode == 0, done.stderr  # each is held to the base that fits
    pairs = [(one["run"], one["base"]) for one in report_of(done)["comparisons"]]
    assert pairs == [("pld", "base"), ("wide", "wide-base")]
    out = tmp_path / "out.json"
    done = run_tool(TOOL, pld, "--base-path", wide_base, "--as", "benchmark-results", out)
    assert_refused(done, pld, wide_base, "not comparable: batch_size")
    assert not out.exists()


def test_definitions_are_those_of_the_schema():
    done = run_tool(TOOL, "--definitions", "--json", report_file())
    assert done.returncode == 0, done.stderr
    for name, (unit, words) in SERVING.items():
        assert any(
            line.split(":")[0].split()[0] == name and line.endswith(words) and unit in line
            for line in done.stdout.splitlines()
        )


def test_json_alone_on_stdout(sweep):
    done = run_tool(TOOL, sweep["pld", 1], "--json", "-")
    assert json.loads(done.stdout)["tool"] == "serving" and "TTFT (ms)" in done.stderr


def test_vllms_keys_and_values_from_a_load_file(tmp_path):
    lines = random_lines(50, 6)
    (run,) = read_runs(write(tmp_path / "m.jsonl", lines, load_meta(concurrency=3)))
    slo = {"ttft": 0.2, "tpot": 0.01}
    found, slow = vllm_result(run, slo), counted(lines)
    rows = slow["rows"]
    assert (found["completed"], found["failed"]) == (len(rows), len(slow["failed"]))
    assert found["total_output_tokens"] == slow["tokens"] == sum(found["output_lens"])
    assert found["duration"] == pytest.approx(float(slow["wall"]))
    assert found["output_throughput"] == pytest.approx(float(slow["tokens"] / slow["wall"]))
    sent = [row["came"][0] - row["sent"] for row in rows]
    assert found["mean_ttft_ms"] == pytest.approx(1e3 * float(sum(sent) / len(sent)))
    assert found["p90_ttft_ms"] == pytest.approx(1e3 * np.percentile(list(map(float, sent)), 90))
    gaps = list(map(float, slow["chunk_gap"]))
    assert found["mean_itl_ms"] == pytest.approx(1e3 * np.mean(gaps))
    assert found["median_itl_ms"] == found["p50_itl_ms"]
    assert found["std_tpot_ms"] == pytest.approx(1e3 * np.std(list(map(float, slow["tpot"]))))
    whole = [row["came"][-1] - row["sent"] for row in rows]
    assert found["p99_e2el_ms"] == pytest.approx(1e3 * np.percentile(list(map(float, whole)), 99))
    lengths = {name: len(value) for name, value in found.items() if name.endswith("lens")}
    lists = ("ttfts", "itls", "latencies", "start_times", "queue_times", "errors")
    assert set(lengths.values()) | {len(found[name]) for name in lists} == {50}
    for index, request in enumerate(run.requests):
        if request.error is None:
            assert found["ttfts"][index] + sum(found["itls"][index]) == pytest.approx(
                found["latencies"][index]
            )
        else:
            assert found["errors"][index] and found["output_lens"][index] == 0
    accepted = [n for row in rows for n in row["accepted"]]
    drafted = sum(n for row in rows for n in row["drafted"])
    assert found["spec_decode_acceptance_rate"] == pytest.approx(100 * sum(accepted) / drafted)
    length = found["spec_decode_acceptance_length"]
    assert length == pytest.approx(1 + sum(accepted) / len(accepted))
    assert 1 + sum(found["spec_decode_per_position_acceptance_rates"]) == pytest.approx(length)
    assert (found["request_rate"], found["max_concurrency"]) == (2.0, 3)
    good = figures.goodput(run, slo)
    assert found["request_goodput"] == pytest.approx(good["met"] / float(slow["wall"]))
    most = max_per_second([moment for row in rows for moment in row["came"]], rows)
    assert found["max_output_tokens_per_s"] == most
    spans = [(row["sent"], row["end"]) for row in rows]
    spans += [(a, e) for a, e in slow["failed"] if e is not None]
    most = max(sum(b <= moment < e for b, e in spans) for moment, _ in spans)
    assert found["max_concurrent_requests"] == most


def max_per_second(moments, rows):
    begin = min(row["sent"] for row in rows)
    counts = {}
    for moment in moments:
        counts[int(moment - begin)] = counts.get(int(moment - begin), 0) + 1
    return max(counts.values())


def test_a_file_of_vllms_form_is_read_back_as_what_it_was(tmp_path):
    lines = random_lines(40, 8)
    path = write(tmp_path / "m.jsonl", lines, load_meta())
    out = tmp_path / "v.json"
    done = run_tool(TOOL, path, "--as", "vllm", out)
    assert done.returncode == 0 and f"written: {out}" in done.stdout, done.stderr
    ours, theirs = (figures.figures_of(*read_runs(one), {"ttft": 0.3}) for one in (path, out))
    for name in ("ttft", "tpot", "e2e", "chunk_gap", "lag"):
        assert theirs[name] == {k: pytest.approx(v, rel=1e-6) for k, v in ours[name].items()}
    assert theirs["failed"] == ours["failed"] and theirs["goodput"]["met"] == ours["goodput"]["met"]
    assert theirs["itl"] is None  # the form has no tokens of a chunk
    assert run_tool(TOOL, path, "--as", "vllm", out).returncode == 0  # its own result is replaced


REFUSED = [
    ([], "no FILE"),
    (["F", "--slo", "ttft"], "NAME=SECONDS"),
    (["F", "--slo", "itl=1"], "NAME=SECONDS, once, of ttft, tpot, e2e"),
    (["F", "--slo", "ttft=0"], "NAME=SECONDS"),
    (["F", "--slo", "ttft=nan"], "NAME=SECONDS"),
    (["F", "--slo", "ttft=1,ttft=2"], "NAME=SECONDS, once"),
    (["F", "--as", "csv", "x"], "--as csv: not one of vllm, benchmark-results"),
    (["F", "F", "--as", "vllm", "x"], "--as writes one FILE"),
    (["F", "--as", "vllm", "x", "--base-path", "F"], "--as vllm writes one run"),
    (["F", "--resamples", "0"], "--resamples must be 1 or more"),
    (["missing.jsonl"], "missing.jsonl: No such file"),
]


@pytest.mark.parametrize("flags, message", REFUSED)
def test_bad_flags_are_refused_in_one_line(sweep, flags, message):
    named = [str(sweep["pld", 1]) if flag == "F" else flag for flag in flags]
    assert_refused(run_tool(TOOL, *named), message)


def test_a_result_of_another_tool_is_not_written_again(tmp_path, sweep):
    out = tmp_path / "v.json"
    assert run_tool(TOOL, sweep["pld", 2], "--as", "vllm", out).returncode == 0
    done = run_tool(TOOL, out, "--as", "vllm", tmp_path / "w.json")
    assert_refused(done, out, "vLLM bench's own result")
    done = run_tool(TOOL, sweep["pld", 2], "--as", "vllm", tmp_path / "no" / "w.json")
    assert_refused(done, "w.json", "No such file or directory")
