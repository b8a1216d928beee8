"""Questions spread over workers, with a stand-in for Ray that runs them one after another."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness_runs import (
    COMMON,
    answer,
    ids_of,
    questions_of,
    read,
    read_meta,
    refusal,
    run,
    timeless,
    write,
)

from model.common import shards
from model.common.contract.sequence import EmptyDrafter
from model.common.prompts.prompter import Prompter

TWO = ["--num-gpus-total", 2, "--device", "auto"]


class InProcess:
    """Ray's init, remote and get; `before(number)` is called ahead of each worker's work."""

    def __init__(self):
        self.workers, self.gpus = [], []
        self.before = lambda number: None

    def init(self, **options):
        assert options == {"ignore_reinit_error": True}

    def remote(self, num_gpus):
        def wrap(function):
            def call(*arguments):
                self.gpus.append(num_gpus)
                self.workers.append(arguments[1])
                return lambda: function(*arguments)

            return SimpleNamespace(remote=call)

        return wrap

    def get(self, futures):
        results = []
        for number, future in enumerate(futures):
            self.before(number)
            results.append(future())
        return results


@pytest.fixture
def ray(monkeypatch):
    """The stand-in, in the place of the module; without CUDA, as the tests' models are tiny."""
    module = InProcess()
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return module


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_dir, question_file):
    """Records of the same questions without shards."""
    path = tmp_path_factory.mktemp("whole") / "a.jsonl"
    return answer("pld", model_dir, question_file, path)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_two_workers_answer_like_one(ray, whole, model_dir, question_file, tmp_path, capfd):
    out = tmp_path / "a.jsonl"
    records = answer("pld", model_dir, question_file, out, *TWO)
    assert timeless(records) == timeless(whole)
    assert [args.question_ids for args in ray.workers] == ["11,12,13", "14,15,16"]
    assert ray.gpus == [1, 1]
    assert names(tmp_path) == ["a.jsonl", "a.meta.json"]
    assert read_meta(out)["shared"]["question_ids"] is None
    assert capfd.readouterr().err == ""


def test_gpus_per_model(ray, whole, model_dir, question_file, tmp_path, monkeypatch):
    """Four GPUs, two for each model: two workers."""
    monkeypatch.setattr(shards, "run_shard", lambda *arguments: "stop here")
    flags = ["--num-gpus-total", 4, "--num-gpus-per-model", 2, "--device", "auto"]
    where = ["--model-path", model_dir, "--question-file", question_file]
    assert run("pld", *where, "--answer-file", tmp_path / "a.jsonl", *COMMON, *flags) == 2
    assert ray.gpus == [2, 2]
    assert [args.num_gpus_total for args in ray.workers] == [2, 2]


def test_more_workers_than_questions(ray, whole, model_dir, question_file, tmp_path):
    flags = ["--num-gpus-total", 8, "--device", "auto", "--question-end", 3]
    records = answer("pld", model_dir, question_file, tmp_path / "a.jsonl", *flags)
    assert timeless(records) == timeless(whole[:3])
    assert len(ray.workers) == 3


@pytest.mark.parametrize("flags", [["--batch-size", 2], ["--temperature", 1], ["--num-choices", 2]])
def test_ids_do_not_depend_on_sharding(ray, model_dir, question_file, tmp_path, flags):
    alone = answer("pld", model_dir, question_file, tmp_path / "b.jsonl", *flags)
    spread = answer("pld", model_dir, question_file, tmp_path / "a.jsonl", *TWO, *flags)
    assert ids_of(spread) == ids_of(alone)
    slots = {slot for record in spread for slot in record["choices"][0]["slot"]}
    assert slots == ({0, 1} if "--batch-size" in flags else {0})


def test_paired_files_are_merged_too(ray, whole, model_dir, question_file, tmp_path):
    answer("pld", model_dir, question_file, tmp_path / "a.jsonl", *TWO, "--paired")
    base = read(tmp_path / "a-paired-baseline.jsonl")
    assert ids_of(base) == ids_of(whole)
    assert {record["model_id"] for record in base} == {f"{whole[0]['model_id']}-paired-baseline"}
    assert len(names(tmp_path)) == 4


