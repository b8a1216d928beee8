"""Trainers of heads on a device that is not the host's memory: a pretended one, see there."""

import pytest
import torch
from pretend_devices import device, pretended
from test_head_training import batch_of, training

HEADS = [("medusa", []), ("hydra", []), ("hydra", ["--arch", "mlp"]), ("eagle", []), ("eagle3", [])]


@torch.inference_mode()
def found_on(place, name, flags):
    """Loss and what is said of it, greedy chains (None: the method has none), on a device."""
    method, target = training(name, *flags, device=place)
    method.module.to(place).eval()  # no noise, no dropout
    batch = batch_of(method, target)
    loss, metrics = method.loss(batch)
    chains = method.drafts(batch, 3)
    numbers = {"loss": loss, **metrics}
    told = {key: value.cpu().item() for key, value in numbers.items()}
    return told, None if chains is None else chains.tolist()


@pytest.mark.parametrize("name, flags", HEADS, ids=str)
def test_losses_and_chains_are_those_of_the_host(name, flags):
    expected, chains = found_on("cpu", name, flags)
    with pretended():
        found = found_on(device(0), name, flags)
    assert found == (pytest.approx(expected), chains)
