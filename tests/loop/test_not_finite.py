"""Prompts that cannot be read and logits that are not finite: a slot's question fails, and says
why; the others go on as they would without it."""

import copy

import pytest
import torch
from conftest import make_prompts
from oracle import (
    DRAFTERS,
    RandomTree,
    StaticTree,
    answers,
    decode,
    facts,
    lively,
    new_drafter,
    new_target,
    outputs,
)
from tiny_methods import METHODS, TINY_FLAGS, build, tiny_target

from model.common.contract.sequence import EmptyDrafter
from model.common.errors import BadInput
from model.common.loop.decode import Loop
from model.common.loop.ranking import finite_rows, top_logp
from model.common.loop.sampling import Sampler, draw
from model.common.loop.source import Prompts, Request
from model.common.loop.turns import StopRules
from model.common.target.loading import load_target
from model.common.target.model import Target
from model.space.drafter import SpaceDrafter

PROMPTS, LIMIT = make_prompts(4), 24
SCRIPTED = [kind for kind in DRAFTERS if kind is not RandomTree]  # which drafts any token
SAMPLERS = {"greedy": Sampler(), "sampled": Sampler(0.9, 0, 0.95)}
NAN, INF = float("nan"), float("inf")
# weights of a drafter, by method and variant; the other methods draft from no scores of their own
WEIGHTS = {
    ("sps", ""): lambda drafter: drafter.draft.model.model,
    ("specdecpp", ""): lambda drafter: drafter.draft.model.model,
    ("specdecpp", "acceptance head"): lambda drafter: drafter.head.__self__,
    ("specexec", ""): lambda drafter: drafter.reader.draft.model.model,
    ("specexec", "--gen-type specinfer"): lambda drafter: drafter.reader.draft.model.model,
    ("specexec", "--gen-type specinfer --draws best"): lambda d: d.reader.draft.model.model,
    ("sd2", ""): lambda drafter: drafter.model.decoder,
    ("sd2", "--draft chain"): lambda drafter: drafter.model.decoder,
    ("dflash", ""): lambda drafter: drafter.head.module,
    ("dspark", ""): lambda drafter: drafter.head.module,
    ("eagle", ""): lambda drafter: drafter.head.module,
    ("eagle2", ""): lambda drafter: drafter.head.module,
    ("eagle3", ""): lambda drafter: drafter.head.module,
    ("peagle", ""): lambda drafter: drafter.head.module,
    ("mtp", ""): lambda drafter: drafter.head.module,
    ("medusa", ""): lambda drafter: drafter.heads,
    ("hydra", ""): lambda drafter: drafter.heads,
}
FROM_THE_BEST = [  # drafts of a model's likely tokens
    ("sps", ""),
    ("specdecpp", ""),
    ("specexec", ""),
    ("specexec", "--gen-type specinfer --draws best"),
    ("sd2", ""),
    ("sd2", "--draft chain"),
]
WITHOUT = {"vanilla", "pld", "nasd", "rest", "lookahead", "recycling", "samd", "space", "suffix"}


def answer(target, drafter, prompts, sampler=None, num_slots=1, seeds=None):
    """The Prompts, answered in num_slots slots."""
    seeds = seeds or range(len(prompts))
    source = Prompts([Request(ids, LIMIT, seed) for ids, seed in zip(prompts, seeds)])
    capacity = LIMIT + max(map(len, prompts))
    drafter.prompts = prompts  # which a scripted one is told
    Loop(target, drafter, sampler or Sampler(), StopRules(), num_slots, capacity).run(source)
    return source


def spoilt(token):
    """The oracle's target with an embedding that is no number."""
    model = copy.deepcopy(lively("llama", torch.float32))
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = NAN
    return Target(model)


def is_unheard(token, known):
    """Whether no prompt has a token and no scripted draft of the known answers: wrong ones are one
    or two above the right ones."""
    near = {token, token - 1, token - 2}
    return not any(near & set(ids) for ids in known) and not any(token in ids for ids in PROMPTS)


def rare_token(known):
    """(row, place, token) of a token that one answer alone has, in its middle, and no prompt."""
    for row, ids in enumerate(known):
        others = [other for other in known if other is not ids]
        for place in range(5, 15):
            if ids.index(ids[place]) == place and is_unheard(ids[place], others):
                return row, place, ids[place]
    raise AssertionError("no such token")


