"""The methods under test, each with a tiny target in float64 whose text it can predict.

A vocabulary of 16 tokens, a pull to token 0 and embeddings that are heard make greedy answers of
cycles and runs: random heads, copied text and a noisy draft model all hit paths of several tokens,
while the changes between cycles hang on the attention. The tokenizer knows 14 of the 16 tokens.
"""

from __future__ import annotations

import functools
import importlib
import json
import tempfile
from pathlib import Path

import conftest
import torch
from conftest import FAMILIES, make_model
from dflash_dirs import dflash2_dir, dflash_dir, dspark_dir
from eagle_dirs import eagle_dir
from slow_penalties import penalised
from tiny_methods import METHODS, TINY_FLAGS, TINY_LAYERS, random_eagle

from model.common import args as arguments
from model.common.loop.decode import generate
from model.common.loop.penalties import NO_PENALTIES
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.model import Target

VOCAB, KNOWN, EOS = 16, 14, 1  # ids of the model, of the tokenizer; the tokenizer's end
LETTERS = "etaoinsrhlu:"
CONTEXT = 96
LENGTH = 28  # tokens of the known answers
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
}
CHAIN = ["--draft", "chain"]
SPECINFER = ["--drafter-path", "", "--gen-type", "specinfer"]
SPECINFER += ["--max-num-beams", "3", "--max-beam-len", "4"]
# further ways to run a method, beside its defaults: {method: {name: flags}}; the path of a draft
# model is filled in
VARIANTS = {
    "lookahead": {"prompt-ngrams": lambda paths: ["--prompt-ngrams"]},
    "sd2": {"chain": lambda paths: ["--drafter-path", "", "--exits", "1,2,3", *CHAIN]},
    "samd": {
        "recycling": lambda paths: ["--auxiliary", "recycling"],
        "corpus": lambda paths: ["--static-path", own_automaton(paths["target"])],
        "eagle2": lambda paths: [
            *["--auxiliary", "eagle2", "--eagle-path", random_eagle(eagle_dir, paths["target"])],
            *["--static-path", own_automaton(paths["target"]), "--len-bias", "0"],
        ],
    },
    "dflash": {
        "tree": lambda paths: [
            *["--dflash-path", dflash_dir(paths["target"]), "--draft", "tree"],
            *["--total-token", "12"],
        ],
        "dflash2": lambda paths: ["--dflash-path", dflash2_dir(paths["target"])],
    },
    "dspark": {
        "gated": lambda paths: ["--dspark-path", dspark_dir(paths["target"], "gated")],
        "rnn": lambda paths: [
            *["--dspark-path", dspark_dir(paths["target"], "rnn")],
            *["--confidence", "0.2", "--cut", "host"],
        ],
        "confidence": lambda paths: [
            *["--dspark-path", dspark_dir(paths["target"]), "--confidence", "0.2"],
        ],
    },
    "suffix": {
        "tree": lambda paths: ["--draft", "tree", "--max-spec-offset", "4"],
        "ngram-mod": lambda paths: [
            *["--kind", "ngram-mod", "--n-match", "2", "--n-min", "0", "--n-max", "8"],
        ],
    },
    "specexec": {
        "specinfer": lambda paths: SPECINFER,
        "best": lambda paths: [*SPECINFER, "--draws", "best"],
    },
    "sps": {
        "confidence": lambda paths: [*TINY_FLAGS["sps"](paths), "--schedule", "confidence"],
    },
}


def make_prompts(num: int = 4) -> list[list[int]]:
    """Ragged prompts with token 0 in them, and ids that the tokenizer does not know."""
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 19, 11, 2, 30, 7, 13, 3, 24][:num]
    return [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in lengths]


PROMPTS = make_prompts()
_folders: list = []  # kept until the process ends


def new_folder() -> str:
    """A folder that is removed when the tests end."""
    _folders.append(tempfile.TemporaryDirectory(prefix="conformance-"))
    return _folders[-1].name


