"""--energy from the flag to the answer files: a tiny target beside a powercap tree in a folder."""

import math
import time
from bisect import bisect_right

import pytest
from fake_meters import Powercap, Running
from harness_runs import answer, messages, read, read_meta, run, timeless, where, without
from ray_stand_in import stand_in

from model.common.contract.sequence import EmptyDrafter
from model.common.records.energy import log, rapl
from model.common.records.energy.log import union

PACKAGE, DRAM = "intel-rapl:0", "intel-rapl:0:0"
TOP_UJ = 3_000_000  # begins anew every few tenths of a second
METERED = ["--energy", "--energy-interval", 0.01]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Idle power takes seconds."""
    monkeypatch.setattr(log, "IDLE_S", 0.05)
    monkeypatch.setattr(log, "SETTLE_S", 0.0)


@pytest.fixture
def powered(tmp_path, monkeypatch):
    """A package whose power goes up and down, and its memory."""
    folder = tmp_path / "powercap"
    monkeypatch.setattr(rapl, "POWERCAP", folder)
    tree = Powercap(folder, {PACKAGE: "package-0", DRAM: "dram"}, TOP_UJ)
    watts = {PACKAGE: lambda s: 20 + 15 * math.sin(9 * s), DRAM: lambda s: 3.0}
    with Running(tree, watts):
        yield tree


def turns_of(records):
    """(begin, end, joules) of every turn, Unix times."""
    for record in records:
        for choice in record["choices"]:
            times = zip(choice["begin_s"], choice["wall_time"], choice["energy_j"])
            yield from ((begin, begin + wall_s, joules) for begin, wall_s, joules in times)


def joules_between(entry, begin, end):
    """Energy of all devices by the samples in the meta, with straight lines between them."""
    total = 0.0
    for device in entry["devices"]:
        times = [entry["began_s"] + t for t in device["samples"]["t_s"]]
        joules = device["samples"]["joules"]

        def at(when, times=times, joules=joules):
            right = min(max(bisect_right(times, when), 1), len(times) - 1)
            low, high = times[right - 1], times[right]
            rise = joules[right] - joules[right - 1]
            return joules[right - 1] + rise * (when - low) / (high - low)

        total += at(end) - at(begin)
    return total


@pytest.mark.parametrize("slots", [1, 3])
def test_turns_add_up_to_the_energy_of_their_time(
    powered, model_dir, question_file, tmp_path, capfd, slots
):
    out = tmp_path / "a.jsonl"
    records = answer(
        "pld",
        model_dir,
        question_file,
        out,
        *METERED,
        "--batch-size",
        slots,
        "--max-new-tokens",
        60,
    )
    assert messages(capfd) == []
    (entry,) = read_meta(out)["energy"]
    turns = list(turns_of(records))
    spans = union([(begin, end) for begin, end, _ in turns])
    overlap = sum(end - begin for begin, end, _ in turns) / sum(e - b for b, e in spans)
    assert len(turns) == entry["answers"] == 7 and (overlap > 1.3) == (slots == 3)
    total = sum(joules for *_, joules in turns)
    assert total == pytest.approx(entry["timed_j"], rel=1e-4)
    by_samples = sum(joules_between(entry, *span) for span in spans)
    assert total == pytest.approx(by_samples, rel=0.05)  # turns also begin and end at samples
    seconds = sum(end - begin for begin, end in spans)
    assert entry["timed_s"] == pytest.approx(seconds, abs=1e-3)
    assert 5 * seconds < total < 45 * seconds  # of 8 to 38 W, by a thread that may be late
    assert entry["timed_j"] < entry["run_j"] and entry["timed_s"] < entry["run_s"]
    assert [d["device"] for d in entry["devices"]] == ["package-0", "package-0/dram"]
    assert {d["meter"] for d in entry["devices"]} == {"rapl"}
    package, dram = entry["devices"]
    assert entry["idle_w"] == pytest.approx(package["idle_w"] + dram["idle_w"], abs=1e-5)
    assert package["idle_w"] > dram["idle_w"] > 0
    assert package["mean_w"] <= package["peak_w"]
    assert entry["timed_j"] == pytest.approx(sum(d["timed_j"] for d in entry["devices"]), abs=1e-5)
    assert "power_limit_w" not in package and "temperature_c" not in package


def test_a_load_run_has_the_steady_window(powered, model_dir, question_file, tmp_path):
    """Ten requests, all there from the beginning: both slots are full until the queue is empty."""
    out = tmp_path / "a.jsonl"
    load = ["--rate", "inf", "--num-prompts", 10, "--batch-size", 2]
    records = answer("pld", model_dir, question_file, out, *METERED, *load)
    (entry,) = read_meta(out)["energy"]
    total = sum(joules for *_, joules in turns_of(records))
    assert entry["answers"] == 10 and total == pytest.approx(entry["timed_j"], rel=1e-4)
    steady = entry["steady"]
    assert (steady["slots"], steady["requests"]) == (2, 10)
    begin, end = (entry["began_s"] + steady[name] for name in ("begin_s", "end_s"))
    choices = [record["choices"][0] for record in records]
    firsts = sorted(choice["begin_s"][0] + choice["first_s"][0] for choice in choices)
    assert begin == pytest.approx(firsts[1], abs=1e-4) and end == pytest.approx(firsts[7], abs=1e-4)
    stamps = [(when, 1) for when in firsts]
    for choice in choices:
        ends = (choice["begin_s"][0] + seconds for seconds in choice["step_end_s"][0])
        stamps += zip(ends, choice["accept_lengths"])
    low, high = (
        sum(count for when, count in stamps if begin + edge < when <= end - edge)
        for edge in (1e-4, -1e-4)  # the records' times are rounded
    )
    assert low <= steady["tokens"] <= high and high - low < 30 < low
    assert steady["joules_per_token"] == pytest.approx(
        steady["joules"] / steady["tokens"], rel=1e-3
    )
    assert 0.5 < steady["full"] <= 1 and steady["joules"] < entry["timed_j"]


def test_pairs_have_their_own_energy(powered, model_dir, question_file, tmp_path):
    out = tmp_path / "a.jsonl"
    answer("pld", model_dir, question_file, out, *METERED, "--paired", 2)
    for name, turns in (("a.jsonl", 7), ("a-paired-baseline.jsonl", 4)):
        records = read(tmp_path / name)
        (entry,) = read_meta(tmp_path / name)["energy"]
        assert entry["answers"] == turns == len(list(turns_of(records)))
        assert sum(j for *_, j in turns_of(records)) == pytest.approx(entry["timed_j"], rel=1e-4)


def test_energy_changes_no_answer(powered, model_dir, question_file, tmp_path):
    plain = answer(
        "sps", model_dir, question_file, tmp_path / "p.jsonl", "--drafter-path", model_dir
    )
    for slots in (1, 3):
        flags = ["--drafter-path", model_dir, "--batch-size", slots, *METERED]
        records = answer("sps", model_dir, question_file, tmp_path / f"{slots}.jsonl", *flags)
        same = [without(timeless(r), "energy_j", "slot", "answer_id") for r in (plain, records)]
        assert [strip(r) for r in same[0]] == [strip(r) for r in same[1]]


def strip(record):
    """Without the name that stands in the file's own name."""
    return {name: value for name, value in record.items() if name != "model_id"}


