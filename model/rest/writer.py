"""Writes a datastore chunk by chunk, so that a build can be interrupted and go on.

progress.json says which chunks are whole, and how far into the corpus they reach; what was written
behind them is dropped. manifest.json is written last: a datastore without one is not finished.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from model.common.errors import BadInput
from model.rest.datastore import (
    FORMAT,
    MANIFEST,
    SUFFIX_BYTES,
    SUFFIXES,
    TOKENS,
    VERSION,
    read_json,
    separator,
    sorted_suffixes,
    token_bytes,
    tokenizer_sha256,
    write_json,
)

PROGRESS = "progress.json"
MAX_BYTES = (1 << 31) - 1  # of a chunk: its bytes are sorted with 4-byte indices


def settings_of(
    tokenizer, name: str, source: dict, chunk_tokens: int, separators: bool = True
) -> dict:
    """What the bytes of a datastore depend on. source: a description of the corpus."""
    width = token_bytes(len(tokenizer))
    if chunk_tokens * width > MAX_BYTES:
        raise BadInput(f"--chunk-tokens {chunk_tokens}: at most {MAX_BYTES // width} can be sorted")
    return {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": name,
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "vocab_size": len(tokenizer),
        "token_bytes": width,
        "separators": separators,
        "chunk_tokens": chunk_tokens,
        "source": source,
    }


class Writer:
    """Takes pieces of documents as ids, and keeps what a resumed build needs to know.

    num_pieces  pieces that the finished chunks hold whole: where the corpus goes on
    manifest    set where the directory already holds this very datastore
    """

    def __init__(self, folder: str, settings: dict, overwrite: bool = False):
        self.folder, self.settings, self.manifest = Path(folder), settings, None
        self.width = settings["token_bytes"]
        self.separator = separator(self.width)
        self.begin = time.perf_counter()
        self.state = {"num_pieces": 0, "skip_ids": 0, "num_tokens": 0, "num_documents": 0}
        self.state |= {"chunks": [], "build_s": 0.0}
        self._open(overwrite)
        self.num_pieces, self.skip = self.state["num_pieces"], self.state["skip_ids"]
        self.used, self.new, self.documents, self.ended = 0, 0, 0, True
        self.digest = hashlib.sha256()

    def _open(self, overwrite: bool) -> None:
        """Resume, refuse or start anew, and cut both files behind the finished chunks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        manifest, progress = self.folder / MANIFEST, self.folder / PROGRESS
        if overwrite:
            for file in (manifest, progress):
                file.unlink(missing_ok=True)
        if manifest.exists():
            found = read_json(manifest)
            self._refuse_other(found)
            self.manifest = found
            return
        if progress.exists():
            found = read_json(progress)
            self._refuse_other(found.get("settings") or {})
            self.state = found.get("state") or self.state
        places = sum(chunk["places"] for chunk in self.state["chunks"])
        for name, width in ((TOKENS, self.width), (SUFFIXES, SUFFIX_BYTES)):
            with (self.folder / name).open("ab") as file:
                if file.tell() < places * width:
                    raise BadInput(
                        f"{self.folder / name}: shorter than {PROGRESS} says; "
                        "--overwrite starts anew"
                    )
                file.truncate(places * width)
        self.file = (self.folder / TOKENS).open("ab")

    def _refuse_other(self, found: dict) -> None:
        names = [name for name, value in self.settings.items() if found.get(name) != value]
        if names:
            raise BadInput(
                f"{self.folder}: holds a datastore with another {', '.join(names)}; "
                "--overwrite replaces it"
            )

    def add(self, ids: list[int], last: bool) -> None:
        """The next piece; `last` ends its document. A chunk holds whole pieces where they fit."""
        import numpy as np

        if ids and not 0 <= min(ids) <= max(ids) < self.separator:
            raise BadInput(f"token id {max(ids)} does not fit {self.width} bytes")
        room = self.settings["chunk_tokens"] - 1  # the chunk's last place is a separator
        done, self.skip = self.skip, 0
        if self.used and self.used + len(ids) - done > room:
            self._end_chunk()
        while True:
            part = ids[done : done + room - self.used]
            self._write(np.array(part, f"<u{self.width}"))
            self.new += len(part)
            done += len(part)
            self.ended = self.ended and not part
            if done == len(ids):
                break
            self.state["skip_ids"] = done
            self._end_chunk()
        self.state["skip_ids"] = 0
        self.num_pieces += 1
        if last:
            self.documents += bool(ids)
            if self.settings["separators"] and not self.ended:
                self._write(np.array([self.separator], f"<u{self.width}"))
                self.ended = True

    def _write(self, tokens) -> None:
        data = tokens.tobytes()
        self.file.write(data)
        self.digest.update(data)
        self.used += len(tokens)

    def _end_chunk(self) -> None:
        """Close the chunk with a separator, sort its suffixes, and say that it is whole."""
        import numpy as np

        if not self.ended:
            self._write(np.array([self.separator], f"<u{self.width}"))
        self.file.flush()
        os.fsync(self.file.fileno())
        places = sum(chunk["places"] for chunk in self.state["chunks"])
        path, offset = self.folder / TOKENS, places * self.width
        digest = hashlib.sha256()
        with (self.folder / SUFFIXES).open("ab") as file:
            for block in sorted_suffixes(
                np.fromfile(path, f"<u{self.width}", offset=offset), self.width
            ):
                data = block.tobytes()
                digest.update(data)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.state["chunks"].append(
            {
                "places": self.used,
                "tokens_sha256": self.digest.hexdigest(),
                "suffixes_sha256": digest.hexdigest(),
            }
        )
        self.state["num_pieces"] = self.num_pieces
        self.state["num_tokens"] += self.new
        self.state["num_documents"] += self.documents
        self.state["build_s"] += time.perf_counter() - self.begin
        self.begin = time.perf_counter()
        self.used, self.new, self.documents, self.ended = 0, 0, 0, True
        self.digest = hashlib.sha256()
        write_json(self.folder / PROGRESS, {"settings": self.settings, "state": self.state})

    def finish(self, num_bad: int) -> dict:
        """Close the last chunk and write the manifest."""
        if self.used:
            self._end_chunk()
        self.file.close()
        if not self.state["num_tokens"]:
            (self.folder / PROGRESS).unlink(missing_ok=True)
            raise BadInput(
                f"{self.settings['source']['name']}: no text in it ({num_bad} bad records)"
            )
        facts = ("num_tokens", "num_documents", "build_s", "chunks")
        self.manifest = {
            **self.settings,
            **{name: self.state[name] for name in facts},
            "num_bad": num_bad,
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_json(self.folder / MANIFEST, self.manifest)
        (self.folder / PROGRESS).unlink(missing_ok=True)
        return self.manifest
