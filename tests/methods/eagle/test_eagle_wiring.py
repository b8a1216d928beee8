"""How later heads are wired: their drafts against the slow reference, config fields, layer ids."""

import pytest
import torch
from eagle_checks import KINDS, loopy_prompts, parsed, target_of
from eagle_dirs import change, nest
from oracle import decode, facts, outputs
from recording import Recording

from model.common.contract.sequence import EmptyDrafter
from model.common.errors import BadInput
from model.common.heads.head import llama_config
from model.common.target.model import Target
from model.common.target.twin.shapes import read_shape
from model.common.target.twin.twin import Twin
from model.eagle3 import inference_eagle3 as script
from model.eagle3.config import IDS, Wiring, fused_layers, read_layers
from model.eagle3.head import Eagle3Module

WINDOW = {"layer_types": ["sliding_attention"], "sliding_window": 3}
ALL = {"norm_output": True, "norm_before_residual": True, "norm_before_fc": True, **WINDOW}
OWN = {"embed_tokens.weight": torch.randn(17, 64, generator=torch.Generator().manual_seed(2))}
FOUR = {"states": 4, IDS: [1, 6, 5, 3]}
WIRED = [  # (kind, config, arguments of load(), layers read, a field to be overlooked)
    ("eagle", {"bias": False, "rope_theta": 500.0}, {}, None, None),
    ("eagle", {"num_key_value_heads": 4, "rope_theta": 500.0}, {}, None, "rope_theta"),
    ("eagle", {"qkv_bias": True}, {}, None, None),
    ("eagle", WINDOW, {}, None, "layer_types"),
    ("eagle2", {"attention_bias": True}, {}, None, None),
    ("eagle3", {"rope_theta": 50.0}, {}, None, "rope_theta"),
    ("eagle3", {"norm_output": True}, {}, None, "norm_output"),
    ("eagle3", {"norm_before_residual": True}, {}, None, "norm_before_residual"),
    ("eagle3", {"fc_norm": True}, {}, None, "fc_norm"),
    ("eagle3", {"fc_norm": True, "norm_output": True}, {}, None, "norm_output"),
    ("eagle3", {"norm_before_fc": True}, {}, None, "norm_before_fc"),
    ("eagle3", {"fc_norm": True, **FOUR}, {"layer_ids": "inputs"}, (1, 3, 5, 6), "fc_norm"),
    ("eagle3", {IDS: [6, 0, 3]}, {"layer_ids": "outputs"}, (1, 4, 7), None),
    ("eagle3", {"eagle_config": {IDS: [0, 1]}, "states": 2}, {"layer_ids": "inputs"}, (0, 1), None),
    ("eagle3", WINDOW, {}, None, "layer_types"),
    ("eagle3", {"draft_vocab": None, "hidden_size": 32, "target_hidden_size": 64}, {}, None, None),
    ("eagle3", {"hidden_size": 32, "target_hidden_size": 64, "fc_norm": True}, {}, None, "fc_norm"),
    ("nested", ALL, {}, None, "norm_output"),
    ("nested", {**ALL, **FOUR}, {}, (1, 3, 5, 6), "norm_before_residual"),
]


@pytest.mark.parametrize("name, config, more, layers, field", WIRED)
def test_drafts_equal_a_slow_reference(tmp_path, name, config, more, layers, field):
    """Other drafts if the reference overlooks the field; answers are vanilla's."""
    own = name.replace("nested", "eagle3")
    kind, target = KINDS[own], target_of(own)
    path = kind.new_head(tmp_path, **config)
    if name == "nested":
        change(path, rename=lambda tensor: tensor.replace("midlayer", "layers.0"))
        nest(path)
    recording = Recording(kind.drafter(kind.load(path, target, **more)))
    turns = decode(target, recording, loopy_prompts(3), 8, num_slots=2)
    assert outputs(turns) == outputs(decode(target, EmptyDrafter(), loopy_prompts(3), 8))
    found = kind.slow_steps(recording, target.model, path, layers=layers)
    assert found == (0, len(recording.drafts)) and recording.drafts
    if field:
        wrong, steps = kind.slow_steps(recording, target.model, path, field, layers=layers)
        assert wrong > steps // 2


