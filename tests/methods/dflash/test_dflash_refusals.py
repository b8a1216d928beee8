"""Heads of block drafters that are refused in a line which names the field or tensor."""

import json
from pathlib import Path

import pytest
import torch
from dflash_checks import head_dir, target_of
from dflash_dirs import DFLASH2, DSPARK

from model.common.errors import BadInput
from model.common.heads import checkpoint as checkpoints
from model.dflash import head as heads

BOTH = ["sliding_attention", "full_attention"]


def lose(name):
    return lambda tensors: tensors.pop(name)


def reshape(tensors):
    tensors["fc.weight"] = tensors["fc.weight"][:, :3]


REFUSED = [  # fields, edit of the tensors, what the line says
    ({"architectures": ["LagunaDFlash"]}, None, "architectures LagunaDFlash is no block drafter"),
    ({"architectures": ["Gemma4DSparkModel"]}, None, "Gemma4DSparkModel is no block drafter"),
    ({"speculators_model_type": "eagle3"}, None, "speculators_model_type eagle3"),
    ({"dflash_config": [1]}, None, "dflash_config is no object"),
    ({"dflash_config": {"block_size": 4}}, None, "block_size is 5 at the root and 4 in"),
    ({"block_size": None}, None, "no block_size"),
    ({"block_size": 1}, None, "block_size 1, an integer of at least 2"),
    ({"mask_token_id": 17}, None, "mask_token_id 17, the target has 17 ids"),
    ({"target_layer_ids": [0, 2]}, None, "[0, 2]: 2 is not from -1 to 1"),
    ({"target_layer_ids": [0, 1.5]}, None, "are no layer ids"),
    ({"num_target_layers": 36}, None, "num_target_layers 36, the target has 3"),
    ({"layer_types": ["full_attention"]}, None, "for 2 layers"),
    ({"layer_types": ["full_attention", "linear"]}, None, "linear"),
    ({"layer_types": BOTH}, None, "no sliding_window"),
    ({"hidden_size": 32}, None, "hidden_size 32, the target's is 64"),
    ({"vocab_size": 18}, None, "vocab_size 18, the target's is 17"),
    ({**DFLASH2, "conv_group_size": 7}, None, "conv_group_size 7 does not divide"),
    ({**DFLASH2, "draft_vocab_size": 11}, None, "selector over draft_vocab_size 11"),
    ({"draft_vocab_size": 11}, None, "no tensor lm_head.weight for draft_vocab_size"),
    (DSPARK, None, "markov_rank 4: a head of method dspark"),
    ({"shift_label": True}, None, "shift_label true is not supported"),
    ({}, lose("fc.weight"), "no tensor fc.weight, expected (64, 128)"),
    ({}, reshape, "tensor fc.weight is (64, 3), expected (64, 128)"),
    ({}, lose("layers.1.self_attn.q_norm.weight"), "no tensor layers.1.self_attn.q_norm.weight"),
    ({}, lambda t: t.update(x=torch.ones(2)), "unknown tensor x (2,)"),
]


KINDS = [  # fields of another kind, and words of their refusal
    ({"rope_theta": "x"}, None, 'rope_theta "x", a number above 0'),
    ({"rope_theta": 0}, None, "rope_theta 0, a number above 0"),
    ({"rope_parameters": [1]}, None, "rope_parameters [1], an object"),
    ({"rope_scaling": {"type": "linear", "factor": "x"}}, None, 'rope_scaling: factor "x"'),
    ({"head_dim": 0}, None, "head_dim 0, an integer of at least 1"),
    ({"num_attention_heads": 0}, None, "num_attention_heads 0, an integer"),
    ({"num_key_value_heads": -2}, None, "num_key_value_heads -2, an integer"),
    ({"hidden_size": "192"}, None, 'hidden_size "192", an integer'),
    ({"hidden_act": ["silu"]}, None, 'hidden_act ["silu"], a text'),
    ({"architectures": 5}, None, "architectures 5, a list of texts"),
    ({"architectures": [["x"]]}, None, "a list of texts"),
    ({"layer_types": 5}, None, "layer_types 5, a list of texts"),
    ({"num_target_layers": "8"}, None, 'num_target_layers "8", an integer'),
    ({"draft_vocab_size": "many"}, None, 'draft_vocab_size "many", an integer'),
    ({"final_logit_softcapping": "x"}, None, 'final_logit_softcapping "x", a number'),
    ({"output_multiplier": 0}, None, "output_multiplier 0, a number above 0"),
    ({"input_embedding_scale": "x"}, None, "input_embedding_scale"),
    ({"sample_from_anchor": "false"}, None, 'sample_from_anchor "false", true or false'),
    ({"is_causal": "no"}, None, 'is_causal "no", true or false'),
    ({"target_layer_ids": []}, None, "target_layer_ids [] are no layer ids"),
    ({"block_size": 5000}, None, "block_size 5000: the target's context is of"),
    ({"speculators_model_type": "dspark"}, None, "a head of method dspark"),
]
for kind in (torch.int8, torch.complex64):
    words = f"tensor norm.weight is {str(kind).removeprefix('torch.')}: not supported"

    def edit(tensors, kind=kind):
        tensors["norm.weight"] = tensors["norm.weight"].to(kind)

    KINDS.append(({}, edit, words))


@pytest.mark.parametrize("fields, edit, words", [*REFUSED, *KINDS])
def test_refusals(fields, edit, words):
    folder = head_dir()
    config = json.loads(Path(folder, "config.json").read_text())
    tensors = checkpoints.read_tensors(f"{folder}/model.safetensors")
    if edit:
        edit(tensors)
    fields = {name: value for name, value in {**config, **fields}.items() if value is not None}
    checkpoints.save_checkpoint(folder, fields, "model.safetensors", tensors)
    with pytest.raises(BadInput) as refused:
        heads.load_head(folder, target_of())
    assert words in str(refused.value) and "\n" not in str(refused.value)
