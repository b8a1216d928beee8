"""A suffix automaton over a corpus in flat arrays on disk, read through mmap.

A directory holds manifest.json and, each a .npy file of int32,

    text         the documents' ids, a separator after each; positions count from 1
    length, link, first, count   of every state; count = number of end positions (of the root 0)
    offsets      edges of state s are offsets[s] ... offsets[s + 1]
    edge_token, edge_state       the HEAVY edges to the states with the largest counts come first,
                 largest first (ties: smaller token), the others by token
"""

from __future__ import annotations

import hashlib
import heapq
import json
from bisect import bisect_left
from pathlib import Path

import numpy as np

from model.common.errors import BadInput, parse_json

VERSION = 1
HEAVY = 8  # successors that a tree may use, and nodes per depth (published)
ARRAYS = ("text", "length", "link", "first", "count", "offsets", "edge_token", "edge_state")


def tokenizer_hash(tokenizer) -> str:
    """Of the vocabulary, whatever wrote the tokenizer's files."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


class StaticAutomaton:
    """Read-only; a cursor (state, match length) belongs to who reads it and starts at (0, 0).

    separator  the id between documents: drafts end with it
    manifest   what build_sam.py wrote beside the arrays
    """

    def __init__(self, arrays: dict[str, np.ndarray], separator: int, manifest: dict | None = None):
        self.separator, self.manifest = separator, manifest or {}
        self.nbytes = sum(array.nbytes for array in arrays.values())
        for name in ARRAYS:  # memoryviews: an element costs a third of a numpy scalar
            setattr(self, name, memoryview(arrays[name]))

    @classmethod
    def open(cls, folder: str, tokenizer) -> StaticAutomaton:
        """Map the arrays of a directory; another tokenizer's, version's or a damaged one is bad."""
        manifest = read_manifest(Path(folder))
        if manifest["tokenizer_sha256"] != tokenizer_hash(tokenizer):
            raise BadInput(
                f"--static-path {folder}: built with another tokenizer "
                f"({manifest['tokenizer']}); build it anew with model.samd.build_sam"
            )
        arrays = {name: _map(Path(folder), name, manifest["sizes"]) for name in ARRAYS}
        return cls(arrays, manifest["separator"], manifest)

    def facts(self) -> dict:
        """Sizes and what it was built from, for the report."""
        return {
            "automaton_bytes": self.nbytes,
            "automaton_states": len(self.length),
            "automaton_tokens": len(self.text),
            "automaton_build_s": self.manifest.get("build_s"),
            "automaton_sha256": self.manifest.get("text_sha256"),
            "automaton_corpus": self.manifest.get("corpus"),
            "automaton_corpus_sha256": self.manifest.get("corpus_sha256"),
            "automaton_tokenizer_sha256": self.manifest.get("tokenizer_sha256"),
        }

    def step(self, state: int, token: int) -> int:
        """The state after one more token, -1 if no document goes on so."""
        begin, end = self.offsets[state], self.offsets[state + 1]
        rest = min(begin + HEAVY, end)
        heavy = self.edge_token[begin:rest].tolist()
        if token in heavy:
            return self.edge_state[begin + heavy.index(token)]
        found = bisect_left(self.edge_token, token, rest, end)
        if found < end and self.edge_token[found] == token:
            return self.edge_state[found]
        return -1

    def move(self, cursor: tuple[int, int], tokens) -> tuple[int, int]:
        """The longest suffix of what was read that stands in the corpus: its state and length."""
        state, size = cursor
        for token in tokens:
            reached = self.step(state, token)
            while reached < 0 and state:
                state = self.link[state]
                size = self.length[state]
                reached = self.step(state, token)
            state, size = (reached, size + 1) if reached >= 0 else (0, 0)
        return state, size

    def copy(self, state: int, num: int) -> list[int]:
        """Up to num ids after the earliest occurrence of a state, to the document's end."""
        if not state:
            return []
        ids = self.text[self.first[state] : self.first[state] + num].tolist()
        if self.separator in ids:
            del ids[ids.index(self.separator) + 1 :]
        return ids

    def tree(self, state: int, num: int) -> tuple[list[int], list[int], list[int]]:
        """The num likeliest continuations, best first: tokens, parents and depths of the nodes.

        A node weighs its parent's weight times count(node) / count(parent), which from the root on
        multiplies to its count. Of each state the HEAVY heaviest successors are tried, and at most
        HEAVY nodes of a depth are taken. Ties go to the node that was found first.
        """
        tokens, parents, depths = [], [], []
        taken = [0] * (num + 2)  # nodes per depth
        heap: list[tuple] = []  # (-count, parent, edge, depth): what is found first sorts first
        self._push(heap, state, -1, 1)
        while heap and len(tokens) < num:
            _, parent, edge, depth = heapq.heappop(heap)
            if taken[depth] == HEAVY:
                continue
            taken[depth] += 1
            tokens.append(self.edge_token[edge])
            parents.append(parent)
            depths.append(depth)
            if tokens[-1] != self.separator:
                self._push(heap, self.edge_state[edge], len(tokens) - 1, depth + 1)
        return tokens, parents, depths

    def _push(self, heap: list[tuple], state: int, parent: int, depth: int) -> None:
        """The heavy edges of a state; the root, an empty match, has none to offer."""
        if state:
            begin = self.offsets[state]
            for edge in range(begin, min(begin + HEAVY, self.offsets[state + 1])):
                count = self.count[self.edge_state[edge]]
                heapq.heappush(heap, (-count, parent, edge, depth))


def read_manifest(folder: Path) -> dict:
    """manifest.json of a directory, checked for its version."""
    try:
        manifest = parse_json((folder / "manifest.json").read_text(encoding="utf-8"))
        version = manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"--static-path {folder}: no automaton of model.samd.build_sam: {error!r}"
        ) from error
    if version != VERSION:
        raise BadInput(
            f"--static-path {folder}: format version {version}, this code reads {VERSION}; "
            "build it anew with model.samd.build_sam"
        )
    missing = {"tokenizer", "tokenizer_sha256", "separator", "sizes"} - manifest.keys()
    if missing or not isinstance(manifest["sizes"], dict):
        raise BadInput(f"--static-path {folder}/manifest.json: no {min(missing, default='sizes')}")
    return manifest


def _map(folder: Path, name: str, sizes: dict) -> np.ndarray:
    """One array, of the size that the manifest names."""
    path = folder / f"{name}.npy"
    try:
        array = np.load(path, mmap_mode="r")
    except Exception as error:  # numpy reads a damaged header in many ways
        raise BadInput(f"{path}: missing or damaged: {error}") from error
    if array.dtype != np.int32 or array.shape != (sizes.get(name),):
        raise BadInput(
            f"{path}: {array.dtype} {array.shape}, the manifest says int32 ({sizes.get(name)},)"
        )
    return array
