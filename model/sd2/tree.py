"""SD2's adaptive attention tree: EAGLE-2's growth, every level as deep as its best node needs.

The first tree of a turn is no exception: its first pass leaves at the first exit that is sure
enough, where the authors' code takes the last one, with which it reads the prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter
from model.common.contract.trees import Tree, best_nodes
from model.common.loop.ranking import top_logp
from model.common.target.draft_model import DraftModel
from model.sd2.exits import SortedDraft


class SortedTreeDrafter(Drafter):
    """A beam of top_k, `depth` passes deep, of which the num_nodes best nodes are kept.

    A node's score is the sum of log probabilities along its path, at temperature 1. One exit for a
    pass: the first at which the likeliest token of all its nodes is above the threshold. Nodes are
    point guesses, so that token matching is exact.

    num_ids  tokens that both models know
    """

    def __init__(self, draft: SortedDraft, num_ids: int, num_nodes: int, depth: int, top_k: int):
        self.model, self.draft = draft, DraftModel(draft)
        self.num_ids, self.depth, self.top_k = num_ids, depth, top_k
        self.max_nodes = min(num_nodes, top_k + depth * top_k**2)
        self.max_depth = 1 + depth
        self.num_columns = depth * top_k
        self.reads_per_step = (1 + depth) * draft.reads_per_row
        self.forget()

    def forget(self):
        self.model.forget()
        self.counts = torch.zeros(len(self.model.exits), dtype=torch.long, device=self.model.device)

    def reserve(self, num_slots, capacity, sampler):
        self.draft.reserve(num_slots, capacity + self.num_columns)

    def start(self, prompt):
        self.device = prompt.tokens.device
        self.draft.start(prompt)

    def propose(self):
        model, width, device = self.model, self.top_k, self.model.device
        room = self.draft.context_room
        live, batch = [length > 0 for length in room], len(room)
        self.base = torch.tensor(self.draft.committed, device=device)
        if not any(live):
            return self._nothing(batch)
        logits, left = model.read(self.draft.unread(), live)
        size = self.num_columns
        lines = torch.zeros(batch, size, size, dtype=torch.bool, device=device)
        tokens, scores = top_logp(logits[:, 0, : self.num_ids], width)  # [B, k]
        own = torch.arange(width, device=device).expand(batch, -1)  # pool index of a pass's nodes
        nodes = [(tokens, scores, torch.full_like(tokens, -1), own)]
        first, exits, above = width, [left], None
        for depth in range(self.depth):
            self._add_lines(lines, depth, above)
            logits, left = model.read(tokens, live, width, (self.base, lines))
            children, logp = top_logp(logits[..., : self.num_ids], width)  # [B, k, k]
            children = children.flatten(1)
            below = (scores.unsqueeze(-1) + logp).flatten(1)
            chosen = below.topk(width, dim=1).indices
            columns = torch.full_like(children, -1)
            if depth + 1 < self.depth:
                column = torch.arange(width, device=device) + (depth + 1) * width
                columns.scatter_(1, chosen, column.expand(batch, -1))
            nodes.append((children, below, own.repeat_interleave(width, 1), columns))
            exits.append(left)
            above = chosen // width + depth * width
            own, first = first + chosen, first + width**2
            tokens, scores = children.gather(1, chosen), below.gather(1, chosen)
        return self._best(nodes, exits, room)

    def _nothing(self, batch: int) -> Draft:
        """No draft where no slot has room for one."""
        self.columns = torch.empty(batch, 0, dtype=torch.long, device=self.model.device)
        self.drafted = self.columns.new_zeros(batch, len(self.counts))
        return Draft(torch.empty(batch, 0, dtype=torch.long, device=self.device))

    def _add_lines(self, lines: Tensor, depth: int, above: Tensor | None) -> None:
        """Enter a pass's nodes into lines; above [B, k]: columns of their parents."""
        width = self.top_k
        begin = depth * width
        if above is not None:
            index = above.unsqueeze(-1).expand(-1, -1, lines.shape[-1])
            lines[:, begin : begin + width] = lines.gather(1, index)
        lines.diagonal(dim1=1, dim2=2)[:, begin : begin + width] = True

    def _best(self, nodes: list[tuple], exits: list[list[int]], room: list[int]) -> Draft:
        """The best nodes of all passes, in their order; keeps where the draft model has read them.

        nodes: (tokens, scores, parents, columns) [B, ..] of every pass; exits: [pass][slot]; room:
        of every slot, levels beyond which its nodes are inert
        """
        width, device = self.top_k, self.model.device
        tokens, scores, parents, columns = (torch.cat(part, 1) for part in zip(*nodes))
        most = torch.tensor(room, device=device).unsqueeze(1)
        sound = ~scores.isnan().any(1) | (most[:, 0] == 0)
        tokens, parents, kept = best_nodes(tokens, scores, parents, self.max_nodes)
        self.columns = columns.gather(1, kept)
        passes = (kept - width).div(width**2, rounding_mode="floor") + 1
        tokens = tokens.masked_fill(passes >= most, -1)
        left = torch.tensor(exits, device=device).T.gather(1, passes)  # [B, n]
        numbers = torch.arange(len(self.counts), device=device)
        there = (tokens >= 0).unsqueeze(-1)
        self.drafted = (there & (left.unsqueeze(-1) == numbers)).sum(1)  # [B, exits]
        tree = Tree(parents.to(self.device), self.max_depth)
        return Draft(tokens.to(self.device), tree, sound=sound.to(self.device))

    def observe(self, step):
        model, before = self.model, self.draft.committed[:]
        count, path = step.count.to(model.device), step.path.to(model.device)
        inner = path[:, 1:-1]  # a node with an accepted child has been read
        if inner.shape[1]:
            place = self.columns.gather(1, (inner - 1).clamp(min=0))
            ahead = torch.arange(inner.shape[1], device=model.device)
            model.move(self.base, place.masked_fill(ahead >= (count - 2).unsqueeze(1), -1))
        self.counts += (self.drafted * (count > 0).unsqueeze(1)).sum(0)
        self.draft.observe(step)
        model.keep(self.draft.committed, before, self.top_k)

    def end(self, slots):
        self.draft.end(slots)
        self.model.keep(self.draft.committed, self.draft.committed)

    def facts(self):
        by_exit = zip(self.model.exits, self.counts.tolist())
        return {f"drafted_at_exit_{layer}": count for layer, count in by_exit} | self.model.facts()