def test_what_the_head_trained_or_lacks(tmp_path):
    """The target's lm_head where none is stored; an own embedding where it was trained."""
    kind, target = KINDS["eagle3"], target_of("eagle3")
    path = kind.new_head(tmp_path, draft_vocab=None, num_attention_heads=4)

    def agree():
        recording = Recording(kind.drafter(kind.load(path, target)))
        decode(target, recording, loopy_prompts(2), 9)
        return kind.slow_steps(recording, target.model, path)[0] == 0

    change(path, lambda tensors: tensors.pop("lm_head.weight"))
    assert agree() and kind.load(path, target).num_ids == 17
    change(path, lambda tensors: tensors.update(OWN), embed_requires_grad=True)
    head = kind.load(path, target)
    assert agree() and torch.equal(head.module.borrowed[0].weight.float(), *OWN.values())
    change(path, lambda tensors: tensors.pop("embed_tokens.weight"))
    refused(lambda: kind.load(path, target), r"no tensor embed_tokens.weight, expected \(17, 64\)")
    change(path, embed_requires_grad=False, tie_word_embeddings=True)
    refused(lambda: kind.load(path, target), r"no tensor lm_head.weight, expected \(17, 64\)")


@pytest.mark.parametrize("name", ["layers", "borrowed", "own embedding", "window"])
def test_twins_draft_what_their_origins_do(tmp_path, name):
    """Norms, layers, window and what is borrowed or owned, at a larger size."""
    config, more, kind = {"fc_norm": True, "norm_output": True}, {}, KINDS["eagle3"]
    if name == "layers":
        config, more = {"norm_before_fc": True, IDS: [1, 3, 6]}, {"layer_ids": "inputs"}
    elif name == "window":
        config = {**WINDOW, "norm_before_residual": True, "attention_bias": True}
    else:
        config |= {"draft_vocab": None, "embed_requires_grad": name == "own embedding"}
    path = kind.new_head(tmp_path, **config)
    if name == "borrowed":
        change(path, lambda tensors: tensors.pop("lm_head.weight"))
    if name == "own embedding":
        change(path, lambda tensors: tensors.update(OWN))
    origin = target_of("eagle3")
    twin = Twin(origin, read_shape("128x16x200x40"), "a twin")
    runs = []
    for target in (origin, Target(twin.model(torch.float64, "cpu"), twin=twin)):
        drafter = kind.drafter(kind.load(path, target, **more))
        runs.append(facts(decode(target, drafter, loopy_prompts(3), 12)))
    assert runs[0] == runs[1]
    assert max(max(lengths) for _, lengths, *_ in runs[0]) > 1 or name == "own embedding"


def refused(call, line):
    with pytest.raises(BadInput, match=line) as error:
        call()
    assert "\n" not in str(error.value)


def module_of(norm_weight, states=3, **wiring):
    """A module of width 2 without eps, whose fc is the identity on the first state."""
    fields = {"hidden_size": 2, "intermediate_size": 2, "num_attention_heads": 1, "vocab_size": 5}
    config = llama_config({**fields, "rms_norm_eps": 0.0, "head_dim": 2})
    module = Eagle3Module(config, 5, 2, torch.nn.Embedding(5, 2), wiring=Wiring(states, **wiring))
    module.norm.weight.data = torch.tensor(norm_weight)
    return module.requires_grad_(False)


def test_golden_values_of_the_norms():
    """By hand: the row (3, 4) behind a norm of weight (2, 1), states of 3 : 4 in three sizes."""
    row, states = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4, 30, 40, 300, 400])
    wanted = torch.tensor([1.69706, 1.13137])
    for norm_output in (False, True):
        module = module_of([2.0, 1.0], norm_output=norm_output)
        module.midlayer.forward = lambda *given: row
        out = module((torch.tensor(0), row), None, None, None)
        assert torch.allclose(out, wanted if norm_output else row, atol=1e-5)
        assert torch.allclose(module.logits(out), module.lm_head(wanted), atol=1e-5)
    for name, known in (
        ("fc_norm", [0.84853, 1.13137] * 3),
        ("norm_before_fc", [0.01462, 0.01950, 0.14623, 0.19498, 1.46233, 1.94977]),
    ):
        module = module_of([1.0, 1.0], **{name: True})
        assert torch.allclose(module.fuse(states), module.fc(torch.tensor(known)), atol=1e-4)


