"""A GGUF file as an ordinary model folder in float32, which any tool loads in a second.

Why: transformers reads a GGUF file in Python, and every start reads it some five times; SmolLM2's
start takes 25 s from the file and 8 s from the folder (one thread). Dequantised in float32 nothing
is lost: every value of a block is a product and a sum of what the file holds.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from data.fetching.web import DownloadError, Published, is_there, sha256_of

WEIGHTS = "model.safetensors"
NEEDED = ("torch", "transformers", "gguf")


def check_packages(name: str) -> None:
    """Refuse before the first byte where this Python cannot unpack."""
    absent = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if absent:
        raise DownloadError(
            f"{name}: {sys.executable} has no {', '.join(absent)}, which unpack the file; the "
            f"environment of eval.sh has: $(./eval.sh --setup) data/download.py {name}"
        )


def is_unpacked(folder: Path, weights: Published) -> bool:
    """Whether a folder holds the weights; another thing of its name is refused."""
    if not folder.exists():
        return False
    if is_there(folder / WEIGHTS, weights):
        return True
    raise DownloadError(
        f"{folder}: other weights are there; remove the folder or choose another --output"
    )


def unpack(file: Path, folder: Path, weights: Published, beside: dict[str, bytes]) -> None:
    """Make `folder` of a GGUF file: config, tokenizer with its template, model.safetensors.

    weights: the bytes that model.safetensors has to have; beside: further files. The folder gets
    its name last, whole; the folder of the GGUF file, in which it is made, is removed.
    """
    from safetensors import SafetensorError

    from model.common.errors import BadInput, first_line
    from model.common.prompts.prompter import load_tokenizer
    from model.common.target.loading import load_model

    half = file.parent / "unpacked"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    try:
        load_tokenizer(str(file)).save_pretrained(half)
        model = load_model(str(file), "float32", "cpu", attention=None)
    except BadInput as error:
        raise DownloadError(str(error)) from None
    try:
        model.save_pretrained(half, max_shard_size="100GB")
    except SafetensorError as error:  # a full disk, say
        raise DownloadError(f"{half}: {first_line(error)}") from None
    if not is_there(half / WEIGHTS, weights):
        import transformers

        raise DownloadError(
            f"{file}: unpacked by transformers {transformers.__version__} its weights have sha256 "
            f"{sha256_of(half / WEIGHTS)}, expected {weights.sha256}; requirements.txt names the "
            "version that makes them"
        )
    (half / WEIGHTS).chmod(0o644)  # safetensors lets its owner read alone
    for name, content in beside.items():
        (half / name).write_bytes(content)
    os.replace(half, folder)
    shutil.rmtree(file.parent)
