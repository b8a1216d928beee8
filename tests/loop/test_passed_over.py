"""Settings of a generation config that change greedy answers are named where they are left out."""

import json
import re

import pytest
from conftest import save_model
from harness_runs import COMMON, run
from transformers import GenerationConfig

from model.common.loop.passed_over import passed_over
from model.common.loop.penalties import Penalties


@pytest.mark.parametrize(
    "settings, named",
    [
        ({}, None),
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": True, "num_beams": 1}, None),
        ({"no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "suppress_tokens": []}, None),
        ({"forced_bos_token_id": 0}, "asks for forced_bos_token_id 0, which"),
        ({"num_beams": 4, "bad_words_ids": [[9]]}, r"bad_words_ids \[\[9\]\], num_beams 4, which"),
        ({"repetition_penalty": 1.1}, "repetition_penalty 1.1"),
    ],
)
def test_what_changes_greedy_answers_is_named(settings, named):
    line = passed_over(GenerationConfig(**settings), Penalties())
    assert (line is None) if named is None else re.search(named, line)


def test_a_penalty_that_the_flags_apply_is_not_left_out():
    asked = GenerationConfig(repetition_penalty=1.1)
    assert passed_over(asked, Penalties(repetition=1.1)) is None
    assert "1.1" in passed_over(asked, Penalties(repetition=1.2))
    assert passed_over(None, Penalties()) is None


def test_a_run_says_it(paths, tmp_path, capsys):
    folder = save_model(tmp_path / "model")
    with open(f"{folder}/generation_config.json", "w", encoding="utf-8") as file:
        json.dump({"no_repeat_ngram_size": 3, "eos_token_id": 1}, file)
    where = ["--model-path", folder, "--question-file", paths["questions"]]
    where += ["--answer-file", tmp_path / "x.jsonl", *COMMON, "--max-new-tokens", 2]
    assert run("vanilla", *where) == 0
    assert "warning: the model's generation config asks for no_repeat_ngram_size 3" in (
        capsys.readouterr().err
    )