def test_norm_output_means_two_things(tmp_path, capsys):
    """The flag settles it; what is drafted first is the same, what follows is not."""
    target, kind = target_of("eagle3"), KINDS["eagle3"]
    path, drafts = kind.new_head(tmp_path, norm_output=True), {}
    for flag in ("config", "on", "off"):
        args = parsed(script, "eagle3", "--eagle-path", path, "--norm-output", flag, *SMALL)
        recording = Recording(script.build(args, target))
        decode(target, recording, loopy_prompts(1), 6)
        drafts[flag] = [one.paths for one in recording.drafts]
        assert recording.inner.facts()["wiring"] == ("plain" if flag == "off" else "norm_output")
        assert ("--norm-output off" in capsys.readouterr().err) == (flag == "config")
    assert drafts["config"] == drafts["on"] != drafts["off"]
    first = [[{path[0] for path in paths} for paths in drafts[flag]] for flag in ("on", "off")]
    assert first[0] == first[1]
    nest(path)
    kind.load(path, target)
    assert capsys.readouterr().err == ""  # speculators' means one thing


SMALL = ["--total-token", 13, "--depth", 3, "--draft-top-k", 3]
LAYERS = [  # (layers of the target, fields, --layer-ids, layers whose inputs are read)
    *[(n, {}, "config", fused) for n, fused in ((8, (2, 4, 5)), (32, (2, 16, 29)))],
    *[(n, {IDS: None}, "config", fused) for n, fused in ((40, (2, 20, 37)), (80, (2, 40, 77)))],
    (36, {IDS: [1, 17, 32]}, "config", (2, 18, 33)),
    (36, {"eagle_config": {IDS: [32, 1, 17]}}, "config", (2, 18, 33)),
    (61, {IDS: [2, 30, 58], "eagle_config": {IDS: [2, 30, 58]}}, "config", (2, 30, 58)),
    (61, {"eagle_config": {IDS: [1, 29, 57]}}, "config", (2, 30, 58)),
    (36, {IDS: [1, 17, 32]}, "inputs", (1, 17, 32)),  # of one of Model-Optimizer's dumps
    (36, {IDS: [1, 17, 33]}, "outputs", (2, 18, 34)),
    (94, {IDS: [2, 46, 91, 93], "speculators_model_type": "eagle3"}, "config", (2, 46, 91, 93)),
    (6, {IDS: [1, 2, 4], "num_aux_hidden_states": 3}, "inputs", (1, 2, 4)),
    (36, {IDS: [1, 17, 33]}, "config", "not the usual [2, 18, 33]; --layer-ids says"),
    (36, {IDS: [1, 17], "eagle_config": {IDS: [2, 18]}}, "inputs", "[1, 17] at the root and [2"),
    (36, {IDS: [24, 30, 36]}, "inputs", "36 layers, inputs of 0 to 35"),
    (36, {IDS: [24, 30, 35]}, "outputs", "36 layers, inputs of 0 to 35"),
    (36, {IDS: [-1, 30, 35]}, "inputs", "36 layers"),
    (36, {IDS: [2, 2, 33]}, "inputs", "two different layers or more"),
    (36, {IDS: [35]}, "inputs", "two different layers or more"),
    (36, {IDS: [1.0, 17, 32]}, "config", "are no layer ids"),
    (36, {IDS: "1,17,32"}, "config", "are no layer ids"),
    (36, {IDS: [2, 18, 33], "num_aux_hidden_states": 5}, "config", "num_aux_hidden_states 5, but"),
    (7, {}, "config", "at least 8 layers, not 7"),
]


