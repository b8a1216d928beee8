"""Faulty files of EAGLE-3's and P-EAGLE's heads: a line that names file, field or tensor, value."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "methods" / "eagle"))
from eagle_checks import KINDS, new_peagle, parsed, target_of
from eagle_dirs import change

from model.common.errors import BadInput
from model.eagle3.config import IDS
from model.eagle3.head import load_eagle3
from model.peagle import inference_peagle as script
from model.peagle.head import load_peagle


def load(method, folder, flags=(), **changes):
    """A tiny head whose file is changed, by its method's loader."""
    is_peagle = method == "peagle"
    path = new_peagle(folder) if is_peagle else KINDS["eagle3"].new_head(folder)
    change(path, **changes)
    return (load_peagle if is_peagle else load_eagle3)(path, target_of("eagle3"), *flags)


def refused(folder, method, words, flags=(), **changes):
    with pytest.raises(BadInput) as error:
        load(method, folder, flags, **changes)
    message = str(error.value)
    assert message.startswith(f"{folder}/head/") and words in message and "\n" not in message
    return message


BOTH = [  # (fields, words of the line)
    ({"architectures": 5}, "architectures 5"),
    ({"architectures": [5]}, "architectures [5]"),
    ({"architectures": {"a": 1}}, 'architectures {"a": 1}'),
    ({"layer_types": 5}, "layer_types 5"),
    ({"layer_types": [["a"]]}, 'layer_types [["a"]]'),
    ({"layer_types": {"a": 1}}, 'layer_types {"a": 1}'),
    ({"draft_vocab_size": "x"}, 'draft_vocab_size "x"'),
    ({"draft_vocab_size": -3}, "draft_vocab_size -3"),
    ({"draft_vocab_size": 0}, "draft_vocab_size 0"),
    ({"draft_vocab_size": 10**9}, f"draft_vocab_size {10**9}, the target has 17 ids"),
    ({"truncated_vocab_size": "x"}, 'truncated_vocab_size "x"'),
    ({"truncated_vocab_size": True}, "truncated_vocab_size true"),
    ({"truncated_vocab_size": 12}, "draft_vocab_size 11 and truncated_vocab_size 12 are not the"),
    ({"hidden_size": 96}, "hidden_size: hidden_size of the target 96, the target's is 64"),
    (
        {"target_hidden_size": 96},
        "target_hidden_size: hidden_size of the target 96, the target's is 64",
    ),
    ({"target_hidden_size": "x"}, 'target_hidden_size "x"'),
    ({"target_hidden_size": 0}, "target_hidden_size 0"),
    ({"vocab_size": 96}, "vocab_size 96, the target's is 17"),
    ({"embed_requires_grad": "x"}, 'embed_requires_grad "x"'),
    ({"tie_word_embeddings": "x"}, 'tie_word_embeddings "x"'),
    ({"num_aux_hidden_states": "x"}, 'num_aux_hidden_states "x"'),
    ({"num_aux_hidden_states": 5}, f"num_aux_hidden_states 5, but no {IDS}"),
    ({"num_aux_hidden_states": 5, IDS: [2, 4, 5]}, "num_aux_hidden_states 5, but"),
    ({IDS: 0}, f"{IDS} 0 are no layer ids"),
    ({IDS: []}, f"{IDS} []: two different layers or more"),
    ({"eagle_config": {IDS: []}}, f"{IDS} []: two different layers or more"),
    ({"eagle_config": []}, "eagle_config is no object"),
    ({"eagle_config": 0}, "eagle_config is no object"),
    ({"intermediate_size": 10**18}, "intermediate_size"),
    ({"intermediate_size": 10**30}, "intermediate_size"),
    ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads 4"),
]


@pytest.mark.parametrize("method", ["eagle3", "peagle"])
@pytest.mark.parametrize("fields, words", BOTH, ids=[str(row[0])[:60] for row in BOTH])
def test_fields_of_another_kind_or_wiring(tmp_path, method, fields, words):
    message = refused(tmp_path, method, words, **fields)
    assert message.startswith(f"{tmp_path}/head/config.json: ")


MASKED = [
    ({"mask_token_id": float("inf")}, "mask_token_id inf is no id of a mask token"),
    ({"mask_token_id": 2.9}, "mask_token_id 2.9 is no id"),
    ({"mask_token_id": True}, "mask_token_id True is no id"),
    ({"mask_token_id": [3]}, "mask_token_id [3] is no id"),
    ({"mask_token_id": "9" * 5000}, "is no id of a mask token"),
    ({"mask_token_id": -1}, "mask_token_id: the mask token's id -1 is not below 17 and at least 0"),
    ({"ptd_token_id": "x"}, "ptd_token_id 'x' is no id"),
    ({"parallel_drafting": False}, "parallel_drafting false"),
    ({"parallel_drafting": "x"}, 'parallel_drafting "x"'),
]


@pytest.mark.parametrize("fields, words", MASKED, ids=[str(row[0])[:60] for row in MASKED])
def test_fields_of_p_eagle(tmp_path, fields, words):
    refused(tmp_path, "peagle", words, **fields)


def test_an_embedding_that_was_trained_is_there(tmp_path):
    words = "embed_requires_grad true, but "
    edit = {"edit": lambda tensors: tensors.pop("embed_tokens.weight")}
    refused(tmp_path, "peagle", words, embed_requires_grad=True, **edit)


@pytest.mark.parametrize("number", ["99999", "3", "01", "00", "9" * 5000])
def test_layers_without_those_below_are_refused_at_once(tmp_path, number):
    name = f"layers.{number}.input_layernorm.weight"
    words = f"tensor {name}, but no tensor layers.2.*"
    refused(tmp_path, "peagle", words, edit=lambda t: t.update({name: torch.ones(64)}))


@pytest.mark.parametrize("method", ["eagle3", "peagle"])
@pytest.mark.parametrize("flag", ["inputs", "outputs"])
def test_layer_ids_of_a_config_that_names_none(tmp_path, method, flag):
    refused(tmp_path, method, f"no {IDS}: --layer-ids {flag} says nothing", [flag])
    head = load(method, tmp_path / "named", [flag], **{IDS: [1, 3, 5]})
    assert head.needs == ((1, 3, 5) if flag == "inputs" else (2, 4, 6))


def test_a_mask_token_that_no_row_reads(tmp_path):
    """Refused for one token a draft, but where the head's config names none."""
    target, path = target_of("eagle3"), new_peagle(tmp_path)

    def build(*flags):
        return script.build(parsed(script, "peagle", "--eagle-path", path, *flags), target)

    assert build("--num-draft", 2, "--mask-id", 5).head.mask_id == 5
    with pytest.raises(BadInput, match="--mask-id 5 says nothing with --num-draft 1"):
        build("--num-draft", 1, "--mask-id", 5)
    change(path, mask_token_id=None)
    assert build("--num-draft", 1, "--mask-id", 5).head.mask_id == 5
