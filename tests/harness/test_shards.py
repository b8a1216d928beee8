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
    messages,
    questions_of,
    read,
    read_meta,
    refusal,
    run,
    timeless,
    write,
)
from ray_stand_in import stand_in

from model.common import shards
from model.common.contract.sequence import EmptyDrafter
from model.common.prompts.prompter import Prompter
from model.common.prompts.questions import split_ids

TWO = ["--num-gpus-total", 2, "--device", "auto"]
ONLY = ["a.jsonl", "a.meta.json"]


@pytest.fixture
def ray(monkeypatch):
    return stand_in(monkeypatch)


@pytest.fixture
def ask(ray, model_dir, question_file, tmp_path):
    """ask(flags) answers the questions into a.jsonl, by two workers, and returns its records."""

    def asked(*flags, questions=question_file, **more):
        return answer("pld", model_dir, questions, tmp_path / "a.jsonl", *TWO, *flags, **more)

    return asked


@pytest.fixture
def where(model_dir, question_file, tmp_path):
    """The flags of the same command for run()."""
    flags = ["--model-path", model_dir, "--question-file", question_file, *COMMON, *TWO]
    return [*flags, "--answer-file", tmp_path / "a.jsonl"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_dir, question_file):
    """Records of the same questions without shards."""
    path = tmp_path_factory.mktemp("whole") / "a.jsonl"
    return answer("pld", model_dir, question_file, path)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def spread(ray, first=0):
    """The questions of each worker, from the `first` one on."""
    return [args.question_ids for args in ray.workers[first:]]


def test_two_workers_answer_like_one(ray, ask, whole, tmp_path, capfd):
    assert timeless(ask()) == timeless(whole)
    assert spread(ray) == ["11,12,13", "14,15,16"]
    assert ray.gpus == [1, 1]
    assert names(tmp_path) == ONLY
    assert read_meta(tmp_path / "a.jsonl")["selection"]["question_ids"] is None
    assert messages(capfd) == []


def test_relative_paths_are_of_the_command(
    ray, model_dir, whole, question_file, tmp_path, monkeypatch
):
    (tmp_path / "q.jsonl").write_bytes(Path(question_file).read_bytes())
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    records = answer("pld", model_dir, "q.jsonl", Path("there/a.jsonl"), *TWO)
    assert timeless(records) == timeless(whole)
    assert names(tmp_path / "there") == ONLY


def test_a_folder_that_a_worker_lacks_is_one_line():
    said = shards.run_shard("pld", SimpleNamespace(), None, None, "/nowhere")
    assert said == "/nowhere: a worker cannot enter it: No such file or directory"


def test_gpus_per_model(ray, where, monkeypatch):
    """Four GPUs, two for each model: two workers."""
    monkeypatch.setattr(shards, "run_shard", lambda *arguments: "stop here")
    assert run("pld", *where, "--num-gpus-total", 4, "--num-gpus-per-model", 2) == 2
    assert ray.gpus == [2, 2]
    assert [args.num_gpus_total for args in ray.workers] == [2, 2]


def test_more_workers_than_questions(ray, ask, whole):
    assert timeless(ask("--num-gpus-total", 8, "--question-end", 3)) == timeless(whole[:3])
    assert len(ray.workers) == 3


@pytest.mark.parametrize("flags", [["--batch-size", 2], ["--temperature", 1], ["--num-choices", 2]])
def test_ids_do_not_depend_on_sharding(ask, model_dir, question_file, tmp_path, flags):
    alone = answer("pld", model_dir, question_file, tmp_path / "b.jsonl", *flags)
    records = ask(*flags)
    assert ids_of(records) == ids_of(alone)
    slots = {slot for record in records for slot in record["choices"][0]["slot"]}
    assert slots == ({0, 1} if "--batch-size" in flags else {0})


def test_ids_may_be_any_text(ray, ask, question_file, tmp_path):
    ids = ["b", "a,x", 3, 'q"', "HumanEval/0", "9f"]
    questions = [q | {"question_id": i} for q, i in zip(questions_of(question_file), ids)]
    records = ask(questions=write(tmp_path / "q.jsonl", questions))
    assert [record["question_id"] for record in records] == ids
    assert [split_ids(text) for text in spread(ray)] == [["b", "a,x", "3"], ids[3:]]


def test_paired_files_are_merged_too(ask, whole, tmp_path):
    ask("--paired", 1)
    base = read(tmp_path / "a-paired-baseline.jsonl")
    assert ids_of(base) == ids_of(whole)
    assert {record["model_id"] for record in base} == {f"{whole[0]['model_id']}-paired-baseline"}
    assert len(names(tmp_path)) == 4


def test_finished_run_starts_no_worker(ray, ask, tmp_path):
    ask()
    before = (tmp_path / "a.jsonl").read_bytes()
    ask()
    assert (tmp_path / "a.jsonl").read_bytes() == before
    assert len(ray.workers) == 2


def test_missing_questions_are_spread_anew(ray, ask, whole, tmp_path):
    """Those that were lost, and those of a wider choice."""
    records = ask("--question-end", 5)
    assert timeless(records) == timeless(whole[:5])
    write(tmp_path / "a.jsonl", [records[1], records[4]])
    assert timeless(ask()) == timeless(whole)
    assert spread(ray, 2) == ["11,13", "14,16"]


def interrupted(number):
    def before(worker):
        if worker == number:
            raise KeyboardInterrupt

    return before


