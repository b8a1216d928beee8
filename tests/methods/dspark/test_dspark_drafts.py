"""Drafts of DSpark against a slow reference; cuts; the files it is published in."""

import json
from pathlib import Path

import pytest
import torch
from dflash_checks import (
    EMBEDDED,
    QWEN4,
    head_dir,
    meta_target,
    open_as,
    plain_model,
    prompts,
    target_of,
)
from dflash_dirs import DSPARK, dspark_shapes
from dflash_slow import SlowBlock
from oracle import decode, outputs
from recording import Recording
from tiny_methods import MINI

from model.common.args import make_parser
from model.common.contract.sequence import EmptyDrafter
from model.common.errors import BadInput
from model.common.heads.checkpoint import read_tensors
from model.common.loop.sampling import Sampler
from model.dflash.head import load_head
from model.dspark import inference_dspark
from model.dspark.drafter import DSparkDrafter
from model.dspark.head import load_dspark

KINDS = {
    "vanilla": {},
    "gated": {"markov_head_type": "gated"},
    "rnn": {"markov_head_type": "rnn"},
    "state alone": {"confidence_head_with_markov": False},
    "no transition": {"markov_rank": 0, "confidence_head_with_markov": False},
    "masks draft": {"sample_from_anchor": False},
}


class SlowSpark(SlowBlock):
    """DSpark's walk by its definition; fault "uncorrected": the backbone's own logits."""

    def bias(self, before, state, memory):
        """(bias [V], memory) of a slot."""
        if not self.config["markov_rank"]:
            return 0, None
        head, kind = "markov_head", self.config["markov_head_type"]
        row = self.tensors[f"{head}.markov_w1.weight"][before]
        table = self.tensors[f"{head}.markov_w2.weight"]
        if kind == "gated":
            gate = self.linear(f"{head}.gate_proj", torch.cat([state, row])).sigmoid()
            return table @ (gate * row), None
        if kind == "vanilla":
            return table @ row, None
        memory = torch.zeros_like(row) if memory is None else memory
        parts = self.linear(f"{head}.joint_proj", torch.cat([memory, row, state])).chunk(3)
        gate = parts[0].sigmoid()
        return table @ parts[2].tanh(), gate * memory + (1 - gate) * parts[1].tanh()

    def walked(self, ids):
        """(greedy tokens, corrected logits, confidences) behind ids."""
        states = self.states(ids)
        before, memory, tokens, rows, sure = ids[-1], None, [], [], []
        for state, row in zip(states, self.logits(states)):
            bias, memory = self.bias(before, state, memory)
            rows.append(row + (0 if self.fault == "uncorrected" else bias))
            features = state
            if self.config["confidence_head_with_markov"]:
                word = self.tensors["markov_head.markov_w1.weight"][before]
                features = torch.cat([state, word])
            sure.append(float(self.linear("confidence_head.proj", features).sigmoid()))
            before = int(rows[-1].argmax())
            tokens.append(before)
        return tokens, torch.stack(rows), sure


def drafted(folder, num_slots=2, sampler=None, **flags):
    """(drafts, turns) of three prompts."""
    target = target_of()
    recording = Recording(DSparkDrafter(load_dspark(folder, target), **flags))
    turns = decode(target, recording, prompts(), 10, sampler, num_slots=num_slots)
    return recording.drafts, turns


def new_head(**fields):
    return head_dir(**{**DSPARK, **fields})


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_equal_a_slow_reference(kind):
    folder = new_head(**KINDS[kind])
    drafts, turns = drafted(folder)
    plain = decode(target_of(), EmptyDrafter(), prompts(), 10)
    assert outputs(turns) == outputs(plain)
    slow = SlowSpark(folder, plain_model())
    for one in drafts[::2]:
        assert one.tokens == slow.walked(one.ids)[0]
    assert len(drafts[0].tokens) == (4 if kind == "masks draft" else 5)
    if kind == "vanilla":
        wrong = SlowSpark(folder, plain_model(), "uncorrected")
        assert any(one.tokens != wrong.walked(one.ids)[0] for one in drafts)


@pytest.mark.parametrize("cut", ["mask", "host"])
def test_cuts_equal_a_slow_reference(cut):
    folder = new_head()
    drafts, turns = drafted(folder, 1, threshold=0.5, cut=cut)
    assert outputs(turns) == outputs(decode(target_of(), EmptyDrafter(), prompts(), 10))
    slow, lengths = SlowSpark(folder, plain_model()), set()
    for one in drafts:
        tokens, _, sure = slow.walked(one.ids)
        length = next((at for at, own in enumerate(sure) if own < 0.5), len(sure))
        behind = [-1] * (len(tokens) - length) if cut == "mask" else []
        assert one.tokens == tokens[:length] + behind
        lengths.add(length)
    assert len(lengths) > 2 and 0 in lengths
    for turn in turns:  # an empty draft is a step of one token
        assert all(one == 1 for one, n in zip(turn.accept_lengths, turn.drafted) if n == 0)


def test_laws_are_those_of_the_corrected_logits():
    folder = new_head()
    drafts, _ = drafted(folder, 2, Sampler(0.7))
    slow = SlowSpark(folder, plain_model())
    for one in drafts[::3]:
        states = slow.states(one.ids)
        before = one.ids[-1]
        for state, row, token, law in zip(states, slow.logits(states), one.tokens, one.probs):
            wanted = ((row + slow.bias(before, state, None)[0]) / 0.7).softmax(-1)
            assert torch.allclose(law.double(), wanted, atol=1e-6)
            before = token


