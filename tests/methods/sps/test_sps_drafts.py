"""SpS: drafts and the draft model's cache against slow references."""

import pytest
import torch
from conftest import make_model, make_prompts
from draft_models import DRAFTS, next_logits, plain
from oracle import decode
from recording import Recording

from model.common.contract.sequence import EmptyDrafter
from model.common.loop.sampling import Sampler
from model.common.target.model import Target
from model.sps.drafter import SpSDrafter

SCHEDULES = ("constant", "heuristic", "confidence")
PROMPTS = make_prompts(4)


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


@pytest.fixture(scope="module")
def drafts():
    return {name: Target(make()) for name, make in DRAFTS.items()}


def sps(draft, target, schedule="constant", num_draft=4, confidence=0.3):
    return SpSDrafter(draft, target, schedule, num_draft, confidence)


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(1.0, top_p=0.95)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_draft_equal_to_target_is_accepted_whole(target, drafts, schedule, sampler):
    drafter = sps(drafts["target"], target, schedule)
    for slots in (1, 4):
        for turn in decode(target, drafter, PROMPTS, 30, sampler, num_slots=slots):
            assert turn.accept_lengths == [n + 1 for n in turn.drafted]
            if schedule == "constant":
                assert turn.drafted == [4] * 5 + [3]  # 1 + 5 * 5 + 4 = 30
            if schedule == "heuristic":
                assert turn.drafted == [4, 6, 8, 7]


def test_host_reads_are_declared(target, drafts, monkeypatch):
    """Only the confidence schedule asks, after every token but the last."""
    drafters = [sps(drafts["random"], target, name, confidence=0.0) for name in SCHEDULES]
    assert [drafter.reads_per_step for drafter in drafters] == [0, 0, 3]
    reads, inside = [], torch.Tensor.__bool__
    for drafter in drafters:
        propose = drafter.propose

        def counted(drafter=drafter, propose=propose):
            before = len(reads)
            draft = propose()
            assert len(reads) - before == max(
                min(draft.tokens.shape[1] - 1, drafter.reads_per_step), 0
            )
            return draft

        monkeypatch.setattr(drafter, "propose", counted)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda t: reads.append(1) or inside(t))
    for drafter in drafters:
        decode(target, drafter, PROMPTS[:2], 10)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("slots", [1, 3])
def test_greedy_proposals_equal_a_slow_reference(target, drafts, schedule, slots):
    """Of every slot, refilled or not; full, partial and no acceptance are covered."""
    recording = Recording(sps(drafts["noisy"], target, schedule))
    turns = decode(target, recording, PROMPTS, 24, num_slots=slots)
    model, compared = plain(drafts["noisy"].model), 0
    for one in recording.drafts:
        sequence, sure = one.ids, True
        for token in one.tokens:
            if token < 0:
                break
            assert sure
            logits = next_logits(model, sequence)
            assert token == logits.argmax()
            sure = schedule != "confidence" or logits.softmax(-1)[token] >= 0.3
            sequence = [*sequence, token]
            compared += 1
    assert compared == sum(sum(turn.drafted) for turn in turns) > 40
    lengths = {n for turn in turns for n in turn.accept_lengths}
    assert lengths >= ({1, 2} if schedule == "confidence" else {1, 2, 3, 5})


def test_sampled_proposals_come_from_the_recorded_distribution(target, drafts):
    recording = Recording(sps(drafts["noisy"], target))
    sampler = Sampler(0.8, top_k=20, top_p=0.9)
    decode(target, recording, PROMPTS[:2], 12, sampler)
    model = plain(drafts["noisy"].model)
    for one in recording.drafts:
        for node, token in enumerate(one.tokens):
            if token < 0:
                break
            expected = sampler.warp(next_logits(model, one.ids + one.tokens[:node]))
            assert torch.allclose(one.probs[node], expected, atol=1e-4)
            assert one.probs[node][token] > 0


@pytest.mark.parametrize("width", [110, 80])
def test_padded_vocabularies(width):
    """A draft model with more or fewer logits than the target; the tokens used are both's."""
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[80:] = 0
    target = Target(model)
    recording = Recording(sps(Target(make_model(seed=1, vocab_size=width)), target))
    reference = plain(recording.inner.draft.model.model)
    for prompt in ([1, 2, 3, 4], [70, 71, 9]):
        (base,) = decode(target, EmptyDrafter(), [prompt], 15)
        assert decode(target, recording, [prompt], 15)[0].output_ids == base.output_ids
        assert max(base.output_ids) < 80
    for one in recording.drafts:
        for node, token in enumerate(one.tokens):
            logits = next_logits(reference, one.ids + one.tokens[:node])
            assert token == logits[:97].argmax()
