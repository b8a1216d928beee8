"""Greedy acceptance as a static runtime runs it: in the target's own call."""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from model.common.contract.drafter import Draft
from model.common.loop import verify
from model.common.loop.ranking import best_id
from model.common.target.cache import moves_of


class Kept(NamedTuple):
    """What a step keeps of an Accepted, with the padded tensors made."""

    count: Tensor
    path: Tensor
    tokens: Tensor

    def only(self, alive: Tensor) -> Kept:
        """Nothing for the rows that are not alive [B]."""
        none = ~alive.unsqueeze(1)
        path, tokens = self.path.masked_fill(none, -1), self.tokens.masked_fill(none, -1)
        return Kept(self.count * alive, path, tokens)


class StaticGreedy:
    """greedy(), and all that a step makes of it, in the call that reads the draft.

    The cache's lengths are set there too. A chain moves no row of it; a tree's rows are moved by
    the next call: within one, Inductor would copy a tensor that is written twice.
    """

    def __init__(self, target):
        self.target = target
        self.chain = self._chain
        self.tree = cache(lambda depth: partial(self._tree, depth))  # one object per depth

    def within(self, draft: Draft, layout, root: Tensor, alive: Tensor | None) -> tuple:
        """`then` and `extras` of Target.read(): what its call makes of a draft's logits.

        layout: tree.layout() of a tree, None for a chain.
        """
        if alive is None and root.shape[0] > 1:  # in a batch some end before others
            alive = torch.ones_like(root, dtype=torch.bool)
        if layout is None:
            return self.chain, (alive,)
        return self.tree(draft.depth), (alive, draft.probe, *layout)

    def __call__(self, made: list[Tensor]):
        """(what is kept, new roots [B], what the host reads) of a step.

        made: what the target's call gave beside logits and states.
        """
        *kept, host = made[:5]
        if len(made) > 5:
            self.target.cache.pending = made[5]
        if self.target.runtime.overwrites:
            kept = [tensor.clone() for tensor in kept]
        count, following, path, tokens = kept
        return Kept(count, path, tokens), following, host

    def _chain(self, logits: Tensor, states: dict, root: Tensor, tokens: Tensor, alive) -> tuple:
        """A chain's step, in the target's call: logits, states, and what step_of() gives."""
        made = step_of(verify.greedy_chain(best_id(logits), tokens), tokens, root, alive)
        self.target.cache.length.add_(made[0])
        return logits, states, *made

    def _tree(
        self,
        depth: int,
        logits: Tensor,
        states: dict,
        root: Tensor,
        tokens: Tensor,
        alive: Tensor | None,
        probe: Tensor | None,
        *layout: Tensor,
    ) -> tuple:
        """A tree's step, likewise, and the rows to be moved in the cache."""
        if probe is not None:
            tokens = tokens.masked_fill(probe, -1)
        accepted = verify.greedy_tree(best_id(logits), tokens, *layout, depth)
        made = step_of(accepted, tokens, root, alive)
        count, _, path, *_ = made
        length = self.target.cache.length
        moves = moves_of(length, path)
        length.add_(count)
        return logits, states, *made, moves


def step_of(accepted, tokens: Tensor, root: Tensor, alive: Tensor | None) -> tuple:
    """What a step makes of an Accepted of candidates tokens [B, n]; root [B], alive [B] or None.

    (count [B], new roots [B], path and tokens [B, 1+depth] as Accepted has them, for_host()).
    """
    following = accepted.last.clone()  # views of an input are made outside of compiled code
    if alive is not None:
        accepted = accepted.only(alive)
        following = torch.where(alive, following, root)
    line = accepted.path, accepted.tokens
    return accepted.count, following, *line, accepted.for_host(tokens)
