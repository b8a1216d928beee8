"""A datastore on disk: tokens, their suffix arrays, and the manifest that describes both.

tokens.bin    ids of 2 or 4 bytes. The largest number that fits is the separator: it ends a document
              and every chunk, and no query holds it
suffixes.bin  of every chunk, the places of its tokens, counted from the chunk's first and sorted by
              what follows from there on; 4 bytes each
manifest.json format, tokenizer, counts, chunks, source

Numbers are little-endian. Chunks bound the memory of a build, which sorts one at a time: the chunk
5 3 separator has the suffix array 1 0 2.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from model.common.errors import BadInput, parse_json

FORMAT, VERSION = "specgauge-rest", 1
MANIFEST, TOKENS, SUFFIXES = "manifest.json", "tokens.bin", "suffixes.bin"
SUFFIX_BYTES = 4
BLOCK = 1 << 20


def token_bytes(vocab_size: int) -> int:
    """Width of an id: 2 or 4 bytes, with one number left for the separator."""
    return 2 if vocab_size < 1 << 16 else 4


def separator(width: int) -> int:
    """The number that is no token."""
    return (1 << 8 * width) - 1


def tokenizer_sha256(tokenizer) -> str:
    """Of the sorted vocabulary with its ids: what a datastore is tied to."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()


def sorted_suffixes(tokens, width: int):
    """Suffix array of one chunk's tokens [n], as blocks of uint32.

    Sorts the suffixes of the big-endian bytes, which compare as tokens do, and keeps those that
    begin one: 10 bytes of memory a token with 2-byte tokens, 20 with 4-byte tokens.
    """
    from pydivsufsort import divsufsort

    tokens = tokens.astype(f">u{width}")  # frees the argument, if the caller kept no name for it
    order = divsufsort(tokens.view("u1"))  # int32 [n * width]
    for begin in range(0, len(order), BLOCK):
        block = order[begin : begin + BLOCK]
        yield (block[block % width == 0] // width).astype("<u4")


def write_json(path: Path, document: dict) -> None:
    """Replace a file in one rename."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def read_json(path: Path) -> dict:
    """A JSON object; what else stands there is bad input."""
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise BadInput(f"{path}: not a JSON object")
    return document


FIELDS = {  # of a manifest, and their types
    "tokenizer": str,
    "tokenizer_sha256": str,
    "token_bytes": int,
    "source": dict,
    "chunks": list,
    "num_tokens": int,
    "build_s": int | float,
}


@dataclass
class Datastore:
    """An opened datastore: both files are mapped, nothing is loaded.

    tokens [n] and suffixes [n] are np.memmap; chunks are (first place, number of places).
    """

    path: Path
    manifest: dict
    tokens: object
    suffixes: object
    chunks: list[tuple[int, int]]
    width: int

    @property
    def separator(self) -> int:
        return separator(self.width)

    @property
    def num_bytes(self) -> int:
        """Size of both files."""
        return self.tokens.nbytes + self.suffixes.nbytes

    def check_tokenizer(self, tokenizer) -> None:
        """Refuse a tokenizer whose ids mean something else."""
        if tokenizer_sha256(tokenizer) != self.manifest["tokenizer_sha256"]:
            raise BadInput(
                f"{self.path}: built with the tokenizer of {self.manifest['tokenizer']}, whose "
                "vocabulary is not the target's; build it anew for this target"
            )


def open_datastore(path: str) -> Datastore:
    """Map a datastore; a missing, foreign or shortened one is bad input."""
    import numpy as np

    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        raise BadInput(f"{folder}: no datastore ({MANIFEST} is missing; was its build finished?)")
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise BadInput(f"{folder / MANIFEST}: not a datastore's manifest")
    if manifest.get("version") != VERSION:
        raise BadInput(
            f"{folder}: datastore version {manifest.get('version')}, this is for {VERSION}"
        )
    for name, kind in FIELDS.items():
        if not isinstance(manifest.get(name), kind):
            raise BadInput(f"{folder / MANIFEST}: incomplete or damaged: {name}")
    width = manifest["token_bytes"]
    places = [chunk.get("places") for chunk in manifest["chunks"] if isinstance(chunk, dict)]
    sizes = [size for size in places if isinstance(size, int) and size >= 0]
    if len(sizes) < len(manifest["chunks"]):
        raise BadInput(f"{folder / MANIFEST}: incomplete or damaged: places of the chunks")
    maps = []
    for name, kind, bytes_each in ((TOKENS, f"<u{width}", width), (SUFFIXES, "<u4", SUFFIX_BYTES)):
        expected, file = sum(sizes) * bytes_each, folder / name
        actual = file.stat().st_size if file.is_file() else 0
        if actual != expected:
            raise BadInput(f"{file}: {actual} bytes, the manifest says {expected}; build it anew")
        try:
            maps.append(np.memmap(file, kind, "r"))
        except (OSError, ValueError, TypeError) as error:
            raise BadInput(f"{file}: cannot be mapped: {error}") from error
    chunks = [(sum(sizes[:i]), size) for i, size in enumerate(sizes)]
    return Datastore(folder, manifest, *maps, chunks, width)
