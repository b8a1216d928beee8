"""Questions spread over workers with Ray, each with its own target; shards merged in order.

Ray is optional (pip install ray). Several machines are Ray's own matter: start a cluster and set
RAY_ADDRESS.
"""

from __future__ import annotations

import copy
import importlib
import os
import re
from pathlib import Path

from model.common import args as arguments
from model.common import pairs
from model.common.draft_flags import check_workers
from model.common.errors import BadInput
from model.common.records.lock import written_alone
from model.common.remote_code import trust

ORPHANS_S = 60.0  # that Ray's workers may outlive the process which has started them


def run_sharded(method: str, args, build, engine) -> int:
    """Run on num_gpus_total / num_gpus_per_model workers; returns the failed questions."""
    check_workers(args)
    ray = load_ray()
    trust(args.trust_remote_code)
    num_workers = args.num_gpus_total // args.num_gpus_per_model
    runs = range(1, args.num_runs + 1) if args.num_runs else [None]
    failed = 0
    for run in runs:
        path = arguments.answer_path(args, run)
        with written_alone(path):
            failed += _run_once(ray, method, args, build, engine, path, num_workers)
    return failed


def _run_once(ray, method, args, build, engine, path: Path, num_workers: int) -> int:
    """One run (of --num-runs) on all workers; returns the failed questions."""
    from model.common.eval import choose_questions
    from model.common.records.files import open_answers
    from model.common.records.writer import beside

    questions = choose_questions(args)
    files = open_answers(method, args, questions, path)
    for file in files:
        absorb(file, path, args.overwrite)
    missing = [q["question_id"] for q in pairs.remaining(questions, files, args.paired)]
    shards = shard_arguments(args, path, missing, num_workers)
    work = ray.remote(num_gpus=args.num_gpus_per_model)(run_shard)
    here = os.getcwd()
    results = ray.get([work.remote(method, shard, build, engine, here) for shard in shards])
    for result in results:
        if isinstance(result, str):
            raise BadInput(result)
    for file in files:
        for shard in shards:
            take_over(file, beside(Path(shard.answer_file), ending(file, path)))
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


def shard_arguments(args, path: Path, ids: list[int | str], num_workers: int) -> list:
    """Arguments of each worker: contiguous questions of `ids`, a file of its own beside `path`."""
    from model.common.prompts.questions import join_ids
    from model.common.records.writer import beside

    num_workers = min(num_workers, len(ids))
    shards = []
    for worker in range(num_workers):
        begin, end = worker * len(ids) // num_workers, (worker + 1) * len(ids) // num_workers
        shard = copy.copy(args)
        shard.question_ids = join_ids(ids[begin:end])
        shard.num_gpus_total = args.num_gpus_per_model
        shard.num_runs = None
        shard.answer_file = str(beside(path, f".shard{worker}"))
        shards.append(shard)
    return shards


def run_shard(method: str, args, build, engine, folder: str) -> int | str:
    """In a worker: failed questions, or the one line of bad input.

    folder: the one that relative paths are of; a cluster that was there has another of its own.
    """
    from model.common.eval import Bench

    try:
        os.chdir(folder)
    except OSError as error:
        return f"{folder}: a worker cannot enter it: {error.strerror}"
    path = Path(args.answer_file)
    try:
        with written_alone(path):
            return Bench(method, args, build, engine, [path]).run()
    except BadInput as error:
        return str(error)


def ending(file, path: Path) -> str:
    """What the name of one of a command's files has beyond that of its own file `path`."""
    return file.path.name.removesuffix(".jsonl").removeprefix(path.name.removesuffix(".jsonl"))


def absorb(file, path: Path, overwrite: bool = False) -> None:
    """Take over, or with --overwrite remove, what shards of a killed run of this command left."""
    from model.common.records import writer

    begin = f"{path.name.removesuffix('.jsonl')}.shard"
    names = re.compile(re.escape(begin) + r"\d+" + re.escape(ending(file, path)) + r"\.jsonl")
    for part in sorted(path.parent.iterdir()):
        old = writer.read_meta(part) if names.fullmatch(part.name) else None
        if old is None or writer.first_difference(*map(writer.identity, (old, file.meta))):
            continue  # of another run: its worker refuses it by name
        with written_alone(part, wait_s=ORPHANS_S):
            records = {} if overwrite else writer.whole_lines(part)
            writer.check_questions(part, records, old, file.meta)
            for record in records.values():
                if not file.is_done(record["question_id"]):
                    file.add(record | {"model_id": file.meta["model_id"]})
            part.unlink()
            writer.meta_path(part).unlink()


def take_over(file, part: Path) -> None:
    """Move a shard's answers into the command's file."""
    from model.common.records.writer import all_lines, meta_path, read_meta

    for record in all_lines(part).values():
        file.add(record | {"model_id": file.meta["model_id"]})
    file.keep_measured(read_meta(part) or {})
    file.note({})
    part.unlink()
    meta_path(part).unlink()
