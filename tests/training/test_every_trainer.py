"""Every method's trainer on a tiny target: it learns, goes on exactly, saves what loads."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import save_model
from interrupted import curve
from tiny_methods import build, decode
from trainers import METHODS, SMALL, command, new_files, trained

from model.common.errors import BadInput
from model.common.loop.turns import StopRules
from model.common.target.loading import load_target

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return new_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """method -> the folder of a run that nothing interrupted."""

    @functools.cache
    def folder(method):
        output = tmp_path_factory.mktemp(method)
        trained(method, files, output)
        return output

    return folder


every_method = pytest.mark.parametrize("method", METHODS)


@pytest.mark.training
@every_method
def test_the_loss_falls_and_the_files_are_there(method, whole):
    folder = whole(method)
    losses = [line["loss"] for line in curve(folder) if "loss" in line]
    # by a random target's laws, whose entropy stays
    taught = method in ("eagle3", "hydra", "peagle")
    assert losses[-1] < (0.99 if taught else 0.9) * losses[0]
    left = METHODS[method][1] | {"README.md", "log.jsonl", "config.json"}
    assert {path.name for path in folder.iterdir()} == left
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "the command" in card and "sha256" in card and "| seed | 0 |" in card


@pytest.mark.training
def test_an_acceptance_head_is_better_than_a_constant(whole):
    last = [line for line in curve(whole("specdecpp")) if "loss" in line][-1]
    assert last["kl"] < 0.8 * last["kl_constant"]


def trained_apart(method, files, output, **changed):
    """A run in a process of its own: accelerate keeps the first device and precision of one."""
    argv = [sys.executable, "-m", f"model.{method}.train"]
    argv += command(method, files, output, **changed)
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@every_method
def test_trains_on_a_gpu(method, files, tmp_path):
    """Losses, chains of held-out rows, files."""
    trained_apart(method, files, tmp_path, device="auto")
    assert torch.cuda.get_device_name() in (tmp_path / "README.md").read_text(encoding="utf-8")
    lines = curve(tmp_path)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] and "held_out_loss" in lines[-1]


@pytest.mark.training
@every_method
def test_trains_in_bfloat16(method, files, tmp_path):
    """As most recipes do: a target of half precision, a head of full precision under autocast."""
    trained_apart(method, files, tmp_path, **{"dtype": "bfloat16", "mixed-precision": "bf16"})
    losses = [line["loss"] for line in curve(tmp_path) if "loss" in line]
    assert losses[-1] < losses[0]


@pytest.mark.training
@every_method
def test_what_was_trained_drafts(method, whole, files):
    """The saved files load, and the answers stay those of the target."""
    folder, (_, _, flags) = str(whole(method)), METHODS[method]
    path = files["target"] if flags else folder  # SPACE's is the target itself
    target = load_target(path, "float32", "cpu", "eager")
    flags = [*flags, folder] if flags else []
    flags += ["--drafter-path", files["target"]] if method == "specdecpp" else []
    given = [[5, 9, 70, 71, 72]], StopRules(), 20
    expected, _ = decode(target, build("vanilla", path, target, []), *given)
    drafter = build(method, path, target, flags)
    assert decode(target, drafter, *given)[0] == expected


@pytest.mark.training
@every_method
def test_an_interrupted_training_goes_on_exactly(method, whole, files, tmp_path):
    """Twice, with a checkpoint after every step; weights and log are those of one run."""
    for stop_at in (9, 6):
        with pytest.raises(KeyboardInterrupt):
            trained(method, files, tmp_path, stop_at, **{"save-every-s": 0})
    trained(method, files, tmp_path, **{"save-every-s": 0})
    assert curve(tmp_path) == curve(whole(method))
    for name in METHODS[method][1]:
        assert (tmp_path / name).read_bytes() == (whole(method) / name).read_bytes(), name


INIT = dict.fromkeys(SMALL)
REFUSED = [  # method, changed flags, shape of a Llama for --init-from, what the line says
    ("medusa", {"clip-norm": 1, "clip-value": 1}, None, "exclude each other"),
    ("sd2", {"exits": "1,2"}, None, "--exits 1,2: the last one has to be --num-layers, 3"),
    ("sd2", {"thresholds": ".5"}, None, "--thresholds: 1 for 2 --exits"),
    ("sd2", {"features": "cache"}, None, "--features cache: all weights are trained"),
    ("sd2", {"init-from": "x"}, None, "--hidden-size says nothing beside --init-from"),
    ("sd2", {"num-heads": 5}, None, "--hidden-size 24: 5 heads of an even size"),
    ("sd2", {"num-key-value-heads": 3}, None, "--num-key-value-heads 3: no divisor of 2 heads"),
    ("sd2", INIT, {"num_hidden_layers": 2}, "2 layers, --num-layers asks for 3"),
    ("sd2", INIT, {"family": "qwen3"}, "of type qwen3, llama is needed"),
    ("sd2", INIT, {"words": ("more",)}, "259 ids, but --model-path"),
    ("space", {"num-groups": 2}, None, "--num-groups above 1 needs --scheme append"),
    ("space", {"features": "cache"}, None, "--features cache: all weights are trained"),
    ("space", {"mask-id": 258}, None, "--mask-id 258: the model's vocabulary has 258 ids"),
    ("specdecpp", {"mixing-ratio": 1}, None, "--mixing-ratio 1: no position is left to learn from"),
]


@pytest.mark.parametrize("method, changed, shape, words", REFUSED)
def test_refusals(method, changed, shape, words, files, tmp_path):
    if shape:
        changed = {**changed, "init-from": save_model(tmp_path / "other", **shape)}
    with pytest.raises(BadInput) as refused:
        trained(method, files, tmp_path / "out", **changed)
    assert words in str(refused.value) and "\n" not in str(refused.value)
