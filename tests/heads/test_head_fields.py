"""Fields of heads' configs: honoured, refused, known to change nothing, or named in a line."""

import json

import pytest
from conftest import make_model
from head_dirs import HYDRA_CONFIG, hydra_heads, medusa_heads
from specdecpp_dirs import make_head

from model.common.errors import BadInput
from model.common.heads.checkpoint import check_fields, save_checkpoint
from model.common.heads.head import llama_config, window_of
from model.common.target.model import Target
from model.hydra import heads as hydra
from model.medusa import heads as medusa
from model.specdecpp import heads as specdecpp

MEDUSA = {"base_model_name_or_path": "lmsys/vicuna-7b-v1.3", "medusa_num_heads": 2}
MEDUSA |= {"medusa_num_layers": 1, "transformers_version": "4.31.0"}
PACKED = {"architectures": ["MedusaModel"], "model_type": "medusa", "hidden_size": 64}
PACKED |= {"num_heads": 5, "num_hidden_layers": 1, "max_paths": 64, "topk": 10, "vocab_size": 97}
PACKED |= {"truncated_vocab_size": 97, "original_lm_head": False, "medusa_fc_bias": True}
WHOLE = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 4096}


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


def load_medusa(folder, target, config):
    """Medusa's heads in the form that their config stands for."""
    state, kind = medusa_heads().state_dict(), config.get("model_type")
    if kind == "medusa":
        state = {medusa._stored(name, True): tensor for name, tensor in state.items()}
    elif kind:
        state = {f"medusa_head.{name}": tensor for name, tensor in state.items()}
    file = medusa.MODEL_FILES[0] if kind else medusa.HEAD_FILES[0]
    save_checkpoint(folder, config, file, state)
    return medusa.load_heads(str(folder), target, 4)


def load_hydra(folder, target, config):
    heads = hydra_heads(target.config, target.vocab_size)
    save_checkpoint(folder, config, hydra.FILES[1], hydra.state_to_save(heads))
    return hydra.load_heads(str(folder), target, 4)


def load_specdecpp(folder, target, config):
    save_checkpoint(folder, config, specdecpp.HEAD_FILES[0], specdecpp.state_to_save(make_head()))
    return specdecpp.load_head(str(folder), 64, "cpu")


HEADS = [  # (loader, config as published)
    (load_medusa, MEDUSA),
    (load_medusa, PACKED),
    (load_medusa, WHOLE | {"medusa_num_heads": 5}),
    (load_hydra, {**HYDRA_CONFIG, "base_model_name_or_path": "lmsys/vicuna-7b-v1.3"}),
    (load_hydra, {**HYDRA_CONFIG, "dropout_rate": 0.2, "torch_dtype": "float16"}),
    (load_specdecpp, {"hidden_size": 64, "num_layers": 3}),
]


@pytest.mark.parametrize("load, config", HEADS)
def test_published_configs_are_known_and_others_named(target, tmp_path, load, config, capsys):
    load(tmp_path, target, config)
    assert capsys.readouterr().err == ""
    load(tmp_path, target, {**config, "medusa_twist": 0.5, "nothing": None})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/config.json: ") and line.endswith(": medusa_twist")


@pytest.mark.parametrize(
    "load, config, words",
    [
        (load_medusa, {**PACKED, "original_lm_head": True}, "original_lm_head true"),
        (load_medusa, {**PACKED, "truncated_vocab_size": 96}, "truncated_vocab_size 96"),
        (load_medusa, {**MEDUSA, "logit_scale": 2}, "logit_scale 2"),
    ],
)
def test_wirings_that_nothing_here_has_are_refused(target, tmp_path, load, config, words):
    with pytest.raises(BadInput, match=f"config.json: {words} is not supported"):
        load(tmp_path, target, config)


def test_check_fields(capsys):
    fields = {"a": 1, "scale": 1.0, "b": None, "architectures": "LlamaForCausalLM", "dtype": "x"}
    check_fields(fields, "here", ("a",), {"scale": (1,)})
    assert capsys.readouterr().err == ""
    with pytest.raises(BadInput, match=r"^here: scale \[2\] is not supported$"):
        check_fields({**fields, "scale": [2]}, "here", ("a",), {"scale": (1,)})
    check_fields({**fields, "b": 0, "architectures": ["LlamaForCausalLM", "Other"]}, "here")
    assert capsys.readouterr().err.strip().endswith(": a, scale, b, architectures Other")


SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 9}


@pytest.mark.parametrize(
    "fields, wanted",
    [
        ({}, None),
        ({"sliding_window": 4096}, None),  # copied from a target, and never looked at
        ({"sliding_window": 512, "use_sliding_window": False}, None),
        ({"layer_types": ["full_attention"], "sliding_window": 8}, None),
        ({"layer_types": ["sliding_attention"], "sliding_window": 8}, 8),
        ({"layer_types": ["sliding_attention"]}, "sliding_attention with sliding_window None"),
        ({"use_sliding_window": True, "sliding_window": 8}, "no layer_types that say where"),
    ],
)
def test_windows(fields, wanted):
    if isinstance(wanted, str):
        with pytest.raises(BadInput, match=wanted):
            window_of(fields)
    else:
        assert window_of(fields) == wanted


@pytest.mark.parametrize(
    "fields, line",
    [
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "'spiral' is not known"),
        ({"hidden_act": "relu7"}, "hidden_act 'relu7' is not known"),
    ],
)
def test_values_that_transformers_refuses_are_one_line(fields, line):
    with pytest.raises(BadInput, match=line) as error:
        llama_config(SIZES | fields, "head/config.json")
    assert str(error.value).startswith("head/config.json: ") and "\n" not in str(error.value)


def test_biases_and_axes_of_positions():
    assert llama_config(SIZES | {"qkv_bias": True}).attention_bias
    assert not llama_config(SIZES | {"qkv_bias": False, "attention_bias": True}).attention_bias
    assert llama_config(SIZES | {"mlp_bias": True}).mlp_bias
    rope = {"type": "mrope", "mrope_section": [2, 3, 3]}
    config = llama_config(SIZES | {"rope_scaling": rope, "rope_theta": 5e5})
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 5e5}
    assert json.loads(config.to_json_string())["num_hidden_layers"] == 1