def test_a_batch_is_cut_by_its_cost():
    """Steps that get slow with every row: nothing is drafted; steps that do not: all of it."""
    folder = new_head()
    for rates, wanted in (([1.0] * 20, {5}), ([0.01**rows for rows in range(20)], {0})):
        drafts, turns = drafted(folder, 2, rates=rates)
        assert {sum(token >= 0 for token in one.tokens) for one in drafts} == wanted
        assert outputs(turns) == outputs(decode(target_of(), EmptyDrafter(), prompts(), 10))
    drafts, _ = drafted(folder, 2, rates=[1 / (3 + rows) for rows in range(20)])
    assert len({sum(token >= 0 for token in one.tokens) for one in drafts}) > 2


def test_without_a_transition_it_is_dflash():
    """Rank 0: the block drafter whose anchor predicts too, which method dflash reads."""
    fields = {**KINDS["no transition"], "enable_confidence_head": False}
    folder = new_head(**fields)
    first, _ = drafted(folder)
    from model.dflash.drafter import DFlashDrafter

    recording = Recording(DFlashDrafter(load_head(folder, target_of())))
    decode(target_of(), recording, prompts(), 10, num_slots=2)
    assert [one.tokens for one in first] == [one.tokens for one in recording.drafts]


# --- files ---

SIZES = {"block_size": 7, "mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]}
PUBLISHED = {  # flat fields, those in dflash_config
    "DeepSpec": ({}, ()),
    "gated": ({"markov_head_type": "gated"}, ()),
    "rnn": ({"markov_head_type": "rnn"}, ()),
    "SpecForge": (
        {"architectures": ["DSparkDraftModel"], "projector_type": "dspark"},
        ("mask_token_id", "target_layer_ids", "markov_rank", "markov_head_type")
        + ("enable_confidence_head", "confidence_head_with_markov", "projector_type"),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_formats(name, monkeypatch, capsys):
    own, inner = PUBLISHED[name]
    fields = {**QWEN4, **DSPARK, **SIZES, "markov_rank": 256, **own}
    config = {field: value for field, value in fields.items() if field not in inner}
    config |= {"dflash_config": {field: fields[field] for field in inner}} if inner else {}
    wanted = dspark_shapes(fields, 5)
    stored = {**wanted, **{matrix: (151936, 2560) for matrix in EMBEDDED}}
    open_as(monkeypatch, config, stored)
    head = load_dspark("published", meta_target(2560, 151936, 36))
    held = head.module.state_dict()
    assert {one: tuple(tensor.shape) for one, tensor in held.items()} == wanted
    parameters = sum(tensor.numel() for tensor in head.module.parameters())
    if own.get("markov_head_type", "vanilla") == "vanilla":
        assert parameters == 615_221_249 and parameters + 2 * 151936 * 2560 == 1_393_133_569
    assert head.design.num_drafts == 7 and head.design.from_anchor
    assert capsys.readouterr().err == ""


def test_the_mini_head_is_as_large_as_its_sizes_say():
    tensors = read_tensors(f"{MINI}/dspark/model.safetensors")
    copies = sum(tensors.pop(name).numel() for name in EMBEDDED)
    assert sum(tensor.numel() for tensor in tensors.values()) == 1_029_601
    assert copies == 2 * 2048 * 192


REFUSED = [
    ({"markov_rank": -1}, "markov_rank -1, an integer of at least 0"),
    ({"markov_head_type": "lstm"}, "markov_head_type 'lstm', one of vanilla, gated, rnn"),
    ({"markov_rank": 0}, "confidence_head_with_markov, but markov_rank 0"),
    ({"conv_kernel_size": 2, "conv_group_size": 8}, "a head of method dflash"),
    ({"enable_confidence_head": False}, "unknown tensor confidence_head.proj"),
    ({"architectures": ["DFlashDraftModel"]}, "DFlashDraftModel: a head of method dflash"),
    ({"speculators_model_type": "dflash"}, "dflash: a head of method dflash"),
    ({"enable_confidence_head": "false"}, 'enable_confidence_head "false", true or false'),
]


@pytest.mark.parametrize("fields, words", REFUSED)
def test_refusals(fields, words):
    folder = new_head()
    config = json.loads(Path(folder, "config.json").read_text())
    Path(folder, "config.json").write_text(json.dumps({**config, **fields}))
    with pytest.raises(BadInput) as refused:
        load_dspark(folder, target_of())
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("flags", [["--cut", "mask"], ["--step-rates", "1", "--cut", "host"]])
def test_a_cut_by_what_is_not_there_is_refused(flags):
    args = make_parser("dspark", "", inference_dspark.add_args).parse_args(
        ["--model-path", "x", "--dspark-path", "y", *flags]
    )
    with pytest.raises(BadInput, match=f"--cut {flags[-1]} says nothing without --confidence"):
        inference_dspark.build(args, target_of())


def test_cuts_need_a_confidence_head():
    folder = new_head(enable_confidence_head=False)
    with pytest.raises(BadInput, match="the head has no confidence head"):
        DSparkDrafter(load_dspark(folder, target_of()), 0.5)
