"""Every method's trainer on a tiny target: flags, data, a run."""

import importlib
import random

from conftest import save_model
from harness_runs import write
from interrupted import interrupted

from model.common.training.flags import make_parser
from model.common.training.trainer import HeadTraining, ModelTraining, train

FLAGS = {
    "dtype": "float32",
    "device": "cpu",
    "mixed-precision": "no",
    "num-tokens": 9000,
    "batch-tokens": 300,
    "accumulate": 2,
    "learning-rate": 0.005,
    "log-every": 3,
    "eval-every": 7,
    "held-out": 0.1,
}
SMALL = {"hidden-size": 24, "intermediate-size": 32, "num-heads": 2}
MODEL = {"generation_config.json", "model.safetensors", "chat_template.jinja"}
MODEL |= {"tokenizer.json", "tokenizer_config.json"}
BLOCKS = {"mask-token-id": 1, "block-size": 5, "num-layers": 2, "anchors": 24}
METHODS = {  # flags of its own, weights that it leaves, flags that draft with these
    "medusa": ({"num-heads": 4}, {"medusa_lm_head.safetensors"}, ["--medusa-path"]),
    "eagle": ({}, {"model.safetensors"}, ["--eagle-path"]),
    "eagle3": ({"draft-vocab-size": 200}, {"model.safetensors"}, ["--eagle-path"]),
    "mtp": ({}, {"model.safetensors"}, ["--mtp-path"]),
    "dflash": (
        {**BLOCKS, "conv-kernel-size": 2, "selector-rank": 8},
        {"model.safetensors"},
        ["--dflash-path"],
    ),
    "dspark": ({**BLOCKS, "markov-rank": 8}, {"model.safetensors"}, ["--dspark-path"]),
    "peagle": (
        {"draft-vocab-size": 200, "num-layers": 2, "num-depths": 4, "mask-id": 3},
        {"model.safetensors"},
        ["--eagle-path"],
    ),
    "hydra": ({"num-layers": 2}, {"hydra_lm_head.pt"}, ["--hydra-path"]),
    "specdecpp": ({"mismatch-weight": 1}, {"model.safetensors"}, ["--head-path"]),
    "sd2": ({"num-layers": 3, "exits": "1,3", **SMALL}, MODEL, ["--depth=2", "--drafter-path"]),
    "space": ({"mask-num": 3, "mask-prob": 1}, MODEL, []),
}


def chats():
    """Conversations whose answers repeat a few letters."""
    for number in range(40):
        messages = [{"from": "human", "value": "q" * (number % 4 + 1)}]
        yield {"conversations": [*messages, {"from": "gpt", "value": "abcd" * (number % 3 + 2)}]}


def examples():
    """SpecDec++'s: of four drafted ids two are accepted and two mostly refused."""
    chance = random.Random(0)
    for _ in range(60):
        draft = [chance.choice([30, 31, 90, 91]) for _ in range(20)]
        accepted = [1.0 if token > 60 else 0.1 for token in draft]
        yield {"prefix": [5, 9], "tokens": draft[::-1], "draft": draft, "p_acc": accepted}


def new_files(folder, **lines):
    """{name: path} of a target of eight layers, of chats and examples, and of other lines."""
    paths = {"target": save_model(folder / "target", num_hidden_layers=8)}
    for name, records in {"chats": chats(), "examples": examples(), **lines}.items():
        paths[name] = write(folder / f"{name}.jsonl", records)
    return paths


def command(method, files, output, **changed):
    """Arguments of a method's trainer on files; changed: flags, None = left out, "" = no value."""
    data = files["examples" if method == "specdecpp" else "chats"]
    flags = {"model-path": files["target"], "data": data, "output": str(output), **FLAGS}
    flags |= METHODS[method][0] | changed
    given = {key: value for key, value in flags.items() if value is not None}
    return [f"--{key}={value}" if value != "" else f"--{key}" for key, value in given.items()]


def trained(method, files, output, stop_at=None, **changed):
    """The held-out means of a run on files; it is interrupted after stop_at losses.

    changed: flags; None = left out, "" = without a value
    """
    script = importlib.import_module(f"model.{method}.train")
    found = [part for part in vars(script).values() if isinstance(part, type)]
    kinds = {part for part in found if issubclass(part, HeadTraining)}
    (kind,) = kinds - {HeadTraining, ModelTraining}
    argv = command(method, files, output, **changed)
    args = make_parser("t", "doc", script.add_args, script.RECIPE).parse_args(argv)
    return train(args, interrupted(kind, stop_at), "the command", getattr(script, "load", None))
