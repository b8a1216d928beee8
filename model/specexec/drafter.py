"""SpecExec's tree: the most probable continuations that a draft model knows, found best first."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter
from model.common.contract.trees import Tree, best_nodes
from model.common.loop.ranking import top_logp
from model.specexec.flags import Shape
from model.specexec.reader import TreeReader

OUT = float("-inf")


class Pool:
    """The best nodes found so far, parents before children, [B, size] each.

    Inert places, where a slot has fewer nodes: token -1, score -inf. levels: 0 for the root's
    children; parents: index here, -1 = the root; columns: where the draft model has read the node,
    -1 = not yet.
    """

    FIELDS = ("tokens", "scores", "parents", "levels", "columns")

    def __init__(self, batch: int, budget: int, device):
        self.budget = budget
        self.tokens = torch.empty(batch, 0, dtype=torch.long, device=device)
        self.scores = torch.empty(batch, 0, dtype=torch.float32, device=device)
        self.parents, self.levels, self.columns = (self.tokens for _ in range(3))

    @property
    def size(self) -> int:
        """Places, filled or inert."""
        return self.tokens.shape[1]

    @property
    def filled(self) -> Tensor:
        """Which places hold a node, [B, size]."""
        return self.scores > OUT

    def add(self, tokens: Tensor, scores: Tensor, parents: Tensor, levels: Tensor) -> None:
        """Add nodes [B, m], those of score -inf being none, and keep the `budget` best of all."""
        tokens = tokens.masked_fill(scores == OUT, -1)
        new = (tokens, scores, parents, levels, torch.full_like(tokens, -1))
        for name, more in zip(self.FIELDS, new):
            setattr(self, name, torch.cat([getattr(self, name), more], 1))
        self.keep(self.budget)

    def keep(self, num: int) -> None:
        """Drop all but the `num` best places of each slot."""
        if self.size > num:
            best = best_nodes(self.tokens, self.scores, self.parents, num)
            self.tokens, self.parents, kept = best
            for name in ("scores", "levels", "columns"):
                setattr(self, name, getattr(self, name).gather(1, kept))

    def promising(self, log_decay: float, room: Tensor) -> Tensor:
        """Nodes [B, size] not yet read of which a child could be kept; room [B]: deepest level."""
        bar = self.scores.min(1, keepdim=True).values if self.size == self.budget else OUT
        fits = self.levels + 2 <= room.unsqueeze(1)
        return (self.columns < 0) & self.filled & (self.scores + log_decay > bar) & fits

    def take(self, ready: Tensor, num: int, column: int) -> tuple[Tensor, Tensor]:
        """The `num` best nodes of `ready`, read in the columns from `column` on.

        Returns (index [B, num], whether there is one [B, num]).
        """
        order = self.scores.masked_fill(~ready, OUT).sort(dim=1, descending=True, stable=True)
        index, there = order.indices[:, :num], order.values[:, :num] > OUT
        columns = column + torch.arange(num, device=index.device).expand_as(index)
        old = self.columns.gather(1, index)
        self.columns = self.columns.scatter(1, index, torch.where(there, columns, old))
        return index, there


class SpecExecDrafter(Drafter):
    """SpecExec (arXiv 2406.02532): parallel best-first search with a draft model.

    A child's score is its parent's + ln decay + ln q, q being the draft model's distribution at
    --draft-temperature. Every pass reads the num_beams best unread nodes and adds their best
    branch_width successors; the budget best nodes stay. It ends after beam_len passes, or when no
    unread node can have a child among the best. Nodes are point guesses: token matching is exact.
    """

    def __init__(self, reader: TreeReader, shape: Shape, fits_tree: bool = False):
        self.reader, self.widest, self.fits_tree = reader, shape.num_beams, fits_tree
        self.log_decay = math.log(shape.decay)
        self._draw_up(shape)
        self.forget()

    def _draw_up(self, shape: Shape) -> None:
        """Draft trees of this shape."""
        self.shape = shape
        self.max_nodes, self.max_depth = shape.budget, shape.beam_len
        self.reads_per_step = shape.beam_len  # after each pass: is there another, and how wide

    def resize(self, num_nodes, depth, paths=None):
        beams = min(self.widest, num_nodes)
        self._draw_up(replace(self.shape, budget=num_nodes, beam_len=depth, num_beams=beams))

    def reserve(self, num_slots, capacity, sampler):
        most = self.shape.num_beams * (self.shape.beam_len - 1)
        self.reader.reserve(num_slots, capacity, min(most, 2 * self.shape.budget))

    def start(self, prompt):
        self.reader.start(prompt)

    def propose(self):
        reader, shape, device = self.reader, self.shape, self.reader.draft_device
        room = torch.tensor(reader.room, device=device)
        self.pool = pool = Pool(len(room), shape.budget, device)
        self.sound = torch.ones_like(room, dtype=torch.bool)
        self.steps += 1
        if not any(reader.room):  # every answer ends with this step
            return self._as_draft(0)
        logits = reader.catch_up().unsqueeze(1)
        root = torch.full((len(room), 1), -1, device=device)
        self._grow(logits, root, room.unsqueeze(1) > 0)
        ready, num_rows, depth = self._survey(room)
        for _ in range(shape.beam_len - 1):
            if num_rows == 0:
                break
            index, there = pool.take(ready, num_rows, reader.num_columns)
            columns, levels = pool.columns, pool.levels.gather(1, index)
            above = pool.parents.gather(1, index)
            above = torch.where(above < 0, -1, columns.gather(1, above.clamp(min=0)))
            logits = reader.read(pool.tokens.gather(1, index), above, levels)
            self._grow(logits, index, there)
            ready, num_rows, depth = self._survey(room)
        return self._as_draft(depth)

    def _grow(self, logits: Tensor, index: Tensor, there: Tensor) -> None:
        """Add the successors of nodes index [B, r] (-1 = the root) where `there` [B, r]."""
        ids, logq = top_logp(logits, self.shape.branch_width, self.shape.temperature)  # [B, r, W]
        self.sound = self.sound & ~(logq.isnan().any(-1) & there).any(1)
        above, level = self._of(self.pool.scores, index, 0.0), self._of(self.pool.levels, index, -1)
        scores = above.unsqueeze(-1) + (self.log_decay + logq)
        scores = scores.masked_fill(~there.unsqueeze(-1) | (scores <= self.shape.min_log_prob), OUT)
        wide = [part.unsqueeze(-1).expand_as(ids).flatten(1) for part in (index, level + 1)]
        self.pool.add(ids.flatten(1), scores.flatten(1), *wide)
        self.passes += 1

    @staticmethod
    def _of(values: Tensor, index: Tensor, root: float) -> Tensor:
        """values at index, the root's own where it is -1."""
        if values.shape[1] == 0:
            return torch.full_like(index, root, dtype=values.dtype)
        return torch.where(index < 0, root, values.gather(1, index.clamp(min=0)))

    def _survey(self, room: Tensor) -> tuple[Tensor, int, int]:
        """(nodes to read [B, size], how many next, depth of the tree); one host read."""
        pool = self.pool
        ready, filled = pool.promising(self.log_decay, room), pool.filled
        depth = (pool.levels + 1).masked_fill(~filled, 0).max()
        facts = torch.stack([filled.sum(1).max(), ready.sum(1).max(), depth])
        size, unread, depth = facts.tolist()
        if size < pool.size:  # a score bound, or every slot with little room
            pool.keep(size)
            ready = pool.promising(self.log_decay, room)
        return ready, min(self.shape.num_beams, unread), depth

    def _as_draft(self, depth: int) -> Draft:
        pool, device = self.pool, self.reader.device
        tokens, sound = pool.tokens.to(device), self.sound.to(device)
        if depth == 0:
            return Draft(tokens, sound=sound)
        filled = pool.filled
        self.lowest = self.lowest + pool.scores.masked_fill(~filled, 0).amin(1).sum()
        self.drafts = self.drafts + filled.any(1).sum()
        tree = Tree(pool.parents.to(device), depth)
        return Draft(tokens, tree, sound=sound, scores=pool.scores.to(device))

    def observe(self, step):
        self.reader.observe(step, self.pool.columns)

    def end(self, slots):
        self.reader.end(slots)

    def forget(self):
        self.lowest, self.drafts, self.passes, self.steps = 0.0, 0, 0, 0

    def facts(self):
        return {
            "draft_passes_per_step": round(self.passes / max(self.steps, 1), 4),
            "mean_lowest_score": round(float(self.lowest) / max(int(self.drafts), 1), 4),
        }
