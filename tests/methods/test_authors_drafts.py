"""Drafts of methods beside those of their authors' code on the same weights, step by step.

tests/data/authors_drafts.json holds what the code named there drafted with the mini models (CPU,
float32, greedy, 192 tokens, sdpa): tokens of every step of the first turn of questions of the mini
bench. Mini heads that are trained anew need new drafts of that code.
"""

import importlib
import json
from pathlib import Path

import pytest

from model.common.args import make_parser
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.prompts.conversation import first_prompt
from model.common.prompts.prompter import Prompter, load_tokenizer
from model.common.prompts.questions import read_questions
from model.common.target.loading import load_target

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "data" / "mini_models" / "target"
RUNS = json.loads((ROOT / "tests" / "data" / "authors_drafts.json").read_text())


@pytest.fixture(scope="module")
def target():
    return load_target(str(MINI), "float32", "cpu", "eager")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: " ".join([run["method"], *run["flags"]]))
def test_drafts_are_the_authors(run, target, monkeypatch):
    prompter = Prompter.of(load_tokenizer(str(MINI)), None, {})
    questions = {
        q["question_id"]: q for q in read_questions(ROOT / "data/mini_bench/question.jsonl")
    }
    script = importlib.import_module(f"model.{run['method']}.inference_{run['method']}")
    parser = make_parser(run["method"], script.__doc__, script.add_args)
    args = parser.parse_args(["--model-path", str(MINI), *run["flags"]])
    drafter = script.build(args, target)
    propose, drafts = drafter.propose, []

    def seen():
        draft = propose()
        drafts.append([token for token in draft.tokens[0].tolist() if token >= 0])
        return draft

    monkeypatch.setattr(drafter, "propose", seen)
    stop = prompter.stop_rules(target.model.generation_config)
    for number, wanted in run["drafts"].items():
        drafts.clear()
        ids = first_prompt(prompter, questions[int(number)])
        generate(target, drafter, [ids], Sampler(), [0], stop, 192)
        assert drafts == wanted
