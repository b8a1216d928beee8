"""How far the machine moved between two files: values, intervals, marks, what is unknown."""

import json
import math
import random

import pytest
from answer_samples import (
    assert_refused,
    compared,
    meta,
    report_of,
    run_tool,
    task,
    write,
)
from drift_files import START, Files, moved, speed, steady, timed
from harness_runs import answer

from evaluation.speedup import drift, intervals


@pytest.mark.parametrize("factor", [1, 1.04, 0.95])
def test_a_steady_difference_is_measured_and_widens_every_interval(tmp_path, factor):
    """The baseline took `factor` times as long beside the method: no noise, no correction."""
    files = Files(tmp_path, steady(factor))
    result, plain = files.result(), Files(tmp_path / "plain", None).result()
    found = result["drift"]
    assert (found["state"], found["pairs"], found["marked"]) == ("measured", 8, False)
    assert moved(found) == pytest.approx([1 / factor] * 3)
    assert [one["part"] for one in found["parts"]] == ["all", "first half", "second half"]
    assert found["noise"] == pytest.approx(0, abs=1e-12)
    wide = max(factor, 1 / factor)
    for row, before in zip(result["tasks"], plain["tasks"]):
        for kind in ("speedup", "decode_speedup"):
            assert len(row[kind]) == 3
            for name, entry in row[kind].items():
                was = before[kind][name]
                assert entry["value"] == was["value"]
                assert entry["low"] == pytest.approx(was["low"] / wide)
                assert entry["high"] == pytest.approx(was["high"] * wide)
                assert (entry["bootstrap_low"], entry["bootstrap_high"]) == (
                    was["low"],
                    was["high"],
                )


def test_the_noise_is_the_pairs_own(tmp_path):
    """Four pairs of +-3 % and the t interval of their mean; the part that is widest counts."""
    stats = pytest.importorskip("scipy.stats")
    logs = [0.03, -0.03, 0.05, -0.01]
    files = Files(tmp_path, {2 * i + 1: math.exp(-log) for i, log in enumerate(logs)})
    result = files.result()
    found = result["drift"]
    half = stats.t.interval(0.95, 3, 0, stats.sem(logs))[1]
    whole, first, second = found["parts"]
    assert whole["moved"] == pytest.approx(math.exp(0.01))
    assert whole["noise"] == pytest.approx(half, rel=2e-3)
    assert first["moved"] == pytest.approx(1) and second["moved"] == pytest.approx(math.exp(0.02))
    assert first["noise"] == second["noise"] == pytest.approx(math.sqrt(2) * half, rel=2e-3)
    assert (found["shift"], found["noise"]) == (pytest.approx(0.02), second["noise"])
    entry = task(result, "overall")["speedup"]["mean_ratio"]
    for end, sign in (("low", -1), ("high", 1)):
        sampling = math.log(entry[f"bootstrap_{end}"] / entry["value"])
        wanted = sign * (0.02 + math.hypot(sampling, found["noise"]))
        assert math.log(entry[end] / entry["value"]) == pytest.approx(wanted)
        assert abs(wanted) >= found["shift"] + found["noise"]


def test_students_point():
    stats = pytest.importorskip("scipy.stats")
    for freedom in range(1, 500):
        assert intervals.student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


@pytest.mark.parametrize(
    "pairs, marked",
    [
        (steady(1.09), False),
        (steady(1.12), True),
        (steady(0.90), True),
        ({i: 1 if i < 9 else 1.3 for i in range(1, 17, 2)}, True),  # the second half
        ({i: 1.3 if i < 9 else 1 for i in range(1, 17, 2)}, True),
        ({i: 1.08 if i < 9 else 1 / 1.08 for i in range(1, 17, 2)}, False),
    ],
)
def test_more_than_ten_per_cent_in_a_half_marks_the_row(tmp_path, pairs, marked):
    files = Files(tmp_path, pairs)
    assert files.drift["marked"] is marked
    done = speed("--file-path", files.method, files.base, "--base-path", files.base, "--profile")
    assert done.returncode == 0, done.stderr
    assert ("no leaderboard row" in done.stdout) is marked
    assert done.stdout.count("m (moved)") == (2 if marked else 0)  # summary and profile


def test_a_short_slow_stretch_of_a_long_run_is_found(tmp_path):
    """40 pairs: five parts of eight, the fourth slowed; whole and halves are within 10 %."""
    pairs = {i: 1.15 if 24 <= i - 1 < 32 else 1 for i in range(1, 41)}
    found = Files(tmp_path, pairs, questions=40).drift
    assert [one["part"] for one in found["parts"]] == ["all"] + [f"{i} of 5" for i in range(1, 6)]
    assert moved(found) == pytest.approx([1.15**-0.2, 1, 1, 1, 1 / 1.15, 1])
    assert found["marked"]


