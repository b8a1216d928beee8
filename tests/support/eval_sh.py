"""eval.sh in a folder of its own, with an interpreter that answers in place of the methods."""

import os
import shutil
import subprocess
import sys

from answer_samples import ROOT

# runs evaluation/*.py; a method's command writes made answers, as PLAN (JSON) says of its row:
# {row: {"status": 0, "stderr": "", "write": true, ...}}
INTERPRETER = """#!{python}
import json, os, sys
argv = sys.argv[1:]
if argv[0] != "-m" or "inference" not in argv[1]:
    os.execv({python!r}, [{python!r}, *argv])
sys.path[:0] = [{root!r}, {root!r} + "/tests/support"]
from pathlib import Path
from answer_samples import base_lines, failed, meta, method_lines, write
from served_files import load_meta, random_lines

flags = dict(zip(argv[2:], argv[3:]))
name = flags["--model-id"]
row = name.removeprefix("target-").removeprefix("quick-").split("-float32-")[0]
plan = json.loads(os.environ.get("PLAN", "{{}}")).get(row, {{}})
with open("asked.jsonl", "a") as asked:
    asked.write(json.dumps([row, argv[2:]]) + "\\n")
print(plan.get("stderr", ""), end="", file=sys.stderr)
method = argv[1].split(".")[1]
lines = base_lines() if method == "vanilla" else method_lines()
if plan.get("failed"):
    lines[1] = failed(2, "qa")
for line in lines:
    line["model_id"] = name
shared = {{"target": Path(flags["--model-path"]).name, **plan.get("shared", {{}})}}
path = Path("data", flags["--bench-name"], "model_answer", name + ".jsonl")
if "--num-prompts" in flags or "--rate" in flags:
    kind = "rate" if "--rate" in flags else "clients"
    for number in flags.get("--rate", "1").split(","):
        own = f"{{name}}-{{kind}}-{{number}}"
        lines = random_lines(12, seed=int(number), speed=1 if method == "vanilla" else 2)
        load = load_meta(own, method, rate=number)
        load["shared"] |= shared
        write(path.with_name(own + ".jsonl"), [l | {{"model_id": own}} for l in lines], load)
elif plan.get("write", True):
    write(path, lines, meta(name, method, plan.get("lossy", False), **shared))
sys.exit(plan.get("status", 0))
"""

REAL = """#!/bin/sh
exec {python} "$@"
"""


def make(folder, real=False):
    """The folder of a project whose methods are stood in for; real: of one that writes into it."""
    (folder / "data" / "mini_bench").mkdir(parents=True)
    for name in ("model", "evaluation"):
        if real:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc"))
        else:
            (folder / name).symlink_to(ROOT / name)
    for name in ("data/leaderboard", "data/mini_models", "data/mini_bench/question.jsonl"):
        if real or name == "data/leaderboard":
            (folder / name).symlink_to(ROOT / name)
    (folder / "eval.sh").write_bytes((ROOT / "eval.sh").read_bytes())
    (folder / "eval.sh").chmod(0o755)
    stand_in = INTERPRETER.format(python=sys.executable, root=str(ROOT))
    (folder / "python").write_text(REAL.format(python=sys.executable) if real else stand_in)
    (folder / "python").chmod(0o755)
    return folder


def run(folder, *rows, **environment):
    """The finished eval.sh."""
    named = ("TARGET", "BENCH", "ARGS", "PAIRED", "JUDGE", "DTYPE", "OVERWRITE", "SCALE_TO")
    named += ("LOAD", "SLO", "NUM_PROMPTS", "BATCH_SIZE", "CORPUS", "REST", "SAM")
    kept = {name: value for name, value in os.environ.items() if name not in named}
    environment = {**kept, "PYTHON": str(folder / "python"), **environment}
    command = [str(folder / "eval.sh"), *rows]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
