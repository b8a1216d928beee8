"""The command of the engine: what it refuses, the server that it starts, and its exit code."""

from __future__ import annotations

import asyncio
import os
from urllib.parse import urlsplit

from model.common import args as arguments
from model.common.errors import BadInput, ends_in_one_line, exit_answered
from model.common.load.flags import is_load


def main(doc: str, add_args, argv=None) -> None:
    """Answer a bench by a server and exit: 0, 1 if questions failed, 2 on bad input, 70 on a crash.

    add_args(group)  declares the flags that only servers have
    """
    parser = arguments.make_parser("engine", doc, add_args, here=False)
    args = parser.parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with ends_in_one_line(parser.prog, "needs --overwrite" if is_load(args) else "resumes"):
        check(args)
        failed = run(args)
    exit_answered(parser.prog, failed)


def check(args) -> None:
    """Refuse what a server cannot be asked."""
    if args.paired:
        raise BadInput("--paired: a server's baseline is a run of its own; --aa repeats this one")
    args.paired = 0
    arguments.check(args)
    parts = urlsplit(args.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput(f"--url {args.url}: http://HOST:PORT is needed")
    if args.api_key_env and not os.environ.get(args.api_key_env):
        raise BadInput(f"--api-key-env {args.api_key_env}: the environment has no such variable")
    if args.aa and is_load(args):
        raise BadInput("--aa repeats answers; of a load run, repeat the run")


def run(args) -> int:
    """Start the server where that is asked for, and answer; returns how many questions failed."""
    from model.engine.bench import EngineBench
    from model.engine.process import running

    bench = EngineBench(args)  # what can be refused is refused before a server is started
    log = arguments.answer_path(args).with_name(f"{log_name(args)}-server.log")
    with running(args.engine_cmd, args.url, log, args.engine_start) as bench.server:
        return asyncio.run(bench.run())


def log_name(args) -> str:
    """Of the file beside the answers that takes a started server's output."""
    if args.answer_file:
        return arguments.answer_path(args).name.removesuffix(".jsonl")
    return args.model_id or "engine"
