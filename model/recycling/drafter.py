"""Token Recycling: the target's best successors of every token it last read, unrolled as a tree."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from model.common.contract import static_tree
from model.common.contract.drafter import Draft, Drafter, Needs
from model.common.contract.static_tree import StaticTree
from model.common.loop.ranking import top_ids
from model.common.target.runtime import make_runtime

TREES = Path(__file__).parent / "trees"


def read_tree(name: str, vocab_size: int) -> list[tuple[int, ...]]:
    """Paths of a tree in trees/ or in a JSON file; ranks are below vocab_size."""
    return static_tree.read_tree(name, TREES, vocab_size)


class RecyclingDrafter(Drafter):
    """A line of k for each of V tokens: its best successors when it was last read, best first.

    The draft is one static tree: the child of rank r of a token is column r of its line. -1 is an
    unknown successor; the line before the V lines is all -1, which is what unknown tokens read and
    inert rows write. These 1 + V lines are one per sequence (cold), or shared by all rows and
    questions (warm); `matrix` holds one such part below another, [parts * (1+V), k]. k is one more
    than the tree's highest rank.

    Every row of a step but inert ones teaches its token's line. Where a token was read more than
    once, the last row wins: the deeper node, then the later sequence (warm), the later prompt
    position.
    """

    ahead = True

    def __init__(
        self,
        tree,
        vocab_size: int,
        device,
        warm: bool = False,
        seeds: bool = False,
        runtime: str = "eager",
    ):
        self.vocab_size, self.is_warm = vocab_size, warm
        self.tree = tree = StaticTree(tree, device)
        self.device = tree.device
        self.parents, self.depth = tree.parents, tree.depth
        self.num_best = 1 + max(max(path) for path in tree.paths)
        self.needs = Needs(prompt_topk=self.num_best if seeds else 0)
        firsts = [-1, *(level.start for level in tree.levels)]
        self.levels = [  # (places of the parents in the level above, ranks)
            (tree.parents[level] - first, tree.ranks[level])
            for level, first in zip(tree.levels, firsts)
        ]
        self.drafting = make_runtime(runtime, self._draft, self.device)
        self.learning = make_runtime(runtime, self._learn, self.device)
        self.matrix = self.dtype = None  # dtype: of the logits
        self.batch = 0

    def shapes(self):
        return [self.tree.shape]

    def facts(self):
        return {"matrix_bytes": self.matrix.nbytes} if self.matrix is not None else {}

    @torch.inference_mode()
    def forget(self):
        if self.matrix is not None:
            self.matrix.fill_(-1)

    @torch.inference_mode()
    def warm(self, capacity):
        if self.dtype is None:
            return
        tokens = self.parents.new_full((self.batch, 1 + len(self.tree)), -1)  # all of them inert
        logits = tokens.new_zeros((*tokens.shape, self.vocab_size), dtype=self.dtype)
        count = tokens.new_zeros(self.batch)
        self.learning(tokens, count, logits)
        self.drafting(count)

    def start(self, prefill, max_lengths, sampler):
        batch = len(prefill.host_ids)
        if batch != self.batch:
            self._reserve(batch)
        elif not self.is_warm:
            self.matrix.fill_(-1)
        self.root = prefill.next_token
        if prefill.prompt_topk is not None:
            self._write(prefill.tokens, prefill.prompt_topk)

    def _reserve(self, batch: int) -> None:
        """The tensors that a runtime's calls hold; another batch needs others, and new calls."""
        part = torch.arange(batch, device=self.device).unsqueeze(1)
        part = torch.zeros_like(part) if self.is_warm else part
        self.first = 1 + part * (1 + self.vocab_size)  # line of token 0 of each row, [B, 1]
        if self.matrix is None or not self.is_warm:
            num_lines = (1 if self.is_warm else batch) * (1 + self.vocab_size)
            shape = num_lines, self.num_best
            self.matrix = torch.full(shape, -1, dtype=torch.int32, device=self.device)
        self.batch = batch
        self.drafting.forget()
        self.learning.forget()

    def propose(self):
        return Draft(self.drafting(self.root), self.parents, self.depth)

    def observe(self, step):
        self.dtype = step.logits.dtype
        own = step.tokens.shape[1] == 1 + len(self.tree)  # else it has a shape that warm() lacks
        (self.learning if own else self._learn)(step.tokens, step.count, step.logits)
        self.root = step.next_token

    def _draft(self, root: Tensor) -> Tensor:
        """Tokens of the nodes [B, n], from the roots [B]."""
        levels, above = [], root.unsqueeze(1)
        for places, ranks in self.levels:
            above = self.matrix[self.first + above[:, places], ranks]
            levels.append(above)
        return torch.cat(levels, 1).long()

    def _learn(self, tokens: Tensor, count: Tensor, logits: Tensor) -> tuple:
        """Learn from rows tokens [B, m] and logits [B, m, V] of the sequences with a count [B]."""
        tokens = tokens.masked_fill((count == 0).unsqueeze(1), -1)
        self._write(tokens, top_ids(logits, self.num_best))
        return ()

    def _write(self, tokens: Tensor, best: Tensor) -> None:
        """Overwrite the lines of tokens [B, m], -1 = inert, by best [B, m, k].

        All rows of a token write what the last of them says, so that the order of writing is free.
        """
        lines = (self.first + tokens).flatten()
        rows = torch.arange(lines.numel(), device=self.device)
        last = lines.new_empty(len(self.matrix))  # of each line
        last.scatter_reduce_(0, lines, rows, "amax", include_self=False)
        best = best.int().masked_fill((tokens < 0).unsqueeze(-1), -1).flatten(0, 1)
        self.matrix[lines] = best[last[lines]]
