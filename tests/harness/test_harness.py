"""The harness end to end on a tiny model: records, metas, conversations, flags, times."""

import json
import time

import pytest
import torch
from answer_samples import report_of, run_tool
from harness_runs import (
    COMMON,
    METHODS,
    all_methods,
    answer,
    ids_of,
    questions_of,
    read,
    read_meta,
    run,
    timeless,
    write,
)

from model.common import args as arguments
from model.common.contract.sequence import EmptyDrafter

SPEC_BENCH = ["question_id", "category", "answer_id", "model_id", "choices", "tstamp"]
PER_TURN = ["turns", "decoding_steps", "new_tokens", "wall_time", "output_ids", "prompt_tokens"]
PER_TURN += ["finish_reason", "first_s", "prefill_s", "begin_s", "slot", "recompiled"]
ENDINGS = (".jsonl", ".meta.json")
PER_STEP = ["drafted", "depth", "step_end_s", "draft_s", "verify_s", "commit_s"]


@pytest.fixture(scope="module")
def files(tmp_path_factory, model_dir, draft_dir, question_file):
    return all_methods(tmp_path_factory.mktemp("answers"), model_dir, draft_dir, question_file)


@pytest.mark.parametrize("method", METHODS)
def test_answer_lines(files, question_file, method):
    records, questions = read(files[method]), questions_of(question_file)
    assert [r["question_id"] for r in records] == [q["question_id"] for q in questions]
    for record, question in zip(records, questions):
        assert list(record) == SPEC_BENCH
        assert record["category"] == question["category"]
        assert record["model_id"] == f"tiny-{method}"
        assert 0 <= time.time() - record["tstamp"] < 3600
        (choice,) = record["choices"]
        assert list(choice) == ["index", *PER_TURN[:4], "accept_lengths", *PER_TURN[4:], *PER_STEP]
        num_turns = len(question["turns"])
        assert choice["index"] == 0
        assert all(len(choice[field]) == num_turns for field in PER_TURN + PER_STEP)
        lengths = iter(choice["accept_lengths"])
        for turn in range(num_turns):
            steps = choice["decoding_steps"][turn]
            accepted = [next(lengths) for _ in range(steps)]
            assert choice["new_tokens"][turn] == 1 + sum(accepted) == 24
            assert choice["new_tokens"][turn] == len(choice["output_ids"][turn])
            assert all(len(choice[field][turn]) == steps for field in PER_STEP)
            bounds = zip(accepted, choice["drafted"][turn], choice["depth"][turn])
            assert all(1 <= n <= 1 + drafted <= 1 + depth for n, drafted, depth in bounds)
        assert next(lengths, None) is None
    assert len({record["answer_id"] for record in records}) == len(records)


@pytest.mark.parametrize("method", METHODS)
def test_times_add_up(files, method):
    for record in read(files[method]):
        (choice,) = record["choices"]
        for turn, wall_s in enumerate(choice["wall_time"]):
            phases = sum(sum(choice[f"{name}_s"][turn]) for name in ("draft", "verify", "commit"))
            assert 0 < choice["first_s"][turn] <= choice["prefill_s"][turn] < wall_s
            assert phases > 0
            assert choice["prefill_s"][turn] + phases <= wall_s + 1e-4
            ends = choice["step_end_s"][turn]
            assert ends == sorted(ends) and choice["prefill_s"][turn] <= ends[0]
            assert ends[-1] <= wall_s + 1e-6
            assert choice["begin_s"][turn] + wall_s <= record["tstamp"] + 1e-2


