"""Drafts of P-EAGLE: a slow reference and its faults, the cache, a planted defect, twins."""

import pytest
import torch
from eagle_checks import DEEP as SHAPE
from eagle_checks import config_dir, loopy_prompts, new_peagle, target_of, tiny_model
from eagle_dirs import copying_peagle_dir, nest
from head_caches import FreshCaches
from oracle import decode, facts, outputs
from peagle_slow import FAULTS, SlowPEagle
from recording import Recording

from model.common.contract.sequence import EmptyDrafter
from model.common.loop.sampling import Sampler
from model.common.target.model import Target
from model.common.target.twin.shapes import read_shape
from model.common.target.twin.twin import Twin
from model.eagle3.config import IDS
from model.peagle.drafter import PEagleDrafter
from model.peagle.head import load_peagle

WINDOW = {"layer_types": ["sliding_attention"] * 2, "sliding_window": 3}
FOUR = {"states": 4, IDS: [1, 6, 5, 3]}
WIRED = [  # (config, draft length, layers of the target, a field to be overlooked)
    ({}, 1, None, None),
    ({"layers": 1}, 2, None, None),
    ({"layers": 4, "draft_vocab": None}, 8, None, None),
    ({"rope_theta": 50.0}, 5, None, "rope_theta"),
    ({"norm_before_residual": True}, 5, None, "norm_before_residual"),
    ({"fc_norm": True, "norm_output": True}, 5, None, "fc_norm"),
    ({"norm_before_fc": True}, 5, None, "norm_before_fc"),
    ({"attention_bias": True}, 5, None, None),
    (WINDOW, 5, None, "layer_types"),
    ({"mask_token_id": None, "ptd_token_id": "9"}, 5, None, None),
    ({"norm_before_residual": True, **FOUR}, 5, (1, 3, 5, 6), None),
]


@pytest.fixture(scope="module")
def target():
    return target_of("eagle3")


def drafter_of(path, target, num_draft=5, **more):
    return PEagleDrafter(load_peagle(path, target, **more), num_draft)


def wrong_drafts(recording, slow, num_draft):
    """Recorded drafts that the slow reference does not draft."""
    return sum(one.tokens != slow.drafts(one.ids, num_draft) for one in recording.drafts)


@pytest.mark.parametrize("config, num_draft, layers, field", WIRED)
def test_drafts_equal_a_slow_reference(tmp_path, target, config, num_draft, layers, field):
    """Every token of every step, in slots that are filled again; answers are vanilla's."""
    path, prompts = new_peagle(tmp_path, **config), loopy_prompts()
    if layers:
        nest(path, speculators_model_type="peagle", architectures=["PEagleDraftModel"])
    recording = Recording(drafter_of(path, target, num_draft))
    turns = decode(target, recording, prompts, 12, num_slots=3)
    assert outputs(turns) == outputs(decode(target, EmptyDrafter(), prompts, 12))
    assert len(recording.drafts) == sum(len(turn.accept_lengths) for turn in turns)
    slow = SlowPEagle(path, target.model, None, layers)
    assert wrong_drafts(recording, slow, num_draft) == 0
    assert num_draft == 1 or len({tuple(one.tokens) for one in recording.drafts}) > 3
    if field:
        slow = SlowPEagle(path, target.model, field, layers)
        assert wrong_drafts(recording, slow, num_draft) > len(recording.drafts) // 2


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(tmp_path, target, fault):
    """A reference that makes one of peagle_slow's mistakes drafts other chains."""
    path = new_peagle(tmp_path)
    recording = Recording(drafter_of(path, target))
    decode(target, recording, loopy_prompts(3), 12)
    wrong = wrong_drafts(recording, SlowPEagle(path, target.model, fault), 5)
    assert wrong > len(recording.drafts) // 4


def test_sampled_drafts_say_their_laws(tmp_path, target):
    """Each row's own law, whatever was drawn before it; 0 outside the draft vocabulary."""
    path = new_peagle(tmp_path)
    recording = Recording(drafter_of(path, target))
    turns = decode(target, recording, loopy_prompts(3), 12, Sampler(1.0), num_slots=2)
    slow, drawn = SlowPEagle(path, target.model), set()
    ids = slow.target_ids()
    for one in recording.drafts:
        laws = slow.laws(one.ids, 5)
        assert torch.allclose(one.probs[:, ids].float(), laws, atol=1e-5)
        assert one.probs.sum(-1).allclose(one.probs.new_ones(5))
        assert all(one.probs[row, token] > 0 for row, token in enumerate(one.tokens))
        drawn.add(one.tokens != ids[laws.argmax(-1)].tolist())
    assert True in drawn and max(max(turn.accept_lengths) for turn in turns) > 1


@pytest.mark.parametrize("num_slots", [1, 3])
def test_the_cache_holds_committed_rows_alone(tmp_path, num_slots):
    """One row per committed token but the root; no mask row stays."""
    path, prompts = copying_peagle_dir(tmp_path / "h", config_dir(tmp_path / "t")), loopy_prompts()
    target = Target(tiny_model(**SHAPE))
    fresh = load_peagle(path, target)
    check = FreshCaches(tiny_model(**SHAPE), fresh)
    recording = Recording(drafter_of(path, target), check)
    turns = decode(target, recording, prompts, 16, num_slots=num_slots)
    assert check.checked == sum(len(turn.accept_lengths) for turn in turns) > 4
    assert recording.inner.head.cache.length.tolist() == [0] * num_slots


def kept_masks(patch):
    """Planted: the keys and values of a step's mask rows stay in the head's cache."""
    observe = PEagleDrafter.observe

    def kept(self, step):
        observe(self, step)
        self.head.cache.advance(torch.where(step.count > 0, self.max_nodes - 1, 0))
        self.longest = int(self.head.cache.length.max())

    patch.setattr(PEagleDrafter, "observe", kept)


def test_kept_mask_rows_are_seen(tmp_path, target, monkeypatch):
    """Answers stay exact, which shows nothing; the drafts and the cache's length do."""
    path = new_peagle(tmp_path)
    kept_masks(monkeypatch)
    lengths = []

    def watch(drafter, one):
        lengths.append(int(drafter.head.cache.length[one.slot]) - (len(one.ids) - 1))

    recording = Recording(drafter_of(path, target), watch)
    turns = decode(target, recording, loopy_prompts(2), 12, num_slots=1)
    assert outputs(turns) == outputs(decode(target, EmptyDrafter(), loopy_prompts(2), 12))
    assert wrong_drafts(recording, SlowPEagle(path, target.model), 5) > len(recording.drafts) // 2
    assert set(lengths) > {0}


def test_twins_draft_what_their_origins_do(tmp_path, target):
    """The mask state, the layers on top and the embedding, at a larger size."""
    path = new_peagle(tmp_path, fc_norm=True)
    twin = Twin(target, read_shape("128x16x200x40"), "a twin")
    runs = []
    for one in (target, Target(twin.model(torch.float64, "cpu"), twin=twin)):
        runs.append(facts(decode(one, drafter_of(path, one), loopy_prompts(3), 12)))
    assert runs[0] == runs[1]
    assert max(max(lengths) for _, lengths, *_ in runs[0]) > 1
