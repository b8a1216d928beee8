"""Records of a file that others wrote: a JSON array or JSON lines, packed with gzip or not."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from model.common.errors import BadInput, parse_json


def read_records(path: Path, max_lines: int | None = None) -> Iterator[tuple[str, object]]:
    """(file:line, record) of a JSON array, or of (the first lines of) a file with a record a line.

    A byte order mark is no part of the text. A broken record is its ValueError, for the caller to
    refuse or to leave out; after one in an array nothing can be read.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    content = content.removeprefix(b"\xef\xbb\xbf")
    array = content.lstrip().startswith(b"[") and not path.name.endswith((".jsonl", ".jsonl.gz"))
    for line, record in _array(content) if array else _lines(content, max_lines):
        yield f"{path}:{line}", record


def _lines(content: bytes, most: int | None) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(content.split(b"\n", most or -1)[:most], 1):
        if line.strip():
            yield number, _parsed(line)


def _parsed(line: bytes) -> object:
    try:
        return parse_json(line.decode())
    except (ValueError, RecursionError) as error:
        return _reason(error)


def _reason(error: Exception) -> ValueError:
    """A ValueError that says what is wrong with a record."""
    if isinstance(error, UnicodeDecodeError):
        return ValueError(f"not UTF-8 text: {error.reason}")
    return ValueError(f"not JSON: {getattr(error, 'msg', error)}")


def _array(content: bytes) -> Iterator[tuple[int, object]]:
    """(line where it begins, record) of a JSON array."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        yield content.count(b"\n", 0, error.start) + 1, _reason(error)
        return
    decoder, line, seen = json.JSONDecoder(), 1, 0
    at = text.index("[") + 1
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        if text[at : at + 1] == "]":
            return
        line, seen = line + text.count("\n", seen, at), at
        try:
            record, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield line, ValueError(f"{_reason(error)}; the rest of the file is not read")
            return
        yield line, record
