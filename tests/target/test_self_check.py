"""What is wrong for every prompt is refused at load; longrope's factors are those of a sequence."""

import pytest
import torch
from conftest import make_model, make_prompts
from draft_models import DRAFTS
from tiny_families import random_model, small_config
from tiny_methods import build, decode, transformers_ids
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from model.common.contract.sequence import EmptyDrafter
from model.common.errors import BadInput, Unsupported
from model.common.loop.sampling import Sampler
from model.common.loop.source import Prompts, Request
from model.common.loop.turns import StopRules
from model.common.target import attention
from model.common.target.longrope import rope_boundary
from model.common.target.model import Target
from model.common.target.own_cache import OwnCacheTarget
from model.common.target.self_check import check
from model.sps.drafter import SpSDrafter
from model.vanilla import hf_engine

BOUNDARY, LIMIT = 64, 24
LONGROPE = {
    "rope_parameters": {
        **{"rope_type": "longrope", "rope_theta": 10000.0},
        **{"short_factor": [1.0] * 8, "long_factor": [3.0] * 8},
        "original_max_position_embeddings": BOUNDARY,
    },
    "original_max_position_embeddings": BOUNDARY,
}
SHORT, LONG = make_prompts(6)[3], make_prompts(6)[5] + make_prompts(6)[0]  # 11 and 69 tokens


@pytest.fixture(scope="module")
def model():
    return make_model("phi3", dtype=torch.float64, pad_token_id=0, **LONGROPE)


@pytest.fixture(scope="module")
def right(model):
    """Answers of transformers' own generate, one prompt at a time."""
    model.set_attn_implementation("eager")
    answers = transformers_ids(model, [SHORT, LONG], LIMIT)
    model.set_attn_implementation(attention.NAME)
    return answers


def test_a_sequence_keeps_its_own_factors(model, right):
    """Beside a long neighbour, and with drafts that reach beyond the boundary."""
    target = Target(model)
    check(target)
    assert target.rope.boundary == BOUNDARY
    pld = build("pld", "", target, [])
    recycling = build("recycling", "", target, ["--prompt-seeds"])
    sps = SpSDrafter(Target(DRAFTS["random"]().double()), target, "constant", 4, 0.3)
    for drafter in (EmptyDrafter(), pld, recycling, sps):
        for slots in (1, 2):
            ids, _ = decode(target, drafter, [SHORT, LONG], StopRules(), LIMIT, slots)
            assert ids == right
    near = SHORT * 3 + SHORT[:7]  # 40 tokens: the answer ends at the boundary, drafts do not
    ids, _ = decode(target, EmptyDrafter(), [near], StopRules(), LIMIT)
    assert decode(target, recycling, [near], StopRules(), LIMIT)[0] == ids


def test_a_crossing_is_one_questions_error(model):
    target = Target(model)
    assert target.fitting(BOUNDARY + 1, LIMIT) == LIMIT
    assert target.fitting(BOUNDARY - LIMIT, LIMIT) == LIMIT
    with pytest.raises(BadInput, match="cross token 64.*--max-new-tokens 4 fits"):
        target.fitting(BOUNDARY - 4, LIMIT)


def test_factors_that_never_change_are_no_longrope(model):
    class Config:
        rope_parameters = LONGROPE["rope_parameters"]
        max_position_embeddings = BOUNDARY

    assert rope_boundary(Config) is None
    assert rope_boundary(model.config) == BOUNDARY


def test_own_forwards_pass():
    for family in ("llama", "gemma3_text", "qwen3"):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            check(Target(make_model(family, dtype=dtype)))


@pytest.mark.parametrize("family", ["phimoe", "deepseek_v3", "gpt_oss"])
def test_a_flipped_expert_is_no_fault(family):
    """In half precision the two readings of a token may choose other experts; four in a row."""
    for seed in range(4):
        model = random_model(small_config(CONFIG_MAPPING[family]), AutoModelForCausalLM, seed)
        model = model.to(torch.bfloat16)
        model.set_attn_implementation(attention.NAME)
        check(Target(model))


def test_engine_hf_chooses_longropes_factors_as_transformers_does():
    """A prompt beyond the boundary, and an answer that crosses it."""
    model = make_model("phi3", dtype=torch.float64, pad_token_id=0, **LONGROPE)
    model.set_attn_implementation("eager")
    prompts = [SHORT, LONG, LONG[:56]]
    expected = transformers_ids(model, prompts, LIMIT)
    source = Prompts([Request(ids, LIMIT, 0) for ids in prompts])
    hf_engine.run(OwnCacheTarget(model), source, Sampler(), StopRules())
    assert [turn.output_ids for turn in source.answers()] == expected


def test_a_recorded_step_keeps_its_choice_of_factors(model):
    """reserve() clears the tensor that a CUDA graph has seen, where there are as many slots."""
    rope = Target(model).rope
    rope.reserve(2)
    seen = rope.long
    rope.start([1], [BOUNDARY + 1])
    rope.choose(torch.tensor([1]))
    rope.reserve(2)
    assert rope.long is rope.chosen is seen and not seen.any()
    rope.reserve(3)
    assert rope.long.shape == (3,)


def bias_by_column(monkeypatch, model):
    """ALiBi counted in columns of the cache: right for chains, wrong for trees."""
    inside = attention.additive

    def biased(allowed, dtype):
        mask = inside(allowed, dtype)
        return mask + 0.3 * torch.arange(mask.shape[-1], dtype=dtype)

    monkeypatch.setattr("model.common.target.model.additive", biased)


def positions_of_the_call(monkeypatch, model):
    """Rotary factors by the largest position of a call."""
    rotary = model.model.rotary_emb
    inside = rotary.forward
    monkeypatch.setattr(
        rotary,
        "forward",
        lambda x, position_ids: inside(x, position_ids * (1 + (position_ids.max() > 5) * 0.5)),
    )


def ancestors_ignored(monkeypatch, model):
    """Every row of a tree reads all rows before it."""
    inside = attention.rows_mask
    monkeypatch.setattr(
        "model.common.target.model.rows_mask",
        lambda length, columns, positions, ancestors, *more: inside(
            length, columns, positions, None, *more
        ),
    )


@pytest.mark.parametrize(
    "plant, dtype",
    [
        (bias_by_column, torch.float32),
        (positions_of_the_call, torch.float32),
        (ancestors_ignored, torch.float32),
        (bias_by_column, torch.bfloat16),
        (ancestors_ignored, torch.bfloat16),
    ],
)
def test_a_wrong_forward_is_refused(plant, dtype, monkeypatch):
    model = make_model(dtype=dtype)
    target = Target(model)
    plant(monkeypatch, model)
    with pytest.raises(Unsupported, match="times their spread away from those of the model itself"):
        check(target)