def test_transformers_own_loop_is_metered_too(powered, model_dir, question_file, tmp_path):
    out = tmp_path / "a.jsonl"
    records = answer("vanilla", model_dir, question_file, out, *METERED, "--engine", "hf")
    (entry,) = read_meta(out)["energy"]
    total = sum(joules for *_, joules in turns_of(records))
    assert entry["answers"] == 7 and total == pytest.approx(entry["timed_j"], rel=1e-4)


def test_a_resumed_run_keeps_both_processes(powered, model_dir, question_file, tmp_path):
    """And what was answered without a meter has no energy."""
    out = tmp_path / "a.jsonl"
    answer("pld", model_dir, question_file, out, "--question-end", 2)
    answer("pld", model_dir, question_file, out, "--question-end", 4, *METERED)
    first = read_meta(out)["energy"]
    records = answer("pld", model_dir, question_file, out, *METERED)
    entries = read_meta(out)["energy"]
    assert entries[0] == first[0] and [entry["answers"] for entry in entries] == [2, 2]
    has = ["energy_j" in choice for record in records for choice in record["choices"]]
    assert has == [False] * 2 + [True] * 4
    before = out.read_bytes()
    answer("pld", model_dir, question_file, out, *METERED)  # nothing is left
    assert out.read_bytes() == before and read_meta(out)["energy"] == entries


