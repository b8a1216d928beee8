"""Token Recycling: the target's best successors of every token it last read, unrolled as a tree."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from model.common.contract import static_tree
from model.common.contract.drafter import Draft, Drafter, Needs
from model.common.contract.static_tree import StaticTree
from model.common.loop.ranking import top_ids

TREES, USUAL = Path(__file__).parent / "trees", "2.2.2"
UNKNOWN = {"zero": 0, "none": -1}  # what stands for successors that no row has named yet


def read_tree(name: str, vocab_size: int) -> list[tuple[int, ...]]:
    """Paths of a tree in trees/ or in a JSON file; ranks are below vocab_size."""
    return static_tree.read_tree(name, TREES, vocab_size)


class RecyclingDrafter(Drafter):
    """A line of k for each of V tokens: its best successors when it was last read, best first.

    The draft is one static tree: the child of rank r of a token is column r of its line; k is one
    more than the tree's highest rank. Lines begin with zeros, as published: the successors of a
    token that was never read are token 0, whose own line is learned like any other. unknown="none"
    drafts nothing for them (-1).

    The lines are one part per slot, forgotten when another question begins there (cold), or one
    part for all slots and questions (warm); `matrix` holds one part below another,
    [parts * (1 + V), k]. A part's first line is what inert rows write and unknown tokens read.

    Every row of a step but inert ones teaches its token's line. A step whose tokens were cut at the
    answer's end teaches nothing, as published: the authors leave their loop before the update where
    the end is a drafted token, and behind it where it is the bonus. Where a token was read more
    than once, the last row wins: the deeper node, then the later slot (warm), the later prompt
    position.

    root  [B] last committed token of every slot
    """

    def __init__(
        self,
        tree,
        vocab_size: int,
        device,
        warm: bool = False,
        seeds: bool = False,
        unknown: str = "zero",
        fits_tree: bool = False,
    ):
        self.vocab_size, self.is_warm, self.unknown = vocab_size, warm, UNKNOWN[unknown]
        self.device, self.fits_tree, self.seeds = torch.device(device), fits_tree, seeds
        self._lay_out(tree)

    def _lay_out(self, paths) -> None:
        """Plan the tree of these paths; what was learned for another one is forgotten."""
        self.paths, self.tree = paths, StaticTree(paths, self.device)
        tree = self.tree
        self.max_nodes, self.max_depth = len(tree), tree.depth
        self.num_best = 1 + max(map(max, paths))
        self.needs = Needs(prompt_topk=self.num_best if self.seeds else 0)
        firsts = [-1, *(level.start for level in tree.levels)]
        self.levels = [  # (places of the parents in the level above, ranks)
            (tree.parents[level] - first, tree.ranks[level])
            for level, first in zip(tree.levels, firsts)
        ]
        self.matrix: Tensor | None = None

    def resize(self, num_nodes, depth, paths=None):
        self._lay_out(paths)

    def facts(self):
        return {"matrix_bytes": self.matrix.nbytes} if self.matrix is not None else {}

    def forget(self):
        self.matrix = None  # reserve() makes another

    def reserve(self, num_slots, capacity, sampler):
        part = torch.arange(num_slots, device=self.device).unsqueeze(1)
        part = torch.zeros_like(part) if self.is_warm else part
        self.first = 1 + part * (1 + self.vocab_size)  # line of token 0 of each slot, [B, 1]
        if self.matrix is None or not self.is_warm:
            shape = (1 if self.is_warm else num_slots) * (1 + self.vocab_size), self.num_best
            self.matrix = torch.full(shape, self.unknown, dtype=torch.int32, device=self.device)
        self.root = self.first.new_zeros(num_slots)

    def start(self, prompt):
        if not self.is_warm:
            parts = self.matrix.view(-1, 1 + self.vocab_size, self.num_best)
            new = [slot for slot, goes_on in zip(prompt.slots, prompt.continues) if not goes_on]
            parts[new] = self.unknown
        self.root = self.root.clone()
        self.root[prompt.slots] = prompt.next_token
        if prompt.topk is not None:
            self._write(self.first[prompt.slots], prompt.tokens, prompt.topk)

    def propose(self):
        levels, above = [], self.root.unsqueeze(1)
        for places, ranks in self.levels:
            above = self.matrix[self.first + above[:, places], ranks]  # [B, nodes of the level]
            levels.append(above)
        return Draft(torch.cat(levels, 1).long(), self.tree.tree)

    def observe(self, step):
        kept = torch.tensor([len(ids) for ids in step.host_ids], device=self.device)
        silent = (step.count == 0) | (kept < step.count)
        tokens = step.tokens.masked_fill(silent.unsqueeze(1), -1)
        self._write(self.first, tokens, top_ids(step.logits, self.num_best))
        self.root = step.next_token

    def _write(self, first: Tensor, tokens: Tensor, best: Tensor) -> None:
        """Overwrite the lines of tokens [S, r], -1 = inert, by best [S, r, k]; first as self.first.

        All rows of a token write what the last of them says, so that the order of writing is free.
        """
        lines = (first + tokens).flatten()
        rows = torch.arange(lines.numel(), device=self.device)
        last = lines.new_empty(len(self.matrix))  # of each line
        last.scatter_reduce_(0, lines, rows, "amax", include_self=False)
        inert = (tokens < 0).unsqueeze(-1)
        best = best.int().masked_fill(inert, self.unknown).flatten(0, 1)
        self.matrix[lines] = best[last[lines]]
