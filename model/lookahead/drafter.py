"""Lookahead: Jacobi trajectories in a window of probe rows, and the n-grams that they left behind.

With level N and window W, a sequence keeps up to N-1 rows of guesses. Row 0 stands behind the root
c; each row below is the target's answer to the row above, so it stands one position later:

    row 0      c  a1 a2 ...     positions p,     p + 1, ...     (c, the root, is no guess)
    row 1      b0 b1 b2 ...               p + 1, p + 2, ...
    row N-2    z0 z1 z2 ...               p + N-2, ...

Element i of row k reads c a1 ... ai of row 0 and the i-th elements of rows 1 to k: a chain of N-1
tokens, whose successor in the target makes it an n-gram of N tokens.
"""

from __future__ import annotations

import random

import torch

from model.common.contract.drafter import Draft, Drafter
from model.common.contract.trees import Tree


class Pool:
    """Continuations by first token, at most `guess` each; the least recently added one gives way.

    >>> pool = Pool(guess=2)
    >>> for rest in [(5, 6), (7, 8), (5, 6), (9, 9)]:
    ...     pool.add(4, rest)
    >>> pool.after(4)
    [(5, 6), (9, 9)]
    """

    def __init__(self, guess: int):
        self.guess = guess
        self.grams: dict[int, dict[tuple, None]] = {}  # dicts keep the order of insertion

    def add(self, first: int, rest: tuple) -> None:
        """Add an n-gram, or make it the most recent one."""
        entry = self.grams.setdefault(first, {})
        entry.pop(rest, None)
        entry[rest] = None
        if len(entry) > self.guess:
            del entry[next(iter(entry))]

    def after(self, first: int) -> list[tuple]:
        """What may follow a token, the least recently added first."""
        return list(self.grams.get(first, ()))


class Trajectory:
    """Window and pool of one sequence.

    rows  rows[0] without the root; they fill up in the first level - 2 steps, and are a token
          longer for each step that is still to come, since every step drops their first elements
    """

    def __init__(self, ids: list[int], settings: tuple[int, int, int], seed: int, from_text: bool):
        window, self.level, guess = settings
        *prompt, self.root = ids
        self.rows = [random.Random(seed).choices(prompt, k=window + self.level - 3)]
        self.pool = Pool(guess)
        self.text: list[int] | None = [] if from_text else None  # the last level - 1 tokens
        self._read_text(ids)

    def nodes(self, num_probes: int, num_nodes: int) -> list[int]:
        """Tokens of the draft: the window, inert rows up to num_probes, candidates, inert rows."""
        tokens = [token for row in self.rows for token in row]
        tokens += [-1] * (num_probes - len(tokens))
        tokens += [token for rest in self.pool.after(self.root) for token in rest]
        return tokens + [-1] * (num_nodes - len(tokens))

    def advance(self, successors: list[int], ids: list[int]) -> None:
        """Learn the target's successors of the last row (root included) and the committed ids."""
        rows = [*self.rows, successors]
        if len(rows) < self.level:
            self.rows = [row[1:] for row in rows]
        else:
            for first, rest in zip([self.root, *rows[0]], zip(*rows[1:])):
                self.pool.add(first, rest)
            self.rows = [rows[1][1:], *rows[2:]]
        self._read_text(ids)
        self.root = ids[-1]

    def _read_text(self, ids: list[int]) -> None:
        """Add the n-grams that end in ids, where the text is to be learned from at all."""
        if self.text is None:
            return
        text = self.text + ids
        for start in range(len(text) - self.level + 1):
            self.pool.add(text[start], tuple(text[start + 1 : start + self.level]))
        self.text = text[-(self.level - 1) :]