def test_workers_meter_for_themselves_and_merging_keeps_both(
    powered, monkeypatch, model_dir, question_file, tmp_path
):
    stand_in(monkeypatch)
    out = tmp_path / "a.jsonl"
    two = ["--num-gpus-total", 2, "--device", "auto"]
    records = answer("pld", model_dir, question_file, out, *two, *METERED)
    entries = read_meta(out)["energy"]
    assert [entry["answers"] for entry in entries] == [4, 3]
    total = sum(joules for *_, joules in turns_of(records))
    assert total == pytest.approx(sum(entry["timed_j"] for entry in entries), rel=1e-4)


def test_parts_of_a_run_keep_their_energy(powered, model_dir, question_file, tmp_path, monkeypatch):
    from evaluation import merge

    parts = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for part, flag in zip(parts, ("--question-end", "--question-begin")):
        answer("pld", model_dir, question_file, part, *METERED, flag, 3)
    whole = tmp_path / "whole.jsonl"
    argv = ["merge.py", *map(str, parts), "--output", str(whole)]
    monkeypatch.setattr("sys.argv", argv)
    assert merge.main() == 0
    wanted = [entry for part in parts for entry in read_meta(part)["energy"]]
    assert read_meta(whole)["energy"] == wanted and len(wanted) == 2


def test_without_a_meter_the_run_is_refused(paths, monkeypatch, capfd):
    monkeypatch.setattr(rapl, "POWERCAP", paths["tmp"] / "powercap")
    assert run("pld", *where(paths), *METERED) == 2
    (line,) = messages(capfd)
    assert "--energy: no meter can be read" in line and str(paths["tmp"] / "powercap") in line


def test_without_a_meter_a_line_says_so_and_the_run_goes_on_if_asked_to(paths, monkeypatch, capfd):
    monkeypatch.setattr(rapl, "POWERCAP", paths["tmp"] / "powercap")
    assert run("pld", *where(paths), "--energy", "if-any", *METERED[1:]) == 0
    assert messages(capfd) == [
        f"energy: {paths['tmp'] / 'powercap'}: no counters of this processor (intel-rapl)",
        "energy: no meter can be read; this run has no energy",
    ]
    (record, *_) = read(paths["tmp"] / "a.jsonl")
    assert "energy_j" not in record["choices"][0]
    assert "energy" not in read_meta(paths["tmp"] / "a.jsonl")


def test_what_is_not_metered_is_named_beside_what_is(powered, paths, capfd):
    (powered.folder / "intel-rapl:1").mkdir()
    assert run("pld", *where(paths), *METERED) == 0
    (line,) = messages(capfd)
    missing = powered.folder / "intel-rapl:1" / "name"
    assert line == f"energy: {missing}: No such file or directory"
    (entry,) = read_meta(paths["tmp"] / "a.jsonl")["energy"]
    assert entry["unread"] == [line.removeprefix("energy: ")] and entry["timed_j"] > 0


