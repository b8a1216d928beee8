"""Hydra: a static tree filled level by level, each node's children by the tokens on its path.

The prefix layer has a cache of its own, which trails the target's by the rows of the last step:
every proposal begins by reading them, padded to the deepest path so that shapes stay the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter, Needs, committed_rows
from model.common.contract.static_tree import StaticTree
from model.common.heads.head import CachedHead, module_bytes, shared_module
from model.common.loop.ranking import top_ids
from model.common.target.devices import all_on, on
from model.common.target.runtime import make_runtime
from model.hydra.heads import HydraHeads
from model.medusa.drafter import first_step, last_committed


class HydraDrafter(Drafter):
    """Heads i = 0, 1, ... give the nodes of depth i + 1, from what stands at the last committed
    position: the prefix layer's output or, without such a layer, the target's hidden state.

    seen  what last_committed() reads of the last step; behind a prompt its last row, as of such a
          step
    """

    needs = Needs(hidden=("last",))
    ahead = True

    def __init__(self, heads: HydraHeads, tree, target, runtime: str):
        self.heads, self.device = heads, target.device
        self.tree = StaticTree(tree, self.device)
        self.head_device = next(heads.parameters()).device  # where the target's last layer is
        self.embed = shared_module(target.model.get_input_embeddings(), self.head_device)
        self.levels = self._plan()
        self.runtime = make_runtime(runtime, self._tokens, self.head_device)
        self.prefix = self.seen = None
        if heads.prefix is not None:
            self.prefix = CachedHead(
                heads.prefix, heads.config, self.head_device, target.dtype, runtime
            )

    def _plan(self) -> list[tuple]:
        """Per level: (best k asked for, places of its nodes' parents among the nodes that have
        children, ranks of its nodes, places in it of the nodes that have children, places of
        those nodes' parents among the nodes that have children, one level up)."""
        tree, plan = self.tree, []
        for depth, level in enumerate(tree.levels):
            above = {node: place for place, node in enumerate(tree.inner[depth])}
            below = tree.inner[depth + 1] if depth + 1 < len(tree.inner) else []
            parents = [above[node] for node in tree.parent_list[level]]
            ranks = tree.ranks[level].tolist()
            inner = [node - level.start for node in below]
            lists = (parents, ranks, inner, [parents[place] for place in inner])
            tensors = (torch.tensor(places, device=self.head_device) for places in lists)
            plan.append((1 + max(ranks), *tensors))
        return plan

    def shapes(self):
        return [self.tree.shape]

    def facts(self):
        return {"head_bytes": module_bytes(self.heads)}

    @torch.inference_mode()
    def warm(self, capacity):
        if self.seen is None:
            return
        if self.prefix is None:
            self.runtime(*self.seen, self.root)
            return
        hidden, path, count = (torch.zeros_like(part) for part in self.seen)
        inputs, extras = (hidden, count, path), (self.root,)
        capacity = self._columns(capacity)
        self.prefix.warm(capacity, inputs, self._gather, self._below, extras)

    @torch.inference_mode()
    def start(self, prefill, max_lengths, sampler):
        self.root = prefill.next_token.to(self.head_device)
        self.seen = first_step(prefill, self.tree)
        if self.prefix is not None:
            rows, capacity = prefill.hidden["last"], self._columns(max(max_lengths))
            lengths = (prefill.count - 1).clamp(min=0)
            self.prefix.read_prompt(rows, rows, lengths, capacity)
            # rows of the longest sequence in the cache, now and with those that are unread
            self.committed, self.longest = prefill.max_committed - 2, prefill.max_committed - 1

    def _columns(self, length: int) -> int:
        """Columns of the prefix layer's cache for sequences of a length: what a step may commit
        stands behind a bound of the length that is a step above it."""
        return length + 2 * (1 + self.tree.depth)

    def propose(self):
        if self.prefix is None:
            tokens = self.runtime(*self.seen, self.root)
        else:  # its turn, with the rows of the last step, and the heads' behind it
            hidden, path, count = self.seen
            place = 1 + self.tree.depth, self.committed, self.longest
            inputs, extras = (hidden, count, path), (self.root,)
            (tokens,) = self.prefix.read_step(inputs, *place, self._gather, self._below, extras)
            self.committed = self.longest
        return Draft(on(self.device, tokens), self.tree.parents, self.tree.depth)

    def observe(self, step):
        self.root = on(self.head_device, step.next_token)
        self.seen = step.hidden["last"], *all_on(self.head_device, (step.path, step.count))
        self.longest = step.max_committed - 1

    def _gather(self, hidden: Tensor, count: Tensor, path: Tensor, root: Tensor) -> tuple:
        """A step's committed rows for the prefix layer's read_step(), which leaves the root."""
        rows = committed_rows(hidden, path)  # [B, 1+depth, H]
        return (rows, (count - 1).clamp(min=0), rows), count, (root,)

    def _below(self, out: tuple, root: Tensor) -> tuple[Tensor]:
        """Tokens of the nodes [B, n], from the prefix layer's output ([B, 1, H],)."""
        return (self._fill(out[0].squeeze(1), root),)

    def _tokens(self, hidden: Tensor, path: Tensor, count: Tensor, root: Tensor) -> Tensor:
        """Tokens of the nodes [B, n], from what last_committed() reads and roots [B]."""
        return self._fill(last_committed(hidden, path, count), root)

    def _fill(self, state: Tensor, root: Tensor) -> Tensor:
        """Tokens of the nodes [B, n], from states [B, H] and roots [B]."""
        inputs = torch.cat([state, self.embed(root).to(state.dtype)], -1).unsqueeze(1)
        found = []
        for i, (num_best, parents, ranks, inner, above) in enumerate(self.levels):
            best = top_ids(self.heads.guess(i, inputs), num_best)  # [B, nodes with children, k]
            tokens = best[:, parents, ranks]
            found.append(tokens)
            if i + 1 < len(self.levels):
                own = self.embed(tokens[:, inner]).to(state.dtype)
                inputs = torch.cat([inputs[:, above], own], -1)  # [B, r, (i+3) H]
        return torch.cat(found, 1)
