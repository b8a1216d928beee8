"""Acceptance heads: the published format, sizes, tied blocks, and files that are refused."""

import json

import pytest
import torch
from specdecpp_dirs import make_head

from model.common.errors import BadInput
from model.common.heads.checkpoint import save_checkpoint
from model.specdecpp.heads import AcceptanceHead, file_names, load_head, state_to_save

CONFIG = {"hidden_size": 64, "num_layers": 3}


def published(num_layers, size):
    """Names and shapes of a published file."""
    shapes = {}
    for layer in range(num_layers):
        shapes[f"model.{layer}.linear.weight"] = (size, size)
        shapes[f"model.{layer}.linear.bias"] = (size,)
    shapes[f"model.{num_layers}.weight"] = (2, size)
    shapes[f"model.{num_layers}.bias"] = (2,)
    return shapes


@pytest.mark.parametrize("tied, num_bytes", [(True, 67_158_024), (False, 201_408_520)])
def test_names_shapes_and_bytes_of_the_published_head(tied, num_bytes):
    with torch.device("meta"):
        head = AcceptanceHead(4096, 3, tied)
    state, names = head.state_dict(), file_names(3, len(head.blocks))
    assert {name: tuple(state[own].shape) for name, own in names.items()} == published(3, 4096)
    assert 4 * sum(p.numel() for p in head.parameters()) == num_bytes
    assert set(names.values()) == set(state)


def whole(head):
    """Every tensor of the published file, aliases included."""
    state, num_own = head.state_dict(), max(len(head.blocks), 1)
    return {name: state[own] for name, own in file_names(head.num_layers, num_own).items()}


def by_definition(tensors, states):
    """Probability of acceptance of one state [H], from the published tensors."""
    for layer in range(3):
        inner = tensors[f"model.{layer}.linear.weight"] @ states
        inner = inner + tensors[f"model.{layer}.linear.bias"]
        states = states + inner * inner.sigmoid()
    refused, accepted = tensors["model.3.weight"] @ states + tensors["model.3.bias"]
    return (accepted - refused).sigmoid()


@pytest.mark.parametrize("tied", [True, False])
def test_scores_are_those_of_the_definition(tied):
    head = make_head(tied=tied)
    states = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    wanted = torch.stack([by_definition(whole(head), state) for state in states])
    torch.testing.assert_close(head.accepted(states), wanted)
    torch.testing.assert_close(head(states).softmax(-1)[:, 1], wanted)
    assert head.accepted(states.half()).dtype == torch.float32


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("names", ["all", "as saved"])
def test_round_trip(tmp_path, file, tied, names):
    head = make_head(tied=tied)
    tensors = whole(head) if names == "all" else state_to_save(head)
    if file.endswith(".safetensors"):
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    save_checkpoint(tmp_path, CONFIG, file, tensors)
    if tied:
        assert len(state_to_save(head)) == 4  # one block
    if file.endswith(".bin") and tied:  # aliases take no room
        assert (tmp_path / file).stat().st_size < 4 * 64 * 64 * 2
    loaded = load_head(str(tmp_path), 64, "cpu")
    states = torch.randn(5, 64)
    assert torch.equal(loaded.accepted(states), head.accepted(states))
    assert len(loaded.blocks) == (1 if tied else 3)
    assert not any(weight.requires_grad for weight in loaded.parameters())


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_any_one_block_stands_for_all(tmp_path, layer):
    head = make_head()
    kept = {
        name: tensor
        for name, tensor in whole(head).items()
        if ".linear." not in name or name.startswith(f"model.{layer}.")
    }
    save_checkpoint(tmp_path, CONFIG, "pytorch_model.bin", kept)
    states = torch.randn(5, 64)
    loaded = load_head(str(tmp_path), 64, "cpu")
    assert torch.equal(loaded.accepted(states), head.accepted(states))


def test_half_precision_files_are_read_in_float32(tmp_path):
    head = make_head().half()
    save_checkpoint(tmp_path, CONFIG, "pytorch_model.bin", whole(head))
    loaded = load_head(str(tmp_path), 64, "cpu")
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    states = torch.randn(5, 64)
    assert torch.equal(loaded.accepted(states), head.float().accepted(states))


def bad(changes, line, config=(), tied=False, size=64):
    return pytest.param(changes, {**CONFIG, **dict(config)}, tied, size, line, id=line)


BAD = [  # all tensors of the published file but for the changes; None = left out
    *(bad({name: None}, f"no tensor {name}, expected") for name in sorted(published(3, 64))),
    bad({f"model.{j}.linear.bias": None for j in range(3)}, "model.0.linear.bias", tied=True),
    bad({n: None for n in published(3, 64) if "linear" in n}, "no tensor model.0.linear."),
    bad({"model.4.weight": torch.zeros(2, 64)}, "unknown tensor model.4.weight (2, 64)"),
    bad({"model.3.weight": torch.zeros(1, 64)}, "model.3.weight is (1, 64), expected (2, 64)"),
    bad({}, "no tensor model.4.bias, expected (2,)", {"num_layers": 4}, tied=True),
    bad({}, "model.2.", {"num_layers": 2}),
    bad({}, "a head of 64 numbers, the draft model has 128", size=128),
    bad({}, "is (64,), expected (32,)", {"hidden_size": 32}, size=32),
    *(bad({}, f"num_layers is {value!r}", {"num_layers": value}) for value in ("3", -1, 2.0, True)),
]


@pytest.mark.parametrize("changes, config, tied, size, line", BAD)
def test_bad_heads_are_one_line(tmp_path, changes, config, tied, size, line):
    tensors = {**whole(make_head(tied=tied)), **changes}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_checkpoint(tmp_path, config, "pytorch_model.bin", tensors)
    with pytest.raises(BadInput) as error:
        load_head(str(tmp_path), size, "cpu")
    assert line in str(error.value) and "\n" not in str(error.value)


def test_no_layers_are_the_published_default(tmp_path):
    head = make_head(num_layers=0)
    save_checkpoint(tmp_path, {"hidden_size": 64}, "pytorch_model.bin", whole(head))
    assert load_head(str(tmp_path), 64, "cpu").num_layers == 0


def test_no_files(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(BadInput, match="none of model.safetensors, pytorch_model.bin is there"):
        load_head(str(tmp_path), 64, "cpu")
    (tmp_path / "pytorch_model.bin").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="pytorch_model.bin"):
        load_head(str(tmp_path), 64, "cpu")
