"""What bounds a step: bounds worked out by hand, labels, old files."""

import json
import math

import pytest
from answer_samples import (
    base_lines,
    compared,
    in_slot,
    line,
    meta,
    method_lines,
    refilled_lines,
    report_of,
    run_tool,
    write,
)
from harness_runs import answer, read, read_meta

from evaluation.answers.meta import AnswerError
from evaluation.answers.reader import read_answers
from evaluation.speedup.roofline import EMPTY, bound_line, roofline, share_text

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


def test_slots_that_are_refilled_share_their_steps(tmp_path):
    """Five steps in 3.5 s less two prefills of 0.5; cached: 11 .. 13, 11, 12, 11 .. 14."""
    bound = bound_of(baseline(tmp_path, lines=refilled_lines()))
    kv = (600_000 * (36 + 23 + 50) + 300_000 * (35 + 23 + 47)) / 5
    assert bound["step_ms"] == pytest.approx(500, abs=1e-3)
    assert bound["kv_bytes"] == pytest.approx(kv)
    assert bound["bound_ms"] == pytest.approx((500e6 + 9 / 5 * 6e3 + kv) / 2e9 * 1e3)


@pytest.mark.parametrize("apart_s", [10.0, 0.7])
def test_one_slot_is_read_as_a_batch_of_one(tmp_path, apart_s):
    """0.7 s apart: two workers of one machine, whose turns overlap and whose steps do not."""
    before = bound_of(baseline(tmp_path))
    lines = base_lines()
    for number, record in enumerate(lines):
        steps = record["choices"][0]["decoding_steps"][0]
        in_slot(record, 0, 1.7e9 + apart_s * number, [1.0 + 0.5 * i for i in range(steps)])
    assert bound_of(baseline(tmp_path, lines=lines)) == before


def test_turns_that_no_loop_can_have_decoded_have_no_bound(tmp_path):
    lines = refilled_lines()
    lines[1]["choices"][0]["begin_s"][0] -= 0.01  # slot 0 is taken until 2.0
    assert "overlap in a slot" in bound_of(baseline(tmp_path, lines=lines))["no_bound"]
    del lines[1]["choices"][0]["step_end_s"]
    told = bound_of(baseline(tmp_path, lines=lines))
    assert told["share"] is None and "when its steps ended" in bound_line("base", told)


def test_reports_say_how_good_the_baseline_is(tmp_path):
    base = baseline(tmp_path, rate=8.0)
    method = write(tmp_path / "m.jsonl", apart(method_lines()), meta("m"))
    args = ("--file-path", method, base, "--base-path", base)
    done = run_tool("evaluation/speed.py", *args)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("at 12.8 % of the bound: launch-bound") == 2
    summary = [line for line in done.stdout.splitlines() if line.startswith(("m ", "base "))]
    assert [line.endswith("12.8 % launch-bound") for line in summary[-2:]] == [True, True]
    result = report_of(done)["results"][0]["roofline"]
    assert result["label"] == "launch-bound" and result["share"] == pytest.approx(0.1277, abs=1e-4)
    markdown = run_tool("evaluation/speed.py", *args, "--format", "markdown").stdout.splitlines()
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


def test_a_run_measures_and_its_table_says_so(model_dir, question_file, tmp_path):
    out = tmp_path / "a.jsonl"
    records = answer("vanilla", model_dir, question_file, out, "--paired", 1)
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