def tree_parents(length: int, num_rows: int, num_probes: int, level: int, guess: int) -> list[int]:
    """Parents of a draft whose window has num_rows rows of `length` elements, root included.

    >>> tree_parents(length=3, num_rows=2, num_probes=6, level=3, guess=2)
    [-1, 0, -1, 0, 1, -1, -1, 6, -1, 8]
    """
    probes = [row - 2 if row < length else row - length - 1 for row in range(1, length * num_rows)]
    probes += [-1] * (num_probes - len(probes))
    candidates = range(guess * (level - 1))
    return probes + [num_probes + node - 1 if node % (level - 1) else -1 for node in candidates]


class LookaheadDrafter(Drafter):
    """The rows of each slot's window, then `guess` chains of level - 1 nodes.

    The candidates stand behind the largest window, so that one probe mask serves all slots; the
    parents are a slot's own until its window is full, since sequences begin at different times.
    The window lives on the host: its successors are one copy per step, made in observe().

    from_text  the pool also learns the n-grams of the prompt and of the committed tokens
    seed       of the first row, drawn from the prompt's tokens; every sequence begins with it anew
    """

    reads_per_step = 1

    def __init__(
        self, window: int, level: int, guess: int, device, seed: int = 0, from_text: bool = False
    ):
        self.settings, self.seed, self.from_text = (window, level, guess), seed, from_text
        self.device = torch.device(device)
        self.max_depth = level - 1 if guess else 0
        self.lengths = [window + level - 1 - num_rows for num_rows in range(level)]  # by rows held
        sizes = [num_rows * length for num_rows, length in enumerate(self.lengths)]
        self.num_probes = max(sizes) - 1
        self.max_nodes = self.num_probes + guess * (level - 1)
        self.parents = [  # by rows held
            tree_parents(length, num_rows, self.num_probes, level, guess)
            for num_rows, length in enumerate(self.lengths)
        ]
        self.full = self._tree([level - 1])
        self.probe = torch.arange(self.max_nodes, device=device) < self.num_probes
        self.inert = [-1] * self.max_nodes

    def _tree(self, held: list[int]) -> Tree:
        """The tree of windows that hold so many rows, one for all or one a slot."""
        parents = [self.parents[num_rows] for num_rows in held]
        return Tree(torch.tensor(parents, dtype=torch.long, device=self.device), self.max_depth)

    def reserve(self, num_slots, capacity, sampler):
        self.sequences: list[Trajectory | None] = [None] * num_slots

    def start(self, prompt):
        for slot, ids in zip(prompt.slots, prompt.host_ids):
            self.sequences[slot] = Trajectory(ids, self.settings, self.seed, self.from_text)

    def end(self, slots):
        for slot in slots:
            self.sequences[slot] = None

    def _held(self) -> list[int]:
        """Rows that the window of each slot holds; an idle slot's counts as full."""
        most = self.settings[1] - 1
        return [len(sequence.rows) if sequence else most for sequence in self.sequences]

    def propose(self):
        nodes = [
            sequence.nodes(self.num_probes, self.max_nodes) if sequence else self.inert
            for sequence in self.sequences
        ]
        tokens = torch.tensor(nodes, dtype=torch.long, device=self.device)
        held = self._held()
        tree = self.full if min(held) == self.settings[1] - 1 else self._tree(held)
        return Draft(tokens, tree, probe=self.probe)

    def observe(self, step):
        held = self._held()
        lengths = [self.lengths[num_rows] for num_rows in held]
        widest = max(lengths)  # a shorter last row repeats its last element
        rows = [
            [(num_rows - 1) * length + min(i, length - 1) for i in range(widest)]
            for num_rows, length in zip(held, lengths)
        ]
        slots = torch.arange(len(rows), device=step.logits.device).unsqueeze(1)
        rows = torch.tensor(rows, device=step.logits.device)
        successors = step.logits[slots, rows].argmax(-1).tolist()
        for sequence, length, tokens, ids in zip(
            self.sequences, lengths, successors, step.host_ids
        ):
            if ids:
                sequence.advance(tokens[:length], ids)
