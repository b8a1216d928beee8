"""SD2's adaptive attention tree: EAGLE-2's growth, every level as deep as its best node needs."""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter, DraftShape
from model.common.loop.ranking import top_logp
from model.sd2.exits import SortedDraft


class SortedTreeDrafter(Drafter):
    """A beam of top_k, `depth` passes deep, of which the num_nodes best nodes are kept.

    A node's score is the sum of log probabilities along its path, at temperature 1. With a child
    never above its parent and ties to the earlier node, a kept node's parent is kept. One exit for
    a pass: the first at which the likeliest token of all its nodes is above the threshold. Nodes
    are point guesses, so that token matching is exact.

    num_ids  tokens that both models know
    """

    def __init__(self, draft: SortedDraft, num_ids: int, num_nodes: int, depth: int, top_k: int):
        self.draft, self.num_ids, self.depth, self.top_k = draft, num_ids, depth, top_k
        self.num_nodes = min(num_nodes, top_k + depth * top_k**2)
        self.num_columns = depth * top_k
        self.reads_per_step = (1 + depth) * draft.reads_per_row
        self.forget()

    def forget(self):
        self.draft.forget()
        self.counts = torch.zeros(len(self.draft.exits), dtype=torch.long, device=self.draft.device)

    def start(self, prefill, max_lengths, sampler):
        draft, self.device = self.draft, prefill.tokens.device
        ids = prefill.tokens.clamp(0, draft.vocab_size - 1).to(draft.device)
        lengths = [len(row) - 1 for row in prefill.host_ids]
        draft.prefill(ids, lengths, max(max_lengths) + self.num_columns + 2)
        self.running = (prefill.count > 0).tolist()
        self.tails = [row[-2:] for row in prefill.host_ids]
        self.committed = [
            len(row) if runs else 2 for row, runs in zip(prefill.host_ids, self.running)
        ]
        draft.keep(self.committed, self.committed)
        self.any_parents = torch.full((len(ids), self.num_nodes), -1, device=self.device)

    def shapes(self):
        return [DraftShape(self.num_nodes, self.any_parents, 1 + self.depth)]

    def warm(self, capacity):
        columns, lines = capacity + self.num_columns, self._no_lines(self.any_parents.shape[0])
        self.draft.warm(columns, [(2, 1)])
        self.draft.warm(columns, [(self.top_k, self.top_k)], lines)

    def _no_lines(self, batch: int) -> Tensor:
        size = self.num_columns
        return torch.zeros(batch, size, size, dtype=torch.bool, device=self.draft.device)

    @torch.inference_mode()
    def propose(self):
        draft, width, device = self.draft, self.top_k, self.draft.device
        batch = len(self.tails)
        tails = torch.tensor(self.tails, device=device).clamp(max=draft.vocab_size - 1)
        logits, left = draft.read(tails, self.running)
        draft.base, draft.lines = torch.tensor(self.committed, device=device), self._no_lines(batch)
        tokens, scores = top_logp(logits[:, 0, : self.num_ids], width)  # [B, k]
        own = torch.arange(width, device=device).expand(batch, -1)  # pool index of a pass's nodes
        nodes = [(tokens, scores, torch.full_like(tokens, -1), own)]
        first, exits, above = width, [left], None
        for depth in range(self.depth):
            self._add_lines(depth, above)
            logits, left = draft.read(tokens, self.running, width)
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
        return self._best(nodes, exits)

    def _add_lines(self, depth: int, above: Tensor | None) -> None:
        """Enter a pass's nodes into the draft's lines; above [B, k]: columns of their parents."""
        lines, width = self.draft.lines, self.top_k
        begin = depth * width
        if above is not None:
            index = above.unsqueeze(-1).expand(-1, -1, lines.shape[-1])
            lines[:, begin : begin + width] = lines.gather(1, index)
        lines.diagonal(dim1=1, dim2=2)[:, begin : begin + width] = True

    def _best(self, nodes: list[tuple], exits: list[list[int]]) -> Draft:
        """The best nodes of all passes, in their order; keeps where the draft model has read them.

        exits: [pass][sequence]
        """
        width, device = self.top_k, self.draft.device
        tokens, scores, parents, columns = (torch.cat(part, 1) for part in zip(*nodes))
        order = scores.sort(dim=1, descending=True, stable=True).indices
        kept = order[:, : self.num_nodes].sort(dim=1).values
        place = torch.full_like(tokens, -1)
        place.scatter_(1, kept, torch.arange(self.num_nodes, device=device).expand_as(kept))
        above = parents.gather(1, kept)
        parents = torch.where(above < 0, -1, place.gather(1, above.clamp(min=0)))
        self.columns = columns.gather(1, kept)
        passes = (kept - width).div(width**2, rounding_mode="floor") + 1
        left = torch.tensor(exits, device=device).T.gather(1, passes)  # [B, n]
        numbers = torch.arange(len(self.counts), device=device)
        self.drafted = (left.unsqueeze(-1) == numbers).sum(1)  # [B, exits]
        tokens = tokens.gather(1, kept)
        return Draft(tokens.to(self.device), parents.to(self.device), 1 + self.depth)

    def observe(self, step):
        draft = self.draft
        count, path = step.count.to(draft.device), step.path.to(draft.device)
        inner = path[:, 1:-1]  # a node with an accepted child has been read
        place = self.columns.gather(1, (inner - 1).clamp(min=0))
        ahead = torch.arange(inner.shape[1], device=draft.device)
        draft.move(place.masked_fill(ahead >= (count - 2).unsqueeze(1), -1))
        draft.base = draft.lines = None
        self.counts += (self.drafted * (count > 0).unsqueeze(1)).sum(0)
        before, self.running = self.committed, [bool(ids) for ids in step.host_ids]
        pairs = zip(before, self.tails, step.host_ids)
        self.committed, self.tails = [], []
        for length, tail, ids in pairs:
            self.committed.append(length + len(ids) if ids else 2)
            self.tails.append((tail + ids)[-2:])
        draft.keep(self.committed, before, self.top_k)

    def facts(self):
        by_exit = zip(self.draft.exits, self.counts.tolist())
        return {f"drafted_at_exit_{layer}": count for layer, count in by_exit} | self.draft.facts()
