"""The trainer of draft heads on a tiny target: resuming, caching, refusals, what it leaves."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, save_model
from harness_runs import write
from interrupted import curve, interrupted
from torch import nn
from trainers import chats

from model.common.errors import BadInput
from model.common.prompts.templates import Row
from model.common.training.flags import make_parser
from model.common.training.log import Mean
from model.common.training.step import rate_share, seed_all
from model.common.training.trainer import HeadTraining, main, train

ROOT = Path(__file__).resolve().parents[2]
FLAGS = {
    "dtype": "float32",
    "device": "cpu",
    "num-tokens": 4500,
    "batch-tokens": 150,
    "max-length": 60,
    "learning-rate": 0.01,
    "log-every": 4,
    "eval-every": 7,
    "held-out": 0.1,
    "seed": 3,
}


class NoisyHead(HeadTraining):
    """A linear map with dropout and noise, so that every source of randomness is in the loss."""

    needs = ("last", 1)

    def __init__(self, args, target, data):
        self.target = target
        self.most_frequent = data.count_answers(target.vocab_size).argmax()
        size = target.config.hidden_size
        self.module = nn.Sequential(
            nn.Linear(2 * size, size), nn.Dropout(0.2), nn.Linear(size, target.vocab_size)
        )

    def loss(self, batch):
        rows = batch.labelled(2)
        states = torch.cat([batch.hidden["last"][rows], batch.hidden[1][rows]], -1)
        if self.module.training:
            states = states + 0.1 * torch.rand_like(states)
        scores, labels = self.module(states), batch.ids.roll(-2, 1)[rows]
        loss = nn.functional.cross_entropy(scores, labels)
        agree = (scores.argmax(-1) == batch.logits(rows).argmax(-1)).float().mean()
        return loss, {"accuracy": (scores.argmax(-1) == labels).float().mean(), "agree": agree}

    def save(self, folder):
        from model.common.heads.checkpoint import save_checkpoint

        tensors = self.module.state_dict()
        assert {t.dtype for t in tensors.values()} == {torch.float16}
        save_checkpoint(folder, {"sizes": [1]}, "head.safetensors", tensors)


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "chats.jsonl", chats())


def command(model_dir, data_file, output, *extra, **changed):
    flags = {"model-path": model_dir, "data": data_file, "output": str(output), **FLAGS, **changed}
    return [word for key, value in flags.items() for word in (f"--{key}", str(value))] + [*extra]


def parsed(argv, defaults=None):
    return make_parser("train_noisy", "doc", lambda group: None, defaults).parse_args(argv)


def run(argv, stop_at=None):
    """Train; interrupted after stop_at training batches of this run."""
    return train(parsed(argv), interrupted(NoisyHead, stop_at), "the command")


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "head.safetensors")


@pytest.fixture(scope="module")
def whole(model_dir, data_file, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    result = run(command(model_dir, data_file, folder))
    return SimpleNamespace(folder=folder, held_out=result, curve=curve(folder))


@pytest.mark.training
def test_the_loss_falls(whole):
    """Steps are counted by tokens without padding."""
    steps = [line for line in whole.curve if "loss" in line]
    assert steps[-1]["tokens"] >= 4500 > steps[-2]["tokens"]
    assert [line["step"] for line in steps[:2]] == [4, 8]
    assert [line["step"] for line in whole.curve if "loss" not in line][:2] == [7, 14]
    losses = [line["loss"] for line in steps]
    assert losses[-1] < 0.5 * losses[0]
    assert whole.curve[-1]["held_out_loss"] == whole.held_out["loss"] < 0.5 * losses[0]
    assert whole.held_out["accuracy"] > 0.5
    assert {"loss", "accuracy", "agree"} == set(whole.held_out)


@pytest.mark.training
def test_what_a_run_leaves(whole):
    names = {path.name for path in whole.folder.iterdir()}
    assert names == {"README.md", "log.jsonl", "config.json", "head.safetensors"}
    card = (whole.folder / "README.md").read_text()
    size = (whole.folder / "head.safetensors").stat().st_size
    for words in ("the command", "sha256", f"{size:,} bytes", "| seed | 3 |", "held-out", "torch"):
        assert words in card
    assert f"loss {whole.held_out['loss']:.4f}, accuracy" in card


# checkpoints stand at evaluations (steps 7, 14, ..) or, with 0 seconds, after every step
@pytest.mark.training
@pytest.mark.parametrize(
    "stops, seconds", [((3,), 999), ((9,), 999), ((5, 6, 1), 0), ((15, 2), 999), ((7,), 0)]
)
def test_an_interrupted_run_goes_on_exactly(
    whole, model_dir, data_file, tmp_path, stops, seconds, capsys
):
    argv = command(model_dir, data_file, tmp_path, **{"save-every-s": seconds})
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            run(argv, stop)
    capsys.readouterr()
    assert run(argv) == whole.held_out
    assert ("goes on after step" in capsys.readouterr().out) == (stops != (3,))
    assert curve(tmp_path) == whole.curve
    for name, tensor in tensors(whole.folder).items():
        assert torch.equal(tensor, tensors(tmp_path)[name]), name


@pytest.mark.training
def test_cached_features_are_the_computed_ones(whole, model_dir, data_file, tmp_path):
    """Those of other settings are not read."""
    argv = command(model_dir, data_file, tmp_path, features="cache")
    for flags, stop_at in (([*argv, "--seed", "4"], 3), (argv, 30)):
        with pytest.raises(KeyboardInterrupt):
            run(flags, stop_at)
        assert list((tmp_path / ".features").glob("*.safetensors"))
    assert run(argv) == whole.held_out
    assert curve(tmp_path) == whole.curve
    assert not (tmp_path / ".features").exists()


@pytest.mark.training
def test_a_shared_folder_of_16_bits_serves_other_batches(model_dir, data_file, tmp_path):
    """Its states are rounded as computed ones are; a second head finds them, whatever its seed."""
    flags = {"feature-dtype": "float16", "num-tokens": 1500}
    computed = run(command(model_dir, data_file, tmp_path / "0", **flags))
    flags |= {"features": "cache", "features-folder": tmp_path / "shared"}
    found = run(command(model_dir, data_file, tmp_path / "1", **flags))
    assert found == pytest.approx(computed, rel=1e-3)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").iterdir()}
    assert found == pytest.approx(run(command(model_dir, data_file, tmp_path / "2", **flags)))
    run(command(model_dir, data_file, tmp_path / "3", **flags, seed=9))
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").iterdir()}
    with pytest.raises(BadInput, match="--features-folder needs --features cache"):
        run(command(model_dir, data_file, tmp_path / "4", **{**flags, "features": "compute"}))


def test_a_second_head_adds_its_states_to_a_shared_file(tmp_path):
    from model.common.training.features import Features, FrozenTarget

    target, folder = FrozenTarget(make_model()), tmp_path / "shared"
    rows = [Row(torch.arange(1, n).int(), torch.arange(1, n) > 4) for n in (9, 20)]
    first = Features(target, ("last",), folder, {}, torch.bfloat16, True).batch(rows)
    both = Features(target, (1, "best"), folder, {}, torch.bfloat16, True).batch(rows)
    kept = Features(target, (1, "last", "best"), folder, {}, torch.bfloat16, True)
    kept._computed = None  # nothing is
    rows, ids, mask = rows[::-1], both.ids.flip(0), both.mask.flip(0)
    found = kept._kept(rows, ids, mask)
    assert torch.equal(found["last"].float()[1, :8], first.hidden["last"][0, :8])
    assert torch.equal(found[1].float()[0], both.hidden[1][1])
    best = FrozenTarget(target.model).logits(target.hidden(ids, ("last",), mask)["last"]).argmax(-1)
    labelled = mask.roll(-1, 1) & (torch.arange(19) < 18)
    assert torch.equal(found["best"][labelled], best[labelled])
    assert (found["best"][~labelled] == -1).all()


def test_batches_carry_what_transformers_says(model_dir):
    from model.common.training.features import Features, FrozenTarget

    for family in ("llama", "gemma2"):
        model = make_model(family)
        ids = [torch.arange(1, n).int() for n in (9, 20)]
        rows = [Row(x, torch.ones(len(x)).bool()) for x in ids]
        batch = Features(FrozenTarget(model), ("last", 0, 2), None, {}).batch(rows)
        for i, row in enumerate(rows):
            n = len(row.ids)
            with torch.no_grad():
                out = model(input_ids=row.ids[None].long(), output_hidden_states=True)
            states = out.hidden_states
            for name, wanted in (("last", states[-1]), (0, states[0]), (2, states[2])):
                torch.testing.assert_close(batch.hidden[name][i, :n], wanted[0])
            torch.testing.assert_close(batch.logits()[i, :n], out.logits[0], atol=1e-4, rtol=1e-4)
        rows = batch.labelled(3)
        assert rows.sum(1).tolist() == [5, 16]
        torch.testing.assert_close(batch.logits(rows), batch.logits()[rows])
        assert not batch.labelled(30).any()


@pytest.mark.training
def test_accumulated_batches_are_one_step(model_dir, data_file, tmp_path):
    run(command(model_dir, data_file, tmp_path, accumulate=3, **{"log-every": 1}))
    steps = [line for line in curve(tmp_path) if "loss" in line]
    assert all(line["tokens"] - before["tokens"] > 250 for before, line in zip(steps, steps[1:]))


@pytest.mark.training
@pytest.mark.parametrize("changed", [{"seed": 4}, {"learning-rate": 0.1}, {"batch-tokens": 99}])
def test_a_checkpoint_of_other_settings_is_refused(model_dir, data_file, tmp_path, changed):
    with pytest.raises(KeyboardInterrupt):
        run(command(model_dir, data_file, tmp_path), 9)
    other = command(model_dir, data_file, tmp_path, **changed)
    name = next(iter(changed)).replace("-", "_")
    with pytest.raises(BadInput, match=f"checkpoint.pt: of another {name}; add --fresh"):
        run(other)
    run([*other, "--fresh"])
    assert (tmp_path / "README.md").exists()


@pytest.mark.training
def test_a_finished_head_is_not_overwritten(whole, model_dir, data_file):
    with pytest.raises(BadInput, match="holds a trained head; add --fresh"):
        run(command(model_dir, data_file, whole.folder))


@pytest.mark.training
def test_a_broken_checkpoint_and_an_infinite_loss_are_bad_input(model_dir, data_file, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="no checkpoint; add --fresh"):
        run(command(model_dir, data_file, tmp_path))
    steep = command(model_dir, data_file, tmp_path, "--fresh", **{"learning-rate": 10})
    args = parsed(steep)

    class Broken(NoisyHead):
        def loss(self, batch):
            loss, metrics = super().loss(batch)
            return loss * torch.inf, metrics

    with pytest.raises(BadInput, match="step 1: the loss is inf"):
        train(args, Broken)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.training
def test_a_head_that_half_precision_cannot_hold_is_not_finished(model_dir, data_file, tmp_path):
    """Its weights overflow when they are rounded; the checkpoint stays, no card is written."""

    class Huge(NoisyHead):
        def __init__(self, *given):
            super().__init__(*given)
            self.module[2].weight.data.mul_(1e7)

    args = parsed(command(model_dir, data_file, tmp_path))
    with pytest.raises(BadInput, match="the held-out loss of weights in torch.float16 is"):
        train(args, Huge)
    assert not (tmp_path / "README.md").exists()


def test_schedules():
    args = SimpleNamespace(warmup=0.2, schedule="linear", min_rate=0.1)
    at = [rate_share(p, args) for p in (0.1, 0.2, 0.6, 1.0, 1.3)]
    assert at == pytest.approx([0.5, 1.0, 0.55, 0.1, 0.1])
    args.schedule = "cosine"
    at = [rate_share(p, args) for p in (0.2, 0.4, 0.6, 1.0)]
    assert at == pytest.approx([1.0, 0.1 + 0.9 * (1 + 0.5**0.5) / 2, 0.55, 0.1])
    args.schedule, args.warmup = "constant", 0.0
    assert rate_share(0.0, args) == rate_share(1.0, args) == 1.0


def test_means_are_of_the_batches_that_have_a_name():
    mean = Mean()
    mean.add({"a": 1.0}, 2)
    mean = Mean(mean.state())
    mean.add({"a": 4.0, "b": 5.0}, 1)
    assert mean.take() == {"a": 2.0, "b": 5.0} and mean.take() == {}


def test_randomness_is_of_seed_and_step():
    draws = []
    for parts in ((1, 2, 0, 0), (1, 2, 0, 0), (1, 3, 0, 0), (1, 2, 0, 1), (12, 0, 0)):
        seed_all(*parts)
        draws.append(torch.rand(4).tolist())
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 4


def test_a_recipe_is_the_flags_default(capsys):
    argv = ["--model-path", "m", "--data", "d", "--output", "o"]
    assert parsed(argv, {"learning_rate": 0.25}).learning_rate == 0.25
    assert parsed([*argv, "--learning-rate", "2"], {"learning_rate": 0.25}).learning_rate == 2
    with pytest.raises(ValueError, match="learning_speed"):
        parsed(argv, {"learning_speed": 1})


@pytest.mark.training
def test_a_checkpoint_of_another_target_is_refused(model_dir, data_file, tmp_path):
    from model.common.records.writer import sha256_weights

    target = tmp_path / "target"
    shutil.copytree(model_dir, target)
    argv = command(target, data_file, tmp_path / "out", features="cache")
    with pytest.raises(KeyboardInterrupt):
        run(argv, 9)
    save_model(target, seed=9)
    sha256_weights.cache_clear()  # of this process
    with pytest.raises(BadInput, match="another target_sha256"):
        run(argv)


def test_bad_input_is_one_line(model_dir, tmp_path, capsys):
    argv = command(model_dir, tmp_path / "missing.json", tmp_path / "out")
    with pytest.raises(SystemExit) as end:
        main("train_noisy", "doc", lambda group: None, NoisyHead, {}, argv)
    line = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and line.startswith("train_noisy: ") and "missing.json" in line


@pytest.mark.training
def test_an_interruption_says_how_to_go_on(model_dir, data_file, tmp_path, capsys):
    argv = command(model_dir, data_file, tmp_path)
    with pytest.raises(SystemExit) as end:
        main("train_noisy", "doc", lambda group: None, interrupted(NoisyHead, 2), {}, argv)
    assert end.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err


def in_a_group(argv):
    """(exit code, stderr) of a command whose children end with it."""
    child = subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        _, output = child.communicate(timeout=100)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    return child.returncode, output


@pytest.mark.training
def test_two_processes_average_gradients(model_dir, data_file, tmp_path):
    """Two processes of one batch a step train as one process of two batches does."""
    from model.medusa import train as script

    flags = {"num-heads": 3, "accumulate": 1, "clip-norm": 1.0}
    flags |= {"num-threads": 1, "num-tokens": 2500, "features": "cache"}
    argv = command(model_dir, data_file, tmp_path / "1", **{**flags, "accumulate": 2})
    main("train_medusa", "doc", script.add_args, script.MedusaTraining, {}, argv)
    argv = command(model_dir, data_file, tmp_path / "2", **flags)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    code, output = in_a_group([sys.executable, *launch, "-m", "model.medusa.train", *argv])
    assert code == 0, output
    one, two = curve(tmp_path / "1"), curve(tmp_path / "2")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for name in ("tokens", "held_out_loss_1", "held_out_loss_2", "held_out_accuracy_1"):
        assert two[-1][name] == pytest.approx(one[-1][name], rel=2e-3), name