def test_honest_runs_are_not_marked(tmp_path):
    """Pairs of 3 % noise: none of 200 runs of eight, and the intervals hold what is true."""
    rng, held = random.Random(0), 0
    for _ in range(200):
        moves = [rng.gauss(0.02, 0.03) for _ in range(8)]
        found = drift.summary(moves)
        assert not found["marked"]
        whole = found["parts"][0]
        held += abs(math.log(whole["moved"]) - 0.02) <= whole["noise"]
    assert 180 <= held <= 198  # 95 %


def test_pairs_are_put_in_the_order_of_their_time(tmp_path):
    """A resumed or sharded run decodes later questions first."""
    files = Files(tmp_path, {i: 1 if i < 9 else 1.3 for i in range(1, 17)})
    path = drift.pairs_path(files.method)
    records = [json.loads(text) for text in path.read_text().splitlines()]
    for record in records:
        number = record["question_id"]
        record["choices"][0]["begin_s"] = [START + 10 * ((number - 1) % 2) + number / 100]
    write(path, records)
    assert moved(files.drift) == pytest.approx([1.3**-0.5] * 3)


def test_where_drift_is_unknown_the_table_says_so(tmp_path):
    none, one = Files(tmp_path / "none", None), Files(tmp_path / "one", {5: 1.02})
    assert none.drift["state"] == one.drift["state"] == "unknown"
    assert "no pairs beside it (--paired 0, or an older run)" in none.drift["reason"]
    assert "1 of its pairs stand in the baseline's file" in one.drift["reason"]
    for files, said in (
        (none, "drift: m: unknown: the method's file has no pairs"),
        (one, "0.980x"),
    ):
        entry = task(files.result(), "overall")["speedup"]["mean_ratio"]
        assert set(entry) == {"value", "low", "high"}  # nothing is known, nothing is widened
        done = speed("--file-path", files.method, "--base-path", files.base)
        assert said in done.stdout
    assert not one.drift["marked"]
    far = Files(tmp_path / "far", {5: 1.5}).drift
    assert far["state"] == "unknown" and not far["marked"]  # what is unknown marks nothing
    (none.folder / "base.meta.json").unlink()
    assert "the baseline's file has no meta" in Files.drift.fget(with_pairs(none))["reason"]


def with_pairs(files):
    files.add("m", steady(1))
    return files


def test_pairs_of_other_settings_say_nothing(tmp_path):
    files = Files(tmp_path, steady(1), runtime="compile")
    write(files.base, [timed(i, 1, "base") for i in range(1, 17)], meta("base", "vanilla"))
    found = files.result(allow=["runtime"])["drift"]
    assert found["state"] == "unknown" and 'runtime: "compile"' in found["reason"]
    hf = meta("base", "vanilla", runtime="compile") | {"method_args": {"engine": "hf"}}
    write(files.base, [timed(i, 1, "base") for i in range(1, 17)], hf)
    assert "the baseline's file has no pairs" in files.drift["reason"]


def test_beside_each_other_there_is_no_drift(tmp_path):
    files = Files(tmp_path, steady(1.3, every=1))
    pairs = drift.pairs_path(files.method)
    for method, base in ((files.method, pairs), (files.base, files.base)):
        found = compared(method, base)["drift"]
        assert (found["state"], found["marked"], found["pairs"]) == ("none", False, 0)
    done = speed("--file-path", files.method, "--paired", "--format", "markdown")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("num_late, state", [(0, "none"), (1, "none"), (2, "unknown")])
def test_pairs_of_another_day_are_not_beside_their_answers(tmp_path, num_late, state):
    files = Files(tmp_path, steady(1.3, every=1, questions=24), questions=24)
    pairs = drift.pairs_path(files.method)
    records = [json.loads(text) for text in pairs.read_text().splitlines()]
    for record in records[:num_late]:
        record["choices"][0]["begin_s"][0] -= 86400
    write(pairs, records)
    found = compared(files.method, pairs)["drift"]
    assert (found["state"], found["left_out"], found["pairs"]) == (state, num_late, 0)
    said = "\n".join(drift.drift_lines("m", found))
    assert ("another time" in said) is (num_late > 0)


def test_a_share_of_pairs_is_no_paired_comparison(tmp_path):
    files = Files(tmp_path, steady(1))
    done = speed("--file-path", files.method, "--paired")
    assert_refused(done, "m-paired-baseline.jsonl: pairs of 8 of 16 questions", "--base-path")
    done = speed("--file-path", files.method, "--paired", "--common")
    document = report_of(done)
    assert done.returncode == 0 and document["results"][0]["questions"] == 8


