"""The contract between the decoding loop and a method: Draft, Step, Drafter.

A method only guesses: it proposes a tree of candidate tokens and learns from what the target said
about every row of it. The loop (decode.py) times, accepts, counts and judges.

Row 0 of a step is the root, the last committed token, whose successor is asked for; node i of the
draft is row i + 1. A chain [a, b] is parents [-1, 0]; two candidates for the next token are parents
[-1, -1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import torch
from torch import Tensor

_chains: dict[int, Tensor] = {}  # id -> all that chain_parents() has made


@cache
def chain_parents(num_nodes: int, device: torch.device) -> Tensor:
    """Parents of a chain, [-1, 0, 1, ...]; one object per length, so that `is` tells a chain."""
    parents = torch.arange(-1, num_nodes - 1, device=device)
    _chains[id(parents)] = parents
    return parents


@dataclass
class Draft:
    """A tree of candidates for the tokens after the last committed one.

    tokens   [B, n] long. -1 is an inert row: it attends as its parents say, never matches, is not
             counted
    parents  [n] (one static tree for all rows and steps: pass the same tensor) or [B, n] long;
             index of the node it continues, -1 = the root. Parents stand before their children.
    depth    host int, bound on the deepest node that can be committed; where shapes are static, one
             for all drafts of as many nodes
    probs    [B, n, V] or None: the distribution each node was sampled from, given the siblings
             before it (rejection rules); None = the nodes are point guesses (token matching)
    probe    [n] bool or None: rows the target reads and that are never committed
    layout   what tree.layout() keeps here
    """

    tokens: Tensor
    parents: Tensor
    depth: int
    probs: Tensor | None = None
    probe: Tensor | None = None
    layout: tuple | None = None

    @classmethod
    def chain(cls, tokens: Tensor, probs: Tensor | None = None) -> Draft:
        """One path: tokens [B, n], each continuing the one before. n = 0 is the empty draft."""
        num_nodes = tokens.shape[1]
        return cls(tokens, chain_parents(num_nodes, tokens.device), num_nodes, probs)

    @property
    def is_chain(self) -> bool:
        """Whether every accepted path is a prefix of the rows, so that no cache row has to move."""
        return id(self.parents) in _chains and self.probe is None


class DraftShape(NamedTuple):
    """What a compiled or captured step depends on: nodes, parents as a Draft has them (None = a
    chain), and of a tree the depth."""

    num_nodes: int
    parents: Tensor | None = None
    depth: int = 0

    def draft(self, batch: int, device) -> Draft:
        """A draft of this shape for so many sequences, whose tokens mean nothing."""
        tokens = torch.zeros(batch, self.num_nodes, dtype=torch.long, device=device)
        return Draft.chain(tokens) if self.parents is None else Draft(tokens, *self[1:])


@dataclass
class Step:
    """What the target said about the rows of one forward, and what was committed.

    A prefill is a Step too: tokens and path are the right-padded prompt, count its lengths, logits
    None. The last step of an answer is observed as well; its max_committed is 0 where no sequence
    goes on.

    Tensors of a step are contiguous, so that what is compiled for one fits all.

    tokens      [B, 1+n]   root first; inert nodes are -1
    logits      [B, 1+n, V] (None for a prefill)
    hidden      {"last": [B, 1+n, H], layer: [B, 1+n, H], ...}, only what Drafter.needs asks for
    path        [B, 1+depth] committed rows, root first, -1 padded; all -1 for a finished sequence
    count       [B]        tokens committed by this step, the bonus included; 0 for a finished
                           sequence
    next_token  [B]        the new root
    new_tokens  [B, 1+depth] successor of each committed row; -1 beyond count
    host_ids    the committed ids as lists, read from the device once per step by the loop; None
                where the drafter runs ahead of them
    max_committed  host int: the longest unfinished sequence's committed length, root included
    prompt_topk [B, P, k]  best k ids after every prompt position (prefill, when asked for)
    """

    tokens: Tensor
    logits: Tensor | None
    hidden: dict
    path: Tensor
    count: Tensor
    next_token: Tensor
    new_tokens: Tensor
    host_ids: list[list[int]]
    max_committed: int
    prompt_topk: Tensor | None = None


class LoopStep(Step):
    """A Step whose padded tensors are made when a drafter asks for them."""

    def __init__(
        self, root, draft, logits, hidden, accepted, next_token, host_ids, max_committed: int
    ):
        self.root, self.draft, self.accepted = root, draft, accepted
        self.logits, self.hidden, self.count = logits, hidden, accepted.count
        self.next_token, self.host_ids, self.max_committed = next_token, host_ids, max_committed
        self.prompt_topk = None

    @cached_property
    def tokens(self):
        return torch.cat([self.root.unsqueeze(1), self.draft.tokens], 1)

    @property
    def path(self):
        return self.accepted.path

    @property
    def new_tokens(self):
        return self.accepted.tokens


def committed_rows(states: Tensor, path: Tensor) -> Tensor:
    """Rows path [B, m] of a step's states [B, 1+n, H], [B, m, H]; row 0 where path is -1."""
    rows = path.clamp(min=0).to(states.device).unsqueeze(-1)
    return states.gather(1, rows.expand(-1, -1, states.shape[-1]))


