"""What builds every method for tests: flags on tiny random models and on the mini models."""

import functools
import importlib
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, save_model
from eagle_dirs import eagle3_dir, eagle_dir
from head_dirs import hydra_dir, medusa_dir
from specdecpp_dirs import specdecpp_dir

from model.common import args as arguments
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.prompts.prompter import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "data" / "mini_models"
METHODS = sorted(path.parent.name for path in (ROOT / "model").glob("*/inference_*.py"))
# flags that a method cannot do without: on tiny random models, on the mini models
TINY_FLAGS = {
    "sps": lambda paths: ["--drafter-path", paths["draft"]],
    "specdecpp": lambda paths: [
        *["--drafter-path", paths["draft"]],
        *["--head-path", specdecpp_dir(paths["draft"])],
    ],
    "specexec": lambda paths: ["--drafter-path", paths["draft"], "--max-budget", "24"],
    "rest": lambda paths: ["--datastore-path", datastore(paths["target"], 40)],
    "medusa": lambda paths: ["--medusa-path", medusa_dir(paths["target"])],
    "hydra": lambda paths: ["--hydra-path", hydra_dir(paths["target"])],
    "eagle": lambda paths: ["--eagle-path", random_eagle(eagle_dir, paths["target"])],
    "eagle2": lambda paths: ["--eagle-path", random_eagle(eagle_dir, paths["target"])],
    "eagle3": lambda paths: ["--eagle-path", random_eagle(eagle3_dir, paths["target"])],
    "space": lambda paths: ["--mask-id", "5"],
    "sd2": lambda paths: ["--drafter-path", sorted_draft(), "--exits", "1,2,3", "--depth", "2"],
}
MINI_FLAGS = {
    "sps": lambda: ["--drafter-path", str(MINI / "sps")],
    "specdecpp": lambda: [
        *["--drafter-path", str(MINI / "sps")],
        *["--head-path", trained("specdecpp")],
    ],
    "specexec": lambda: ["--drafter-path", str(MINI / "sps"), "--max-budget", "32"],
    "rest": lambda: ["--datastore-path", datastore(str(MINI / "target"), 4000)],
    "medusa": lambda: ["--medusa-path", trained("medusa")],
    "hydra": lambda: ["--hydra-path", trained("hydra")],
    "eagle": lambda: ["--eagle-path", trained("eagle")],
    "eagle2": lambda: ["--eagle-path", trained("eagle")],
    "eagle3": lambda: ["--eagle-path", trained("eagle3")],
    "sd2": lambda: ["--drafter-path", trained("sd2")],
    "space": lambda: pytest.skip("its mini model is a target of its own: test_space_mini.py"),
}
TINY_LAYERS = {"eagle3": 8}  # of the tiny target, where three are too few for a method


@functools.cache
def datastore(model_path: str, num_conversations: int) -> str:
    """A REST datastore of a little of the mini corpus, built once per tokenizer."""
    from data.mini_bench.generate import write_corpus
    from model.rest.build_datastore import main as build_datastore

    folder = Path(tempfile.mkdtemp())
    write_corpus(num_conversations, 3, folder / "corpus.jsonl")
    argv = ["--model-path", model_path, "--input", str(folder / "corpus.jsonl")]
    build_datastore([*argv, "--output", str(folder / "store")])
    return str(folder / "store")


@functools.cache
def random_eagle(make, model_path: str) -> str:
    """A random head that `make` of eagle_dirs writes."""
    return make(tempfile.mkdtemp(), model_path)


@functools.cache
def sorted_draft() -> str:
    """A tiny draft model of three layers, each of them an exit."""
    return save_model(tempfile.mkdtemp(), seed=5)


@functools.cache
def deep_target(model_path: str, num_layers: int) -> str:
    """A tiny target of more layers, with the tokenizer of another."""
    folder = tempfile.mkdtemp()
    assert save_model(folder, num_hidden_layers=num_layers) == folder
    assert len(load_tokenizer(folder)) == len(load_tokenizer(model_path))
    return folder


def tiny_target(method: str, model_path: str) -> str:
    """The tiny target's directory, or one of the layers that a method asks for."""
    layers = TINY_LAYERS.get(method)
    return deep_target(model_path, layers) if layers else model_path


def tiny_shape(method: str, family: str) -> dict:
    """What make_model has to be told for a method."""
    layers = TINY_LAYERS.get(method)
    kinds = FAMILIES[family].get("layer_types", [])
    more = {"layer_types": (kinds * layers)[:layers]} if layers and kinds else {}
    return {"num_hidden_layers": layers, **more} if layers else {}


def trained(name: str) -> str:
    """A trained mini model's directory; the test is skipped where it is missing."""
    if not (MINI / name / "config.json").exists():
        pytest.skip(f"data/mini_models/{name} is not there")
    return str(MINI / name)


def mini_flags(method: str) -> list[str]:
    """What a method needs on the mini models."""
    return MINI_FLAGS.get(method, list)()


def build(method: str, model_path: str, target, flags):
    """The method's drafter as its command builds it."""
    script = importlib.import_module(f"model.{method}.inference_{method}")
    parser = arguments.make_parser(method, script.__doc__, script.add_args)
    args = parser.parse_args(["--model-path", model_path, "--dtype", "float32", *flags])
    return script.build(args, target)


def decode(target, drafter, prompts, stop, limit, batch=1, sampler=None):
    """Ids and accept lengths of all prompts, decoded in `batch` slots."""
    seeds, slots = list(range(len(prompts))), min(batch, len(prompts))
    given = target, drafter, prompts, sampler or Sampler(), seeds, stop, limit
    turns = generate(*given, num_slots=slots)
    return [turn.output_ids for turn in turns], [turn.accept_lengths for turn in turns]


def transformers_ids(model, prompts, limit, eos=None):
    """transformers' own greedy answers, eos cut off where it stops."""
    answers = []
    for ids in prompts:
        inputs = torch.tensor([ids])
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=0,
        )
        answers.append(output[0, len(ids) :].tolist())
    return answers
