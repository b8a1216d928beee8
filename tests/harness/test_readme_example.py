"""The method of 25 lines in model/README.md is complete: it runs, drafts, keeps the ids."""

import json
import os
import re
import subprocess
import sys

from tiny_methods import MINI, ROOT


def answers(module, out, **more):
    """Records of a method's script on three questions of the mini bench."""
    command = [sys.executable, "-m", module, "--model-path", str(MINI / "target")]
    command += ["--dtype", "float32", "--device", "cpu", "--num-threads", "1", "--warmup", "0"]
    command += ["--question-end", "3", "--max-new-tokens", "32", "--answer-file", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_the_example_runs(tmp_path):
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "model" / "README.md").read_text("utf-8"), re.S
    )
    folder = tmp_path / "method" / "echo"
    folder.mkdir(parents=True)
    (folder / "inference_echo.py").write_text(code, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    found = answers("method.echo.inference_echo", tmp_path / "echo.jsonl", env=env, cwd=tmp_path)
    known = answers("model.vanilla.inference_vanilla", tmp_path / "v.jsonl", cwd=ROOT)
    ids = [[choice["output_ids"] for choice in record["choices"]] for record in found]
    assert ids == [[choice["output_ids"] for choice in record["choices"]] for record in known]
    accepted = [n for record in found for n in record["choices"][0]["accept_lengths"]]
    assert max(accepted) > 1
