"""SD2's trainer: losses against truncated models, resuming, what is saved, what is refused."""

import json

import pytest
import torch
from conftest import make_prompts, save_model
from interrupted import curve, interrupted
from sd2_slow import EXITS, draft_model

from model.common.errors import BadInput
from model.common.target.loading import load_model
from model.common.training.flags import make_parser
from model.common.training.trainer import train
from model.sd2 import train as script
from model.sd2.losses import exit_losses, mean_losses

FLAGS = {
    "dtype": "float32",
    "device": "cpu",
    "mixed-precision": "no",
    "num-layers": 3,
    "exits": "1,3",
    "hidden-size": 24,
    "intermediate-size": 32,
    "num-heads": 2,
    "num-tokens": 9000,
    "batch-tokens": 300,
    "accumulate": 2,
    "learning-rate": 0.01,
    "log-every": 3,
    "eval-every": 5,
    "held-out": 0.1,
    "save-every-s": 999,
}
FILES = {"README.md", "log.jsonl", "config.json", "generation_config.json", "model.safetensors"}
FILES |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


@pytest.fixture(scope="module")
def target_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("target"), num_hidden_layers=4)


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for i in range(40):
            chat = [("human", f"say {i % 5}"), ("gpt", f"{i % 5} " * 4)]
            messages = [{"from": who, "value": text} for who, text in chat]
            out.write(json.dumps({"conversations": messages}) + "\n")
    return str(path)


def trained(target_dir, data_file, output, stop_at=None, **changed):
    flags = {"model-path": target_dir, "data": data_file, "output": str(output), **FLAGS, **changed}
    argv = [f"--{key}={value}" for key, value in flags.items() if value is not None]
    args = make_parser("t", "doc", script.add_args, script.RECIPE).parse_args(argv)

    stopping = interrupted(script.SortedTraining, stop_at)
    return train(args, stopping, "the command", script.load)


@pytest.fixture(scope="module")
def soft(target_dir, data_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("soft")
    trained(target_dir, data_file, folder)
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


def test_an_exits_loss_is_the_truncated_models():
    model = draft_model()
    model.set_attn_implementation("sdpa")
    ids, chosen = batch_of(make_prompts(4))
    found = [loss for loss, _ in exit_losses(model, ids, chosen, EXITS)]
    wanted = [plain_loss(layers, ids, chosen) for layers in EXITS]
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), atol=1e-5, rtol=1e-5)
    (alone,) = exit_losses(model, ids, chosen, [6])
    torch.testing.assert_close(alone[0], wanted[-1], atol=1e-5, rtol=1e-5)


class Method(script.SortedTraining):
    """The loss without a run."""

    def __init__(self, module, loss, exits):
        self.module, self.exits = module, exits
        self.args = make_parser("t", "doc", script.add_args).parse_args(
            ["--model-path=m", "--data=d", "--output=o", f"--loss={loss}"]
        )


class Batch:
    """Ids and a mask as features.Batch has them."""

    def __init__(self, ids, chosen):
        self.ids, self.chosen = ids, chosen

    def labelled(self, shift):
        assert shift == 1
        return self.chosen


def test_soft_is_the_mean_and_sft_the_last():
    ids, chosen = batch_of(make_prompts(3))
    wanted = [plain_loss(layers, ids, chosen) for layers in EXITS]
    model = draft_model()
    model.set_attn_implementation("sdpa")
    loss, metrics = Method(model.train(), "soft", EXITS).loss(Batch(ids, chosen))
    torch.testing.assert_close(loss, sum(wanted) / 3, atol=1e-5, rtol=1e-5)
    names = {f"{name}_exit_{layer}" for name in ("loss", "accuracy") for layer in EXITS}
    assert metrics.keys() == names
    loss, metrics = Method(model.train(), "sft", EXITS).loss(Batch(ids, chosen))
    torch.testing.assert_close(loss, wanted[-1], atol=1e-5, rtol=1e-5)
    assert metrics.keys() == {"loss_exit_6", "accuracy_exit_6"}
    loss, metrics = Method(model.eval(), "sft", EXITS).loss(Batch(ids, chosen))
    torch.testing.assert_close(loss, wanted[-1], atol=1e-5, rtol=1e-5)
    assert metrics.keys() == names


