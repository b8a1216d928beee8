"""Medusa's heads: the published formats, bad files, flags, what training starts from."""

import json

import pytest
import torch
from conftest import make_model
from head_dirs import medusa_heads

from model.common import args as arguments
from model.common.errors import BadInput
from model.common.heads.checkpoint import save_checkpoint
from model.common.target.model import Target
from model.medusa import inference_medusa as script
from model.medusa.drafter import MedusaDrafter
from model.medusa.heads import MedusaHeads, load_heads

PARAMETERS = {4096: 739_266_560, 5120: 950_297_600, 6656: 1_286_504_960}
TYPICAL = ["--acceptance", "typical"]
CUTS = ["--top-p", 0.9], ["--top-k", 5], ["--min-p", 0.1]
HEAD_FILE, WHOLE_FILE = "medusa_lm_head.pt", "model.safetensors"


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


@pytest.mark.parametrize("size", PARAMETERS)
def test_published_format(size):
    with torch.device("meta"):
        state = MedusaHeads(5, size, 32000).state_dict()
    wanted = {}
    for i in range(5):
        wanted[f"{i}.0.linear.weight"] = (size, size)
        wanted[f"{i}.0.linear.bias"] = (size,)
        wanted[f"{i}.1.weight"] = (32000, size)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == wanted
    assert sum(tensor.numel() for tensor in state.values()) == PARAMETERS[size]


def packed_names(state):
    """vLLM's names."""
    return {
        f"lm_heads.{name[0]}.weight"
        if ".linear." not in name
        else f"blocks.{name[0]}.layers.{name[2]}.{name.split('.')[-1]}": tensor
        for name, tensor in state.items()
    }


def saved(folder, state, kind="heads"):
    """Write heads in one of the formats; returns the directory."""
    if kind == "heads":
        save_checkpoint(folder, {"medusa_num_heads": 2}, HEAD_FILE, state)
    elif kind == "safetensors":
        save_checkpoint(folder, {"medusa_num_heads": 2}, "medusa_lm_head.safetensors", state)
    elif kind == "vllm":
        save_checkpoint(folder, {"model_type": "medusa"}, WHOLE_FILE, packed_names(state))
    else:
        whole = {f"medusa_head.{name}": tensor for name, tensor in state.items()}
        whole["model.embed_tokens.weight"] = torch.zeros(97, 64)
        save_checkpoint(folder, {"model_type": "llama"}, WHOLE_FILE, whole)
        if kind == "sharded":
            (folder / WHOLE_FILE).rename(folder / "a.safetensors")
            index = {"weight_map": dict.fromkeys(whole, "a.safetensors")}
            (folder / f"{WHOLE_FILE}.index.json").write_text(json.dumps(index))
    return str(folder)


@pytest.mark.parametrize("kind", ["heads", "safetensors", "vllm", "medusa-2", "sharded"])
def test_formats_are_read(kind, target, tmp_path):
    heads = medusa_heads()
    path = saved(tmp_path / "heads", heads.state_dict(), kind)
    rows = torch.randn(3, 64)
    for num_heads in (5, 4):
        loaded = load_heads(path, target, num_heads)
        assert len(loaded.state_dict()) == 3 * num_heads
        assert torch.equal(loaded(rows), heads(rows)[:num_heads])


def test_two_layers_are_read(target, tmp_path):
    heads = medusa_heads(num_heads=2, num_layers=2)
    rows = torch.randn(3, 64)
    for kind in ("heads", "vllm"):
        loaded = load_heads(saved(tmp_path / kind, heads.state_dict(), kind), target, 2)
        assert torch.equal(loaded(rows), heads(rows))


def test_version_2_heads_end_in_the_targets_output_matrix(target, tmp_path):
    heads = medusa_heads(num_heads=3)
    state = {n: t for n, t in heads.state_dict().items() if ".linear." in n}
    save_checkpoint(tmp_path, {"version": "2"}, "medusa_lm_head.safetensors", state)
    loaded = load_heads(str(tmp_path), target, 3)
    rows = torch.randn(3, 64)
    lm_head = target.model.lm_head
    for k in range(3):
        block = [state[f"{k}.0.linear.{part}"] for part in ("weight", "bias")]
        wanted = lm_head(rows + torch.nn.functional.silu(rows @ block[0].T + block[1]))
        assert torch.allclose(loaded(rows)[k], wanted, atol=1e-5)
    assert loaded.state_dict().keys() == state.keys()
    drafter = MedusaDrafter(loaded, [(0,), (0, 0)], target)
    assert drafter.facts() == {"head_bytes": 3 * (64 * 64 + 64) * 4}


