"""Static trees: paths of ranks by name or from a JSON file, and what drafters need of them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch

from model.common.contract.trees import Tree
from model.common.errors import BadInput, parse_json


def read_tree(name: str, folder: Path, num_ranks: int) -> list[tuple[int, ...]]:
    """A tree as paths of ranks, level by level: (0, 2) is the third best after the best.

    name: of a file in `folder`, without .json, or a path of a JSON file: a list of lists of ranks,
    or of strings of digits ("02"). Every rank is below num_ranks.
    """
    known = folder / f"{name}.json"
    path = known if known.is_file() else Path(name)
    try:
        paths = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(sorted(file.stem for file in folder.glob("*.json")))
        raise BadInput(f"--tree {name}: neither a JSON file nor one of {names}") from error
    except ValueError as error:
        raise BadInput(f"--tree {name}: not JSON: {error}") from error
    return check_tree(paths, name, num_ranks)


def check_tree(paths, name: str, num_ranks: int) -> list[tuple[int, ...]]:
    """The paths in order, if they are a tree: lists of ranks, none twice, with every prefix."""
    if not isinstance(paths, list) or not paths:
        raise BadInput(f"--tree {name}: not a list of paths")
    nodes = []
    for path in paths:
        ranks = [int(c) for c in path] if isinstance(path, str) and path.isdecimal() else path
        if not (isinstance(ranks, list) and ranks and all(type(rank) is int for rank in ranks)):
            raise BadInput(f"--tree {name}: {path!r} is not a list of ranks")
        if not 0 <= min(ranks) <= max(ranks) < num_ranks:
            raise BadInput(f"--tree {name}: a rank of {path} is not from 0 to {num_ranks - 1}")
        nodes.append(tuple(ranks))
    nodes.sort(key=lambda path: (len(path), path))
    known = set(nodes)
    if len(known) < len(nodes):
        raise BadInput(f"--tree {name}: a path stands there twice")
    for path in nodes:
        if len(path) > 1 and path[:-1] not in known:
            raise BadInput(f"--tree {name}: {list(path)} without {list(path[:-1])}")
    return nodes


class StaticTree:
    """Index tensors of a tree whose nodes are sorted by depth, then by path.

    parents [n]      node each continues, -1 = the root
    ranks [n]        last rank of each path
    depths           of every node, host list; the root is 0 and not listed
    levels           host slices of the nodes of depth 1, 2, ...
    tree             the same as a draft wants it
    """

    def __init__(self, paths: list[tuple[int, ...]], device):
        self.paths, self.device = paths, torch.device(device)
        node_of = {(): -1} | {path: node for node, path in enumerate(paths)}
        self.parent_list = [node_of[path[:-1]] for path in paths]
        self.parents = torch.tensor(self.parent_list, device=device)
        self.ranks = torch.tensor([path[-1] for path in paths], device=device)
        self.depths = [len(path) for path in paths]
        self.depth = self.depths[-1]
        self.tree = Tree(self.parents, self.depth)
        self.levels = []
        for depth in range(1, self.depth + 1):
            first = self.depths.index(depth)
            self.levels.append(slice(first, first + self.depths.count(depth)))

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def num_children(self) -> list[int]:
        """Children of the root, then of every node."""
        counts = [0] * (1 + len(self))
        for parent in self.parent_list:
            counts[1 + parent] += 1
        return counts

    @cached_property
    def is_sibling_closed(self) -> bool:
        """Whether every node's children have the ranks 0, 1, 2, ..."""
        known = set(self.paths)
        return all(p[-1] == 0 or (*p[:-1], p[-1] - 1) in known for p in self.paths)

    @cached_property
    def inner(self) -> list[list[int]]:
        """Nodes with children, per depth: [[-1], nodes of depth 1, ...]."""
        rows = [[-1]]
        for level in self.levels:
            nodes = range(level.start, level.stop)
            rows.append([node for node in nodes if self.num_children[1 + node]])
        return [row for row in rows if row]
