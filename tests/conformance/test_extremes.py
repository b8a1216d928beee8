"""Every method at the edges of numbers and sizes: logits, precisions, vocabularies, contexts."""

import functools

import pytest
import torch
from oracle import outputs
from tiny_methods import METHODS, TINY_LAYERS, transformers_ids

from conformance.cases import (
    LENGTH,
    PROMPTS,
    VOCAB,
    Case,
    World,
    case,
    make_lively,
    world_of,
)
from conformance.greedy import changed_logits, check_counts, drafts_of
from model.common.errors import BadInput
from model.common.loop.sampling import Sampler
from model.common.target.model import Target

pytestmark = pytest.mark.slow
every_method = pytest.mark.parametrize("method", METHODS)
LARGEST = {torch.float16: 6e4, torch.bfloat16: 1e38}  # of a logit, near the end of its range
EPSILON = {torch.float16: 2**-10, torch.bfloat16: 2**-7}
UNNORMED = ("eagle", "eagle2")  # whose head's features may be larger than the target's
SAMPLER = Sampler(0.8, 0, 0.95)


def case_of(method: str, **own) -> Case:
    """A method on a target of another shape; one that refuses the shape in a line is skipped."""
    made = Case(method, world=world_of("llama", TINY_LAYERS.get(method, 3), **own))
    if method == "space":
        made.flags = ["--mask-id", "2"]
    try:
        assert made.drafter
    except BadInput as refusal:
        pytest.skip(f"refused: {refusal}")
    return made


def check_answers(made: Case, prompts, limit: int) -> list:
    """Greedy ids are the plain model's, alone and together; sampled ones are ids."""
    known = [made.world.answer(prompt, limit) for prompt in prompts]
    for batch in (1, len(prompts)):
        turns = made.decode(prompts, limit, batch)
        assert outputs(turns) == known
        check_counts(turns, limit)
    sampled = made.decode(prompts, limit, sampler=SAMPLER)
    vocab = made.target.config.vocab_size
    assert [len(ids) for ids in outputs(sampled)] == [len(ids) for ids in known]
    assert all(0 <= token < vocab for ids in outputs(sampled) for token in ids)
    return turns


@every_method
def test_a_vocabulary_of_three(method):
    check_answers(case_of(method, vocab_size=3), [[0], [2, 0, 2, 2, 1], [1, 2] * 9], LENGTH)


@every_method
def test_a_vocabulary_of_a_quarter_of_a_million(method):
    last = (1 << 18) - 1
    made = case_of(method, vocab_size=1 << 18)
    check_answers(made, [[last, 5, last, 5, last], [3, last - 1]], 4)


@every_method
def test_a_context_of_two(method):
    """One token in, one token out, whatever the limit."""
    turns = check_answers(case_of(method, max_position_embeddings=2), [[0], [5], [2]], 8)
    assert [turn.finish_reason for turn in turns] == ["length"] * 3


@functools.cache
def one_and_a_thousand(world: World):
    """(prompts, transformers' own answers to them), once for all methods."""
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(0, VOCAB, (n,), generator=generator).tolist() for n in (1099, 100)]
    rooms = zip(prompts, (1, 1000))
    return prompts, [transformers_ids(world.plain, [ids], room)[0] for ids, room in rooms]


@every_method
def test_one_token_left_beside_a_thousand(method):
    """Of a context of 1,100 tokens one prompt leaves one, the other a thousand."""
    made = case_of(method, max_position_embeddings=1100)
    prompts, known = one_and_a_thousand(made.world)
    turns = made.decode(prompts, 1000)
    assert outputs(turns) == known
    assert [len(turn.output_ids) for turn in turns] == [1, 1000]


def closed(world: World, ids):
    """Logits of some tokens are minus infinity."""
    ids = torch.tensor(ids)
    return changed_logits(world, lambda logits: logits.index_fill(-1, ids, float("-inf")))


@every_method
@pytest.mark.parametrize("left", [9, 1])
def test_tokens_of_no_probability(method, left):
    """All but some tokens are out of reach, as in padded vocabularies: of `left` one is drawn."""
    made = case(method)
    ids = list(range(left, VOCAB))
    with closed(made.world, ids):
        turns = check_answers(made, PROMPTS, LENGTH)
        assert max(token for turn in turns for token in turn.output_ids) < left
        sampled = made.decode(PROMPTS, LENGTH, sampler=SAMPLER)
        assert max(token for turn in sampled for token in turn.output_ids) < left


@pytest.fixture(scope="module")
def halved():
    """halved(method, dtype): a case in half precision, whose logits reach the end of its range."""
    known = {}

    def make(method, dtype):
        layers = TINY_LAYERS.get(method, 3)
        if (layers, dtype) not in known:
            world = World("llama", layers)
            model = make_lively(num_hidden_layers=layers)
            largest = world.logits([*PROMPTS, *(p + world.answer(p) for p in PROMPTS)]).abs().max()
            scale = 2.0 ** int(torch.log2(LARGEST[dtype] / largest / 2))
            for one in (model, world.plain):
                one.get_output_embeddings().weight.data *= scale
            world.target = Target(model.to(dtype))
            world.forget()
            known[layers, dtype] = world
        return Case(method, world=known[layers, dtype])

    return make


@every_method
@pytest.mark.parametrize("dtype", LARGEST, ids=str)
def test_half_precision_at_the_edge(method, dtype, halved):
    """No question fails; an answer parts from the baseline's only where two tokens are near-ties.

    Near: within some roundings of the largest logit, read in float64.
    """
    made, base = halved(method, dtype), halved("vanilla", dtype)
    if made.world is not base.world:
        base = Case("vanilla", world=made.world)
    if method in UNNORMED and dtype == torch.float16:
        with pytest.raises(BadInput, match="drafter's logits are not finite .*float16 overflows"):
            made.decode(PROMPTS, LENGTH)
        return
    for batch in (1, len(PROMPTS)):
        turns, known = made.decode(PROMPTS, LENGTH, batch), base.decode(PROMPTS, LENGTH, batch)
        check_counts(turns, LENGTH)
        longest = max(length for turn in turns for length in turn.accept_lengths)
        assert longest > 1 or not drafts_of(made)
        for prompt, ids, wanted in zip(PROMPTS, outputs(turns), outputs(known)):
            assert len(ids) == len(wanted) == LENGTH
            place = next((i for i, pair in enumerate(zip(ids, wanted)) if len(set(pair)) > 1), None)
            if place is None:
                continue
            (scores,) = made.world.logits([prompt + ids[:place]])
            gap = (scores[ids[place]] - scores[wanted[place]]).abs()
            assert gap <= 32 * EPSILON[dtype] * scores.abs().max(), (prompt, place)
    sampled = made.decode(PROMPTS, LENGTH, sampler=SAMPLER)
    assert [len(ids) for ids in outputs(sampled)] == [LENGTH] * len(PROMPTS)
