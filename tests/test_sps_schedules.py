"""SpS's draft lengths: each schedule's trace on scripted probabilities and outcomes."""

from types import SimpleNamespace

import pytest
import torch
from conftest import make_model

from model.common.contract.drafter import Step
from model.common.loop.sampling import Sampler
from model.common.target.model import Target
from model.sps.drafter import SpSDrafter

SCHEDULES = ("constant", "heuristic", "confidence")


class Scripted:
    """A draft model whose token 7 has the given probabilities, one per read."""

    def __init__(self, probabilities, batch=1):
        self.device, self.vocab_size = torch.device("cpu"), 97
        self.script, self.reads = list(probabilities), 0
        self.static_shapes = False
        self.cache = SimpleNamespace(length=torch.zeros(batch, dtype=torch.long))

    def prefill(self, ids, lengths, capacity, needs):
        self.cache.length.copy_(torch.tensor(lengths))

    def read(self, tokens, known, depths, needed):
        sure = self.script[self.reads % len(self.script)]
        self.reads += 1
        probs = torch.full((*tokens.shape, 97), (1 - sure) / 96)
        probs[..., 7] = sure
        return probs.log(), {}


def scripted(probabilities, schedule, num_draft=5, confidence=0.4, room=1000):
    """A drafter that has been started on one prompt of three tokens."""
    fake = SimpleNamespace(vocab_size=97, static_shapes=False)
    drafter = SpSDrafter(Scripted(probabilities), fake, schedule, num_draft, confidence)
    begin(drafter, room)
    return drafter


def begin(drafter, room=1000):
    prompt = torch.tensor([[1, 2, 3]])
    step = SimpleNamespace(tokens=prompt, host_ids=[[1, 2, 3, 4]], max_committed=4)
    drafter.start(step, [3 + room], Sampler())


def outcome(drafter, accepted):
    """Tell the drafter that `accepted` of its draft tokens and a bonus were committed."""
    num = drafter.lengths[0]
    new = [7] * accepted + [8]
    tokens = torch.tensor([new + [-1] * (num - accepted)])
    drafter.observe(
        Step(
            tokens=torch.zeros(1, 1 + num, dtype=torch.long),
            logits=None,
            hidden={},
            path=torch.arange(1 + num).unsqueeze(0),
            count=torch.tensor([accepted + 1]),
            next_token=torch.tensor([8]),
            new_tokens=tokens,
            host_ids=[new],
            max_committed=drafter.tails.length[0] + accepted + 3,
        )
    )


def test_heuristic_trace():
    drafter = scripted([0.9], "heuristic")
    lengths = []
    for full in (True, True, False, False, True):
        lengths.append(drafter.propose().tokens.shape[1])
        outcome(drafter, lengths[-1] if full else 0)
    lengths.append(drafter.propose().tokens.shape[1])
    assert lengths == [5, 7, 9, 8, 7, 9]


def test_heuristic_falls_to_one_and_is_reset():
    drafter = scripted([0.9], "heuristic", num_draft=3)
    lengths = []
    for _ in range(5):
        lengths.append(drafter.propose().tokens.shape[1])
        outcome(drafter, 0)
    assert lengths == [3, 2, 1, 1, 1]
    begin(drafter)
    assert drafter.propose().tokens.shape[1] == 3


def test_confidence_keeps_the_doubtful_token():
    drafter = scripted([0.9, 0.8, 0.3, 0.9, 0.9], "confidence")
    assert drafter.propose().tokens.tolist() == [[7, 7, 7]]
    assert drafter.draft.reads == 3


def test_confidence_respects_the_bound():
    drafter = scripted([0.9], "confidence", num_draft=4)
    assert drafter.propose().tokens.shape[1] == 4
    assert drafter.draft.reads == 4


def test_confidence_threshold_zero_is_constant():
    assert scripted([0.01], "confidence", confidence=0).propose().tokens.shape[1] == 5
    assert scripted([0.01], "constant").propose().tokens.shape[1] == 5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_room_bounds_the_draft(schedule):
    assert scripted([0.9], schedule, room=4).propose().tokens.shape[1] == 2


@torch.inference_mode()
def test_a_row_that_ends_near_the_cache_end_stays_inside():
    """Its neighbour's heuristic draft may be long when it ends."""
    target = SimpleNamespace(vocab_size=97, static_shapes=False)
    drafter = SpSDrafter(Target(make_model(num_hidden_layers=1)), target, "heuristic", 1, 0)
    ids = torch.ones(2, 1980, dtype=torch.long)
    host = [[1] * 1981, [1] * 6]
    step = SimpleNamespace(tokens=ids, host_ids=host, max_committed=1981)
    drafter.start(step, [1982, 1500], Sampler())
    drafter.planned = [1, 75]  # as after 37 whole drafts
    drafter.lengths = [1, 75]
    drafter.observe(
        Step(
            tokens=torch.ones(2, 2, dtype=torch.long),
            logits=None,
            hidden={},
            path=torch.zeros(2, 1, dtype=torch.long),
            count=torch.tensor([1, 1]),
            next_token=torch.tensor([1, 1]),
            new_tokens=torch.ones(2, 1, dtype=torch.long),
            host_ids=[[1], [1]],
            max_committed=7,
        )
    )
    assert drafter.propose().tokens.shape == (2, 74)
