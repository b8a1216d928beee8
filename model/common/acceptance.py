"""Greedy acceptance as a static runtime runs it: from the target's best ids to the cache in one
call."""

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


class StaticGreedy:
    """greedy(), and all that a step makes of it, as one call of a static runtime.

    The best ids are found in the target's own call, where the logits have just been written
    (with_best). Graphs are made by warm() alone, for a tree one for all depths up to the deepest
    that steps have shown: a timed step compiles nothing, and leaves any other draft to greedy().
    They belong to one cache, which sits on one device.
    """

    def __init__(self, runtime: str, device):
        self.runtime = make_runtime(runtime, self._step, device)
        self.cache: KVCache | None = None
        self.storage: list = []  # of the cache, when the graphs were made
        self.seen: dict = {}  # what selects a graph -> a draft
        self.warmed: dict = {}  # the same -> the depth it was made for

    def __call__(self, best: Tensor, draft: Draft, root: Tensor, alive, cache: KVCache):
        """(what is kept, new roots [B], what the host reads) of a step; None = not warmed.

        The cache keeps the accepted rows. best [B, 1+n]; alive [B] bool or None = all.
        """
        key = self._key(best, draft)
        depth = self.warmed.get(key, -1) if self._is_mine(cache) else -1
        if depth < draft.depth:
            self.see(best, draft)
            return None
        *kept, host = self._run(best, draft, depth, root, alive)
        if self.runtime.overwrites:
            kept = [tensor.clone() for tensor in kept]
        count, following, path, tokens = kept
        if depth > draft.depth:
            path, tokens = path[:, : 1 + draft.depth], tokens[:, : 1 + draft.depth]
        return Kept(count, path, tokens), following, host

    def see(self, best: Tensor, draft: Draft) -> None:
        """Remember a draft for warm()."""
        known = self.seen.setdefault(self._key(best, draft), draft)
        if known.depth < draft.depth:
            self.seen[self._key(best, draft)] = draft

    @staticmethod
    def _key(best: Tensor, draft: Draft) -> tuple:
        return best.shape, draft.is_chain, draft.parents.dim(), draft.probe is None

    def _is_mine(self, cache: KVCache) -> bool:
        """Whether the graphs were made for this cache, which has not grown since."""
        return cache is self.cache and cache.storage[0] is self.storage[0]

    def _run(self, best, draft, depth: int, root, alive):
        if alive is None and len(root) > 1:  # in a batch some rows end before others
            alive = torch.ones_like(root, dtype=torch.bool)
        layout = (None, None, None) if draft.is_chain else tree.layout(draft)
        return self.runtime(best, draft.tokens, draft.probe, *layout, depth, root, alive)

    def warm(self, best: Tensor, cache: KVCache) -> None:
        """Compile or capture the drafts seen that have best ids [B, 1+n] of this shape."""
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

    def _step(self, *arguments):
        *kept, path, tokens, host = greedy_step(*arguments)
        self.cache.commit(None if arguments[3] is None else path, kept[0])
        return *kept, path, tokens, host


def with_best(logits: Tensor, states: dict) -> tuple[Tensor, dict, Tensor]:
    """What Target.forward() makes of its output for a StaticGreedy: best ids [B, 1+n] beside it."""
    return logits, states, best_id(logits)


def greedy_step(best, tokens, probe, parents, known, depths, depth: int, root, alive):
    """What a greedy step makes of the best ids [B, 1+n]; root [B], alive [B] or None = all.

    Of a chain, parents, known and depths are None. Returns (count [B], new roots [B], path and
    tokens [B, 1+depth] as Accepted has them, Accepted.for_host).
    """
    if probe is not None:
        tokens = tokens.masked_fill(probe, -1)
    if parents is None:
        accepted = verify.greedy_chain(best, tokens)
    else:
        accepted = verify.greedy_tree(best, tokens, parents, known, depths, depth)
    following = accepted.last.clone()  # views of an input are made outside of compiled code
    if alive is not None:
        accepted = accepted.only(alive)
        following = torch.where(alive, following, root)
    line = accepted.path, accepted.tokens
    return accepted.count, following, *line, accepted.for_host(tokens)