def test_a_row_is_finite_where_its_largest_logit_is_a_number():
    rows = torch.tensor([[1, 2], [NAN, 2], [1, INF], [1, -INF], [-INF, -INF], [-INF, NAN]])
    assert finite_rows(rows).tolist() == [True, False, False, True, False, False]
    assert top_logp(rows, 2)[1].isnan().any(1).tolist() == [False, True, True, False, True, True]
    assert finite_rows(torch.tensor([70000.0, 1]).half()).tolist() is False


def test_what_is_drawn_of_no_numbers_is_a_token():
    for probs in ([NAN, NAN, NAN], [0.5, NAN, 0.5], [INF, 0.0, 0.0], [0.0, 0.0, 0.0]):
        tokens = draw(torch.tensor([probs] * 3), torch.tensor([0.0, 0.5, NAN]))
        assert tokens.min() >= 0 and tokens.max() <= 2


@pytest.mark.parametrize("kind", SCRIPTED)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("num_slots", [1, 3])
def test_a_prompt_fails_alone(kind, sampler, num_slots):
    """Seven prompts in three slots, three of them not finite: first, in the middle and last."""
    seeds = [1, 2, 4, 5]
    plain = outputs(decode(new_target(), EmptyDrafter(), PROMPTS, LIMIT, sampler, seeds=seeds))
    bad = next(token for token in range(10, 97) if is_unheard(token, plain))
    prompts = [[bad], *PROMPTS[:2], [7, bad, 9], *PROMPTS[2:], [5, 6, bad]]
    known = [[], *plain[:2], [], *plain[2:], []]
    known = [ids + [7] * LIMIT for ids in known]
    found = answer(spoilt(bad), new_drafter(kind, known), prompts, sampler, num_slots)
    reason = "the target's logits are not finite after the prompt"
    assert found.reasons == {0: reason, 3: reason, 6: reason}
    answered = [turn for turn in found.turns if turn is not None]
    assert outputs(answered) == plain
    clean = answer(new_target(), new_drafter(kind, known), prompts, sampler)
    assert facts(answered) == facts([clean.turns[row] for row in seeds])


@pytest.mark.parametrize("num_slots", [1, 3])
def test_prompts_that_cannot_be_read_fail_alone(num_slots):
    """All that enter at once, some of them, one that is last."""
    target, known = new_target(), answers("llama")
    bad = [[], [5, 97], [5] * 512]
    prompts = [*bad, PROMPTS[0], bad[1], PROMPTS[1], *PROMPTS[2:], bad[2]]
    found = answer(target, EmptyDrafter(), prompts, num_slots=num_slots)
    beyond = "token 97 is beyond the target's vocabulary of 97"
    long = "prompt of 512 tokens does not fit the context of 512"
    assert found.reasons == {0: "empty prompt", 1: beyond, 2: long, 4: beyond, 8: long}
    answered = [turn for turn in found.turns if turn is not None]
    assert outputs(answered) == [ids[:LIMIT] for ids in known]


@pytest.mark.parametrize("kind", SCRIPTED)
@pytest.mark.parametrize("num_slots", [1, 3])
def test_an_answer_fails_where_it_gets_there(kind, num_slots):
    known = answers("llama")
    row, place, token = rare_token([ids[:LIMIT] for ids in known])
    found = answer(spoilt(token), new_drafter(kind, known), PROMPTS, num_slots=num_slots)
    assert list(found.reasons) == [row]
    assert found.reasons[row].startswith("the target's logits are not finite after ")
    if kind is EmptyDrafter:
        assert found.reasons[row].endswith(f"after {place + 1} tokens of the answer")
    others = [other for other in range(4) if other != row]
    assert outputs([found.turns[other] for other in others]) == [known[o][:LIMIT] for o in others]


class Wild(Target):
    """Logits of some rows of every draft are NaN."""

    def __init__(self, rows):
        super().__init__(lively("llama", torch.float32))
        self.rows = rows

    def forward(self, root, draft, longest, hidden=()):
        logits, states = super().forward(root, draft, longest, hidden)
        logits[:, [row for row in self.rows if row < logits.shape[1]]] = NAN
        return logits, states


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_rows_that_are_not_committed_are_nobodys_failure(sampler):
    """Of StaticTree's rows 2, 5, 6 and 7 are the right branch."""
    plain = outputs(decode(new_target(), EmptyDrafter(), PROMPTS, LIMIT, sampler))
    known = [ids + [7] * LIMIT for ids in plain]
    found = answer(Wild([1, 3, 4, 8]), StaticTree(known, 4), PROMPTS, sampler, 2)
    assert not found.reasons and outputs(found.turns) == plain
    assert max(max(turn.accept_lengths) for turn in found.turns) == 5
    for row in (0, 2, 5):
        found = answer(Wild([row]), StaticTree(known, 4), PROMPTS, sampler, 2)
        assert set(found.reasons) == {0, 1, 2, 3}


