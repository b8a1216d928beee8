"""What builds every method for tests: flags on tiny random models and on the mini models."""

import functools
import importlib
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import save_model
from dflash_dirs import dflash_dir, dspark_dir
from eagle_dirs import copying_peagle_dir, eagle3_dir, eagle_dir
from head_dirs import hydra_dir, medusa_dir
from mtp_dirs import family_head
from specdecpp_dirs import specdecpp_dir

from model.common import args as arguments
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.prompts.prompter import Prompter, load_tokenizer
from model.common.prompts.questions import read_questions

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "data" / "mini_models"
FOLDERS = {path.parent.name for path in (ROOT / "model").glob("*/inference_*.py")}
METHODS = sorted(FOLDERS - {"engine"})  # a server's answers are no method's
# flags that a method cannot do without on tiny random models
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
    "dflash": lambda paths: ["--dflash-path", dflash_dir(paths["target"])],
    "dspark": lambda paths: ["--dspark-path", dspark_dir(paths["target"])],
    "eagle": lambda paths: ["--eagle-path", random_eagle(eagle_dir, paths["target"])],
    "eagle2": lambda paths: ["--eagle-path", random_eagle(eagle_dir, paths["target"])],
    "eagle3": lambda paths: ["--eagle-path", random_eagle(eagle3_dir, paths["target"])],
    "peagle": lambda paths: ["--eagle-path", random_eagle(copying_peagle_dir, paths["target"])],
    "mtp": lambda paths: ["--mtp-path", random_mtp(paths["target"], paths.get("config"))],
    "space": lambda paths: ["--mask-id", "5"],
    "sd2": lambda paths: ["--drafter-path", sorted_draft(), "--exits", "1,2,3", "--depth", "2"],
}
TINY_LAYERS = {"eagle3": 8, "peagle": 8}  # of the tiny target, where three are too few for a method


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


def random_mtp(model_path: str, config=None) -> str:
    """A random MTP head for a target in a directory, or for one of another config."""
    from transformers import AutoConfig

    config = config or AutoConfig.from_pretrained(model_path)
    seed = 5 if config.model_type == "qwen3" else 3  # whose head is right now and then
    return family_head(tempfile.mkdtemp(), config, seed)


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


def mini_flags(method: str) -> list[str]:
    """What a method is given on the mini models, whose weights its command knows."""
    if method == "space":
        pytest.skip("its mini model is a target of its own: test_space_mini.py")
    if method == "rest":
        return ["--datastore-path", datastore(str(MINI / "target"), 4000)]
    return ["--max-budget", "32"] if method == "specexec" else []


@functools.cache
def mini_bench():
    """(prompter, stop rules, questions) of the mini target and the mini bench."""
    from transformers import GenerationConfig

    path = str(MINI / "target")
    prompter = Prompter(load_tokenizer(path))
    stop = prompter.stop_rules(GenerationConfig.from_pretrained(path))
    return prompter, stop, read_questions(ROOT / "data" / "mini_bench" / "question.jsonl")


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
