"""The config.json beside an MTP head is held against the target's; unknown fields are named."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "methods" / "mtp"))
from mtp_checks import FAMILIES, checkpoint, target_of
from mtp_dirs import head_dir

from model.common.args import make_parser
from model.common.errors import BadInput
from model.mtp import inference_mtp as script
from model.mtp.head import load_mtp


def config_of(path) -> dict:
    return json.loads((Path(path) / "config.json").read_text())


def said(capsys) -> list[str]:
    """Lines of stderr about a config.json; others are transformers', of its kernels."""
    return [line for line in capsys.readouterr().err.splitlines() if "/config.json: " in line]


def load(folder, fields, family="llama"):
    """A folder's head, whose config.json says these fields besides its own."""
    path = head_dir(folder, checkpoint(family), FAMILIES[family])
    (Path(path) / "config.json").write_text(json.dumps({**config_of(path), **fields}))
    return load_mtp(path, target_of(family))


SPECULATORS = {"architectures": ["MTPDraftModel"], "speculators_model_type": "mtp"}
SPECULATORS |= {"speculators_config": {"algorithm": "mtp"}, "speculators_version": "0.6.0"}
FAST_MTP = {"architectures": ["MiMoForCausalLM"], "model_type": "mimo", "torch_dtype": "bfloat16"}
FAST_MTP |= {"auto_map": {"AutoConfig": "configuration_mimo.MiMoConfig"}, "rope_theta": 10000}
FAST_MTP |= {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 36}
FAST_MTP |= {"max_position_embeddings": 32768, "rope_scaling": None, "use_cache": True}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["whole", "nested", "text"])
def test_the_targets_own_config_is_read_without_a_line(tmp_path, family, form, capsys):
    """As its folder has it, speculators nest it, or a model of pictures and text has it."""
    fields = config_of(checkpoint(family))
    if form == "nested":
        fields.pop("architectures")
        fields = SPECULATORS | {"transformer_layer_config": fields | {"num_hidden_layers": 1}}
    if form == "text":
        fields = {"text_config": fields, "vision_config": {"depth": 2}, "image_token_id": 3}
    load(tmp_path, fields, family)
    assert said(capsys) == []


def test_fast_mtps_config_is_known(tmp_path, capsys):
    load(tmp_path, FAST_MTP, "qwen2")
    assert said(capsys) == []


REFUSED = [  # (family, fields, words of the line)
    ("llama", {"hidden_size": 96}, "hidden_size 96, the target's is 64"),
    ("llama", {"hidden_size": "x"}, 'hidden_size "x", the target\'s is 64'),
    ("llama", {"num_hidden_layers": 9}, "num_hidden_layers 9, the target's is 4"),
    ("llama", {"vocab_size": 100}, "vocab_size 100, the target's is 17"),
    ("llama", {"intermediate_size": True}, "intermediate_size true, the target's is "),
    ("llama", {"num_attention_heads": 3}, "num_attention_heads 3, the target's is "),
    ("llama", {"head_dim": 3}, "head_dim 3, the target's is "),
    ("llama", {"hidden_act": "gelu"}, 'hidden_act "gelu", the target\'s is "silu"'),
    ("llama", {"rms_norm_eps": 5.0}, "rms_norm_eps 5.0, the target's is "),
    ("llama", {"rope_theta": 77}, "rope_theta 77, the target's is 10000.0"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2}}, 'type "linear", the target\'s is'),
    ("llama", {"rope_parameters": {"rope_theta": 7}}, "rope_parameters: rope_theta 7, the target"),
    ("llama", {"rope_parameters": 5}, "rope_parameters 5, an object is needed"),
    ("llama", {"rope_parameters": {"full_attention": 5}}, "an object is needed"),
    (
        "glm4_moe",
        {"partial_rotary_factor": 0.25},
        "partial_rotary_factor 0.25, the target's is 0.5",
    ),
    ("glm4_moe", {"n_routed_experts": 3}, "n_routed_experts 3, the target's is "),
    ("qwen3_next", {"layer_types": ["linear_attention"]}, 'layer_types ["linear_attention"], the'),
    ("llama", {"num_nextn_predict_layers": 3}, "num_nextn_predict_layers 3: heads of one layer"),
    ("llama", {"num_nextn_predict_layers": 0}, "num_nextn_predict_layers 0: heads of one layer"),
    ("llama", {"num_nextn_predict_layers": "x"}, 'num_nextn_predict_layers "x": heads of one'),
    ("llama", {"num_nextn_predict_layers": True}, "num_nextn_predict_layers true: heads of one"),
    ("qwen3_next", {"mtp_num_hidden_layers": 2}, "mtp_num_hidden_layers 2: heads of one layer"),
    ("qwen3_next", {"mtp_use_dedicated_embeddings": True}, "mtp_use_dedicated_embeddings true is"),
    ("llama", {"model_type": "gpt2"}, 'model_type "gpt2", the target\'s is "llama"'),
    ("llama", {"model_type": 5}, "model_type 5, a text is needed"),
    ("llama", {"speculators_model_type": "eagle3"}, 'speculators_model_type "eagle3" is not'),
    ("llama", {"transformer_layer_config": [1]}, "transformer_layer_config is no object"),
    ("llama", {"transformer_layer_config": {"vocab_size": 9}}, "vocab_size 9, the target's is 17"),
    ("llama", {"text_config": {"hidden_size": 9}}, "hidden_size 9, the target's is 64"),
    ("llama", {"logit_scale": 0.5}, "logit_scale 0.5 is not supported"),
    ("llama", {"architectures": 5}, "architectures 5"),
]


@pytest.mark.parametrize("family, fields, words", REFUSED, ids=[str(row[1]) for row in REFUSED])
def test_another_wiring_than_the_targets_is_one_line(tmp_path, family, fields, words, capsys):
    with pytest.raises(BadInput) as error:
        load(tmp_path, fields, family)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/config.json: ") and words in message
    assert "\n" not in message and said(capsys) == []


def test_unknown_fields_are_named_in_a_line(tmp_path, capsys):
    names = {"architectures": ["MtpHead", "Other"], "model_type": "no_such", "nothing": None}
    load(tmp_path, {"nonsense": 1, **names})
    (line,) = said(capsys)
    assert line.startswith(f"{tmp_path}/config.json: ")
    assert {"nonsense", "architectures Other", "model_type no_such"} == {
        *line.rpartition(": ")[2].split(", ")
    }


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--mtp-path", ""], "--mtp-path '': a directory or hub id is needed"),
        (
            ["--num-draft", "1", "--chained-state", "plain"],
            "--chained-state plain says nothing with --num-draft 1",
        ),
    ],
)
def test_flags_that_say_nothing_are_refused(flags, words):
    parser = make_parser("mtp", script.__doc__, script.add_args)
    args = parser.parse_args(["--model-path", checkpoint("llama"), *flags])
    with pytest.raises(BadInput, match=words):
        script.build(args, target_of("llama"))
