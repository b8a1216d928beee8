"""The lines of an answer file; memory holds their places alone, which a load of hours needs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from model.common.errors import BadInput, Unwritable, parse_json


class Lines:
    """One JSON line a question, in a file that stays open for reading.

    So a file that is removed under the run can be written anew, with all its lines.

    places  {question id: (first byte, bytes)}, in the order of the lines
    """

    def __init__(self, path: Path):
        self.path, self.file = path, None
        self.places: dict[int | str, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self):
        return iter(self.places)

    def __contains__(self, question_id) -> bool:
        return question_id in self.places

    def record(self, question_id: int | str) -> dict:
        """What the line of a question says."""
        return parse_json(self._line(question_id))

    def write(self, question_ids: Iterable, new: dict | None = None) -> None:
        """Write the file anew: the lines of these questions; new {id: record}: in their place."""
        places, end, new = {}, 0, new or {}

        def lines():
            nonlocal end
            for name in question_ids:
                line = line_of(new[name]) if name in new else self._line(name)
                places[name] = end, len(line)
                end += len(line)
                yield line

        write_atomic(self.path, lines())
        if self.file:
            self.file.close()
        self.file, self.places = self.path.open("rb"), places

    def add(self, record: dict) -> None:
        """Append a line, which the system has before this returns."""
        name, line = record["question_id"], line_of(record)
        try:
            self.places[name] = self._append(line), len(line)
        except FileNotFoundError:  # removed under the run, with the answers before this one
            self.write(dict.fromkeys([*self.places, name]), {name: record})
        except OSError as error:  # a half-written line is the last one, which resuming drops
            raise Unwritable(self.path, error) from error

    def sync(self) -> None:
        """Wait until the disk has what was written."""
        os.fsync(self.file.fileno())

    def _append(self, line: bytes) -> int:
        """Write a line behind the others of a file that is there; returns where it begins."""
        where = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        with open(where, "wb") as out:
            if not os.path.sameopenfile(where, self.file.fileno()):
                raise FileNotFoundError  # another one is in its place
            begin = out.seek(0, os.SEEK_END)
            out.write(line)
        return begin

    def _line(self, name: int | str) -> bytes:
        begin, size = self.places[name]
        line = os.pread(self.file.fileno(), size, begin)
        if len(line) != size or not line.endswith(b"\n"):
            raise BadInput(f"{self.path}: changed under the run")
        return line


def line_of(record: dict) -> bytes:
    """A record as a line in UTF-8; with escapes where it holds half a surrogate pair."""
    try:
        line = json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        line = json.dumps(record).encode()
    return line + b"\n"


def write_atomic(path: Path, parts: Iterable[bytes]) -> None:
    """Put a file in the place of another, whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as out:
            out.writelines(parts)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, path)
    except BadInput:
        part.unlink(missing_ok=True)
        raise
    except OSError as error:
        part.unlink(missing_ok=True)
        raise Unwritable(path, error) from error
