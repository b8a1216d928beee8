"""Every causal family of the installed transformers is read right or refused when it is loaded."""

import pytest
import sweep

ALWAYS = "llama gemma3_text deepseek_v3 gpt_oss diffllama mpt qwen3_next t5 roberta".split()
EXPECTED = {"diffllama": "EQUAL as chains", "mpt": "EQUAL as chains", "roberta": "REFUSED"}
EXPECTED |= {"qwen3_next": "EQUAL as chains", "t5": "EQUAL as chains"}


@pytest.mark.parametrize(
    "family",
    [
        name if name in ALWAYS else pytest.param(name, marks=pytest.mark.families)
        for name in sweep.tried_families()
    ],
)
def test_equal_or_refused(family):
    found = sweep.verdict(family)
    assert found.startswith(("EQUAL", "REFUSED")), found
    if family in ALWAYS:
        assert found.startswith(EXPECTED.get(family, "EQUAL in"))
