"""SpS's draft lengths: each schedule's trace on scripted probabilities and outcomes."""

from types import SimpleNamespace

import pytest
import torch
from conftest import make_model
from draft_models import ScriptedModel
from steps import chain_step, prompt_step
from tiny_methods import build

from model.common.errors import BadInput
from model.common.loop.sampling import Sampler
from model.common.target.loading import load_target
from model.common.target.model import Target
from model.sps.drafter import GROWTH, SpSDrafter

SCHEDULES = ("constant", "heuristic", "confidence")
FAKE = SimpleNamespace(vocab_size=97, device=torch.device("cpu"))
PROMPT = [1, 2, 3, 4]


class Doubting(ScriptedModel):
    """Its token 7 has the given probabilities, one per read."""

    def __init__(self, probabilities):
        super().__init__(self.next)
        self.script = list(probabilities)

    def next(self, tokens):
        sure = self.script[self.reads % len(self.script)]
        probs = torch.full((*tokens.shape, 97), (1 - sure) / 96)
        probs[..., 7] = sure
        return probs.log(), None


def scripted(probabilities, schedule, num_draft=5, confidence=0.4, room=1000):
    """A drafter that has been started on one prompt of three tokens."""
    drafter = SpSDrafter(Doubting(probabilities), FAKE, schedule, num_draft, confidence)
    drafter.reserve(1, 2000, Sampler())
    drafter.start(prompt_step([PROMPT], [3 + room]))
    return drafter


def outcome(drafter, accepted):
    """Tell the drafter that `accepted` of its draft tokens and a bonus were committed."""
    drafter.observe(chain_step([[7] * accepted + [8]]))


def test_heuristic_trace():
    drafter = scripted([0.9], "heuristic")
    lengths = []
    for full in (True, True, False, False, True):
        lengths.append(drafter.propose().tokens.shape[1])
        outcome(drafter, lengths[-1] if full else 0)
    lengths.append(drafter.propose().tokens.shape[1])
    assert lengths == [5, 7, 9, 8, 7, 9]
    assert drafter.draft.model.reads == sum(lengths)


def test_heuristic_falls_to_one_and_is_reset():
    drafter = scripted([0.9], "heuristic", num_draft=3)
    lengths = []
    for _ in range(5):
        lengths.append(drafter.propose().tokens.shape[1])
        outcome(drafter, 0)
    assert lengths == [3, 2, 1, 1, 1]
    drafter.end([0])
    drafter.start(prompt_step([PROMPT]))
    assert drafter.propose().tokens.shape[1] == 3


def test_heuristic_grows_up_to_the_largest_draft():
    drafter, lengths = scripted([0.9], "heuristic", num_draft=60, room=10**6), []
    for _ in range(35):
        lengths.append(drafter.propose().tokens.shape[1])
        outcome(drafter, lengths[-1])
    assert lengths == [min(60 + 2 * step, 60 + GROWTH) for step in range(35)]
    assert drafter.max_nodes == max(lengths)


@pytest.mark.parametrize(
    "schedule, probabilities, more, length",
    [
        ("confidence", [0.9, 0.8, 0.3, 0.9, 0.9], {}, 3),  # the doubtful token stays
        ("confidence", [0.9], {"num_draft": 4}, 4),
        ("confidence", [0.02], {"confidence": 0}, 5),
        ("constant", [0.02], {}, 5),
        *[(schedule, [0.9], {"room": 4}, 2) for schedule in SCHEDULES],
    ],
)
def test_lengths(schedule, probabilities, more, length):
    """By confidence, bound and room; the draft model is not read once more than needed."""
    drafter = scripted(probabilities, schedule, **more)
    assert drafter.propose().tokens.tolist() == [[7] * length]
    assert drafter.draft.model.reads == length <= drafter.max_nodes


@torch.inference_mode()
def test_slots_have_lengths_of_their_own():
    """Each slot its own schedule and room; one that begins starts anew, an idle one drafts -1."""
    drafter = SpSDrafter(Doubting([0.9]), FAKE, "heuristic", 3, 0)
    drafter.reserve(3, 100, Sampler())
    drafter.start(prompt_step([PROMPT, PROMPT], [6, 100], [0, 2]))

    def lengths():
        tokens = drafter.propose().tokens
        assert tokens.shape[1] == max(drafter.lengths)
        return (tokens >= 0).sum(1).tolist()

    assert lengths() == [1, 0, 3]
    drafter.observe(chain_step([[8], [], [7, 7, 7, 8]]))
    drafter.end([0])
    drafter.start(prompt_step([PROMPT], [100], [1]))
    assert lengths() == [0, 3, 5]
    drafter.observe(chain_step([[], [8], [7] * 5 + [8]]))
    drafter.start(prompt_step([PROMPT], [100], [0]))
    assert lengths() == [3, 2, 7]


@torch.inference_mode()
def test_a_slot_that_ends_near_the_cache_end_stays_inside():
    """Its neighbour's heuristic draft may be long when it ends."""
    drafter = SpSDrafter(Target(make_model(num_hidden_layers=1)), FAKE, "heuristic", 20, 0)
    drafter.reserve(2, 1982, Sampler())
    drafter.start(prompt_step([[1] * 1981, [1] * 6], [1982, 1500]))
    drafter.planned = [1, 75]  # as after 28 whole drafts
    assert drafter.propose().tokens.shape == (2, 75)
    drafter.observe(chain_step([[1], [1]]))
    drafter.end([0])
    assert drafter.propose().tokens.shape == (2, 74)


def test_the_threshold_is_of_its_schedule_alone(model_dir, draft_dir):
    target, draft = load_target(model_dir, "float32", "cpu", "eager"), ["--drafter-path", draft_dir]
    for flags, threshold in (([], 0.4), (["--confidence", "0.1"], 0.1)):
        drafter = build("sps", model_dir, target, [*draft, "--schedule", "confidence", *flags])
        assert drafter.confidence == threshold
    for schedule in ("constant", "heuristic"):
        with pytest.raises(BadInput, match=f"--confidence says nothing to --schedule {schedule}"):
            flags = ["--schedule", schedule, "--confidence", "0.4"]
            build("sps", model_dir, target, [*draft, *flags])