def test_vllm_packing_without_biases(target, tmp_path):
    heads = medusa_heads(num_heads=4)
    state = {n: t for n, t in heads.state_dict().items() if not n.endswith("bias")}
    loaded = load_heads(saved(tmp_path, state, "vllm"), target, 4)
    assert all((loaded.state_dict()[f"{k}.0.linear.bias"] == 0).all() for k in range(4))
    config = {"model_type": "medusa", "medusa_fc_bias": True}
    save_checkpoint(tmp_path, config, WHOLE_FILE, packed_names(state))
    with pytest.raises(BadInput, match=r"no tensor blocks.0.layers.0.bias, expected \(64,\)"):
        load_heads(str(tmp_path), target, 4)


BAD = [  # (format, tensor -> None or another one, what the line says)
    ("heads", {"2.0.linear.bias": None}, r"no tensor 2.0.linear.bias, expected \(64,\)"),
    ("heads", {"1.1.weight": None}, r"no tensor 1.1.weight, expected \(97, 64\)"),
    ("heads", {"4.1.weight": torch.zeros(98, 64)}, r"4.1.weight is \(98, 64\), expected \(97, 64"),
    ("heads", {"0.0.linear.weight": torch.zeros(64, 32)}, r"0.0.linear.weight is \(64, 32\)"),
    ("heads", {"7.1.weight": torch.zeros(97, 64)}, r"unknown tensor 7.1.weight \(97, 64\)"),
    ("heads", {"extra": torch.zeros(2)}, r"unknown tensor extra \(2,\)"),
    ("medusa-2", {"0.0.linear.bias": torch.zeros(1)}, r"0.0.linear.bias is \(1,\), expected"),
    ("vllm", {"3.1.weight": torch.zeros(9, 64)}, r"lm_heads.3.weight is \(9, 64\), expected \(97"),
    ("vllm", {"3.0.linear.bias": None}, r"no tensor blocks.3.layers.0.bias"),
    ("heads", {f"{k}.1.weight": None for k in range(5)}, "no tensor 0.1.weight"),
    ("heads", {f"{k}.0.linear.weight": None for k in range(5)}, "no Medusa head"),
]


@pytest.mark.parametrize("kind, changes, line", BAD)
def test_bad_tensors_are_one_line(kind, changes, line, target, tmp_path):
    state = {**medusa_heads().state_dict(), **changes}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(BadInput, match=line) as error:
        load_heads(saved(tmp_path, state, kind), target, 4)
    assert "\n" not in str(error.value)


def test_places_without_heads_are_one_line(target, tmp_path):
    with pytest.raises(BadInput, match="no such model directory"):
        load_heads(str(tmp_path / "none"), target, 4)
    for config, line in (({}, "medusa_lm_head"), ({"model_type": "llama"}, "model.safetensors")):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(BadInput, match=f"none of {line}"):
            load_heads(str(tmp_path), target, 4)


def parsed(*flags):
    parser = arguments.make_parser("medusa", script.__doc__, script.add_args)
    return parser.parse_args(["--model-path", "m", *map(str, flags)])


def test_flags(target, tmp_path):
    path = saved(tmp_path, medusa_heads(num_heads=3).state_dict())
    small = tmp_path / "tree.json"
    small.write_text("[[0], [1], [0, 0]]")
    drafter = script.build(parsed("--medusa-path", path, "--tree", small), target)
    assert (len(drafter.tree), len(drafter.heads.state_dict())) == (3, 6)
    args = parsed("--medusa-path", path, "--tree", small, "--medusa-num-heads", 3)
    assert len(script.build(args, target).heads.state_dict()) == 9
    for flags, line in (
        ([], "3 heads, 4 are needed"),
        (["--medusa-num-heads", 3], "depth of 4 needs 4 heads, --medusa-num-heads is 3"),
        (TYPICAL, "needs --temperature above 0"),
        *(([*TYPICAL, "--temperature", 1, *cut], "exclude each other") for cut in CUTS),
        (["--posterior-threshold", 0.2], "need --acceptance typical"),
        (["--posterior-alpha", 0.2, "--temperature", 1], "need --acceptance typical"),
        (["--tree", "none"], "--tree none: neither"),
    ):
        with pytest.raises(BadInput, match=line):
            script.build(parsed("--medusa-path", path, *flags), target)
    args = parsed("--medusa-path", path)
    assert (args.posterior_threshold, args.posterior_alpha) == (0.09, 0.3)


def test_training_forward_and_init(target):
    heads = medusa_heads(num_heads=3)
    hidden = torch.randn(2, 5, 64)
    logits = heads(hidden)
    assert logits.shape == (3, 2, 5, 97)
    assert torch.allclose(heads(hidden[1, 3]), logits[:, 1, 3], atol=1e-5)
    heads.init_from(target.model.lm_head)
    for head in heads.children():
        assert (head[0].linear.weight == 0).all() and (head[0].linear.bias != 0).any()
        head[0].linear.bias.data.zero_()
        assert torch.equal(head(hidden), target.model.lm_head(hidden))
