"""Every method on the mini models in float32."""

import os
import subprocess
import sys

import pytest
from tiny_methods import (
    METHODS,
    MINI,
    ROOT,
    build,
    decode,
    mini_bench,
    mini_flags,
    transformers_ids,
)

from model.common.prompts.questions import per_category
from model.common.target.loading import load_target


def test_every_method_is_in_eval_sh_and_readme():
    """The script finds the folders by itself; a name that is none is answered with all of them."""
    env = os.environ | {"PYTHON": sys.executable}
    command = [str(ROOT / "eval.sh"), "nothing"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    listed = done.stderr.split("there are:")[1].split()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for method in METHODS:
        assert method in listed
        assert f"| `{method}` |" in readme


@pytest.fixture(scope="module")
def mini():
    """(mini target, stop rules, held-out prompts, transformers' answers to them)."""
    target, plain = (load_target(str(MINI / "target"), "float32", "cpu", "eager") for _ in range(2))
    prompter, stop, questions = mini_bench()
    prompts = [prompter.render(question["turns"], []) for question in per_category(questions, 2)]
    plain.model.set_attn_implementation("sdpa")
    return target, stop, prompts, transformers_ids(plain.model, prompts, 80, sorted(stop.eos_ids))


@pytest.mark.parametrize("method", METHODS)
def test_mini_models(method, mini):
    """Trained heads and drafts: transformers' ids, and drafts that are worth it (conformance/ has
    random ones)."""
    target, stop, prompts, expected = mini
    drafter = build(method, str(MINI / "target"), target, mini_flags(method))
    ids, accepted = decode(target, drafter, prompts, stop, 80)
    assert ids == expected
    steps = [length for lengths in accepted for length in lengths]
    mean = sum(steps) / len(steps)
    assert mean == 1.0 if method == "vanilla" else mean > 1.2
