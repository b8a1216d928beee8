"""Methods that work on the token lists of one sequence, lifted to B slots; and the empty draft."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.functional import pad

from model.common.contract.drafter import Draft, Drafter
from model.common.contract.trees import Tree


@dataclass
class Guess:
    """A draft of one sequence as lists; parents None = a chain, depth = the deepest node's."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] | None = None
    depth: int = 0


class SequenceDrafter:
    """A method that works on the token lists of one sequence; PerSequence lifts it to B slots."""

    def start(self, ids: list[int]) -> None:
        """A new sequence: the prompt's ids and the first generated one."""

    def propose(self) -> list[int] | Guess:
        """A chain as a list, or a tree as a Guess."""
        raise NotImplementedError

    def observe(self, ids: list[int]) -> None:
        """Ids committed by the last step."""


class PerSequence(Drafter):
    """One SequenceDrafter a slot, one copy to the device a step.

    make       builds the drafter of one slot
    max_nodes  of a draft; max_depth: of its trees, None = drafts are chains
    facts      a function for Drafter.facts()
    """

    def __init__(self, make, max_nodes: int, max_depth: int | None = None, facts=dict):
        self.make, self.facts = make, facts
        self.max_nodes, self.max_depth = max_nodes, max_depth

    def reserve(self, num_slots, capacity, sampler):
        self.sequences: list[SequenceDrafter] = [self.make() for _ in range(num_slots)]
        self.running = [False] * num_slots

    def start(self, prompt):
        self.device = prompt.tokens.device
        for slot, ids in zip(prompt.slots, prompt.host_ids):
            self.sequences[slot].start(ids)
            self.running[slot] = True

    def end(self, slots):
        for slot in slots:
            self.running[slot] = False

    def guesses(self) -> list:
        """What each sequence proposes; nothing where the slot is idle."""
        pairs = zip(self.sequences, self.running)
        return [sequence.propose() if runs else [] for sequence, runs in pairs]

    def propose(self):
        return draft_of(self.guesses(), self.device)

    def observe(self, step):
        for sequence, ids in zip(self.sequences, step.host_ids):
            if ids:
                sequence.observe(ids)


def draft_of(guesses: list, device) -> Draft:
    """One Draft of the slots' Guesses or chains (lists of ids), shorter ones ending in inert nodes.

    >>> draft_of([[5, 6], [7]], "cpu").tokens.tolist()
    [[5, 6], [7, -1]]
    """
    guesses = [g if isinstance(g, Guess) else Guess(g, None, len(g)) for g in guesses]
    width = max(len(guess.tokens) for guess in guesses)
    tokens = [guess.tokens + [-1] * (width - len(guess.tokens)) for guess in guesses]
    tokens = torch.tensor(tokens, dtype=torch.long, device=device)
    if all(guess.parents is None for guess in guesses):
        return Draft(tokens)
    parents = [
        list(range(-1, len(guess.tokens) - 1)) if guess.parents is None else guess.parents
        for guess in guesses
    ]
    parents = [line + [-1] * (width - len(line)) for line in parents]
    parents = torch.tensor(parents, dtype=torch.long, device=device)
    return Draft(tokens, Tree(parents, max(guess.depth for guess in guesses)))


def padded(draft: Draft, num_nodes: int, depth: int) -> Draft:
    """The draft with inert rows up to num_nodes; depth: another bound of a tree's paths."""
    more = num_nodes - draft.tokens.shape[1]
    tree = draft.tree and draft.tree.padded(num_nodes, depth)
    probs = None if draft.probs is None else pad(draft.probs, (0, 0, 0, more))
    probe = None if draft.probe is None else pad(draft.probe, (0, more))
    return Draft(pad(draft.tokens, (0, more), value=-1), tree, probs, probe, draft.sound)


class EmptyDrafter(Drafter):
    """Guesses nothing: with it the loop is the autoregressive baseline."""

    def reserve(self, num_slots, capacity, sampler):
        self.num_slots = num_slots

    def start(self, prompt):
        self.draft = Draft(prompt.tokens.new_empty(self.num_slots, 0))

    def propose(self):
        return self.draft
