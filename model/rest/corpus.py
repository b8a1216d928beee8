"""Texts of a corpus, one document after another, without ever holding all of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from model.common.errors import BadInput, parse_json

BLOCK = 1 << 20  # characters of a JSON array read at a time
PIECE = 1 << 14  # of a text tokenised at once: tokenizers keep memory of the longest, and slow down


def cut(text: str):
    """(text, first, last) of a text's pieces: at least PIECE characters each, to a line's end if it
    is near."""
    begin = 0
    while begin < len(text):
        end = begin + PIECE
        if end < len(text):
            end = text.find("\n", end - 1, end + PIECE) + 1 or end + PIECE
        yield text[begin:end], begin == 0, end >= len(text)
        begin = end


class Corpus:
    """A file of JSON records, a text file, or a folder of either.

    .jsonl has a record a line, .json an array of them; {"conversations": [{"value": text}, ...]}
    holds a document a message, {"text": text} or {"content": text} one. Every other file is one
    document. num_bad counts records and files that say nothing usable; `say` is told of each.
    """

    def __init__(self, path: str, extensions: tuple[str, ...] = (), say=lambda line: None):
        self.path, self.say = Path(path), say
        if self.path.is_dir():
            self.files = [
                file
                for file in sorted(self.path.rglob("*"))
                if file.is_file()
                and not any(p.startswith(".") for p in file.relative_to(self.path).parts)
                and (not extensions or file.suffix in extensions)
            ]
        elif self.path.is_file():
            self.files = [self.path]
        else:
            raise BadInput(f"{path}: no such file or folder")
        if not self.files:
            raise BadInput(
                f"{path}: no files" + (f" of {', '.join(extensions)}" * bool(extensions))
            )
        self.num_bad = self.done_bytes = 0

    def describe(self) -> dict:
        """Name, number and bytes of the files, and a hash over their names, sizes and ends."""
        digest, total = hashlib.sha256(), 0
        for file in self.files:
            try:
                size = file.stat().st_size
                with file.open("rb") as opened:
                    ends = opened.read(1 << 16)
                    opened.seek(max(size - (1 << 16), 0))
                    ends += opened.read()
            except OSError as error:
                raise BadInput(f"{file}: cannot be read: {error.strerror}") from error
            name = file.relative_to(self.path).as_posix() if file != self.path else file.name
            digest.update(f"{name} {size} {hashlib.sha256(ends).hexdigest()}\n".encode())
            total += size
        return {
            "name": self.path.resolve().name,
            "num_files": len(self.files),
            "bytes": total,
            "sha256": digest.hexdigest(),
        }

    def pieces(self):
        """(text, first, last) of every document's pieces, in order: a long one has several."""
        self.num_bad = self.done_bytes = 0
        for file in self.files:
            before = self.done_bytes
            if file.suffix in (".jsonl", ".json"):
                for where, record in self._records(file):
                    yield from self._texts(where, record)
            else:
                yield from self._source(file)
            self.done_bytes = before + file.stat().st_size

    def _bad(self, where, reason) -> None:
        self.num_bad += 1
        self.say(f"{where}: {reason}")

    def _records(self, file: Path):
        """(file:line, value) of each JSON record."""
        with file.open("rb") as lines:
            array = file.suffix == ".json" and lines.read(64).lstrip()[:1] == b"["
            lines.seek(0)
            if array:
                yield from self._elements(file)
                return
            for number, line in enumerate(lines, 1):
                self.done_bytes += len(line)
                if not line.strip():
                    continue
                try:
                    yield f"{file}:{number}", parse_json(line)
                except ValueError:  # not JSON, or not UTF-8
                    self._bad(f"{file}:{number}", "not JSON")

    def _elements(self, file: Path):
        """(file, element n) of an array that is longer than the memory."""
        decoder, buffer, number = json.JSONDecoder(), "", 0
        with file.open(encoding="utf-8", errors="replace") as source:
            buffer = source.read(BLOCK).lstrip()[1:]
            while True:
                buffer = buffer.lstrip(" \t\r\n,")
                if buffer.startswith("]"):
                    return
                try:
                    value, end = decoder.raw_decode(buffer)
                except ValueError:
                    more = source.read(max(BLOCK, len(buffer)))
                    if not more:
                        self._bad(f"{file}: element {number + 1}", "not JSON; the rest is left out")
                        return
                    buffer += more
                    continue
                number += 1
                self.done_bytes += end
                buffer = buffer[end:]
                yield f"{file}: element {number}", value

    def _texts(self, where: str, record):
        """The documents of a record."""
        texts = None
        if isinstance(record, dict):
            if isinstance(record.get("conversations"), list):
                texts = [
                    message.get("value") if isinstance(message, dict) else None
                    for message in record["conversations"]
                ]
            elif "text" in record or "content" in record:
                texts = [record.get("text", record.get("content"))]
        if texts is None or not all(isinstance(text, str) for text in texts):
            self._bad(where, "neither conversations of values nor text nor content")
            return
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError:
                self._bad(where, "half a surrogate pair is no text")
                return
        for text in texts:
            yield from cut(text)

    def _source(self, file: Path):
        """A file as one document, cut as a long text is."""
        first, held = True, None
        try:
            with file.open(encoding="utf-8", newline="") as source:
                while block := source.read(PIECE):
                    if not block.endswith("\n"):
                        block += source.readline(PIECE)
                    if held is not None:
                        yield held, first, False
                        first = False
                    held = block
                    self.done_bytes += len(block)
        except UnicodeDecodeError:
            self._bad(file, "not UTF-8; left out from there on")
        except OSError as error:
            self._bad(file, error.strerror)
        if held is not None:
            yield held, first, True