def test_a_token_may_be_ruled_out():
    target, known = new_target(), answers("llama")
    never = next(t for t in range(97) if not any(t in ids[:LIMIT] for ids in known))
    mask = torch.zeros(97).index_fill(0, torch.tensor([never]), -INF)
    hook = target.model.lm_head.register_forward_hook(lambda module, given, out: out + mask)
    try:
        assert outputs(decode(target, EmptyDrafter(), PROMPTS)) == [ids[:LIMIT] for ids in known]
    finally:
        hook.remove()


def test_half_precision_is_told_what_overflows():
    model = copy.deepcopy(lively("llama", torch.float32))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(3e4)
    with pytest.raises(BadInput) as told:
        decode(Target(model.half()), EmptyDrafter(), PROMPTS[:1])
    assert str(told.value) == (
        "the target's logits are not finite after the prompt (float16 overflows above 65504; try "
        "--dtype bfloat16 or float32)"
    )


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_what_space_hears_behind_its_masks(sampler):
    """Rows 1, 2, 4, 5, 7 and 8 are masks; the first step hears the root's."""
    found = answer(Wild([1, 2, 4, 5, 7, 8]), SpaceDrafter([90, 91], "cpu"), PROMPTS, sampler, 2)
    reason = "the drafter's logits are not finite after 2 tokens of the answer"
    assert found.reasons == dict.fromkeys(range(4), reason)


@pytest.mark.parametrize("method", ["recycling", "lookahead", "nasd"])
def test_methods_that_learn_from_all_rows_go_on(method):
    """What they learn from rows that are not finite are ids, and bad guesses at worst."""
    target, known = Wild(range(1, 200)), answers("llama")
    found = answer(target, build(method, "", target, []), PROMPTS, None, 2)
    assert all("target" in reason for reason in found.reasons.values())
    for ids, turn in zip(known, found.turns):
        assert turn is None or turn.output_ids == ids[:LIMIT]


def test_every_method_with_weights_is_here():
    assert {method for method, _ in WEIGHTS} | WITHOUT == set(METHODS)


@pytest.fixture(scope="module")
def targets():
    """Loaded targets by their directory."""
    return {}


def built(method, variant, paths, targets):
    """(target, drafter) of a method on the tiny models."""
    folder = tiny_target(method, paths["model"])
    if folder not in targets:
        targets[folder] = load_target(folder, "float32", "cpu", "eager")
    named = {**paths, "target": folder}
    more = variant.split() if variant.startswith("-") else []
    flags = TINY_FLAGS[method](named)
    if more:  # which read no size of a tree
        flags = flags[:-2]
    return targets[folder], build(method, folder, targets[folder], [*flags, *more])


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("method, variant", WEIGHTS)
def test_a_drafter_is_named(method, variant, sampler, paths, targets):
    target, drafter = built(method, variant, paths, targets)
    with torch.no_grad():
        next(WEIGHTS[method, variant](drafter).parameters()).fill_(NAN)
    found = answer(target, drafter, PROMPTS[:2], sampler, 2)
    reason = "the drafter's logits are not finite after 1 token of the answer"
    assert found.reasons == {0: reason, 1: reason}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("method, variant", FROM_THE_BEST)
def test_a_drafter_fails_on_one_prompt_alone(method, variant, sampler, paths, targets):
    """A draft model that has no number for one token; others' drafts are as ever."""
    good = [[token for token in ids if token != 96] for ids in PROMPTS]
    prompts = [good[0], [96, 5, 7], good[1], good[2], [96], good[3]]
    target, drafter = built(method, variant, paths, targets)
    whole = answer(target, drafter, prompts, sampler, 3)
    assert not whole.reasons
    model = WEIGHTS[method, variant](drafter)
    with torch.no_grad():
        model.get_input_embeddings().weight[96] = NAN
    found = answer(target, drafter, prompts, sampler, 3)
    assert {1, 4} <= set(found.reasons) and len(found.reasons) < 6
    assert all("drafter" in reason for reason in found.reasons.values())
    for row, turn in enumerate(found.turns):
        if row not in found.reasons:
            assert facts([turn]) == facts([whole.turns[row]])
