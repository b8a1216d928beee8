"""The answer files of a server's run, with metas that say who answered.

What a meta of a server has beside, or in place of, that of a loop on this machine:

    shared.engine          {name, version, host, interface, prompt_cache}: files of two servers, or
                           of a server and the loop, are not on one footing, and speed.py refuses.
                           prompt_cache is "unknown" of a server that takes no request without it
    shared.runtime         "server"; device, threads and versions are the server's and unknown: None
    shared.harness_sha256  of the client's code
    method_args            {speculation, extra_body, engine_cmd_sha256}: what is compared; the hash
                           is of --engine-cmd without its port, None where there was none
    environment            url, model, engine_cmd, and what the server says of itself
    repeat_of              of NAME-aa.jsonl: the model_id whose questions it answers again
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

from model.common.records.files import run_meta
from model.common.records.writer import AnswerFile, beside, sha256_file, sha256_text
from model.engine.identity import command_sha256

AA_SUFFIX = "-aa"
UNKNOWN = ("device", "num_threads", "torch", "transformers", "num_gpus_per_model", "scale_to")


def open_served(bench, args, questions: list[dict], path: Path, schedule) -> list[AnswerFile]:
    """Create, resume or refuse a run's files: its answers, and those of --aa."""
    meta = run_meta("engine", args, questions, schedule)
    meta["shared"] |= dict.fromkeys(UNKNOWN)
    meta["shared"] |= {"engine": described(bench), "runtime": "server"}
    meta["shared"]["harness_sha256"] = client_sha256()
    meta["method_args"] = {
        "speculation": bench.identity.speculation,
        "extra_body": args.extra_body,
        "engine_cmd_sha256": command_sha256(args.engine_cmd),
    }
    meta["environment"] |= {"url": args.url, "model": bench.model, "engine_cmd": args.engine_cmd}
    meta["environment"] |= bench.identity.facts
    meta["arguments"] = {k: v for k, v in meta["arguments"].items() if k != "api_key_env"}
    text = json.dumps(meta)
    files = [AnswerFile(path, meta, args.overwrite)]
    if args.aa:
        again = json.loads(text)
        again |= {"model_id": args.model_id + AA_SUFFIX, "repeat_of": args.model_id}
        anew = args.overwrite or not files[0].lines
        files.append(AnswerFile(beside(path, AA_SUFFIX), again, anew))
    return files


def described(bench) -> dict:
    """The server, as far as its files have to agree."""
    interface = bench.interface
    return {
        "name": bench.identity.name,
        "version": bench.identity.version,
        "host": urlsplit(bench.args.url).hostname,
        "interface": interface.name if interface.extended else f"{interface.name}, OpenAI's fields",
        "prompt_cache": bench.args.prompt_cache or (False if bench.isolated else "unknown"),
    }


def client_sha256() -> str:
    """Of the code that asks servers."""
    folder = Path(__file__).parent
    files = sorted(folder.glob("*.py"))
    return sha256_text("".join(f"{path.name} {sha256_file(path)}\n" for path in files))
