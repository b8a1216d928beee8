"""Methods' scripts run inside the test process, and what their answer files say."""

import importlib
import json
from pathlib import Path

import pytest

from evaluation.cli import PROGRESS
from model.common.eval import main

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("vanilla", "pld", "sps")
COMMON = ["--dtype", "float32", "--device", "cpu", "--num-threads", "1", "--warmup", "0"]
COMMON += ["--paired", "0"]
TIMES = ("tstamp", "wall_time", "first_s", "prefill_s", "begin_s")
TIMES += ("step_end_s", "draft_s", "verify_s", "commit_s")


def run(method, *flags, build=None):
    """Exit code of a method's script; build replaces the method's own."""
    script = importlib.import_module(f"model.{method}.inference_{method}")
    engine = getattr(script, "engine", None)
    argv = [str(flag) for flag in flags]
    with pytest.raises(SystemExit) as ended:
        main(method, script.__doc__, script.add_args, build or script.build, engine, argv)
    return ended.value.code


def answer(method, model, questions, out, *flags, build=None, code=0):
    """Answer the questions into `out` and return the file's records."""
    where = ["--model-path", model, "--question-file", questions, "--answer-file", out]
    assert run(method, *where, *COMMON, "--max-new-tokens", 24, *flags, build=build) == code
    return read(out)


def own_flags(method, draft_dir):
    """Flags that a method cannot do without."""
    return ["--drafter-path", draft_dir] if method == "sps" else []


def all_methods(folder, model, draft_dir, questions):
    """Greedy answer files of three methods, {method: path}."""
    paths = {method: folder / f"{method}.jsonl" for method in METHODS}
    for method, path in paths.items():
        flags = ["--model-id", f"tiny-{method}", *own_flags(method, draft_dir)]
        answer(method, model, questions, path, *flags)
    return paths


def read(path):
    """The records of an answer file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]


def write(path, records):
    """Write records, or questions, one a line."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    Path(path).write_text(text, encoding="utf-8")
    return str(path)


def read_meta(path):
    """The meta document beside an answer file."""
    return json.loads(Path(path).with_suffix(".meta.json").read_text(encoding="utf-8"))


def without(records, *fields):
    """Records without the named fields, their choices' ones included."""
    return [
        {
            key: without(value, *fields) if key == "choices" else value
            for key, value in record.items()
            if key not in fields
        }
        for record in records
    ]


def timeless(records):
    """Everything of the records but the times."""
    return without(records, *TIMES)


def ids_of(records):
    """{question_id: output ids of every choice and turn}."""
    return {
        record["question_id"]: [choice["output_ids"] for choice in record["choices"]]
        for record in records
    }


def questions_of(path):
    """The questions of a question file."""
    return read(path)


def refusal(capfd, code):
    """The one line on stderr of a command that ended with code 2."""
    lines = messages(capfd)
    assert code == 2, lines
    (line,) = lines
    return line


def messages(capfd):
    """Lines on stderr that are not of the progress."""
    lines = capfd.readouterr().err.splitlines()
    return [line for line in lines if not PROGRESS.match(line)]


def where(paths):
    """The flags that every command needs."""
    flags = {
        "--model-path": paths["model"],
        "--question-file": paths["questions"],
        "--answer-file": paths["tmp"] / "a.jsonl",
    }
    return [*(part for pair in flags.items() for part in pair), *COMMON, "--max-new-tokens", 4]


def refused(capfd, paths, *flags, method="pld"):
    """The line on which a command with these flags ends."""
    return refusal(capfd, run(method, *where(paths), *flags))
