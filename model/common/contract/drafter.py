"""The contract between the decoding loop and a method: Draft, Step, Drafter.

A method only guesses: it proposes candidates and learns from what the target said of them. The loop
(loop/decode.py) times, accepts, counts and judges. It has B slots, each decoding one sequence at a
time. Row 0 of a step is the root, the last committed token; node i of the draft is row i + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.common.contract.trees import Tree, chain_tree


@dataclass
class Draft:
    """Candidates for the tokens after the root of each slot.

    tokens [B, n] long; -1 is an inert row: the target reads it, nothing matches it
    tree   which node continues which (trees.py); None = a chain
    probs  [B, n, V]: the distribution each node was sampled from, given the siblings before it
           (rejection rules); None = point guesses (token matching)
    probe  [n] bool or None: rows the target reads and that are never committed
    sound  [B] bool: all scores behind it are finite, else the question fails; None = no scores
    scores [B, n]: by which the nodes were chosen, the higher the likelier; None = by their places
    """

    tokens: Tensor
    tree: Tree | None = None
    probs: Tensor | None = None
    probe: Tensor | None = None
    sound: Tensor | None = None
    scores: Tensor | None = None

    @property
    def depth(self) -> int:
        """Bound on the nodes that a step can commit."""
        return self.tokens.shape[1] if self.tree is None else self.tree.depth

    @property
    def is_chain(self) -> bool:
        """Whether every accepted path is 0, 1, 2, ..., so that no row of the cache has to move."""
        return self.tree is None and self.probe is None

    @property
    def layout(self) -> Tree:
        """The tree, also of a chain."""
        return self.tree or chain_tree(self.tokens.shape[1], self.tokens.device)

    @property
    def candidates(self) -> Tensor:
        """tokens with probe rows made inert, [B, n]."""
        return self.tokens if self.probe is None else self.tokens.masked_fill(self.probe, -1)


@dataclass
class Step:
    """What the target said about the rows that it read, and what was committed.

    A prompt is a Step too, without logits: its path is 0 .. P-1, its new_tokens are its ids shifted
    by one, with the first generated one (next_token) last.

    slots       [S] ints: whose row i of every tensor is; all B in a decoding step
    tokens      [S, r]     the rows read, root first; -1 = inert
    path        [S, m]     committed rows, padded with -1; all -1 for an idle slot
    count       [S]        tokens committed, the bonus included (a prompt: its length); 0 = idle
    new_tokens  [S, m]     successor of each committed row, padded with -1
    next_token  [S]        the new root
    host_ids    [S] lists: committed ids, cut at the stop; a prompt: all; [] = idle or failed
    max_committed  int: length of the longest sequence that goes on, root included; 0 = none
    logits      [S, r, V], None for a prompt
    hidden      {"last" or layer: [S, r, H]}: what Drafter.needs asks for
    topk        [S, P, k] of a prompt: best k ids after every position, where asked for
    continues   [S] bools of a prompt: it goes on with the question that its slot had before
    max_lengths [S] ints of a prompt: most tokens that the sequence can have, prompt included
    """

    slots: list[int]
    tokens: Tensor
    path: Tensor
    count: Tensor
    new_tokens: Tensor
    next_token: Tensor
    host_ids: list[list[int]]
    max_committed: int
    logits: Tensor | None = None
    hidden: dict | None = None
    topk: Tensor | None = None
    continues: list[bool] | None = None
    max_lengths: list[int] | None = None

    def committed(self, name) -> Tensor:
        """Hidden states of the committed rows, [S, m, H]; row 0's where path is -1."""
        states = self.hidden[name]
        rows = self.path.clamp(min=0).to(states.device).unsqueeze(-1)
        return states.gather(1, rows.expand(-1, -1, states.shape[-1]))

    def last(self, name) -> Tensor:
        """Hidden state of the last committed row, [S, H]: the new root's parent."""
        states = self.hidden[name]
        row = self.path.gather(1, (self.count - 1).clamp(min=0).unsqueeze(1)).clamp(min=0)
        return states[torch.arange(len(states), device=states.device), row[:, 0].to(states.device)]


@dataclass(frozen=True)
class Needs:
    """What a drafter reads of the target; nothing else is computed.

    hidden       names of hidden states: "last" (after the final norm), i (input of decoder layer i)
    prompt_topk  best k next ids after every prompt position
    """

    hidden: tuple = ()
    prompt_topk: int = 0


class Drafter:
    """One method for B slots. It never measures time, decodes text or decides acceptance.

    max_nodes       most nodes of a draft; max_depth: on a path of its trees, None = only chains
    reads_per_step  device-to-host copies of one round, at most
    fits_tree       its tree is to be cut to what pays on the machine (fitting/), by resize()
    paths           of a static tree's nodes, as ranks (static_tree.py); None = drafts have scores
    """

    needs = Needs()
    max_nodes = 0
    max_depth: int | None = None
    reads_per_step = 0
    fits_tree = False
    paths: list[tuple[int, ...]] | None = None

    def reserve(self, num_slots: int, capacity: int, sampler) -> None:
        """Make room for B slots of about `capacity` tokens each; all are empty."""

    def start(self, prompt: Step) -> None:
        """Sequences begin in prompt.slots, whose earlier ones are over; the other slots go on."""

    def propose(self) -> Draft:
        """Guess what follows the root of each of the B slots; idle ones get any rows."""

    def observe(self, step: Step) -> None:
        """Learn from a step: all rows' logits and hidden states, and what was committed."""

    def end(self, slots: list[int]) -> None:
        """The sequences of these slots are over; the slots are idle until the next start()."""

    def resize(self, num_nodes: int, depth: int, paths: list | None = None) -> None:
        """Draft at most the best num_nodes nodes, none deeper than `depth`, from reserve() on.

        paths: of a static tree, those that stay. Only for drafters that say fits_tree.
        """
        raise NotImplementedError

    def forget(self) -> None:
        """Drop what earlier questions taught (--state warm) and were counted; a run begins."""

    def facts(self) -> dict:
        """What a report should say of it beside its row: {"datastore_bytes": 123}."""
        return {}
