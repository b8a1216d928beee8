"""Token Recycling: the target's best successors of every token it last read, unrolled as a tree."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from model.common.drafter import Draft, Drafter, Needs
from model.common.errors import BadInput
from model.common.ranking import top_ids

TREES = Path(__file__).parent / "trees"


def read_tree(name: str, vocab_size: int) -> list[tuple[int, ...]]:
    """A tree as paths of ranks, level by level: (0, 2) is the third best after the best.

    name: of a file in trees/, without .json, or a path of a JSON file: a list of lists of ranks.
    """
    known = TREES / f"{name}.json"
    path = known if known.is_file() else Path(name)
    try:
        paths = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(sorted(file.stem for file in TREES.glob("*.json")))
        raise BadInput(f"--tree {name}: neither a JSON file nor one of {names}") from error
    except ValueError as error:
        raise BadInput(f"--tree {name}: not JSON: {error}") from error
    return check_tree(paths, name, vocab_size)


def check_tree(paths, name: str, vocab_size: int) -> list[tuple[int, ...]]:
    """The paths in order, if they are a tree: lists of ranks, none twice, with every prefix."""
    if not isinstance(paths, list) or not paths:
        raise BadInput(f"--tree {name}: not a list of paths")
    for path in paths:
        if not (isinstance(path, list) and path and all(type(rank) is int for rank in path)):
            raise BadInput(f"--tree {name}: {path!r} is not a list of ranks")
        if not 0 <= min(path) <= max(path) < vocab_size:
            raise BadInput(f"--tree {name}: a rank of {path} is not from 0 to {vocab_size - 1}")
    nodes = sorted((tuple(path) for path in paths), key=lambda path: (len(path), path))
    known = set(nodes)
    if len(known) < len(nodes):
        raise BadInput(f"--tree {name}: a path stands there twice")
    for path in nodes:
        if len(path) > 1 and path[:-1] not in known:
            raise BadInput(f"--tree {name}: {list(path)} without {list(path[:-1])}")
    return nodes


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
        self.num_best = 1 + max(rank for path in tree for rank in path)
        self.needs = Needs(prompt_topk=self.num_best if seeds else 0)
        self.depth = len(tree[-1])
        node_of = {(): -1} | {path: node for node, path in enumerate(tree)}
        self.parents = torch.tensor([node_of[path[:-1]] for path in tree], device=device)
        ranks = torch.tensor([path[-1] for path in tree], device=device)
        self.levels = []  # (places of the parents in the level above, ranks)
        first = -1  # node of the level above
        for depth in range(1, self.depth + 1):
            nodes = [node for node, path in enumerate(tree) if len(path) == depth]
            self.levels.append((self.parents[nodes] - first, ranks[nodes]))
            first = nodes[0]
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
