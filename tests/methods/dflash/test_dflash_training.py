"""Training on blocks: what they read, labels, weights, and that decoding reads the same."""

from types import SimpleNamespace

import pytest
import torch
from dflash_checks import KINDS, QWEN4, head_dir, plain_model, prompts, target_of
from dflash_dirs import dflash_shapes

from model.common.heads.head import CausalRows
from model.dflash.backbone import BlockModule
from model.dflash.blocks import (
    BlockRows,
    block_labels,
    choose_anchors,
    decayed,
    paced,
    pieces,
    positions_of,
    visible,
)
from model.dflash.config import flat_fields, read_design
from model.dflash.drafter import DFlashDrafter
from model.dflash.head import layer_config, load_head
from model.dflash.training import block_fields


def test_weights():
    wanted = [1, 0.778801, 0.606531, 0.472367, 0.367879, 0.286505, 0.223130]
    assert decayed(7, 4).tolist() == pytest.approx(wanted, abs=1e-6)
    assert decayed(15, 7)[-1].item() == pytest.approx(0.135335, abs=1e-6)
    assert decayed(9, 5)[-1].item() == pytest.approx(0.201897, abs=1e-6)
    losses = -torch.tensor([[0.8, 0.5, 0.25], [0.8, 0.5, 0.25]]).log()
    counted = torch.tensor([[True, True, True], [True, True, False]])
    found = paced(losses, counted)
    assert found[0].tolist() == pytest.approx([1.996875, 1.096875, 0.421875], abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.9 + 0.675, 0.675, 0], abs=1e-6)


def test_what_blocks_read():
    """T = 5, anchors 0 and 2, blocks of 4: 16 columns of block 0, 8 + 16 of block 1."""
    anchors = torch.tensor([[0, 2]])
    before, inside = visible(anchors, 5, 4, None, False)
    assert before.shape == (1, 8, 5) and inside.shape == (4, 4)
    assert before[0, :4].sum() == 0 and before[0, 4:].tolist() == [[1, 1, 0, 0, 0]] * 4
    assert before.sum() + 2 * inside.sum() == 40
    assert positions_of(anchors, 4).tolist() == [[0, 1, 2, 3, 2, 3, 4, 5]]
    before, inside = visible(anchors, 5, 4, 3, True)
    assert before[0, 4:].int().tolist() == [[1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0] * 5, [0] * 5]
    assert inside.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]]


@pytest.mark.parametrize("most", [1, 2, 3, 5, 7, 100])
def test_pieces_are_all_blocks_once(most):
    seen = torch.zeros(4, 5, dtype=torch.long)
    for part in pieces(4, 5, most):
        assert 1 <= seen[part].numel() <= most
        seen[part] += 1
    assert (seen == 1).all()


SMALL = {"num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 3584}
SHAPES = {  # of targets: type, fields, (head_dim, key-value heads) of a new head
    "qwen2": ({**SMALL, "intermediate_size": 18944}, (128, 4)),
    "qwen3": (
        {
            **{"hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32},
            **{"num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 36},
            **{"vocab_size": 151936, "rms_norm_eps": 1e-6},
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        (128, 8),
    ),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_a_new_head_has_its_targets_shape(kind):
    """Of Qwen3-4B, whose heads are wider than H by their number: z-lab's tensors."""
    from transformers import AutoConfig

    fields, wanted = SHAPES[kind]
    config = AutoConfig.for_model(kind, **fields)
    flags = SimpleNamespace(layer_ids=None, mask_token_id=151669, num_layers=5, block_size=16)
    found = block_fields(flags, config, 151936)
    assert (found["head_dim"], found["num_key_value_heads"]) == wanted
    known = SimpleNamespace(config=config, vocab_size=151936)
    flat = flat_fields({**found, "architectures": ["DFlashDraftModel"]}, "config.json")
    with torch.device("meta"):
        design = read_design(flat, "config.json", known)
        module = BlockModule(layer_config(flat, "config.json", known), design, config.hidden_size)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == dflash_shapes(found, 5)
    if kind == "qwen3":
        assert shapes == dflash_shapes(QWEN4, 5)
        assert sum(tensor.numel() for tensor in module.parameters()) == 537_427_200
        assert found["target_layer_ids"] == [1, 9, 17, 25, 33] and found["rope_theta"] == 1e6


def test_anchors_and_labels():
    """Anchors are answers' tokens that one follows; labels end with the first answer's end."""
    ids = torch.arange(10).unsqueeze(0)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0, 1, 1, 0]]).bool()
    anchors, valid = choose_anchors(mask, None)
    assert sorted(anchors[valid].tolist()) == [2, 3, 7]
    torch.manual_seed(0)
    some, valid = choose_anchors(mask, 2)
    assert some.shape == (1, 2) and valid.all() and set(some[0].tolist()) <= {2, 3, 7}
    seen = {tuple(sorted(choose_anchors(mask, 2)[0][0].tolist())) for _ in range(50)}
    assert seen == {(2, 3), (2, 7), (3, 7)}
    labels, counted = block_labels(ids, mask, torch.tensor([[2, 7]]), torch.ones(1, 2).bool(), 4)
    assert labels[counted].tolist() == [3, 4, 8]
    assert counted[0].int().tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("kind", ["plain", "from anchor", "sliding", "dflash2"])
def test_blocks_of_a_conversation_are_those_of_decoding(kind):
    """States of several blocks at once, each as if it were drafted behind its own text."""
    head = load_head(head_dir(**KINDS[kind]), target_of())
    ids = prompts()[2]
    model, module, design = plain_model(), head.module, head.design
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        hidden = model(tokens, output_hidden_states=True, use_cache=False).hidden_states
        states = torch.cat([hidden[layer] for layer in design.states], -1)
        anchors = torch.tensor([[4, 11, 30]])
        rotary = CausalRows(head.config, "cpu").rotary_at
        blocks = BlockRows(module, rotary, states)
        found = blocks.states(anchors, tokens.gather(1, anchors))
        assert found.shape == (1, 3, design.num_drafts, 64)
        drafter = DFlashDrafter(head)
        for number, anchor in enumerate(anchors[0].tolist()):
            drafter.head.reserve(1, 256)
            head.read_prompt([0], states[:, :anchor], torch.tensor([anchor]))
            alone = head.draft(tokens[:, anchor], anchor)
            assert (found[:, number] - alone).abs().max() < 1e-4  # a softmax in float32
