"""SpecExec's tree: the most probable continuations that a draft model knows, found best first."""

from __future__ import annotations

import math
from itertools import count, takewhile

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter, DraftShape
from model.common.loop.ranking import top_logp
from model.specexec.flags import Shape
from model.specexec.reader import TreeReader

OUT = float("-inf")
FEWEST = 8  # rows of a pass where shapes are static: these, or four times as many, and so on


class Pool:
    """The best nodes found so far, parents before children, [B, size] each.

    Empty places come last: token -1, score -inf. levels: 0 for the root's children; parents: index
    here, -1 = the root; columns: where the draft model has read the node, -1 = not yet.
    """

    FIELDS = ("tokens", "scores", "parents", "levels", "columns")

    def __init__(self, batch: int, budget: int, device, size: int = 0):
        self.budget = budget
        self.tokens = torch.full((batch, size), -1, device=device)
        self.scores = torch.full((batch, size), OUT, device=device, dtype=torch.float32)
        self.parents, self.levels, self.columns = (self.tokens.clone() for _ in range(3))

    @property
    def size(self) -> int:
        """Places, filled or empty."""
        return self.tokens.shape[1]

    def add(self, tokens: Tensor, scores: Tensor, parents: Tensor, levels: Tensor) -> None:
        """Add nodes [B, m] and keep the `budget` best of all.

        A child's score is never above its parent's and ties go to the earlier node, so a kept
        node's parent is kept.
        """
        new = (tokens, scores, parents, levels, torch.full_like(tokens, -1))
        values = [torch.cat([getattr(self, n), more], 1) for n, more in zip(self.FIELDS, new)]
        scores, total = values[1], values[1].shape[1]
        best = scores.sort(dim=1, descending=True, stable=True)
        empty = best.values[:, : self.budget] == OUT
        order = best.indices[:, : self.budget].masked_fill(empty, total).sort(1).values
        empty, order = order == total, order.clamp(max=total - 1)
        for name, value in zip(self.FIELDS, values):
            blank = OUT if name == "scores" else -1
            setattr(self, name, value.gather(1, order).masked_fill(empty, blank))
        place = torch.full_like(values[0], -1)
        ahead = torch.arange(self.size, device=order.device).expand_as(order)
        place.scatter_reduce_(1, order, ahead.masked_fill(empty, -1), "amax")
        above = place.gather(1, self.parents.clamp(min=0))
        self.parents = torch.where(self.parents < 0, -1, above)

    def trim(self, size: int) -> None:
        """Drop places from `size` on, which are empty in all rows."""
        for name in self.FIELDS:
            setattr(self, name, getattr(self, name)[:, :size])

    def promising(self, log_decay: float, room: Tensor) -> Tensor:
        """Nodes [B, size] not yet read of which a child could be kept; room [B]: deepest level."""
        bar = self.scores.min(1, keepdim=True).values if self.size == self.budget else OUT
        fits = self.levels + 2 <= room.unsqueeze(1)
        return (self.columns < 0) & (self.scores > OUT) & (self.scores + log_decay > bar) & fits

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

    def __init__(self, reader: TreeReader, shape: Shape):
        self.reader, self.shape = reader, shape
        self.log_decay = math.log(shape.decay)
        self.reads_per_step = shape.beam_len  # after each pass: is there another, and how wide
        self.num_columns = shape.num_beams * (shape.beam_len - 1)
        widest = min(shape.num_beams, shape.budget)
        fewer = takewhile(lambda rows: rows < widest, (FEWEST * 4**i for i in count()))
        self.widths = [*fewer, widest]  # of a pass where shapes are static
        self.lowest, self.passes, self.steps = 0.0, 0, 0

    def start(self, prefill, max_lengths, sampler):
        columns = self.num_columns
        if not self.reader.static_shapes:
            columns = min(columns, 2 * self.shape.budget)  # mostly enough, and it grows
        self.reader.start(prefill, max_lengths, columns)
        batch, device = len(prefill.host_ids), self.reader.device
        self.any_parents = torch.full((batch, self.shape.budget), -1, device=device)

    def shapes(self):
        return [DraftShape(self.shape.budget, self.any_parents, self.shape.beam_len)]

    def warm(self, capacity):
        for rows in self.widths:
            self.reader.rehearse(rows)
        self.reader.draft.warm(capacity + self.num_columns)

    def propose(self):
        reader, shape = self.reader, self.shape
        batch = len(reader.room)
        device = reader.draft.device
        size = shape.budget if reader.static_shapes else 0
        self.pool = pool = Pool(batch, shape.budget, device, size)
        if not any(reader.room):  # every answer ends with this step
            return self._as_draft(0)
        room = reader.rooms()
        logits = reader.catch_up().unsqueeze(1)
        root = torch.full((batch, 1), -1, device=device)
        self._grow(logits, root, room.unsqueeze(1) > 0)
        ready, depth = self._survey(room)
        for _ in range(shape.beam_len - 1):
            if ready is None:
                break
            index, there = pool.take(*ready, reader.num_columns)
            columns, levels = pool.columns, pool.levels.gather(1, index)
            above = pool.parents.gather(1, index)
            above = torch.where(above < 0, -1, columns.gather(1, above.clamp(min=0)))
            tokens = pool.tokens.gather(1, index)
            logits = reader.read(tokens, above, levels.clamp(min=0))
            self._grow(logits, index, there)
            ready, depth = self._survey(room)
        return self._as_draft(depth)

    def _grow(self, logits: Tensor, index: Tensor, there: Tensor) -> None:
        """Add the successors of nodes index [B, r] (-1 = the root) where `there` [B, r]."""
        ids, logq = top_logp(logits, self.shape.branch_width, self.shape.temperature)  # [B, r, W]
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

    def _survey(self, room: Tensor):
        """((nodes to read [B, size], how many) or None, depth of the tree); one host read."""
        pool = self.pool
        ready = pool.promising(self.log_decay, room)
        filled = (pool.scores > OUT).sum(1).max()
        facts = torch.stack([filled, ready.sum(1).max(), pool.levels.max() + 1])
        filled, unread, depth = facts.tolist()
        rows = min(self.shape.num_beams, unread)
        if self.reader.static_shapes:
            rows = next(width for width in self.widths if width >= rows)
        else:
            pool.trim(filled)
            ready = ready[:, :filled]
        return ((ready, rows) if unread else None), depth

    def _as_draft(self, depth: int) -> Draft:
        pool, device = self.pool, self.reader.device
        self.steps += 1
        tokens, parents = pool.tokens, pool.parents
        if pool.size:
            lowest = pool.scores.masked_fill(pool.scores == OUT, 0).amin(1)
            self.lowest = self.lowest + lowest.mean()
        if self.reader.static_shapes:
            depth = self.shape.beam_len
        elif depth == 0:
            return Draft.chain(tokens.to(device))
        return Draft(tokens.to(device), parents.to(device), depth)

    def observe(self, step):
        columns = self.pool.columns if self.pool.size else step.count.unsqueeze(1)
        self.reader.observe(step, columns.to(self.reader.draft.device))

    def forget(self):
        self.lowest, self.passes, self.steps = 0.0, 0, 0

    def facts(self):
        steps = max(self.steps, 1)
        return {
            "draft_passes_per_step": round(self.passes / steps, 4),
            "mean_lowest_score": round(float(self.lowest) / steps, 4),
        }
