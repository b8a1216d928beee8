"""evaluation/state.py: what it runs, what it prints, what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "evaluation" / "state.py"


def tool(*flags):
    command = [sys.executable, TOOL, *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True)


def test_report(model_dir):
    """Cold rows agree, a warm one learns; ids never change."""
    flags = ["--question-ids", "41,42,53,54"]
    flags += ["--max-new-tokens", 12, "--dtype", "float32", "--device", "cpu", "--num-threads", 1]
    done = tool("recycling", "--orders", 0, "--model-path", model_dir, *flags)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = {line.split("  ")[0]: line.split()[-3:] for line in lines[1:5]}
    assert list(rows) == ["cold", "cold, shuffled", "warm", "warm, reversed"]
    assert rows["cold"] == rows["cold, shuffled"] != rows["warm"]
    assert lines[5] == "cold runs agree in every question's ids and accept lengths"
    assert lines[6] == "ids as cold: 4 of 4 runs"
    document = json.loads(lines[-1])
    assert document["cold_agrees"] and document["same_ids"] == 4
    means = document["mean_accepted"]
    assert means["warm"]["Overall"] > means["cold"]["Overall"] >= 1


@pytest.mark.parametrize(
    "flags, words",
    [
        (["recycling", "--state", "warm"], "--state is set by this tool"),
        (["recycling", "--bench-name", "none"], "question.jsonl: no such file"),
        (["pld", "--model-path", "missing"], "unrecognized arguments: --state"),
        (["recycling", "--model-path", "./missing"], "no such model directory"),
        (["nothing", "--model-path", "x"], "nothing --state cold: "),
    ],
)
def test_bad_input(flags, words):
    done = tool(*flags)
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr and len(done.stderr.splitlines()) == 1
