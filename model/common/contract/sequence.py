"""Methods that work on the token lists of one sequence, lifted to B sequences."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter, DraftShape
from model.common.target.devices import ids_on


@dataclass
class Guess:
    """A draft of one sequence as lists; parents None = a chain, depth = the deepest node's."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] | None = None
    depth: int = 0


class SequenceDrafter:
    """A method that works on the token lists of one sequence; PerSequence lifts it to B."""

    def start(self, ids: list[int]) -> None:
        """A new sequence: the prompt's ids and the first generated one."""

    def propose(self) -> list[int] | Guess:
        """A chain as a list, or a tree as a Guess."""
        raise NotImplementedError

    def observe(self, ids: list[int]) -> None:
        """Ids committed by the last step."""


class PerSequence(Drafter):
    """Lifts one-sequence drafters to a batch: one object per row, one copy to the device per step.

    make     builds one row's drafter; called again when a larger batch comes
    pad_to   nodes per non-empty draft, for runtimes that want static shapes; None = as they are
    facts    a function for Drafter.facts()
    deepest  of the nodes of trees, where shapes are static; None = drafts are chains
    """

    def __init__(self, make, pad_to: int | None = None, facts=dict, deepest: int | None = None):
        self.make, self.pad_to, self.facts, self.deepest = make, pad_to, facts, deepest
        self.rows: list[SequenceDrafter] = []

    def shapes(self):
        if not self.pad_to:
            return []
        if self.deepest is None:
            return [DraftShape(0), DraftShape(self.pad_to)]
        return [DraftShape(0), DraftShape(self.pad_to, self.any_parents(self.pad_to), self.deepest)]

    def any_parents(self, num_nodes: int) -> Tensor:
        """Parents [B, n] that stand for any tree per row, to compile or capture its shape."""
        return torch.full((len(self.active), num_nodes), -1, device=self.device)

    def start(self, prefill, max_lengths, sampler):
        self.device = prefill.tokens.device
        while len(self.rows) < len(prefill.host_ids):
            self.rows.append(self.make())
        self.active = self.rows[: len(prefill.host_ids)]
        for row, ids in zip(self.active, prefill.host_ids):
            row.start(ids)

    def propose(self):
        guesses = [self._as_guess(row.propose()) for row in self.active]
        num_nodes = max(len(guess.tokens) for guess in guesses)
        if num_nodes and self.pad_to:
            num_nodes = max(num_nodes, self.pad_to)
        tokens = [guess.tokens + [-1] * (num_nodes - len(guess.tokens)) for guess in guesses]
        tokens = ids_on(self.device, tokens)
        if all(guess.parents is None for guess in guesses):
            return Draft.chain(tokens)
        parents = [self._padded_parents(guess, num_nodes) for guess in guesses]
        parents = ids_on(self.device, parents)
        deepest = self.deepest if self.pad_to else None
        return Draft(tokens, parents, deepest or max(guess.depth for guess in guesses))

    def observe(self, step):
        for row, ids in zip(self.active, step.host_ids):
            if ids:
                row.observe(ids)

    @staticmethod
    def _as_guess(proposal) -> Guess:
        if isinstance(proposal, Guess):
            return proposal
        return Guess(proposal, None, len(proposal))

    @staticmethod
    def _padded_parents(guess: Guess, num_nodes: int) -> list[int]:
        parents = guess.parents
        if parents is None:
            parents = list(range(-1, len(guess.tokens) - 1))
        return parents + [-1] * (num_nodes - len(parents))
