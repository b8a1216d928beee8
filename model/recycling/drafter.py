"""Token Recycling: the target's best successors of every token it last read, unrolled as a tree."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from model.common import static_tree
from model.common.drafter import Draft, Drafter, Needs
from model.common.ranking import top_ids
from model.common.static_tree import StaticTree

TREES = Path(__file__).parent / "trees"


def read_tree(name: str, vocab_size: int) -> list[tuple[int, ...]]:
    """Paths of a tree in trees/ or in a JSON file; ranks are below vocab_size."""
    return static_tree.read_tree(name, TREES, vocab_size)


class RecyclingDrafter(Drafter):
    """A matrix [V, k] of each token's best successors when it was last read, best first.

    The draft is one static tree: the child of rank r of a token is column r of its line. -1 is an
    unknown successor; the matrix has an extra last line of -1, which is what index -1 reads and
    what inert rows write to. A cold matrix is one per sequence, a warm one is shared by all rows
    and questions. k is one more than the tree's highest rank.

    Every row of a step but inert ones teaches its token's line. Where a token was read more than
    once, the last row wins: the deeper node, then the later sequence (warm), the later prompt
    position.
    """

    def __init__(self, tree, vocab_size: int, device, warm: bool = False, seeds: bool = False):
        self.vocab_size, self.device, self.is_warm = vocab_size, device, warm
        self.tree = tree = StaticTree(tree, device)
        self.parents, self.depth = tree.parents, tree.depth
        self.num_best = 1 + max(max(path) for path in tree.paths)
        self.needs = Needs(prompt_topk=self.num_best if seeds else 0)
        firsts = [-1, *(level.start for level in tree.levels)]
        self.levels = [  # (places of the parents in the level above, ranks)
            (tree.parents[level] - first, tree.ranks[level])
            for level, first in zip(tree.levels, firsts)
        ]
        self.matrix = None

    def shapes(self):
        return [(len(self.parents), self.parents)]

    def facts(self):
        return {"matrix_bytes": self.matrix.nbytes} if self.matrix is not None else {}

    def forget(self):
        self.matrix = None

    def start(self, prefill, max_lengths, sampler):
        batch = len(prefill.host_ids)
        if self.matrix is None or not self.is_warm:
            shape = (1 if self.is_warm else batch, self.vocab_size + 1, self.num_best)
            self.matrix = torch.full(shape, -1, dtype=torch.int32, device=self.device)
            self.last = torch.empty(shape[0] * shape[1], dtype=torch.long, device=self.device)
        which = torch.arange(batch, device=self.device).unsqueeze(1)
        self.which = torch.zeros_like(which) if self.is_warm else which  # matrix of a row, [B, 1]
        self.root = prefill.next_token
        if prefill.prompt_topk is not None:
            self._learn(prefill.tokens, prefill.prompt_topk)

    def propose(self):
        levels, above = [], self.root.unsqueeze(1)
        for places, ranks in self.levels:
            above = self.matrix[self.which, above[:, places], ranks]
            levels.append(above)
        return Draft(torch.cat(levels, 1).long(), self.parents, self.depth)

    def observe(self, step):
        tokens = step.tokens.masked_fill((step.count == 0).unsqueeze(1), -1)
        self._learn(tokens, top_ids(step.logits, self.num_best))
        self.root = step.next_token

    def _learn(self, tokens: Tensor, best: Tensor) -> None:
        """Overwrite the lines of tokens [B, m], -1 = inert, by best [B, m, k].

        All rows of a token write what the last of them says, so that the order of writing is free.
        """
        inert = tokens < 0
        lines = tokens.masked_fill(inert, self.vocab_size) + self.which * (self.vocab_size + 1)
        lines = lines.flatten()
        rows = torch.arange(lines.numel(), device=self.device)
        self.last.scatter_reduce_(0, lines, rows, "amax", include_self=False)
        best = best.int().masked_fill(inert.unsqueeze(-1), -1).flatten(0, 1)
        self.matrix.view(-1, self.num_best)[lines] = best[self.last[lines]]
