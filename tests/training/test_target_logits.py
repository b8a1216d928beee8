"""Logits in training: the target's own, factor and cap included, and of few rows at a time."""

import json

import pytest
import torch
from conftest import make_model
from eagle_dirs import eagle_dir
from test_head_training import batch_of, cross_entropy, training
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.common.errors import BadInput
from model.common.target.logits import check_logits, logit_factor
from model.common.target.model import Target
from model.common.training import step
from model.common.training.features import FrozenTarget
from model.eagle.head import load_eagle

GRANITE = {"family": "granite", "logits_scaling": 8.0}
TARGETS = [  # shape, what the LM head's outputs are multiplied by
    ({"family": "llama"}, 1),
    (GRANITE, 1 / 8),
    ({"family": "cohere", "logit_scale": 0.25}, 1 / 4),
    ({"family": "gemma2", "final_logit_softcapping": 3.0}, 1),
    ({"family": "hyperclovax", "logits_scaling": 0.5}, 1 / 2),
]
every_target = pytest.mark.parametrize("shape, factor", TARGETS, ids=str)
close = {"atol": 1e-4, "rtol": 1e-4}


def known(shape):
    """Skip a family that the installed transformers lacks."""
    pytest.importorskip(f"transformers.models.{shape['family']}")


@every_target
def test_states_have_the_models_logits(tmp_path, shape, factor):
    """In training, and in EAGLE's head; the LM head alone would give others."""
    known(shape)
    ids = torch.randint(1, 97, (2, 9), generator=torch.Generator().manual_seed(3))
    target, loaded = FrozenTarget(make_model(**shape)), Target(make_model(**shape))
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 64, "vocab_size": 97}))
    head = load_eagle(eagle_dir(tmp_path / "head", tmp_path), loaded)
    with torch.no_grad():
        own = target.model(input_ids=ids, use_cache=False).logits
        states = target.hidden(ids, ("last",), ids > 0)["last"]
        torch.testing.assert_close(target.logits(states), own, **close)
        torch.testing.assert_close(head.logits(states), own, **close)
        assert torch.allclose(target.lm_head(states), own) == (shape["family"] == "llama")
    assert logit_factor(target.config) == factor
    check_logits(target.model)


@every_target
def test_a_perfect_guess_has_the_targets_own_entropy(shape, factor):
    """What EAGLE guesses and what it should have guessed go through one function."""
    known(shape)
    method, target = training("eagle", **shape)
    batch = batch_of(method, target)

    def states(batch, features, places):
        yield places.of(batch.hidden["last"].roll(-1, 1))

    method.states = states
    _, metrics = method.loss(batch)
    with torch.no_grad():
        logits = target.model(input_ids=batch.ids, use_cache=False).logits
    own = logits[batch.labelled(2).roll(1, 1)]
    wanted = cross_entropy(own, own).mean()
    torch.testing.assert_close(metrics["cross_entropy"], wanted, **close)


@pytest.mark.parametrize(
    "name, output, flags",
    [
        ("medusa", "0.1.weight", []),
        ("hydra", "hydra_lm_head.0.1.weight", []),
        ("eagle3", "lm_head.weight", ["--lm-head-init", "target"]),
    ],
)
def test_output_matrices_begin_as_the_targets(name, output, flags):
    method, target = training(name, *flags, **GRANITE)
    assert torch.equal(method.module.state_dict()[output], target.lm_head.weight / 8)


def test_a_target_that_does_something_else_is_refused():
    def doubled(module, given, out):
        out["logits"] = out["logits"] * 2
        return out

    target = FrozenTarget(make_model())
    check_logits(target.model)
    target.model.register_forward_hook(doubled)
    with pytest.raises(BadInput, match="llama: its logits are not its LM head's outputs") as told:
        check_logits(target.model)
    assert "\n" not in str(told.value)


# --- rows at a time ---

ALL_AT_ONCE = 10**6
TRAINERS = [
    ("medusa", ["--num-heads", "3", "--head-decay", "0.8"]),
    ("hydra", ["--num-heads", "3", "--lm-weight", "0.3"]),
    ("eagle", []),
    ("eagle", ["--loss-vocab-size", "11"]),
    ("eagle3", ["--unroll", "3"]),
    ("eagle3", ["--unroll", "3", "--draft-vocab-size", "11"]),
]


@pytest.mark.parametrize("name, flags", TRAINERS, ids=str)
def test_chunks_of_rows_change_nothing(name, flags, monkeypatch):
    """Loss, what is said of it, and gradients."""
    found = []
    for most in (ALL_AT_ONCE, 4):
        monkeypatch.setattr(step, "LOGIT_ROWS", most)
        method, target = training(name, *flags)
        method.module.eval()  # no noise, no dropout
        loss, metrics = method.loss(batch_of(method, target))
        loss.backward()
        grads = {name: part.grad for name, part in method.module.named_parameters()}
        assert all(grad is not None and grad.any() for grad in grads.values())
        found.append({"loss": loss.detach(), **metrics, **grads})
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)


class Rows(TorchDispatchMode):
    """The most rows of `width` numbers that an operation has given."""

    def __init__(self, width):
        super().__init__()
        self.width, self.most = width, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in tree_leaves(out):
            if isinstance(part, torch.Tensor) and part.dim() > 1 and part.shape[-1] == self.width:
                self.most = max(self.most, part.numel() // self.width)
        return out


@pytest.mark.parametrize("name, flags", TRAINERS[:3], ids=str)
def test_no_tensor_has_the_logits_of_all_rows(name, flags, monkeypatch):
    """Backward pass included. The output matrix itself, turned, has 64 rows of 23 numbers."""
    found = []
    for most in (ALL_AT_ONCE, 70):
        monkeypatch.setattr(step, "LOGIT_ROWS", most)
        method, target = training(name, *flags)
        batch = batch_of(method, target, lengths=(120, 90, 150))
        with Rows(23) as rows:
            method.loss(batch)[0].backward()
        found.append(rows.most)
    assert found[0] > 150 and found[1] <= 70