def end_of_prompt(states: Tensor, count: Tensor, num_nodes: int) -> Tensor:
    """A prefill's states [B, P, H] as those of a step that committed one row: its last is row 0 of
    [B, 1+n, H]. count [B] of the prefill."""
    rows = states.new_zeros(states.shape[0], 1 + num_nodes, states.shape[2])
    last = (count - 1).clamp(min=0).to(states.device)
    rows[:, 0] = states[torch.arange(len(rows), device=states.device), last]
    return rows


@dataclass(frozen=True)
class Needs:
    """What a drafter reads of the target; nothing else is computed.

    hidden       names of hidden states: "last" (after the final norm) or i (the input of decoder
                 layer i)
    prompt_topk  best k next ids after every prompt position
    """

    hidden: tuple = ()
    prompt_topk: int = 0


class Drafter:
    """One method for B sequences. It never measures time, decodes text or decides acceptance.

    reads_per_step  device-to-host copies of one propose(), at most; more than 0 is declared here
    ahead           observe() and propose() ask the host for nothing that a step has said: where the
                    device is asynchronous, steps come before their ids have arrived, with host_ids
                    None and in max_committed a bound, up to 1 + the draft's depth above the truth
    """

    needs = Needs()
    reads_per_step = 0
    ahead = False

    def start(self, prefill: Step, max_lengths: list[int], sampler) -> None:
        """Forget the previous sequences; max_lengths bound prompt + answer of each (tokens)."""

    def shapes(self) -> list[DraftShape]:
        """Of the drafts to compile or capture ahead, beside those of the steps so far."""
        return []

    def warm(self, capacity: int) -> None:
        """Compile or capture its own models' shapes for a run of this many columns."""

    def facts(self) -> dict:
        """What a report should say of the method beside its row, read when a run ends.

        Sizes in bytes, times in seconds, by name: {"datastore_bytes": 123, "build_s": 4.5}.
        """
        return {}

    def forget(self) -> None:
        """Drop what earlier questions taught (--state warm); called when a run begins."""

    def propose(self) -> Draft:
        """Guess what follows the root of each sequence."""
        raise NotImplementedError

    def observe(self, step: Step) -> None:
        """Learn from a step: all rows' logits and hidden states, and what was committed."""


class EmptyDrafter(Drafter):
    """Guesses nothing: with it the loop is the autoregressive baseline."""

    ahead = True

    def shapes(self):
        return [DraftShape(0)]

    def start(self, prefill, max_lengths, sampler):
        self.draft = Draft.chain(prefill.tokens.new_empty(prefill.tokens.shape[0], 0))

    def propose(self):
        return self.draft