@pytest.mark.parametrize("loss", ["soft", "sft"])
def test_every_weight_learns(loss):
    """Embedding, all layers, norm and head; exits add no weights."""
    ids, chosen = batch_of(make_prompts(3))
    model = draft_model().train()
    model.set_attn_implementation("sdpa")
    Method(model, loss, EXITS).loss(Batch(ids, chosen))[0].backward()
    names = dict(model.named_parameters())
    assert len(names) == 3 + 6 * 9
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in names.values())


def test_shallow_layers_learn_from_all_exits():
    """The second layer's gradient is the mean of what each exit gives it alone."""
    ids, chosen = batch_of(make_prompts(3))

    def gradient(exits):
        model = draft_model().train()
        model.set_attn_implementation("sdpa")
        Method(model, "soft", exits).loss(Batch(ids, chosen))[0].backward()
        return model.model.layers[1].mlp.up_proj.weight.grad

    parts = torch.stack([gradient([layers]) for layers in EXITS])
    torch.testing.assert_close(gradient(EXITS), parts.mean(0), atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_changes_nothing_but_memory():
    ids, chosen = batch_of(make_prompts(3))
    found = []
    for saving in (False, True):
        model = draft_model().train()
        model.set_attn_implementation("sdpa")
        if saving:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss, _ = Method(model, "soft", EXITS).loss(Batch(ids, chosen))
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for once, again in zip(*found):
        torch.testing.assert_close(once, again, atol=1e-6, rtol=1e-5)


def test_mean_losses_are_over_all_tokens(soft, target_dir):
    """Batches count by their labelled tokens."""
    from model.common.prompts.templates import Row

    model = load_model(str(soft), "float32", "cpu")
    model.set_attn_implementation("sdpa")
    rows = []
    for prompt in make_prompts(4):
        mask = torch.arange(len(prompt)) >= min(4, len(prompt) - 1)
        rows.append(Row(torch.tensor(prompt, dtype=torch.int32), mask))
    whole = mean_losses(model, [rows], [1, 3])
    parts = mean_losses(model, [rows[:1], rows[1:]], [1, 3])
    for layer in (1, 3):
        assert parts[layer] == pytest.approx(whole[layer], abs=1e-5)
    assert whole[3]["cross_entropy"] > 0


# --- runs ---


def test_it_learns_and_is_an_ordinary_model(soft):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert {path.name for path in soft.iterdir()} == FILES
    lines = curve(soft)
    steps = [line for line in lines if "loss" in line]
    assert steps[-1]["loss"] < 0.7 * steps[0]["loss"]
    model = AutoModelForCausalLM.from_pretrained(soft, dtype=torch.float32)
    assert model.config.sd2_exits == [1, 3] and model.config.sd2_thresholds == [0.5, 0.0]
    assert len(model.model.layers) == 3 and model.lm_head.weight.shape == (258, 24)
    ids = torch.tensor([AutoTokenizer.from_pretrained(soft)("say 3").input_ids])
    assert model(ids).logits.isfinite().all()
    card = (soft / "README.md").read_text()
    assert "exits after 1, 3 layers, trained at all of them (SoFT)" in card
    assert "the command" in card and "loss_exit_1" in card and "| seed | 0 |" in card


@pytest.mark.parametrize("stops, seconds", [((9,), 999), ((3, 7), 0)])
def test_an_interrupted_training_goes_on_exactly(
    soft, target_dir, data_file, tmp_path, stops, seconds
):
    for stop_at in stops:
        with pytest.raises(KeyboardInterrupt):
            trained(target_dir, data_file, tmp_path, stop_at, **{"save-every-s": seconds})
    trained(target_dir, data_file, tmp_path, **{"save-every-s": seconds})
    assert curve(tmp_path) == curve(soft)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path, soft)]
    assert weights[0] == weights[1]