def test_meta_is_complete(files, model_dir, draft_dir, question_file):
    meta = read_meta(files["sps"])
    shared = meta["shared"]
    assert meta["schema"] == 1
    assert (meta["method"], meta["model_id"]) == ("sps", "tiny-sps")
    assert (meta["acceptance"], meta["lossy"]) == ("greedy", False)
    for name in ("weights", "config", "questions", "prompts", "harness"):
        assert len(shared[f"{name}_sha256"]) == 64
    assert shared["history_sha256"] is None
    for name in ("dtype", "runtime", "batch_size", "max_new_tokens", "temperature", "top_p"):
        assert shared[name] == meta["arguments"][name]
    for name in ("top_k", "seed", "warmup", "num_choices", "bench_name", "num_gpus_per_model"):
        assert shared[name] == meta["arguments"][name]
    assert shared["num_threads"] == 1
    assert shared["torch"] == torch.__version__
    assert shared["transformers"] and shared["device"] and shared["target"] and shared["template"]
    assert meta["arguments"]["model_path"] == model_dir
    assert meta["arguments"]["question_file"] == question_file
    own = meta["method_args"]
    assert (own["drafter_path"], own["schedule"], own["num_draft"]) == (draft_dir, "heuristic", 5)
    assert len(own["drafter_path_sha256"]) == 64
    assert own["drafter_path_sha256"] != shared["weights_sha256"]
    assert {"host", "python", "platform", "commit"} <= set(meta["environment"])
    assert meta["started"]


def test_shared_settings_agree_across_methods(files):
    metas = [read_meta(files[method]) for method in METHODS]
    assert metas[0]["shared"] == metas[1]["shared"] == metas[2]["shared"]
    assert metas[0]["method_args"] == {"engine": "loop"}


def test_history_replaces_own_answers(files, model_dir, question_file, tmp_path):
    records = read(files["vanilla"])
    records[0]["choices"][0]["turns"][0] = "something else entirely"
    history = write(tmp_path / "other.jsonl", records)
    flags = ["--history", history]
    told = answer("pld", model_dir, question_file, tmp_path / "told.jsonl", *flags)
    own = read(files["pld"])
    length = len("something else entirely") - len(own[0]["choices"][0]["turns"][0].encode())
    before, after = own[0]["choices"][0], told[0]["choices"][0]
    assert after["prompt_tokens"][1] - before["prompt_tokens"][1] == length
    assert after["output_ids"][0] == before["output_ids"][0]
    assert after["output_ids"][1] != before["output_ids"][1]
    assert ids_of(told[1:]) == ids_of(own[1:])
    assert len(read_meta(tmp_path / "told.jsonl")["shared"]["history_sha256"]) == 64
    own_history = ["--history", files["vanilla"]]
    same = answer("pld", model_dir, question_file, tmp_path / "same.jsonl", *own_history)
    assert ids_of(same) == ids_of(own)


def test_history_may_hold_any_character(files, model_dir, question_file, tmp_path):
    records = read(files["vanilla"])
    records[0]["choices"][0]["turns"][0] = "a\u2028b\u0085c\x1cd"
    path = tmp_path / "other.jsonl"
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    answer("pld", model_dir, question_file, tmp_path / "told.jsonl", "--history", path)


@pytest.mark.parametrize("temperature", [0, 1])
def test_several_choices(model_dir, question_file, tmp_path, temperature):
    flags = ["--num-choices", 2, "--temperature", temperature, "--max-new-tokens", 8]
    records = answer("pld", model_dir, question_file, tmp_path / "a.jsonl", *flags)
    for record in records:
        first, second = record["choices"]
        assert (first["index"], second["index"]) == (0, 1)
        assert (first["output_ids"] == second["output_ids"]) == (temperature == 0)


def test_choices_fill_slots(model_dir, question_file, tmp_path):
    """One question of three answers, four slots: three of them are used."""
    flags = ["--question-ids", 12, "--num-choices", 3, "--batch-size", 4, "--max-new-tokens", 8]
    (record,) = answer("pld", model_dir, question_file, tmp_path / "a.jsonl", *flags)
    assert [choice["slot"] for choice in record["choices"]] == [[0], [1], [2]]


def test_runs_are_repeated(model_dir, question_file, tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "ROOT", tmp_path)
    bench = tmp_path / "data" / "tiny_bench"
    bench.mkdir(parents=True)
    write(bench / "question.jsonl", questions_of(question_file)[:3])
    flags = ["--model-path", model_dir, "--bench-name", "tiny_bench", "--max-new-tokens", 8]
    assert run("pld", *flags, *COMMON, "--num-runs", 2) == 0
    answers = bench / "model_answer"
    written = sorted(path.relative_to(answers).as_posix() for path in answers.rglob("*.json*"))
    name = f"{model_dir.rsplit('/', 1)[1]}-pld-float32-temperature-0.0"
    assert written == [f"run_{i}/{name}{ending}" for i in (1, 2) for ending in ENDINGS]
    one, two = (read(answers / f"run_{i}" / f"{name}.jsonl") for i in (1, 2))
    assert timeless(one) == timeless(two)
    assert run("pld", *flags, *COMMON) == 0
    assert timeless(read(answers / f"{name}.jsonl")) == timeless(one)


