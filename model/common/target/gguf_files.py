"""GGUF files as models: which file a path names, what its header says, what transformers misses.

transformers makes config, tokenizer and dequantised weights of the file. What it leaves out of the
config without a word (scaled RoPE, windows, attention's scale) is set here from the header, or the
file is refused; so is a file with tensors that the model would not get.

Source: the format, github.com/ggml-org/ggml/blob/master/docs/gguf.md; what the keys do,
github.com/ggml-org/llama.cpp (src/llama-hparams and the models' graphs).
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import math
import mmap
import os
import re
import struct
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from model.common.errors import BadInput, first_line

SUFFIX = ".gguf"
OTHER_WEIGHTS = (".safetensors", ".bin", ".index.json")
KINDS = (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12)  # of a value that is a number
NUMBERS = dict(zip(KINDS, "BbHhIif?Qqd"))  # as struct calls them
STRING, ARRAY = 8, 9
FLOAT32 = 0  # of a tensor
SPECIAL_TOKENS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}
WORD = re.compile("[Ġ▁][a-z]{4,}")  # a token that is a word with the space before it
NUM_WORDS = 200  # of them to try, at least where there are as many
ROPE_TENSOR = "rope_freqs.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SCALE_OF_27B = {("gemma2", 46): 144, ("gemma3", 62): 168}  # (architecture, layers): its square^-1/2


class Header(NamedTuple):
    """What a file says before its tensors.

    values   {key: number, text or list of numbers}; of a list of texts its length
    tensors  {name: (shape as in PyTorch, type, first byte behind data_start)}
    """

    values: dict
    tensors: dict[str, tuple]
    data_start: int

    def get(self, key: str, default=None):
        """A value of the model's architecture: get("rope.freq_base")."""
        return self.values.get(f"{self.values['general.architecture']}.{key}", default)


def gguf_file(path: str) -> Path | None:
    """The checked GGUF file on this machine that a model path names, None where it names none.

    FILE.gguf, a directory whose only weights are one such file, or HUB/ID/FILE.gguf, which is
    fetched. Raises BadInput where it is missing, damaged or one part of several.
    """
    if os.path.isdir(path):
        file = _only_file(path)
    elif path.lower().endswith(SUFFIX):
        file = Path(path) if os.path.exists(path) else _fetched(path)
    else:
        return None
    if file is None:
        return None
    if importlib.util.find_spec("gguf") is None:
        raise BadInput(f"{path}: GGUF files need the package gguf (pip install gguf)")
    num_parts = read_header(file).values.get("split.count", 1)
    if num_parts > 1:
        raise BadInput(
            f"{path}: one of {num_parts} parts; llama.cpp's `llama-gguf-split --merge` joins them"
        )
    return file


def _only_file(folder: str) -> Path | None:
    """The GGUF file of a directory without other weights."""
    names = sorted(os.listdir(folder))
    found = [name for name in names if name.lower().endswith(SUFFIX)]
    if not found or any(name.endswith(OTHER_WEIGHTS) for name in names):
        return None
    if len(found) > 1:
        raise BadInput(
            f"{folder}: {len(found)} GGUF files ({', '.join(found)}): --gguf-file, or the path of "
            "one, chooses"
        )
    return Path(folder, found[0])


@functools.lru_cache(maxsize=32)
def _fetched(path: str) -> Path:
    """The file of a hub repository, from its cache or the network: HUB/ID/FILE.gguf."""
    from transformers.utils import cached_file

    owner, *rest = path.split("/")
    if len(rest) < 2 or owner in ("", ".", "..", "~") or os.path.isdir(owner):
        raise BadInput(f"{path}: no such file")
    try:
        return Path(cached_file(f"{owner}/{rest[0]}", "/".join(rest[1:])))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: {first_line(error)}") from error


