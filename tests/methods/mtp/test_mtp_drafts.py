"""MTP's drafts: every family against a slow reference and its faults, transformers' own heads."""

import pytest
import torch
from mtp_checks import (
    FAMILIES,
    OWN_CACHE,
    checkpoint,
    drafter_of,
    plain_model,
    prompts,
    sampled,
    target_of,
)
from mtp_slow import FAULTS, SlowMtp
from recording import Recording
from tiny_methods import decode, transformers_ids

from model.common.loop.turns import StopRules
from model.mtp.head import MtpHead, MtpModule, final_gain

LIMIT, NUM = 12, 3
every_family = pytest.mark.parametrize("family", FAMILIES)


def recorded(family, num_slots=1, sampler=None, num_draft=NUM, **states):
    """(ids, drafts) of decoding the prompts."""
    recording = Recording(drafter_of(family, num_draft, **states))
    given = target_of(family), recording, prompts(), StopRules(), LIMIT, num_slots, sampler
    return decode(*given)[0], recording.drafts


def wrong_drafts(family, drafts, fault=None) -> int:
    """How many drafts the slow reference does not draft."""
    slow, wrong = SlowMtp(checkpoint(family), plain_model(family), FAMILIES[family], fault), 0
    for one in drafts:
        slow.begin(one.ids)
        wrong += one.tokens != slow.chain(len(one.tokens))
    return wrong


def check_drafts(family):
    """Every draft of every step is the slow reference's; the ids are transformers' own."""
    ids, drafts = recorded(family)
    assert ids == transformers_ids(plain_model(family), prompts(), LIMIT)
    assert len(drafts) > LIMIT and not wrong_drafts(family, drafts)
    return drafts


@every_family
def test_drafts_equal_a_slow_reference(family):
    drafts = check_drafts(family)
    drafts = drafts[:: max(len(drafts) // 8, 1)]
    for fault in FAULTS:
        assert wrong_drafts(family, drafts, fault), fault
    if family in OWN_CACHE:
        assert wrong_drafts(family, drafts, "centred")


def before_the_final_norm(patch):
    """The head is fed the target's state before its final norm: Qwen's trap."""
    features = MtpHead.features

    def plain(self, hidden):
        return features(self, hidden) / final_gain(target_of("qwen3_5_text"))

    patch.setattr(MtpHead, "features", plain)


def before_its_own_norm(patch):
    """The head's output is drafted on before its norm."""
    make = MtpModule.__init__

    def plain(self, *given, **more):
        make(self, *given, **more)
        self.normed = False

    patch.setattr(MtpModule, "__init__", plain)


@pytest.mark.parametrize("defect", [before_the_final_norm, before_its_own_norm])
def test_planted_defects_turn_the_check_red(defect, monkeypatch):
    """Ids stay the target's, so that nothing but the drafts could tell."""
    defect(monkeypatch)
    family = "qwen3_5_text"
    ids, drafts = recorded(family)
    assert ids == transformers_ids(plain_model(family), prompts(), LIMIT)
    with pytest.raises(AssertionError):
        check_drafts(family)
    assert wrong_drafts(family, drafts)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in OWN_CACHE])
def test_slots_draft_as_alone(family):
    ids, drafts = recorded(family, 3)
    alone_ids, alone = recorded(family)
    assert ids == alone_ids
    assert sorted((one.ids, one.tokens) for one in drafts) == sorted(
        (one.ids, one.tokens) for one in alone
    )


@every_family
def test_sampled_drafts_say_what_they_were_drawn_from(family):
    _, drafts = recorded(family, sampler=sampled())
    slow = SlowMtp(checkpoint(family), plain_model(family), FAMILIES[family])
    for one in drafts[:6]:
        slow.begin(one.ids)
        for node in range(NUM):
            law = slow.after(tuple(one.tokens[:node]))[1].softmax(-1)
            torch.testing.assert_close(one.probs[node].double(), law, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "states, fault",
    [({"target_state": "plain"}, "target"), ({"chained_state": "plain"}, "chain")],
)
@pytest.mark.parametrize("family", ["llama", "qwen3_next", "glm4_moe"])
def test_states_before_the_norms(family, states, fault):
    """Each flag drafts as the reference that reads the other state, and so not as the default."""
    _, drafts = recorded(family, **states)
    assert not wrong_drafts(family, drafts, fault)
    assert wrong_drafts(family, drafts)


def test_mimo_reads_the_state_before_the_final_norm():
    """As MiMo's authors hand it over; behind the norm, as all others want it, drafts differ."""
    for states, fault in (({}, None), ({"target_state": "normed"}, "target")):
        _, drafts = recorded("qwen2", **states)
        assert not wrong_drafts("qwen2", drafts, fault)
    assert wrong_drafts("qwen2", drafts)


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
def test_laws_of_transformers_own_heads(family, monkeypatch):
    """MtpModel of transformers 5.23 reads the same checkpoint and gives the same law."""
    layers = pytest.importorskip("transformers.modeling_layers")
    if not hasattr(layers, "MtpModel"):
        pytest.skip("transformers 5.23 has MTP models")
    from transformers.cache_utils import MtpCache

    model = plain_model(family)
    names = [rf"model\.layers\.{model.config.num_hidden_layers}\."]  # else of published depths
    monkeypatch.setattr(model, "_keys_to_ignore_on_load_unexpected", names)
    theirs = layers.MtpModel.from_pretrained(model).to(torch.float64).eval()
    theirs.set_experts_implementation("eager")
    theirs.set_attn_implementation("eager")
    _, drafts = recorded(family, sampler=sampled(), num_draft=1)
    for one in drafts[::3]:
        ids = torch.tensor([one.ids])
        with torch.inference_mode():
            states = model.get_decoder()(ids[:, :-1], use_cache=False).last_hidden_state
            _, logits, _ = theirs(
                input_ids=ids[:, 1:],
                last_hidden_states=states,
                attention_mask=None,
                position_ids=torch.arange(1, ids.shape[1]).unsqueeze(0),
                mtp_cache=MtpCache(config=model.config.get_mtp_config()),
            )
        law = logits[0, -1].softmax(-1)
        torch.testing.assert_close(one.probs[0].double(), law, atol=1e-5, rtol=0)


def test_a_rejected_draft_leaves_nothing_in_the_cache():
    """After a run with rejections the head's cache is that of one pass over the committed text."""
    family, kept = "llama", {}
    drafter, target = drafter_of(family), target_of(family)

    def watch(inner, one):
        if len(one.ids) == len(prompts()[1]) + 7:
            rows = int(inner.head.cache.length[0])
            pairs = inner.head.cache.storage
            kept.update(ids=one.ids, rows=rows, kv=[t[..., :rows, :].clone() for t in pairs[0]])

    decode(target, Recording(drafter, watch), [prompts()[1]], StopRules(), LIMIT)
    assert kept["rows"] == len(kept["ids"]) - 1
    ids = torch.tensor(kept["ids"])
    with torch.inference_mode():
        states = plain_model(family).get_decoder()(ids[None, :-1]).last_hidden_state
        drafter.head.read_prompt([0], (ids[None, 1:], states), torch.tensor([kept["rows"]]))
    for fresh, old in zip(drafter.head.cache.storage[0], kept["kv"]):
        torch.testing.assert_close(fresh[..., : kept["rows"], :], old, atol=1e-9, rtol=0)