def test_finished_run_starts_no_worker(ray, model_dir, question_file, tmp_path):
    out = tmp_path / "a.jsonl"
    answer("pld", model_dir, question_file, out, *TWO)
    before, workers = out.read_bytes(), len(ray.workers)
    answer("pld", model_dir, question_file, out, *TWO)
    assert out.read_bytes() == before
    assert len(ray.workers) == workers


def test_missing_questions_are_spread_anew(ray, whole, model_dir, question_file, tmp_path):
    out = tmp_path / "a.jsonl"
    records = answer("pld", model_dir, question_file, out, *TWO)
    write(out, [records[1], records[4]])
    again = answer("pld", model_dir, question_file, out, *TWO)
    assert timeless(again) == timeless(whole)
    assert [args.question_ids for args in ray.workers[2:]] == ["11,13", "14,16"]


def interrupted(number):
    def before(worker):
        if worker == number:
            raise KeyboardInterrupt

    return before


def test_work_of_a_killed_run_is_kept(ray, whole, model_dir, question_file, tmp_path):
    """Killed while the second worker had not begun; the first one's answers are not done again."""
    out = tmp_path / "a.jsonl"
    ray.before = interrupted(1)
    answer("pld", model_dir, question_file, out, *TWO, code=130)
    done = {record["question_id"]: record for record in read(tmp_path / "a.shard0.jsonl")}
    assert len(done) == 3
    ray.before = lambda worker: None
    records = answer("pld", model_dir, question_file, out, *TWO)
    assert timeless(records) == timeless(whole)
    assert [r["tstamp"] for r in records[:3]] == [done[i]["tstamp"] for i in (11, 12, 13)]
    assert names(tmp_path) == ["a.jsonl", "a.meta.json"]


@pytest.mark.parametrize(
    "flags",
    [["--num-gpus-total", 3], ["--num-gpus-total", 1]],
)
def test_killed_run_goes_on_with_other_workers(
    ray, whole, model_dir, question_file, tmp_path, flags
):
    out = tmp_path / "a.jsonl"
    ray.before = interrupted(1)
    answer("pld", model_dir, question_file, out, *TWO, code=130)
    ray.before = lambda worker: None
    records = answer("pld", model_dir, question_file, out, "--device", "auto", *flags)
    assert timeless(records) == timeless(whole)


def test_run_killed_while_merging_goes_on(
    ray, whole, model_dir, question_file, tmp_path, monkeypatch
):
    """The first worker's answers are in the command's file, the second one's are not yet."""
    out = tmp_path / "a.jsonl"
    merge = shards.take_over

    def killed(file, part):
        if "shard1" in part.name:
            raise KeyboardInterrupt
        merge(file, part)

    monkeypatch.setattr(shards, "take_over", killed)
    answer("pld", model_dir, question_file, out, *TWO, code=130)
    monkeypatch.setattr(shards, "take_over", merge)
    records = answer("pld", model_dir, question_file, out, *TWO)
    assert timeless(records) == timeless(whole)
    assert names(tmp_path) == ["a.jsonl", "a.meta.json"]


