"""SD2's trainer: losses against truncated models, what is saved, SoFT against SFT."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import make_prompts
from interrupted import curve
from sd2_slow import EXITS, draft_model
from trainers import SMALL, new_files, trained

from model.common.prompts.templates import Row
from model.common.target.loading import load_model
from model.sd2 import train as script
from model.sd2.losses import mean_losses


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return new_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def soft(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("soft")
    trained("sd2", files, folder)
    return folder


# --- losses ---


def batch_of(prompts):
    """ids and the rows that predict an answer's token: all but the first five of a row."""
    longest = max(map(len, prompts))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in prompts])
    place = torch.arange(longest)
    lengths = torch.tensor([len(row) for row in prompts]).unsqueeze(1)
    return ids, (place >= 4) & (place < lengths - 1)


def plain_loss(layers, ids, chosen):
    """transformers' own loss of the same weights with fewer layers."""
    small = draft_model(num_hidden_layers=layers)
    small.load_state_dict(draft_model().state_dict(), strict=False)
    small.set_attn_implementation("eager")
    labels = torch.full_like(ids, -100)
    labels[:, 1:] = ids[:, 1:].masked_fill(~chosen[:, :-1], -100)
    return small(ids, labels=labels).loss


def loss_of(model, loss, batch):
    """(loss, metrics) without a run."""
    method = script.SortedTraining.__new__(script.SortedTraining)
    method.module, method.exits, method.args = model, EXITS, SimpleNamespace(loss=loss)
    return method.loss(batch)


def test_soft_is_the_mean_and_sft_the_last():
    """Of the losses of the truncated models; an evaluation tells all."""
    ids, chosen = batch_of(make_prompts(3))
    wanted = [plain_loss(layers, ids, chosen) for layers in EXITS]
    model = draft_model()
    model.set_attn_implementation("sdpa")
    batch = SimpleNamespace(ids=ids, labelled=lambda shift: chosen if shift == 1 else None)
    for name, training, total, told in (
        ("soft", True, sum(wanted) / 3, EXITS),
        ("sft", True, wanted[-1], EXITS[-1:]),
        ("sft", False, wanted[-1], EXITS),
    ):
        loss, metrics = loss_of(model.train(training), name, batch)
        torch.testing.assert_close(loss, total, atol=1e-5, rtol=1e-5)
        assert len(metrics) == 2 * len(told)
        for layer, own in zip(EXITS, wanted):
            if layer in told:
                found = metrics[f"loss_exit_{layer}"]
                torch.testing.assert_close(found, own.detach(), atol=1e-5, rtol=1e-5)
                assert 0 <= metrics[f"accuracy_exit_{layer}"] <= 1


def test_mean_losses_are_over_all_tokens():
    """Batches count by their labelled tokens."""
    model, rows = draft_model(), []
    model.set_attn_implementation("sdpa")
    for prompt in make_prompts(4):
        mask = torch.arange(len(prompt)) >= min(4, len(prompt) - 1)
        rows.append(Row(torch.tensor(prompt, dtype=torch.int32), mask))
    whole = mean_losses(model, [rows], EXITS)
    parts = mean_losses(model, [rows[:1], rows[1:]], EXITS)
    for layer in EXITS:
        assert parts[layer] == pytest.approx(whole[layer], abs=1e-5)
    assert whole[6]["cross_entropy"] > 0


# --- runs ---


def test_it_is_an_ordinary_model(soft):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(soft, dtype=torch.float32)
    assert model.config.sd2_exits == [1, 3] and model.config.sd2_thresholds == [0.5, 0.0]
    assert len(model.model.layers) == 3 and model.lm_head.weight.shape == (258, 24)
    ids = torch.tensor([AutoTokenizer.from_pretrained(soft)("say 3").input_ids])
    assert model(ids).logits.isfinite().all()
    card = (soft / "README.md").read_text()
    assert "exits after 1, 3 layers, trained at all of them (SoFT)" in card


def test_sft_leaves_shallow_exits_behind(soft, files, tmp_path):
    """The same budget: the last exit learns, the first one does not."""
    means = trained("sd2", files, tmp_path, loss="sft", thresholds=".7,0")
    of_soft = [line for line in curve(soft) if "held_out_loss" in line][-1]
    assert means["loss"] == means["loss_exit_3"] < 1.5 * of_soft["held_out_loss_exit_3"] + 0.1
    assert means["loss_exit_1"] > of_soft["held_out_loss_exit_1"] + 0.2
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["sd2_exits"] == [1, 3] and config["sd2_thresholds"] == [0.7, 0.0]


def test_a_draft_can_begin_with_a_targets_layers(files, tmp_path):
    """Without a step of learning it is the target's prefix."""
    own = {"init-from": files["target"], "learning-rate": 0, "num-tokens": 600}
    trained("sd2", files, tmp_path, **dict.fromkeys(SMALL), **own)
    found, whole = (load_model(str(path), "float32", "cpu") for path in (tmp_path, files["target"]))
    wanted = whole.state_dict()
    state = found.state_dict()
    assert len(state) == 3 + 3 * 9 and len(wanted) == 3 + 8 * 9
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-3, rtol=1e-3)
