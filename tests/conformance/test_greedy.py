"""Greedy decoding of every method, check by check (greedy.py says what each holds)."""

import pytest
from tiny_methods import METHODS

from conformance.cases import CASES, PROMPTS, VOCAB, case, world_of
from conformance.greedy import CHECKS, check_exact, check_logits, rounded

every_case = pytest.mark.parametrize(
    "method, variant", CASES, ids=["-".join(filter(None, pair)) for pair in CASES]
)


@every_case
@pytest.mark.parametrize("name", CHECKS)
def test_greedy(name, method, variant):
    CHECKS[name](case(method, variant))


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma3_text"])
@pytest.mark.parametrize("method", METHODS)
def test_families(method, family):
    check_exact(case(method, family=family), least=2)


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma2", "gemma3_text"])
def test_rows_of_a_family_read_their_own_lines(family):
    """Whatever was committed before them: windows, capped scores, moved rows of the cache."""
    check_logits(case("recycling", family=family))


@pytest.mark.parametrize("layers", [3, 8])
def test_the_answers_are_worth_comparing(layers):
    """Four different ones, predictable and not constant, with token 0 and unknown ids in them."""
    target = world_of("llama", layers)
    known = [target.answer(prompt) for prompt in PROMPTS]
    assert len({tuple(ids) for ids in known}) == 4 and all(len(set(ids)) > 2 for ids in known)
    every = [token for ids in known for token in ids]
    assert len(set(every)) > 8 and 0 in every and max(every) > len(target.tokenizer) - 1
    assert any(0 in prompt for prompt in PROMPTS) and max(every) < VOCAB
    with rounded(target):
        assert [target.answer(prompt) for prompt in PROMPTS] != known