def test_a_vanilla_row_is_a_baseline_at_another_time(tmp_path):
    files = Files(tmp_path, None)
    again = write(
        tmp_path / "again.jsonl",
        [timed(i, 1.2, "again") for i in range(1, 17)],
        files.meta("again"),
    )
    found = compared(again, files.base)["drift"]
    assert found["pairs"] == 16 and moved(found) == pytest.approx([1 / 1.2] * 3)
    assert found["marked"] and found["named"] == []


def test_a_drafting_baselines_pairs_stand_for_it(tmp_path):
    """m against n: both files' pairs tell of their times; questions 1, 5, 9, 13 are in both."""
    files = Files(tmp_path, steady(1.06))
    other = files.add("n", steady(1, every=4))
    found = compared(files.method, other)["drift"]
    assert found["pairs"] == 4 and moved(found) == pytest.approx([1 / 1.06] * 3)


def test_pairs_that_say_nothing_are_left_out(tmp_path):
    files = Files(tmp_path, steady(1))
    path = drift.pairs_path(files.method)
    records = [json.loads(text) for text in path.read_text().splitlines()]
    old, compiled, failed = records[:3]
    old["choices"][0]["begin_s"] = [START - 3600]  # of a run whose answers are gone
    compiled["choices"][0]["recompiled"] = [1]
    for record in (old, compiled):
        record["choices"][0]["wall_time"] = [9.0]
    records[2] = {**failed, "error": "no luck", "choices": []}
    write(path, records)
    found = files.drift
    assert (found["pairs"], found["left_out"]) == (5, 2)
    assert moved(found) == pytest.approx([1, 1, 1])
    assert "2 pairs of another time" in drift.drift_lines("m", found)[0]


def test_slots_are_timed_by_their_median_step(tmp_path):
    """A turn of several slots holds the prefills of others, which a pair does not have."""
    files = Files(tmp_path, steady(1, every=1), batch_size=4)
    for path, step, more in ((files.base, 0.25, 3.0), (drift.pairs_path(files.method), 0.26, 0)):
        records = [json.loads(text) for text in path.read_text().splitlines()]
        for record in records:
            (choice,) = record["choices"]
            ends = [0.5 + step * (i + 1) + (more if i >= 2 else 0) for i in range(8)]
            del choice["batch"]
            choice |= {"prefill_s": [0.5], "step_end_s": [ends], "wall_time": [ends[-1]]}
            choice |= {"slot": [0], "begin_s": choice.get("begin_s", [START])}
        write(path, records)
    assert moved(files.drift) == pytest.approx([0.25 / 0.26] * 3)


def test_prices_and_bandwidths_are_named(tmp_path):
    """m reads faster than the baseline: its verify times are halved. Other products, too."""
    files = Files(tmp_path, steady(1))
    for path, read, rows in ((files.method, 49.0, "1-64"), (files.base, 12.0, None)):
        beside = path.with_suffix(".meta.json")
        content = json.loads(beside.read_text())
        content["environment"]["bandwidth"] = {"unit": "GB/s", "read": read, "read_weights": 60.0}
        content["environment"]["turned_rows"] = rows
        beside.write_text(json.dumps(content))
    result = files.result()
    assert result["profile"]["price"] == pytest.approx(0.5)
    assert result["drift"]["named"] == [
        "price of verification 0.50, below 1",
        "read bandwidth 49.0 GB/s, baseline's 12.0",
        "products of rows 1-64 turned, the baseline's none",
    ]
    done = speed("--file-path", files.method, "--base-path", files.base)
    assert "drift: m: price of verification 0.50, below 1; read bandwidth 49.0" in done.stdout
    for path in (files.method, files.base):
        path.with_suffix(".meta.json").write_text(json.dumps(files.meta(path.stem)))
    assert len(files.drift["named"]) == 1


def test_what_pays_is_said_where_the_drift_cannot_turn_it(tmp_path):
    """The method takes half the time for the same tokens: a decode speedup of 2."""
    for factor, pays in ((1, True), (1.05, True), (1.5, None)):
        assert Files(tmp_path / str(factor), steady(factor)).result()["profile"]["pays"] is pays
    blind = Files(tmp_path / "blind", None).result()  # half the price of one row, and no pairs
    assert blind["drift"]["state"] == "unknown" and blind["profile"]["pays"] is None
    noisy = {i: math.exp((-1) ** i * 0.8) for i in (1, 2, 3, 4)}
    assert Files(tmp_path / "noisy", noisy).result()["profile"]["pays"] is None