@pytest.mark.parametrize("num_layers, fields, flag, wanted", LAYERS)
def test_layer_ids(num_layers, fields, flag, wanted):
    """Known in both spellings where they are the usual ones, in the order of layers."""
    if isinstance(wanted, tuple):
        assert read_layers(fields, "config.json", num_layers, flag) == wanted
        assert fields or fused_layers(num_layers) == wanted
        return
    with pytest.raises(BadInput) as error:
        read_layers(fields, "config.json", num_layers, flag)
    assert wanted in str(error.value) and "\n" not in str(error.value)


REFUSED = [  # (fields of the config, or in transformer_layer_config, words of the line)
    (
        {"architectures": ["PEagleDraftModel"]},
        "a P-EAGLE head (parallel drafting), which is the method peagle's",
    ),
    ({"speculators_model_type": "peagle"}, "a P-EAGLE head"),
    ({"parallel_drafting": True}, "a P-EAGLE head"),
    ({"speculators_model_type": "dflash"}, "speculators_model_type dflash, eagle3 is needed"),
    ({"architectures": ["Eagle3DeepseekV2ForCausalLM"]}, "Eagle3DeepseekV2ForCausalLM has latent"),
    ({"architectures": ["Qwen3Eagle3Model"]}, "Qwen3Eagle3Model reads five states and norms"),
    ({"architectures": ["Gemma4Eagle3Model"]}, "Gemma4Eagle3Model reads five states"),
    ({"fc_norm": True, "norm_before_fc": True}, "norm_before_fc and fc_norm exclude each other"),
    ({"fc_norm": True}, "no tensor fc_norm.0.weight, expected (64,)"),
    ({"norm_before_fc": True}, "no tensor input_norm.weight, expected (192,)"),
    ({"norm_output": "yes"}, "norm_output 'yes' is neither true nor false"),
    (
        {"norm_output": True, "eagle_config": {"norm_output": False}},
        "True at the root and False in",
    ),
    ({"use_aux_hidden_state": False}, "use_aux_hidden_state false is not supported"),
    ({"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state false"),
    ({"eagle_config": {"use_last_layernorm": False}}, "use_last_layernorm false is not supported"),
    ({"eagle_config": {"parallel_draft_step": 4}}, "parallel_draft_step 4 is not supported"),
    ({"eagle_config": [1]}, "eagle_config is no object"),
    ({"logit_scale": 0.5}, "logit_scale 0.5 is not supported"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is not supported"),
    ({"rope_scaling": {"type": "spiral"}}, "RoPE of type 'spiral' is not known"),
    ({"use_sliding_window": True, "sliding_window": 8}, "no layer_types that say where"),
    ({"layer_types": ["chunked_attention"]}, "chunked_attention with sliding_window None is not"),
    ({"bias": True}, "bias true is not supported"),
    ({"transformer_layer_config": {"model_type": "qwen3"}}, "of type qwen3, only llama is read"),
    ({"hidden_size": 192, "target_hidden_size": 64}, "3 states of 64 are as wide as the head"),
    ({"transformer_layer_config": {}}, "no norm_before_residual, for which readers differ"),
]


@pytest.mark.parametrize("fields, line", REFUSED, ids=[line for _, line in REFUSED])
def test_fields_that_change_the_wiring_are_refused(tmp_path, fields, line):
    path = KINDS["eagle3"].new_head(tmp_path)
    change(path, **fields)
    with pytest.raises(BadInput) as error:
        KINDS["eagle3"].load(path, target_of("eagle3"))
    assert line in str(error.value) and str(error.value).startswith(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["eagle", "eagle3"])
def test_unknown_fields_are_named_in_a_line(tmp_path, name, capsys):
    path = KINDS[name].new_head(tmp_path, twist=2, architectures=["GemmaForCausalLM"], dropped=None)
    KINDS[name].load(path, target_of(name))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path}/config.json: fields that nothing here reads")
    assert line.endswith(": twist, architectures GemmaForCausalLM")


def test_a_mask_state_is_p_eagles(tmp_path):
    path = KINDS["eagle3"].new_head(tmp_path)
    change(path, lambda tensors: tensors.update(mask_hidden=torch.ones(1, 1, 192)))
    refused(lambda: KINDS["eagle3"].load(path, target_of("eagle3")), "a P-EAGLE head")
