"""Hydra: a static tree filled level by level, each node's children by the tokens on its path."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter, Needs
from model.common.contract.static_tree import StaticTree
from model.common.heads.head import CachedHead, module_bytes, row_of, shared_module
from model.common.loop.ranking import finite_rows, top_ids
from model.common.target.products import choose_products
from model.hydra.heads import HydraHeads


class Level(NamedTuple):
    """Index tensors of the nodes of one depth; an inner node is one that has children.

    num_best       ranks asked for
    parents        place of each node's parent among the inner nodes one level up; ranks: its own
    inner          places in the level of its inner nodes
    inner_parents  place of each inner node's parent among the inner nodes one level up
    """

    num_best: int
    parents: Tensor
    ranks: Tensor
    inner: Tensor
    inner_parents: Tensor


class HydraDrafter(Drafter):
    """Heads i = 0, 1, ... give the nodes of depth i + 1, from what stands at the last committed
    position: the prefix layer's output or, without such a layer, the target's hidden state.

    states   [B, H] what stands there; roots [B]
    longest  host int: rows of the longest running sequence in the prefix layer's cache
    """

    needs = Needs(hidden=("last",))

    def __init__(self, heads: HydraHeads, paths, target, fits_tree: bool = False):
        self.heads, self.hidden_size = heads, target.config.hidden_size
        self.device, self.fits_tree = target.device, fits_tree
        self.embed = shared_module(target.model.get_input_embeddings(), self.device)
        choose_products(heads, self.device)
        self.runtime = target.runtime
        self.prefix = None
        if heads.prefix is not None:
            where = self.device, target.dtype, self.runtime
            self.prefix = CachedHead(heads.prefix, heads.config, *where)
        self._lay_out(paths)

    def _lay_out(self, paths) -> None:
        """Plan the tree of these paths."""
        self.paths, self.tree = paths, StaticTree(paths, self.device)
        self.max_nodes, self.max_depth = len(self.tree), self.tree.depth
        self.levels = self._plan()
        self.guess = self.runtime.captured(self.runtime.compiled(self._guesses))

    def resize(self, num_nodes, depth, paths=None):
        self._lay_out(paths)

    def _plan(self) -> list[Level]:
        """What every level is filled by."""
        tree, plan = self.tree, []
        for depth, level in enumerate(tree.levels):
            above = {node: place for place, node in enumerate(tree.inner[depth])}
            below = tree.inner[depth + 1] if depth + 1 < len(tree.inner) else []
            parents = [above[node] for node in tree.parent_list[level]]
            ranks = tree.ranks[level].tolist()
            inner = [node - level.start for node in below]
            lists = (parents, ranks, inner, [parents[place] for place in inner])
            tensors = (torch.tensor(places, device=self.device) for places in lists)
            plan.append(Level(1 + max(ranks), *tensors))
        return plan

    def facts(self):
        return {"head_bytes": module_bytes(self.heads), **self.heads.draft_ids.facts()}

    def reserve(self, num_slots, capacity, sampler):
        weight = next(self.heads.parameters())
        self.states = weight.new_zeros(num_slots, self.hidden_size)
        self.roots = torch.zeros(num_slots, dtype=torch.long, device=self.device)
        if self.prefix is not None:
            self.prefix.reserve(num_slots, capacity + 1 + self.max_depth)

    def start(self, prompt):
        if self.prefix is None:
            states = prompt.last("last")
        else:
            states = self.prefix.read_prompt(prompt.slots, (prompt.hidden["last"],), prompt.count)
        self.states[prompt.slots] = states
        self.roots[prompt.slots] = prompt.next_token
        self.longest = prompt.max_committed - 1

    def propose(self):
        tokens, sound = self.guess(self.states, self.roots)
        return Draft(tokens, self.tree.tree, sound=sound)

    def observe(self, step):
        if step.max_committed == 0:
            return
        self.states = step.last("last") if self.prefix is None else self._read(step)
        self.roots = step.next_token.clone()  # start() writes into it
        self.longest = step.max_committed - 1

    def end(self, slots):
        if self.prefix is not None:
            self.prefix.cache.clear(slots)

    def _read(self, step) -> Tensor:
        """The prefix layer's state [B, H] of the last row committed; keeps those of all."""
        states = self.prefix.read((step.committed("last"),), self.longest)
        self.prefix.cache.advance(step.count)
        return row_of(states, (step.count - 1).clamp(min=0))

    def _guesses(self, states: Tensor, roots: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens of the nodes [B, n], Draft.sound [B]), from states [B, H] and roots [B]."""
        inputs = torch.cat([states, self.embed(roots).to(states.dtype)], -1).unsqueeze(1)
        found, finite = [], []
        for i, level in enumerate(self.levels):
            logits = self.heads.guess(i, inputs)  # [B, inner nodes, V]
            finite.append(finite_rows(logits))
            best = top_ids(logits, level.num_best)  # [B, inner nodes, k]
            tokens = self.heads.draft_ids.of_target(best[:, level.parents, level.ranks])
            found.append(tokens)
            if i + 1 < len(self.levels):
                own = self.embed(tokens[:, level.inner]).to(states.dtype)
                inputs = torch.cat([inputs[:, level.inner_parents], own], -1)  # [B, r, (i+3) H]
        return torch.cat(found, 1), torch.cat(finite, 1).all(1)