def test_a_moved_row_is_no_leaderboard_row(tmp_path):
    files = Files(tmp_path, steady(1.3))
    other = files.add("good", steady(1.02))
    rows = "--format", "markdown", "--base-path", files.base, "--file-path"
    done = speed(*rows, files.method, other)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith("speed.py: error: left out: drift: m: MOVED by more than 10 %")
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and lines[2].startswith("| good |") and "| 0.98x |" in lines[2]
    alone = speed(*rows, files.method)
    assert alone.returncode == 2 and alone.stdout == ""
    unknown = speed(*rows, files.add("un", None))
    assert unknown.returncode == 0 and "| unknown |" in unknown.stdout


def test_a_real_run_that_is_slowed_in_its_second_half(model_dir, question_file, tmp_path):
    """Files of runs, with planted times: a step takes 10 ms, after the third question 14 ms."""
    base, method = tmp_path / "base.jsonl", tmp_path / "m.jsonl"
    answer("vanilla", model_dir, question_file, base)
    answer("pld", model_dir, question_file, method, "--paired", 1)
    pairs = drift.pairs_path(method)
    files = {path: [json.loads(text) for text in path.open()] for path in (base, method, pairs)}
    given = "--file-path", method, "--base-path", base, "--format", "markdown"
    for slowed, status in ((1.0, 0), (1.4, 2)):
        for path, records in files.items():
            for place, record in enumerate(records):
                late = place >= len(records) // 2 and path != base
                plant(record, 0.01 * (slowed if late else 1))
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        done = speed(*given)
        assert done.returncode == status, done.stderr
        found = report_of(done)["results"][0]["drift"]
        assert moved(found)[1:] == pytest.approx([1, 1 / slowed]) and found["pairs"] == 6
        assert ("MOVED" in done.stderr) is (status == 2)


def plant(record, step_s):
    """Put steps of the same time into a record, and a prefill of one."""
    for choice in record["choices"]:
        choice["prefill_s"] = choice["first_s"] = [step_s for _ in choice["prefill_s"]]
        choice["step_end_s"] = [
            [step_s * (number + 2) for number in range(len(ends))] for ends in choice["step_end_s"]
        ]
        choice["wall_time"] = [step_s * (1 + steps) for steps in choice["decoding_steps"]]


def test_ladder_and_mean_report_know_of_it(tmp_path):
    files = Files(tmp_path / "run_1", steady(1.04))
    faster = write(
        files.folder / "fast.jsonl",
        [timed(i, 0.8, "fast") for i in range(1, 17)],
        files.meta("fast"),
    )
    given = "--file-path", files.method, "--base-path", files.base
    done = speed(*given, "--ladder", faster)
    document = report_of(done)
    assert done.returncode == 0, done.stderr
    (entry,) = document["ladder"]["speedups"]
    assert entry["drift"]["parts"][0]["moved"] == pytest.approx(0.8 / 1.04)
    assert entry["mean_ratio"]["low"] < entry["mean_ratio"]["bootstrap_low"]
    assert "0.77x MOVED" in done.stdout
    faster.unlink(), faster.with_suffix(".meta.json").unlink()
    Files(tmp_path / "run_2", steady(1.2))
    done = speed("--file-path", tmp_path, "--base-path", tmp_path, "--mean-report")
    document = report_of(done)
    assert done.returncode == 0, done.stderr  # pairs are no methods and no baseline
    (average,) = document["mean_report"]
    assert average["moved_runs"] == [2]
    assert "MOVED by more than 10 % in run 2" in done.stdout


def test_a_share_is_no_missing_answer(tmp_path):
    files = Files(tmp_path, steady(1))
    pairs = drift.pairs_path(files.method)
    equal = "evaluation/equal.py"
    for given in ((files.base, pairs), (pairs, files.method)):
        done = run_tool(equal, *given)
        assert done.returncode == 0 and "8 of 8 questions" in done.stdout, done.stdout
        assert "pairs of m (--paired)" in done.stdout
    records = [json.loads(text) for text in pairs.read_text().splitlines()]
    records[3]["choices"][0]["output_ids"][0][2] += 1
    write(pairs, records)
    done = run_tool(equal, files.base, pairs)
    assert done.returncode == 1 and "7 of 8 questions" in done.stdout
    write(pairs, [timed(99, 1, "m-paired-baseline")])
    done = run_tool(equal, files.base, pairs)
    assert done.returncode == 1 and "question 99 (rag): not in the baseline" in done.stdout