def make_lively(family="llama", noise=0.0, **shape):
    """A random model of float64 with predictable greedy answers; noise: of a draft model's."""
    model = make_model(family, 0, 0.25, torch.float64, **{**SHAPE, **shape})
    pull = torch.full((SHAPE["hidden_size"],), SHAPE["hidden_size"] ** -0.5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name and "gemma" not in family:  # gemma's norms add the 1 themselves
                weight.add_(1)
        embedding = model.get_input_embeddings().weight
        embedding.mul_(4).add_(3 * pull)
        if "gemma" in family:  # which multiplies them itself
            embedding.mul_(SHAPE["hidden_size"] ** -0.5)
        model.get_output_embeddings().weight[0] += 1.2 * pull
        for weight in model.parameters():
            own = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.add_(noise * weight.std() * own)
    return model.requires_grad_(False)


def make_tokenizer(vocab_size: int = VOCAB):
    """A letter a token, everything else dropped; ids 14 and 15 of the model are no tokens of it."""
    tokenizer = conftest.make_tokenizer(letters=LETTERS[: vocab_size - 2])
    tokenizer.chat_template += "{{ opening }}"  # nothing, where no --template-args say it
    assert len(tokenizer) == min(KNOWN, vocab_size)
    return tokenizer


@functools.cache
def model_dir(layers: int, noise: float = 0.0, **shape) -> str:
    """A checkpoint directory of the tiny target, or of a noisy copy as its draft model."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = new_folder()
    model = make_lively(noise=noise, num_hidden_layers=layers, **shape)
    model.set_attn_implementation("eager")
    model.generation_config.eos_token_id = EOS
    model.save_pretrained(folder)
    make_tokenizer(shape.get("vocab_size", VOCAB)).save_pretrained(folder)
    return folder


class World:
    """A tiny target and what transformers' own class says about it, read without a cache.

    own: fields of the shape that are not those of SHAPE
    """

    def __init__(self, family: str, layers: int, **own):
        kinds = FAMILIES[family].get("layer_types", [])
        shape = {"num_hidden_layers": layers, **own}
        self.context = own.get("max_position_embeddings", CONTEXT)
        if kinds:
            shape["layer_types"] = (kinds * layers)[:layers]
        self.target = Target(make_lively(family, **shape))
        self.plain = make_lively(family, **shape)
        self.plain.set_attn_implementation("eager")
        self.paths = {"target": model_dir(layers, **own), "draft": model_dir(layers, 0.1, **own)}
        self.paths["config"] = self.plain.config  # of the family, for heads that are of its class
        self.tokenizer = make_tokenizer(own.get("vocab_size", VOCAB))
        self._answers: dict = {}

    @torch.inference_mode()
    def logits(self, sequences: list[list[int]]) -> torch.Tensor:
        """After each sequence, [N, V]; right-padded, which a causal model does not see."""
        longest = max(map(len, sequences))
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sequences])
        last = torch.tensor([len(ids) - 1 for ids in sequences])
        return self.plain(input_ids=ids, use_cache=False).logits[torch.arange(len(ids)), last]

    def answer(self, prompt, length: int = LENGTH, penalties=NO_PENALTIES) -> list[int]:
        """Greedy ids, the first of equals; at most to the end of the context."""
        length = min(length, self.context - len(prompt))
        ids = self._answers.setdefault((tuple(prompt), penalties), [])
        while len(ids) < length:
            (scores,) = self.logits([prompt + ids])
            if penalties:
                scores = penalised(scores, prompt, ids, penalties)
            ids.append(int((scores == scores.max()).nonzero()[0]))
        return ids[:length]

    def forget(self) -> None:
        """Forget the answers, where a test has changed the model."""
        self._answers.clear()


@functools.cache
def world_of(family: str = "llama", layers: int = 3, **own) -> World:
    """One of a family and depth, shared by all cases."""
    return World(family, layers, **own)


@functools.cache
def own_corpus(num: int = 6) -> str:
    """A corpus file of some of the tiny target's answers, as far as the tokenizer knows them."""
    words, file = ["<s>", "</s>", *LETTERS], Path(new_folder()) / "corpus.jsonl"
    answers = [world_of().answer(prompt) for prompt in make_prompts(num)]
    texts = ["".join(words[token] for token in ids if token < KNOWN) for ids in answers]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(file)


@functools.cache
def own_store(model_path: str) -> str:
    """A REST datastore of that corpus."""
    from model.rest.build_datastore import main as build_datastore

    folder = new_folder()
    build_datastore(["--model-path", model_path, "--input", own_corpus(), "--output", folder])
    return folder


@functools.cache
def own_automaton(model_path: str) -> str:
    """SAM-Decoding's automaton of two of the answers, so that text and corpus differ."""
    from model.samd.build_sam import main as build_sam

    folder = new_folder()
    build_sam(["--model-path", model_path, "--input", own_corpus(2), "--output", folder])
    return folder


# in place of TINY_FLAGS, where these would hardly ever hit
OWN_FLAGS = {"rest": lambda paths: ["--datastore-path", own_store(paths["target"])]}


class Case:
    """A method with its flags, built once for its tiny target."""

    def __init__(self, method: str, variant: str = "", family: str = "llama", world=None):
        self.method, self.variant = method, variant
        self.world = world or world_of(family, TINY_LAYERS.get(method, 3))
        flags = {**TINY_FLAGS, **OWN_FLAGS}.get(method, lambda _: [])
        if variant:
            flags = VARIANTS[method][variant]
        self.flags = list(flags(self.world.paths))
        if "--drafter-path" in self.flags:  # any draft model is the one that knows the vocabulary
            self.flags[self.flags.index("--drafter-path") + 1] = self.world.paths["draft"]
        self.target = self.world.target

    def __repr__(self):
        return "-".join(filter(None, (self.method, self.variant)))

    @functools.cached_property
    def drafter(self):
        """The one that all checks share."""
        return self.build()

    @functools.cached_property
    def alone(self):
        """Greedy turns of PROMPTS, one at a time."""
        return self.decode(PROMPTS, batch=1)

    @functools.cached_property
    def together(self):
        """The same in one batch."""
        return self.decode(PROMPTS)

    @property
    def script(self):
        """The method's inference module."""
        return importlib.import_module(f"model.{self.method}.inference_{self.method}")

    def build(self):
        """A new drafter, as the method's command builds it."""
        script = self.script
        parser = arguments.make_parser(self.method, script.__doc__, script.add_args)
        args = parser.parse_args(["--model-path", self.world.paths["target"], *self.flags])
        args.dtype, args.device = "float64", "cpu"
        return script.build(args, self.target)

    def decode(self, prompts, limit=LENGTH, batch=None, stop=None, drafter=None, **sampling):
        """Turns of all prompts in `batch` slots (default: one each), which are filled again.

        sampling: sampler (default: greedy) and seeds, one a prompt.
        """
        sampler = sampling.get("sampler") or Sampler()
        seeds = sampling.get("seeds") or list(range(len(prompts)))
        drafter, stop = drafter or self.drafter, stop or StopRules()
        given = self.target, drafter, prompts, sampler, seeds, stop, limit
        return generate(*given, num_slots=batch)


@functools.cache
def case(method: str, variant: str = "", family: str = "llama") -> Case:
    """One of each, shared by all tests of a process."""
    return Case(method, variant, family)


CASES = [(method, variant) for method in METHODS for variant in ("", *VARIANTS.get(method, {}))]
