"""penalties.py: each row of a draft is penalised for its own prefix, whatever is drafted."""

from functools import cache

import pytest
import torch
from conftest import make_prompts
from laws import LEVEL
from oracle import DRAFTERS, decode, lively, new_drafter, new_target, outputs
from slow_penalties import penalised, penalised_answer
from tiny_laws import FULL, NUCLEUS, answer_law, fits, plain_model, sampled, tiny
from transformers import RepetitionPenaltyLogitsProcessor

from model.common.contract.drafter import Draft
from model.common.contract.sequence import EmptyDrafter
from model.common.contract.trees import Tree
from model.common.loop.decode import generate
from model.common.loop.penalties import NO_PENALTIES, PenalisedSlots, Penalties, forced
from model.common.loop.sampling import Sampler, seed_of
from model.common.loop.turns import StopRules
from model.sps.drafter import SpSDrafter

PROMPTS = make_prompts(4)
LIMIT = 30
ALL = Penalties(1.3, 0.4, 0.3)
SETTINGS = [
    ALL,
    Penalties(repetition=1.3),
    Penalties(repetition=0.8),
    Penalties(presence=0.7),
    Penalties(frequency=0.6),
    Penalties(presence=-0.5, frequency=-0.2),
]


@cache
def plain():
    """transformers' own model of new_target(), in float64."""
    model = lively("llama", torch.float64, "eager")
    model.generation_config.eos_token_id = None
    return model


@cache
def known(penalties):
    """Greedy answers to PROMPTS, from prefixes that are counted anew for every token."""
    return [penalised_answer(plain(), prompt, LIMIT, penalties) for prompt in PROMPTS]


@cache
def target():
    return new_target(dtype=torch.float64)


def decoded(drafter, penalties, num_slots=None, **more):
    sampler = Sampler(penalties=penalties)
    return decode(target(), drafter, PROMPTS, LIMIT, sampler, num_slots=num_slots, **more)


def test_the_answers_are_worth_comparing():
    answers = [known(penalties) for penalties in (NO_PENALTIES, *SETTINGS)]
    assert all(a != b for at, a in enumerate(answers) for b in answers[:at])
    encouraged = known(SETTINGS[-1])  # by negative penalties: repeats within a draft's length
    assert any(ids[i] == ids[i + 1] for ids in encouraged for i in range(LIMIT - 1))


@pytest.mark.parametrize("strength", [1.3, 0.8])
def test_repetition_is_transformers(strength):
    for prompt, ids in zip(PROMPTS, known(Penalties(repetition=strength))):
        inputs = torch.tensor([prompt])
        output = plain().generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=LIMIT,
            pad_token_id=0,
            repetition_penalty=strength,
        )
        assert output[0, len(prompt) :].tolist() == ids


