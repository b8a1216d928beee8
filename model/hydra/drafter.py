"""Hydra: a static tree filled level by level, each node's children by the tokens on its path.

The prefix layer has a cache of its own, which trails the target's by the rows of the last step:
every proposal begins by reading them, padded to the deepest path so that shapes stay the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.drafter import Draft, Drafter, Needs, committed_rows
from model.common.heads import CachedHead, module_bytes, shared_module
from model.common.ranking import top_ids
from model.common.runtime import make_runtime
from model.common.static_tree import StaticTree
from model.hydra.heads import HydraHeads
from model.medusa.drafter import last_committed


class HydraDrafter(Drafter):
    """Heads i = 0, 1, ... give the nodes of depth i + 1, one batched call a level.

    state  [B, H] the prefix layer's output at the last committed position, or, without such a
           layer, the target's hidden state there
    """

    needs = Needs(hidden=("last",))

    def __init__(self, heads: HydraHeads, tree, target, runtime: str):
        self.heads, self.device = heads, target.device
        self.tree = StaticTree(tree, self.device)
        self.head_device = next(heads.parameters()).device  # where the target's last layer is
        self.embed = shared_module(target.model.get_input_embeddings(), self.head_device)
        self.levels = self._plan()
        self.runtime = make_runtime(runtime, self._tokens, self.head_device)
        self.prefix = self.root = None
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
        return [(len(self.tree), self.tree.parents)]

    def facts(self):
        return {"head_bytes": module_bytes(self.heads)}

    @torch.inference_mode()
    def warm(self, capacity):
        if self.root is None:
            return
        self.runtime(self.state, self.root)
        if self.prefix is not None:
            num_rows = 1 + self.tree.depth
            rows = self.state.new_zeros(len(self.state), num_rows, self.state.shape[1])
            place = torch.zeros(len(rows), dtype=torch.long, device=self.head_device)
            self.prefix.warm(capacity + num_rows, (rows, place, rows))

    @torch.inference_mode()
    def start(self, prefill, max_lengths, sampler):
        self.root = prefill.next_token.to(self.head_device)
        self.unread = None
        if self.prefix is None:
            self.state = last_committed(prefill)
            return
        rows = prefill.hidden["last"]
        capacity = max(max_lengths) + 1 + self.tree.depth
        (state,) = self.prefix.read_prompt((rows, None, rows), prefill.count, 1, capacity)
        self.state = state.squeeze(1)
        self.committed = prefill.max_committed - 1  # rows of the longest sequence in the cache

    def propose(self):
        if self.unread is not None:
            self._read()
        tokens = self.runtime(self.state, self.root).to(self.device)
        return Draft(tokens, self.tree.parents, self.tree.depth)

    def _read(self) -> None:
        """The prefix layer's turn: the rows of the last step, whose number is count."""
        rows, count, longest = self.unread
        place = (count - 1).clamp(min=0)
        (state,) = self.prefix.read((rows, place, rows), self.committed)
        self.prefix.advance(count, longest)
        self.state, self.committed, self.unread = state.squeeze(1), longest, None

    def observe(self, step):
        self.root = step.next_token.to(self.head_device)
        if self.prefix is None:
            self.state = last_committed(step)
            return
        rows = committed_rows(step.hidden["last"], step.path)  # [B, 1+depth, H]
        self.unread = rows, step.count.to(self.head_device), step.max_committed - 1

    def _tokens(self, state: Tensor, root: Tensor) -> Tensor:
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
