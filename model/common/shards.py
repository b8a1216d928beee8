"""Questions spread over workers with Ray, each with its own target; shards merged in order.

Ray is optional (pip install ray). Several machines are Ray's own matter: start a cluster and set
RAY_ADDRESS.
"""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path

from model.common import args as arguments
from model.common.errors import BadInput


def run_sharded(method: str, args, build, engine) -> int:
    """Run on num_gpus_total / num_gpus_per_model workers; returns the failed questions."""
    ray = load_ray()
    num_workers = args.num_gpus_total // args.num_gpus_per_model
    runs = range(1, args.num_runs + 1) if args.num_runs else [None]
    return sum(_run_once(ray, method, args, build, engine, run, num_workers) for run in runs)


def _run_once(ray, method, args, build, engine, run, num_workers: int) -> int:
    """One run (of --num-runs) on all workers; returns the failed questions."""
    from model.common.eval import choose_questions
    from model.common.records.files import open_answers

    path = arguments.answer_path(args, run)
    questions = choose_questions(args)
    files = open_answers(method, args, questions, path)
    for file in files:
        absorb(file, path)
    missing = [
        question["question_id"]
        for question in questions
        if not all(file.is_done(question["question_id"]) for file in files)
    ]
    shards = shard_arguments(args, path, missing, num_workers)
    work = ray.remote(num_gpus=args.num_gpus_per_model)(run_shard)
    results = ray.get([work.remote(method, shard, build, engine) for shard in shards])
    for result in results:
        if isinstance(result, str):
            raise BadInput(result)
    for file in files:
        suffix = file.path.stem.removeprefix(path.stem)
        for shard in shards:
            part = Path(shard.answer_file)
            take_over(file, part.with_name(f"{part.stem}{suffix}.jsonl"))
        file.finish([question["question_id"] for question in questions])
    return sum(results)


def load_ray():
    """The ray module, started."""
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise BadInput(
            "--num-gpus-total above --num-gpus-per-model needs Ray: pip install ray"
        ) from error
    ray.init(ignore_reinit_error=True)
    return ray


def shard_arguments(args, path: Path, ids: list[int], num_workers: int) -> list:
    """Arguments of each worker: contiguous questions of `ids`, a file of its own beside `path`."""
    num_workers = min(num_workers, len(ids))
    shards = []
    for worker in range(num_workers):
        begin, end = worker * len(ids) // num_workers, (worker + 1) * len(ids) // num_workers
        shard = copy.copy(args)
        shard.question_ids = ",".join(map(str, ids[begin:end]))
        shard.num_gpus_total = args.num_gpus_per_model
        shard.num_runs = None
        shard.answer_file = str(path.with_name(f"{path.stem}.shard{worker}.jsonl"))
        shards.append(shard)
    return shards


def run_shard(method: str, args, build, engine) -> int | str:
    """In a worker: failed questions, or the one line of bad input."""
    from model.common.eval import Bench

    try:
        return Bench(method, args, build, engine, [Path(args.answer_file)]).run()
    except BadInput as error:
        return str(error)


def absorb(file, path: Path) -> None:
    """Take over what the shards of a killed run of the same command left behind."""
    from model.common.records.writer import first_difference, identity, meta_path, whole_lines

    suffix = file.path.stem.removeprefix(path.stem)
    for part in sorted(path.parent.glob(f"{path.stem}.shard*.jsonl")):
        if part.stem.removeprefix(f"{path.stem}.shard").lstrip("0123456789") != suffix:
            continue
        old = json.loads(meta_path(part).read_text(encoding="utf-8"))
        selection = ("question_ids", "questions_sha256", "prompts_sha256")
        settings = [identity(meta) for meta in (old, file.meta)]
        for meta in settings:
            meta["shared"] = {k: v for k, v in meta["shared"].items() if k not in selection}
        if first_difference(*settings):
            continue  # of another run: its worker refuses it by name
        for record in whole_lines(part).values():
            if not file.is_done(record["question_id"]):
                file.add(record | {"model_id": file.meta["model_id"]})
        part.unlink()
        meta_path(part).unlink()


def take_over(file, part: Path) -> None:
    """Move a shard's answers into the command's file."""
    from model.common.records.writer import meta_path

    for line in part.read_text(encoding="utf-8").split("\n")[:-1]:
        record = json.loads(line)
        file.add(record | {"model_id": file.meta["model_id"]})
    file.keep_measured(json.loads(meta_path(part).read_text(encoding="utf-8")))
    file.note({})
    part.unlink()
    meta_path(part).unlink()