def test_answers_may_hold_any_character(
    ray, whole, model_dir, question_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(Prompter, "text", lambda self, ids, stop: "a\u2028b\u0085c")
    records = answer("pld", model_dir, question_file, tmp_path / "a.jsonl", *TWO)
    assert {record["choices"][0]["turns"][0] for record in records} == {"a\u2028b\u0085c"}


class Failing(EmptyDrafter):
    """Fails in the third question and in the sixth."""

    starts = 0

    def start(self, *arguments):
        self.starts += 1
        if self.starts == 3:
            raise RuntimeError("no luck")
        super().start(*arguments)


def test_failed_questions_are_counted_and_tried_again(
    ray, whole, model_dir, question_file, tmp_path, capfd
):
    questions = write(tmp_path / "q.jsonl", questions_of(question_file)[1:])
    out = tmp_path / "a.jsonl"
    build = lambda args, target: Failing()  # noqa: E731
    flags = [*TWO, "--question-begin", 0]
    records = answer("pld", model_dir, questions, out, *flags, build=build, code=1)
    assert ["error" in record for record in records] == [False] * 4 + [True]
    assert "1 question" in capfd.readouterr().err.splitlines()[-1]
    again = answer("pld", model_dir, questions, out, *flags)
    assert ids_of(again) == ids_of(whole[1:])


def test_bad_input_in_a_worker_is_one_line(ray, model_dir, question_file, tmp_path, capfd):
    where = ["--model-path", model_dir, "--question-file", question_file]
    where += ["--answer-file", tmp_path / "a.jsonl", *COMMON, *TWO]
    assert tmp_path.name in refusal(capfd, run("sps", *where, "--drafter-path", tmp_path))


def test_other_runs_file_is_refused_before_any_worker(
    ray, model_dir, question_file, tmp_path, capfd
):
    out = tmp_path / "a.jsonl"
    answer("pld", model_dir, question_file, out, *TWO)
    workers = len(ray.workers)
    where = ["--model-path", model_dir, "--question-file", question_file, "--answer-file", out]
    line = refusal(capfd, run("pld", *where, *COMMON, *TWO, "--max-new-tokens", 5))
    assert "max_new_tokens" in line
    assert len(ray.workers) == workers


def test_overwrite_with_shards(ray, model_dir, question_file, tmp_path):
    out = tmp_path / "a.jsonl"
    answer("pld", model_dir, question_file, out, *TWO)
    flags = [*TWO, "--max-new-tokens", 5, "--overwrite"]
    records = answer("pld", model_dir, question_file, out, *flags)
    assert [record["choices"][0]["new_tokens"][0] for record in records] == [5] * 6


def test_without_ray(model_dir, question_file, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    where = ["--model-path", model_dir, "--question-file", question_file]
    code = run("pld", *where, "--answer-file", tmp_path / "a.jsonl", *COMMON, *TWO)
    assert "pip install ray" in refusal(capfd, code)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "flags, word",
    [
        (["--num-gpus-total", 3, "--num-gpus-per-model", 2], "--num-gpus-total 3"),
        (["--num-gpus-total", 2, "--device", "cpu"], "--device cpu"),
    ],
)
def test_flags_that_exclude_each_other(model_dir, question_file, capfd, flags, word):
    where = ["--model-path", model_dir, "--question-file", question_file]
    assert word in refusal(capfd, run("pld", *where, *flags))


@pytest.mark.ray
def test_real_ray(whole, model_dir, question_file, tmp_path, monkeypatch):
    """Two workers of a real Ray, as `ray start --head --num-gpus 2` would give them."""
    import ray

    paths = os.pathsep.join(sys.path)  # the workers find the project as this process does
    ray.init(num_gpus=2, runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}})
    try:
        records = answer("pld", model_dir, question_file, tmp_path / "a.jsonl", *TWO)
    finally:
        ray.shutdown()
    assert timeless(records) == timeless(whole)
    assert names(tmp_path) == ["a.jsonl", "a.meta.json"]
    assert len({record["tstamp"] for record in records}) == 6


def test_shards_cover_every_question_once():
    for num in range(1, 20):
        for workers in range(1, 7):
            made = shards.shard_arguments(
                SimpleNamespace(num_gpus_per_model=1),
                Path("a.jsonl"),
                list(range(num)),
                workers,
            )
            ids = [int(i) for shard in made for i in shard.question_ids.split(",")]
            assert ids == list(range(num))
            assert len({shard.answer_file for shard in made}) == len(made) == min(num, workers)
            sizes = [len(shard.question_ids.split(",")) for shard in made]
            assert max(sizes) - min(sizes) <= 1