def read_header(file: Path) -> Header:
    """The header; BadInput where it is no GGUF file, or shorter than it says."""
    return _read_header(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read_header(file: Path, changed_ns: int) -> Header:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    size = file.stat().st_size
    try:
        with file.open("rb") as data:
            if data.read(4) != b"GGUF":
                raise BadInput(f"{file}: no GGUF file (its first bytes are not GGUF)")
            with mmap.mmap(data.fileno(), 0, access=mmap.ACCESS_READ) as blob:
                header = _Reader(blob).header()
    except (struct.error, ValueError, KeyError, MemoryError, OverflowError) as error:
        raise BadInput(f"{file}: its header is cut off or damaged ({error})") from error
    except OSError as error:
        raise BadInput(f"{file}: {error}") from error
    for name, (shape, kind, offset) in header.tensors.items():
        try:
            numbers, num_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except ValueError as error:
            raise BadInput(f"{file}: tensor {name} is of type {kind}: {error}") from error
        end = header.data_start + offset + math.prod(shape) // numbers * num_bytes
        if end > size:
            raise BadInput(f"{file}: cut off: tensor {name} ends at byte {end} of {size}")
    return header


class _Reader:
    """Reads a header from its bytes, front to back."""

    def __init__(self, blob):
        self.blob, self.at = blob, 4

    def header(self) -> Header:
        version, num_tensors, num_values = self.numbers("IQQ")
        if version not in (2, 3):
            raise KeyError(f"version {version}; 2 and 3 are known")
        values = {}
        for _ in range(num_values):
            key = self.text()
            values[key] = self.value(*self.numbers("I"))
        if "general.architecture" not in values:
            raise KeyError("no general.architecture")
        tensors = {}
        for _ in range(num_tensors):
            name = self.text()
            (num_dimensions,) = self.numbers("I")
            shape = self.numbers(f"{num_dimensions}Q")
            kind, offset = self.numbers("IQ")
            tensors[name] = shape[::-1], kind, offset
        alignment = values.get("general.alignment", 32)
        return Header(values, tensors, -(-self.at // alignment) * alignment)

    def numbers(self, codes: str) -> tuple:
        found = struct.unpack_from("<" + codes, self.blob, self.at)
        self.at += struct.calcsize("<" + codes)
        return found

    def text(self) -> str:
        (length,) = self.numbers("Q")
        if self.at + length > len(self.blob):
            raise struct.error(f"a text of {length} bytes at byte {self.at}")
        self.at += length
        return self.blob[self.at - length : self.at].decode()

    def value(self, kind: int):
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.numbers(NUMBERS[kind])[0]
        kind, count = self.numbers("IQ")
        if kind != STRING:
            return list(self.numbers(f"{count}{NUMBERS[kind]}"))
        for _ in range(count):  # tokens and merges, which the tokenizer's own reader wants
            (length,) = self.numbers("Q")
            self.at += length
        return count


@contextmanager
def pretrained(path: str):
    """(directory or hub id, further arguments) for transformers' from_pretrained of a model path.

    A GGUF file is linked into a directory of its own: what lies beside it, another model's
    tokenizer.json say, would be read in place of what the file holds.
    """
    file = gguf_file(path)
    if file is None:
        yield path, {}
        return
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(file.resolve(), os.path.join(folder, "model" + SUFFIX))
        yield folder, {"gguf_file": "model" + SUFFIX}


def complete_config(path: str, config) -> None:
    """Set in a config made of a GGUF file what transformers left out; refuse what has no place.

    config: transformers' config of the file, changed in place.
    """
    header = read_header(gguf_file(path))
    architecture = header.values["general.architecture"]
    scale = SCALE_OF_27B.get((architecture, header.get("block_count")))
    if scale is not None:
        config.query_pre_attn_scalar = scale
    window = header.get("attention.sliding_window")
    if window and hasattr(config, "sliding_window"):
        config.sliding_window = window
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if header.get(key) is not None:
            setattr(config, key, header.get(key))
    _complete_rope(path, header, config)
    for key, neutral in (("logit_scale", 1), ("attention.scale", 0), ("attention.causal", True)):
        if header.get(key, neutral) != neutral:
            raise BadInput(f"{path}: {architecture}.{key} {header.get(key)} is not supported")


def _complete_rope(path: str, header: Header, config) -> None:
    """Scaled RoPE, which the file says in values, or as a tensor of one divisor a frequency."""
    kind, factor = header.get("rope.scaling.type", "none"), header.get("rope.scaling.factor", 1.0)
    tensors = [name for name in header.tensors if name.startswith("rope_")]
    own = dict(config.rope_parameters or {}) if hasattr(config, "rope_parameters") else {}
    changes = None
    if tensors == [ROPE_TENSOR]:
        changes = _llama3(path, header, config)
    elif tensors:
        raise BadInput(f"{path}: tensor {tensors[0]} (longrope) is not read by transformers")
    elif kind == "linear" and factor != 1:
        changes = {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        length = header.get("rope.scaling.original_context_length")
        changes = {"rope_type": "yarn", "factor": factor}
        changes |= {"original_max_position_embeddings": length} if length else {}
    elif kind not in ("none", "linear"):
        raise BadInput(f"{path}: RoPE of type {kind} is not supported in GGUF files")
    if changes is None:
        return
    if "full_attention" in own:  # Gemma 3: layers with a window keep theirs
        own["full_attention"] = {**own["full_attention"], **changes}
    else:
        own |= changes
    config.rope_parameters = own


def _llama3(path: str, header: Header, config) -> dict | None:
    """Llama 3.1's rule, whose divisors the file's tensor must be; None where they are all 1."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    (count,), kind, offset = header.tensors[ROPE_TENSOR]
    with gguf_file(path).open("rb") as data:
        data.seek(header.data_start + offset)
        divisors = torch.frombuffer(bytearray(data.read(4 * count)), dtype=torch.float32)
    if kind == FLOAT32 and (divisors == 1).all():
        return None
    rule = {"rope_type": "llama3", "factor": round(divisors.max().item(), 4), **LLAMA3}
    scaled = copy.deepcopy(config)
    scaled.rope_parameters = {**config.rope_parameters, **rule}
    exponents = torch.arange(count).float() / count
    plain = config.rope_parameters["rope_theta"] ** -exponents
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, "cpu")
    if kind != FLOAT32 or len(wanted) != count or not wanted.allclose(plain / divisors, 1e-3):
        raise BadInput(f"{path}: tensor {ROPE_TENSOR} is not Llama 3.1's RoPE; it is not supported")
    return rule


def complete_tokenizer(path: str, tokenizer) -> None:
    """Hold a GGUF file's tokenizer to what the file says: special tokens, the first one, merges.

    transformers 5.17 reads some files otherwise. What cannot be set here is refused.
    """
    values = read_header(gguf_file(path)).values
    for token, key in SPECIAL_TOKENS.items():
        index = values.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None and getattr(tokenizer, token + "_id") != index:
            setattr(tokenizer, token, tokenizer.convert_ids_to_tokens(index))
    kind = values.get("tokenizer.ggml.model")
    begins = values.get("tokenizer.ggml.add_bos_token", kind == "llama")
    if tokenizer.bos_token and kind != "gemma4" and begins != _begins_with_bos(tokenizer):
        tokenizer.add_bos_token = begins
        if begins != _begins_with_bos(tokenizer):
            raise BadInput(
                f"{path}: its tokenizer, as transformers reads it, adds no {tokenizer.bos_token}"
            )
    vocabulary = tokenizer.get_vocab()
    words = sorted(token for token in vocabulary if WORD.fullmatch(token))
    words = words[:: len(words) // NUM_WORDS + 1]
    ends = [tokenizer(f"a {w[1:]}", add_special_tokens=False).input_ids[-1] for w in words]
    lost = [word for word, end in zip(words, ends) if end != vocabulary[word]]
    if 10 * len(lost) > len(words):
        raise BadInput(
            f"{path}: its tokenizer is read wrongly by transformers {_version()}: {len(lost)} of "
            f"{len(words)} words are split, {lost[0][1:]!r} for one; 5.23 reads Gemma's"
        )


def _begins_with_bos(tokenizer) -> bool:
    return tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def _version() -> str:
    import transformers

    return transformers.__version__


def check_taken(path: str, model) -> None:
    """Refuse a file that holds more numbers than its model has places for: biases, say.

    transformers leaves such tensors out; those that it misses are missing keys.
    """
    header = read_header(gguf_file(path))
    sizes = {name: math.prod(shape) for name, (shape, *_) in header.tensors.items()}
    sizes = {name: size for name, size in sizes.items() if not name.startswith("rope_")}
    if model.config.tie_word_embeddings:
        sizes.pop("output.weight", None)
    places = {id(tensor): tensor.numel() for tensor in model.state_dict(keep_vars=True).values()}
    taken = sum(places.values())
    if sum(sizes.values()) > taken and not header.get("nextn_predict_layers"):
        biases = [name for name in sizes if name.endswith(".bias")]
        example = f", {biases[0]} perhaps" if biases else ""
        raise BadInput(
            f"{path}: {sum(sizes.values()) - taken} numbers of its tensors have no place in "
            f"transformers' {model.config.model_type}{example}; it would not be the same model"
        )