def test_a_checkpoint_of_the_other_loss_is_refused(target_dir, data_file, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(target_dir, data_file, tmp_path, 5, **{"save-every-s": 0})
    with pytest.raises(BadInput, match="of another loss"):
        trained(target_dir, data_file, tmp_path, loss="sft")


def test_sft_leaves_shallow_exits_behind(soft, target_dir, data_file, tmp_path):
    """The same budget: the last exit learns, the first one does not."""
    means = trained(target_dir, data_file, tmp_path, loss="sft", thresholds=".7,0")
    of_soft = [line for line in curve(soft) if "held_out_loss" in line][-1]
    assert means["loss"] == means["loss_exit_3"] < 1.5 * of_soft["held_out_loss_exit_3"] + 0.1
    assert means["loss_exit_1"] > of_soft["held_out_loss_exit_1"] + 0.2
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["sd2_exits"] == [1, 3] and config["sd2_thresholds"] == [0.7, 0.0]


def test_a_draft_can_begin_with_a_targets_layers(target_dir, data_file, tmp_path):
    """Without a step of learning it is the target's prefix."""
    shape = dict.fromkeys(("hidden-size", "intermediate-size", "num-heads"))
    own = {"init-from": target_dir, "learning-rate": 0, "num-tokens": 600}
    trained(target_dir, data_file, tmp_path, **shape, **own)
    found, whole = (load_model(str(path), "float32", "cpu") for path in (tmp_path, target_dir))
    wanted = whole.state_dict()
    state = found.state_dict()
    assert len(state) == 3 + 3 * 9 and len(wanted) == 3 + 4 * 9
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-3, rtol=1e-3)


def test_bad_lines_are_counted_and_named(target_dir, data_file, tmp_path, capsys):
    lines = open(data_file, encoding="utf-8").read()
    path = tmp_path / "some.jsonl"
    path.write_text('{broken\n{"conversations": 3}\n' + lines, encoding="utf-8")
    trained(target_dir, str(path), tmp_path / "out", **{"num-tokens": 600})
    said = capsys.readouterr().out
    assert f"left out: {path}:1: not JSON" in said
    assert f'left out: {path}:2: no list "conversations"' in said
    assert "36 conversations, 4 held out" in said


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"exits": "1,2"}, "--exits 1,2: the last one has to be --num-layers, 3"),
        ({"exits": "1,4"}, "--exits 1,4: the last one has to be --num-layers, 3"),
        ({"thresholds": ".5"}, "--thresholds: 1 for 2 --exits"),
        ({"features": "cache"}, "--features cache"),
        ({"init-from": "x"}, "--hidden-size says nothing beside --init-from"),
        ({"num-heads": 5}, "--hidden-size 24: 5 heads of an even size"),
        ({"num-key-value-heads": 3}, "--num-key-value-heads 3: no divisor of 2 heads"),
    ],
)
def test_refusals(target_dir, data_file, tmp_path, changed, words):
    with pytest.raises(BadInput) as refused:
        trained(target_dir, data_file, tmp_path, **changed)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "shape, words",
    [
        ({"num_hidden_layers": 2}, "2 layers, --num-layers asks for 3"),
        ({"family": "qwen3"}, "of type qwen3, llama is needed"),
        ({"words": ("more",)}, "259 ids, but --model-path"),
    ],
)
def test_models_that_cannot_be_begun_with(target_dir, data_file, tmp_path, shape, words):
    other = save_model(tmp_path / "other", **{"num_hidden_layers": 4, **shape})
    none = dict.fromkeys(("hidden-size", "intermediate-size", "num-heads"))
    with pytest.raises(BadInput) as refused:
        trained(target_dir, data_file, tmp_path / "out", **none, **{"init-from": other})
    assert words in str(refused.value)


@pytest.mark.parametrize("exits", ["3,1", "1,1", "0,3", "", "1,x"])
def test_exits_that_are_none(exits, capsys):
    with pytest.raises(SystemExit) as ended:
        make_parser("t", "doc", script.add_args).parse_args([f"--exits={exits}"])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "--exits" in err and "that rise are needed" in err