@pytest.mark.parametrize("penalties", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", DRAFTERS)
def test_drafts_change_nothing(kind, penalties):
    """Alone, all at once, and in three slots of which one is filled again."""
    padded = [ids + [0] * 20 for ids in known(penalties)]
    for num_slots in (1, 3, 4):
        turns = decoded(new_drafter(kind, padded, 4), penalties, num_slots)
        assert outputs(turns) == known(penalties)
        longest = max(length for turn in turns for length in turn.accept_lengths)
        assert longest == 1 if kind is EmptyDrafter else longest > 2


@pytest.mark.parametrize("kind", DRAFTERS)
def test_typical_acceptance_reads_penalised_laws(kind):
    """With a threshold of one half all that it accepts is the best of the penalised logits."""
    drafter = new_drafter(kind, [ids + [0] * 20 for ids in known(ALL)], 4)
    drafter.prompts = PROMPTS
    for num_slots in (1, 3):
        given = target(), drafter, PROMPTS, Sampler(penalties=ALL), [0] * 4, StopRules(), LIMIT
        turns = generate(*given, typical=(0.5, 1e9), num_slots=num_slots)
        assert outputs(turns) == known(ALL)


@pytest.mark.parametrize("kind", DRAFTERS[1:])
def test_sampled_ids_are_vanillas(kind):
    """Point guesses of any shape, id for id, with min-p beside the penalties."""
    seeds = [seed_of(5, question, 0, 0) for question in range(4)]
    sampler = Sampler(0.9, 0, 1.0, 0.02, ALL)
    given = target(), EmptyDrafter(), PROMPTS, LIMIT, sampler, None, seeds
    wanted = outputs(decode(*given, num_slots=1))
    assert len({tuple(ids) for ids in wanted}) == 4 and wanted != known(ALL)
    padded = [ids + [0] * 20 for ids in wanted]
    for num_slots in (1, 3):
        drafter = new_drafter(kind, padded, 4)
        turns = decode(target(), drafter, PROMPTS, LIMIT, sampler, None, seeds, num_slots)
        assert outputs(turns) == wanted
        assert max(length for turn in turns for length in turn.accept_lengths) > 1


def test_by_hand():
    """The docstring's example: answer a b, draft c c; a stands in the prompt as well."""
    a, b, c, d = range(4)
    slot = PenalisedSlots(Penalties(2.0, 0.5, 0.25), 1)
    first = slot.begin([0], torch.tensor([[a]]), [1], torch.tensor([[4.0, -4.0, 4.0, 4.0]]))
    assert first.tolist() == [[2.0, -4.0, 4.0, 4.0]]
    slot.add(torch.tensor([[a, b, -1]]))
    logits = torch.tensor([[4.0, -4.0, 4.0, 4.0]]).repeat(3, 1).unsqueeze(0)
    found = slot.rows(logits, Draft(torch.tensor([[c, c]])))
    a_and_b = [2 - 0.75, -8 - 0.75]
    assert found.tolist() == [[[*a_and_b, 4, 4], [*a_and_b, 1.25, 4], [*a_and_b, 1.0, 4]]]


@pytest.mark.parametrize("seed", range(6))
def test_rows_against_a_slow_reference(seed):
    """Random trees with inert and probe rows, repeated tokens, slots of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    num_slots, num_nodes, width = 3, 9, 6

    def ids(*size):
        return torch.randint(0, width, size, generator=generator)

    slots, texts = PenalisedSlots(ALL, num_slots), {}
    for group in ([0, 1, 2], [1]):  # the second prompt of slot 1 drops what stood there
        lengths = [int(ids(1)) + 1 for _ in group]
        prompts = ids(len(group), max(lengths))
        logits = torch.randn(len(group), width, generator=generator, dtype=torch.float64)
        found = slots.begin(group, prompts, lengths, logits)
        for row, slot in enumerate(group):
            texts[slot] = prompts[row, : lengths[row]].tolist(), []
            wanted = penalised(logits[row], *texts[slot], ALL)
            torch.testing.assert_close(found[row], wanted, atol=1e-12, rtol=0)
        committed = ids(len(group), 4)
        committed[:, 2:] = -1
        slots.add(committed, group)
        for row, slot in enumerate(group):
            texts[slot][1].extend(committed[row, :2].tolist())
    parents = torch.stack([torch.randint(-1, node, (num_slots,)) for node in range(num_nodes)], 1)
    tokens, probe = ids(num_slots, num_nodes) - 1, torch.arange(num_nodes) % 4 == 3
    draft = Draft(tokens, Tree(parents, num_nodes), probe=probe)
    logits = torch.randn(num_slots, 1 + num_nodes, width, generator=generator, dtype=torch.float64)
    found = slots.rows(logits, draft)
    for slot in range(num_slots):
        prompt, answer = texts[slot]
        lines = [answer]
        for node in range(num_nodes):
            above, token = lines[parents[slot, node] + 1], int(draft.candidates[slot, node])
            lines.append(None if above is None or token < 0 else [*above, token])
        for row, line in enumerate(lines):
            if line is not None:
                wanted = penalised(logits[slot, row], prompt, line, ALL)
                torch.testing.assert_close(found[slot, row], wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_forced_is_what_decoding_saw(block):
    """Rows of a finished answer, read in blocks."""
    generator = torch.Generator().manual_seed(1)
    prompt, answer = [3, 3, 0], [1, 1, 4, 1, 0, 0, 2]
    logits = torch.randn(len(answer), 5, generator=generator, dtype=torch.float64)
    found = torch.cat(
        [
            forced(ALL, logits[begin : begin + block], prompt, answer, begin)
            for begin in range(0, len(answer), block)
        ]
    )
    wanted = [penalised(row, prompt, answer[:i], ALL) for i, row in enumerate(logits)]
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-12, rtol=0)
    assert forced(NO_PENALTIES, logits, prompt, answer) is logits


def test_apply_is_transformers():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 50, generator=generator) * 5
    ids = torch.randint(0, 50, (4, 20), generator=generator)
    held = torch.zeros(4, 50, dtype=torch.bool).scatter(1, ids, True)
    for strength in (1.3, 0.7):
        wanted = RepetitionPenaltyLogitsProcessor(strength)(ids, logits)
        penalties, none = Penalties(repetition=strength), torch.zeros(4, 50, dtype=torch.int32)
        assert torch.equal(penalties.apply(logits, none, held), wanted)
        assert torch.equal(penalties.apply(logits, held.int(), torch.zeros_like(held)), wanted)


def test_precision():
    """Half precision is penalised in float32: a quotient of it would be rounded."""
    slot = PenalisedSlots(ALL, 1)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        found = slot.begin([0], torch.tensor([[1]]), [1], torch.ones(1, 3, dtype=dtype))
        assert found.dtype == torch.float32


def test_a_step_copies_nothing_to_the_device(monkeypatch):
    """Nothing that is made of a list on the host, for which a GPU would wait."""
    slots, logits = PenalisedSlots(ALL, 2), torch.zeros(2, 3, 5)
    slots.begin([0, 1], torch.tensor([[1], [2]]), [1, 1], logits[:, 0])
    committed, draft = torch.tensor([[3, 4], [0, -1]]), Draft(torch.tensor([[1, 2], [3, 4]]))
    monkeypatch.setattr(torch, "tensor", None)
    slots.add(committed)
    assert slots.rows(logits, draft).shape == (2, 3, 5)
    assert slots.counts.tolist() == [[0, 0, 0, 1, 1], [1, 0, 0, 0, 0]]


def test_without_penalties_nothing_is_kept():
    slots, logits = PenalisedSlots(NO_PENALTIES, 2), torch.randn(2, 4, 7)
    assert slots.begin([0, 1], torch.tensor([[1], [2]]), [1, 1], logits[:, 0]).equal(logits[:, 0])
    slots.add(torch.tensor([[1], [2]]))
    assert slots.rows(logits, Draft(torch.tensor([[1, 2, 3]] * 2))) is logits
    assert slots.counts is None


def test_settings_of_a_command_line_and_of_an_older_meta():
    flags = {"repetition_penalty": 1.1, "presence_penalty": 0.0, "frequency_penalty": 0.5}
    assert Penalties.of(flags) == Penalties(1.1, 0.0, 0.5)
    assert Penalties.of({"presence_penalty": None}) == Penalties.of({}) == NO_PENALTIES
    assert not NO_PENALTIES and all(SETTINGS)


# the sampled law


SAMPLED = [(*NUCLEUS, 0.0, Penalties(1.5, 0.5, 0.4)), (*FULL, 0.1, Penalties(1.2, 0.0, 1.0))]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SAMPLED, ids=["nucleus", "min-p"])
def test_a_draft_model_keeps_the_law(settings):
    drafter = SpSDrafter(tiny(1, 1), tiny(0, 2), "constant", 3, 0.3)
    answers, mean = sampled(tiny(0, 2), drafter, settings)
    assert 1.2 < mean < 3
    law = answer_law(plain_model(), 5, settings)
    assert (law > 0).sum() > 1000
    assert min(fits(answers, law)) > LEVEL
    assert min(fits(answers, answer_law(plain_model(), 5, settings[:4]))) < LEVEL


def test_forgotten_ancestors_are_seen(monkeypatch):
    """A defect: every row of a draft is penalised for the committed tokens alone."""

    def committed_alone(self, logits, draft):
        counts, in_prompt = self.counts.unsqueeze(1), self.in_prompt.unsqueeze(1)
        return self.penalties.apply(logits, counts, in_prompt)

    monkeypatch.setattr(PenalisedSlots, "rows", committed_alone)
    drafter = SpSDrafter(tiny(1, 1), tiny(0, 2), "constant", 3, 0.3)
    answers, _ = sampled(tiny(0, 2), drafter, SAMPLED[1], batches=3)
    assert min(fits(answers, answer_law(plain_model(), 5, SAMPLED[1]))) < LEVEL
    padded = [ids + [0] * 20 for ids in known(SETTINGS[-1])]
    wrong = [
        kind
        for kind in DRAFTERS[1:]
        if outputs(decoded(new_drafter(kind, padded, 4), SETTINGS[-1])) != known(SETTINGS[-1])
    ]
    assert wrong