@pytest.mark.parametrize(
    "flags, others",
    [([], []), ([], ["--num-gpus-total", 3]), ([], ["--num-gpus-total", 1])]
    + [(["--question-end", 5], []), (["--question-end", 5, "--paired", 1], ["--paired", 1])],
)
def test_work_of_a_killed_run_is_kept(ray, ask, whole, tmp_path, flags, others):
    """Killed while the second worker had not begun; one process alone leaves the shards be."""
    ray.before = interrupted(1)
    ask(*flags, code=130)
    done = read(tmp_path / "a.shard0.jsonl")
    assert len(done) == (2 if flags else 3)
    ray.before = lambda worker: None
    records = ask(*others)
    assert timeless(records) == timeless(whole)
    if others == ["--num-gpus-total", 1]:
        return
    assert [r["tstamp"] for r in records[: len(done)]] == [r["tstamp"] for r in done]
    assert len(names(tmp_path)) == (4 if "--paired" in flags else 2)


@pytest.mark.parametrize("overwrite", [False, True])
def test_work_of_another_choice(ray, ask, whole, tmp_path, capfd, overwrite):
    """What a worker of a killed run answered and this one does not ask is not thrown away."""
    ray.before = interrupted(1)
    ask(code=130)
    ray.before = lambda worker: None
    flags = ["--question-begin", 2]
    if overwrite:
        assert timeless(ask(*flags, "--overwrite")) == timeless(whole[2:])
        assert names(tmp_path) == ONLY
        return
    capfd.readouterr()
    ask(*flags, code=2)
    assert "a.shard0.jsonl: question 11, which has an answer, is not" in capfd.readouterr().err
    assert len(read(tmp_path / "a.shard0.jsonl")) == 3


def test_run_killed_while_merging_goes_on(ask, whole, tmp_path, monkeypatch):
    """The first worker's answers are in the command's file, the second one's are not yet."""
    merge = shards.take_over

    def killed(file, part):
        if "shard1" in part.name:
            raise KeyboardInterrupt
        merge(file, part)

    monkeypatch.setattr(shards, "take_over", killed)
    ask(code=130)
    monkeypatch.setattr(shards, "take_over", merge)
    assert timeless(ask()) == timeless(whole)
    assert names(tmp_path) == ONLY


def test_answers_may_hold_any_character(ask, monkeypatch):
    monkeypatch.setattr(Prompter, "text", lambda self, ids, stop: "a\u2028b\u0085c")
    assert {record["choices"][0]["turns"][0] for record in ask()} == {"a\u2028b\u0085c"}


class Failing(EmptyDrafter):
    """Fails in the third question and in the sixth."""

    starts = 0

    def start(self, *arguments):
        self.starts += 1
        if self.starts == 3:
            raise RuntimeError("no luck")
        super().start(*arguments)


def test_failed_questions_are_counted_and_tried_again(ask, whole, question_file, tmp_path, capfd):
    questions = write(tmp_path / "q.jsonl", questions_of(question_file)[1:])
    records = ask(questions=questions, build=lambda args, target: Failing(), code=1)
    assert ["error" in record for record in records] == [False] * 4 + [True]
    assert "1 question" in capfd.readouterr().err.splitlines()[-1]
    assert ids_of(ask(questions=questions)) == ids_of(whole[1:])


def test_bad_input_in_a_worker_is_one_line(ray, where, tmp_path, capfd):
    assert tmp_path.name in refusal(capfd, run("sps", *where, "--drafter-path", tmp_path))


def test_other_runs_file_is_refused_before_any_worker(ray, ask, where, capfd):
    ask()
    assert "max_new_tokens" in refusal(capfd, run("pld", *where, "--max-new-tokens", 5))
    assert len(ray.workers) == 2
    records = ask("--max-new-tokens", 5, "--overwrite")
    assert [record["choices"][0]["new_tokens"][0] for record in records] == [5] * 6


def test_without_ray(where, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install ray" in refusal(capfd, run("pld", *where))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "flags, word",
    [
        (["--num-gpus-total", 3, "--num-gpus-per-model", 2], "--num-gpus-total 3"),
        (["--num-gpus-total", 2, "--device", "cpu"], "--device cpu"),
    ],
)
def test_flags_that_exclude_each_other(where, capfd, flags, word):
    assert word in refusal(capfd, run("pld", *where, *flags))


@pytest.mark.ray
def test_real_ray(whole, model_dir, question_file, tmp_path):
    """Two workers of a real Ray, as `ray start --head --num-gpus 2` would give them."""
    import ray

    paths = os.pathsep.join(sys.path)  # the workers find the project as this process does
    ray.init(num_gpus=2, runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}})
    try:
        records = answer("pld", model_dir, question_file, tmp_path / "a.jsonl", *TWO)
    finally:
        ray.shutdown()
    assert timeless(records) == timeless(whole)
    assert names(tmp_path) == ONLY
    assert len({record["tstamp"] for record in records}) == 6


def test_shards_cover_every_question_once():
    for num in range(1, 20):
        for workers in range(1, 7):
            args = SimpleNamespace(num_gpus_per_model=1)
            made = shards.shard_arguments(args, Path("a.jsonl"), list(range(num)), workers)
            ids = [int(i) for shard in made for i in shard.question_ids.split(",")]
            assert ids == list(range(num))
            assert len({shard.answer_file for shard in made}) == len(made) == min(num, workers)
            sizes = [len(shard.question_ids.split(",")) for shard in made]
            assert max(sizes) - min(sizes) <= 1