def test_a_meter_that_dies_ends_no_run(powered, model_dir, question_file, tmp_path, capfd):
    """The package's counter vanishes before the third question: two have an energy."""
    out = tmp_path / "a.jsonl"

    class Breaking(EmptyDrafter):
        begun = 0

        def start(self, prompt):
            self.begun += 1
            if self.begun == 4:  # the first question has two turns
                powered.lose(PACKAGE)
            super().start(prompt)

    records = answer(
        "pld", model_dir, question_file, out, *METERED, build=lambda args, target: Breaking()
    )
    (line,) = messages(capfd)
    assert line.startswith("energy: package-0: ") and line.endswith("has no energy of it")
    has = ["energy_j" in choice for record in records for choice in record["choices"]]
    assert has == [True] * 2 + [False] * 4
    (entry,) = read_meta(out)["energy"]
    assert "timed_j" not in entry and entry["answers"] == 7
    package, dram = entry["devices"]
    assert "timed_j" not in package and package["lost"] and "lost" not in dram
    assert dram["timed_j"] > 0


def test_what_a_failed_question_took_is_in_its_record(powered, model_dir, question_file, tmp_path):
    class Failing(EmptyDrafter):
        begun = 0

        def start(self, prompt):
            self.begun += 1
            if self.begun == 3:
                time.sleep(0.1)
                raise RuntimeError("out of luck")
            super().start(prompt)

    out = tmp_path / "a.jsonl"
    build = {"build": lambda args, target: Failing(), "code": 1}
    records = answer("pld", model_dir, question_file, out, *METERED, **build)
    failed = [record for record in records if "error" in record]
    assert len(failed) == 1 and failed[0]["choices"] == []
    assert failed[0]["energy_j"] > 0.1 * 8 * 0.5  # of 8 to 38 W, by a thread that may be late
    good = [record for record in records if "error" not in record]
    assert not any("energy_j" in record for record in good)
    total = sum(joules for *_, joules in turns_of(good)) + failed[0]["energy_j"]
    (entry,) = read_meta(out)["energy"]
    assert total == pytest.approx(entry["timed_j"], rel=1e-4) and entry["answers"] == 6


def test_without_a_meter_a_failed_question_has_no_energy(model_dir, question_file, tmp_path):
    flags = ["--question-end", 2, "--max-new-tokens", 4]
    build = {"build": lambda args, target: Refusing(), "code": 1}
    records = answer("pld", model_dir, question_file, tmp_path / "a.jsonl", *flags, **build)
    assert all("error" in record and "energy_j" not in record for record in records)


class Refusing(EmptyDrafter):
    """Fails with every prompt."""

    def start(self, prompt):
        raise RuntimeError("out of luck")


def test_an_interrupted_run_loses_what_was_in_flight_alone(
    powered, model_dir, question_file, tmp_path
):
    """Answers that waited for a sample behind their end are written with their energy."""

    class Interrupted(EmptyDrafter):
        ended = 0

        def end(self, slots):
            self.ended += len(slots)
            if self.ended >= 4:
                raise KeyboardInterrupt
            super().end(slots)

    out = tmp_path / "a.jsonl"
    flags = ["--energy", "--energy-interval", 60, "--batch-size", 3]
    build = {"build": lambda args, target: Interrupted(), "code": 130}
    records = answer("pld", model_dir, question_file, out, *flags, **build)
    assert 2 <= len(records) <= 4 and len(list(turns_of(records))) == len(records)
    assert "energy" not in read_meta(out)


@pytest.mark.parametrize("interval", ["0", "-1", "abc", "nan", "61"])
def test_a_bad_interval_is_refused(paths, capfd, interval):
    from harness_runs import refused

    line = refused(capfd, paths, "--energy", f"--energy-interval={interval}")
    assert "--energy-interval" in line and "0.005 to 60" in line
