"""SPACE's mini model, which is its own target: transformers' ids, and more than one a step."""

import pytest
from tiny_methods import MINI, build, decode, mini_bench, transformers_ids

from model.common.prompts.questions import per_category
from model.common.target.loading import load_target

PATH = str(MINI / "space")


@pytest.fixture(scope="module")
def mini():
    """(fine-tuned model, stop rules, held-out prompts, transformers' answers without a mask)."""
    target, plain = (load_target(PATH, "float32", "cpu", "eager") for _ in range(2))
    prompter, stop, questions = mini_bench()
    prompts = [prompter.render(question["turns"], []) for question in per_category(questions, 2)]
    plain.model.set_attn_implementation("sdpa")
    answers = transformers_ids(plain.model, prompts, 60, sorted(stop.eos_ids))
    masks = set(target.model.config.space_mask_ids)
    assert not masks & {token for ids in answers for token in ids}
    return target, stop, prompts, answers


@pytest.mark.parametrize("flags", [[], ["--mask-num", "2"]], ids=str)
def test_answers_are_the_models_own(mini, flags):
    target, stop, prompts, expected = mini
    ids, accepted = decode(target, build("space", PATH, target, flags), prompts, stop, 60)
    assert ids == expected
    steps = [length for lengths in accepted for length in lengths]
    assert sum(steps) / len(steps) > 1.2
