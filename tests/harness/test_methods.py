"""Every method on the mini models in float32."""

import os
import subprocess
import sys

import pytest
from tiny_methods import METHODS, MINI, ROOT, build, decode, mini_flags, transformers_ids

from model.common.prompts.prompter import Prompter, load_tokenizer
from model.common.prompts.questions import per_category, read_questions
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


class Mini:
    """The mini target, some held-out prompts and transformers' answers to them."""

    def __init__(self):
        path = str(MINI / "target")
        self.target = load_target(path, "float32", "cpu", "eager")
        self.prompter = Prompter(load_tokenizer(path))
        self.stop = self.prompter.stop_rules(self.target.model.generation_config)
        questions = read_questions(ROOT / "data" / "mini_bench" / "question.jsonl")
        self.prompts = [
            self.prompter.render(question["turns"], []) for question in per_category(questions, 2)
        ]
        plain = load_target(path, "float32", "cpu", "eager").model
        plain.set_attn_implementation("sdpa")
        self.expected = transformers_ids(plain, self.prompts, 80, sorted(self.stop.eos_ids))


@pytest.fixture(scope="module")
def mini():
    return Mini()


@pytest.mark.parametrize("method", METHODS)
def test_mini_models(method, mini):
    """Trained heads and drafts: transformers' ids, and drafts that are worth it (conformance/ has
    random ones)."""
    drafter = build(method, str(MINI / "target"), mini.target, mini_flags(method))
    ids, accepted = decode(mini.target, drafter, mini.prompts, mini.stop, 80)
    assert ids == mini.expected
    steps = [length for lengths in accepted for length in lengths]
    mean = sum(steps) / len(steps)
    assert mean == 1.0 if method == "vanilla" else mean > 1.2
