"""Greedy acceptance as a static runtime runs it: from the target's logits to the cache."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.common import tree, verify
from model.common.drafter import Draft
from model.common.kv_cache import KVCache
from model.common.ranking import best_id
from model.common.runtime import make_runtime


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
    """greedy(), and all that a step makes of it, in calls of a static runtime.

    A chain moves no row of the cache: all of it happens in the target's own call. Of a tree the
    best ids are found there, where the logits have just been written, and the rest is a call of its
    own. Its graphs are made by warm() alone, one for all depths up to the deepest that steps have
    shown: a timed step compiles nothing, and leaves any other tree to greedy(). They belong to one
    cache, which sits on one device.
    """

    def __init__(self, target, runtime: str):
        self.target = target
        self.chain = self._chain
        self.runtime = make_runtime(runtime, self._step, target.device)
        self.cache: KVCache | None = None
        self.storage: list = []  # of the cache, when the graphs were made
        self.seen: dict = {}  # what selects a graph -> a draft
        self.warmed: dict = {}  # the same -> the depth it was made for

    def within(self, draft: Draft, root: Tensor, alive: Tensor | None) -> tuple:
        """`then` and `extras` of Target.read(): what its call makes of a draft's logits."""
        if draft.is_chain:
            return self.chain, (_alive(root, alive),)
        return with_best, ()

    def __call__(self, made: tuple, draft: Draft, root: Tensor, alive: Tensor | None):
        """(what is kept, new roots [B], what the host reads) of a step; None = not warmed.

        The cache keeps the accepted rows. made: what the target's call gave beside logits and
        states; alive [B] bool or None = all.
        """
        if draft.is_chain:
            *kept, host = made
            return self._kept(self.target.runtime, kept, host)
        (best,) = made
        key = self._key(best, draft)
        depth = self.warmed.get(key, -1) if self._is_mine(self.target.cache) else -1
        if depth < draft.depth:
            self.see(best, draft)
            return None
        *kept, host = self._run(best, draft, depth, root, alive)
        return self._kept(self.runtime, kept, host, 1 + draft.depth)

    @staticmethod
    def _kept(runtime, kept: list[Tensor], host: Tensor, longest: int | None = None):
        """A call's count, new roots, path and tokens, of a path of at most `longest` rows."""
        if runtime.overwrites:
            kept = [tensor.clone() for tensor in kept]
        count, following, path, tokens = kept
        if longest is not None and longest < path.shape[1]:
            path, tokens = path[:, :longest], tokens[:, :longest]
        return Kept(count, path, tokens), following, host

    def see(self, best: Tensor, draft: Draft) -> None:
        """Remember a tree for warm()."""
        known = self.seen.setdefault(self._key(best, draft), draft)
        if known.depth < draft.depth:
            self.seen[self._key(best, draft)] = draft

    @staticmethod
    def _key(best: Tensor, draft: Draft) -> tuple:
        return best.shape, draft.parents.dim(), draft.probe is None

    def _is_mine(self, cache: KVCache) -> bool:
        """Whether the graphs were made for this cache, which has not grown since."""
        return cache is self.cache and cache.storage[0] is self.storage[0]

    def _run(self, best, draft, depth: int, root, alive):
        tree_of = tree.layout(draft)
        alive = _alive(root, alive)
        return self.runtime(best, draft.tokens, draft.probe, *tree_of, depth, root, alive)

    def warm(self, best: Tensor) -> None:
        """Compile or capture the trees seen that have best ids [B, 1+n] of this shape."""
        cache = self.target.cache
        if len(cache.storage) > 1:
            return
        if not self._is_mine(cache):
            self.runtime.forget()
            self.warmed.clear()
            self.cache, self.storage = cache, cache.storage[:]
        for key, draft in self.seen.items():
            if key[0] == best.shape:
                cache.length.zero_()
                self._run(best, draft, draft.depth, best.new_zeros(len(best)), None)
                self.warmed[key] = draft.depth

    def _step(self, best, tokens, probe, parents, known, depths, depth: int, root, alive):
        """A tree's step, from the best ids [B, 1+n] to the cache; what step_of() gives."""
        if probe is not None:
            tokens = tokens.masked_fill(probe, -1)
        accepted = verify.greedy_tree(best, tokens, parents, known, depths, depth)
        *kept, path, tokens, host = step_of(accepted, tokens, root, alive)
        self.cache.commit(path, kept[0])
        return *kept, path, tokens, host

    def _chain(self, logits: Tensor, states: dict, root: Tensor, tokens: Tensor, alive) -> tuple:
        """A chain's step, in the target's call: logits, states, and what step_of() gives."""
        made = step_of(verify.greedy_chain(best_id(logits), tokens), tokens, root, alive)
        self.target.cache.length.add_(made[0])
        return logits, states, *made


def _alive(root: Tensor, alive: Tensor | None) -> Tensor | None:
    """Rows that go on [B], None where there is one: in a batch some end before others."""
    if alive is None and root.shape[0] > 1:
        return torch.ones_like(root, dtype=torch.bool)
    return alive


def with_best(logits: Tensor, states: dict, *_) -> tuple[Tensor, dict, Tensor]:
    """What the target's call makes of its output for a tree: best ids [B, 1+n] beside it."""
    return logits, states, best_id(logits)


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