@pytest.mark.parametrize(
    "flags, ids",
    [
        (["--limit-per-category", 1], [11, 12, 13, 14, 15, 16]),
        (["--categories", "mt_bench"], [11]),
        (["--categories", "qa,rag"], [14, 16]),
        (["--question-ids", "15,12"], [12, 15]),
        (["--question-begin", 4], [15, 16]),
        (["--question-end", 2], [11, 12]),
        (["--question-begin", 1, "--question-end", 3], [12, 13]),
    ],
)
def test_choosing_questions(model_dir, question_file, tmp_path, flags, ids):
    flags = [*flags, "--max-new-tokens", 2]
    records = answer("pld", model_dir, question_file, tmp_path / "a.jsonl", *flags)
    assert [record["question_id"] for record in records] == ids


def test_success_is_quiet(model_dir, question_file, tmp_path, capfd):
    flags = ["--warmup", 1, "--max-new-tokens", 4]
    answer("pld", model_dir, question_file, tmp_path / "a.jsonl", *flags)
    said = capfd.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    assert said.err.startswith("6 of 6 questions, in 00:")


class Slow(EmptyDrafter):
    """Sleeps wherever a drafter is called."""

    def start(self, prompt):
        time.sleep(0.05)
        super().start(prompt)

    def propose(self):
        time.sleep(0.01)
        return super().propose()

    def observe(self, step):
        time.sleep(0.02)


def test_all_of_a_drafters_time_is_in_wall_time(model_dir, question_file, tmp_path):
    flags = ["--question-ids", 12, "--max-new-tokens", 6]
    build = lambda args, target: Slow()  # noqa: E731
    out = tmp_path / "a.jsonl"
    (record,) = answer("pld", model_dir, question_file, out, *flags, build=build)
    (choice,) = record["choices"]
    assert choice["first_s"][0] + 0.05 <= choice["prefill_s"][0]  # it has no part in the first
    assert [s >= 0.03 for s in choice["draft_s"][0]] == [True] * 5
    assert choice["wall_time"][0] >= 0.05 + 5 * 0.03


def test_warm_up_is_not_recorded(model_dir, question_file, tmp_path):
    starts = []

    class Counting(EmptyDrafter):
        def start(self, prompt):
            starts.append(len(prompt.host_ids[0]))
            super().start(prompt)

    flags = ["--question-begin", 1, "--warmup", 2, "--max-new-tokens", 3]
    build = lambda args, target: Counting()  # noqa: E731
    records = answer("pld", model_dir, question_file, tmp_path / "a.jsonl", *flags, build=build)
    assert len(records) == 5
    assert len(starts) == 2 + 5
    assert starts[:2] == [starts[2]] * 2


def test_tools_read_what_the_harness_wrote(files):
    named = ["--file-path", files["pld"], files["sps"], "--base-path", files["vanilla"]]
    speed = run_tool("evaluation/speed.py", *named, "--resamples", 50)
    assert speed.returncode == 0, speed.stderr
    results = report_of(speed)["results"]
    for result, method in zip(results, ("pld", "sps")):
        overall = next(row for row in result["tasks"] if row["task"] == "overall")
        lengths = [n for r in read(files[method]) for n in r["choices"][0]["accept_lengths"]]
        accepted = overall["mean_accepted"]["over_steps"]
        assert accepted == pytest.approx(sum(lengths) / len(lengths))
    equal = run_tool("evaluation/equal.py", files["vanilla"], files["pld"], files["sps"])
    assert equal.returncode == 0, equal.stdout + equal.stderr
    assert equal.stdout.count("EQUAL: tiny-") == 2
