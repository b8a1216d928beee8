"""EAGLE's drafting: what all versions share, and the static tree of the first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter, Needs
from model.common.contract.static_tree import StaticTree
from model.common.heads.head import module_bytes, row_of
from model.common.loop.ranking import finite_rows, top_ids
from model.common.loop.sampling import draw


class EagleDrafter(Drafter):
    """Keeps the head's cache true: all committed rows are read, with the target's features.

    head       an EagleHead. Its cache holds one row for each committed token but the root
    head_rows  rows of a draft that the head reads
    features   [B, H] the head's output at the last of each slot's rows, from which a draft begins
    longest    host int: rows of the longest running sequence in the head's cache
    """

    def __init__(self, head, max_nodes: int, max_depth: int, head_rows: int):
        self.head, self.head_rows = head, head_rows
        self.max_nodes, self.max_depth = max_nodes, max_depth
        self.needs = Needs(hidden=tuple(head.needs))

    def facts(self):
        return {"head_bytes": module_bytes(self.head.module), **self.head.facts()}

    def reserve(self, num_slots, capacity, sampler):
        head, self.sampler = self.head, sampler
        longest_path = self.max_depth or self.max_nodes  # of a chain
        head.reserve(num_slots, capacity + max(self.head_rows, 1 + longest_path))
        shape = num_slots, head.config.hidden_size
        self.features = torch.zeros(shape, dtype=head.dtype, device=head.device)

    def start(self, prompt):
        inputs = prompt.new_tokens.clamp(min=0), self.head.features(prompt.hidden)
        self.features[prompt.slots] = self.head.read_prompt(prompt.slots, inputs, prompt.count)
        self.longest = prompt.max_committed - 1

    def observe(self, step):
        if step.max_committed == 0:
            return
        states = {name: step.committed(name) for name in self.head.needs}
        inputs = step.new_tokens.clamp(min=0), self.head.features(states)
        out = self.head.read(inputs, self.longest)
        self.head.cache.advance(step.count)
        self.features = row_of(out, (step.count - 1).clamp(min=0))
        self.longest = step.max_committed - 1

    def end(self, slots):
        self.head.cache.clear(slots)


class Pass(NamedTuple):
    """Index tensors of one pass of the head, which gives the children of the inner nodes (those
    with children) of a depth; the first pass gives the root's.

    inner            places of the inner nodes in their level
    parents          place of each one's parent among the inner nodes above
    ancestors        [1, r, w] bool: which of the draft's rows that the head has read each reads
    depths           [1, r] positions of these rows behind the committed ones
    num_children     most children of a node
    of_child, ranks  of each child: place of its parent among the inner nodes, its own rank
    """

    inner: Tensor
    parents: Tensor
    ancestors: Tensor
    depths: Tensor
    num_children: int
    of_child: Tensor
    ranks: Tensor


class StaticEagleDrafter(EagleDrafter):
    """EAGLE: a node is the child of a rank of its parent's own distribution, level by level.

    Greedy: ranks of logits. Sampling: children are drawn without replacement from the warped
    distribution, in the order of their ranks, and the draft says what each was drawn from.
    """

    def __init__(self, head, tree: StaticTree, fits_tree: bool = False):
        super().__init__(head, len(tree), tree.depth, 0)
        self.fits_tree = fits_tree
        self._lay_out(tree)

    def _lay_out(self, tree: StaticTree) -> None:
        """Plan the passes that fill a tree."""
        self.tree, self.paths = tree, tree.paths
        self.max_nodes, self.max_depth = len(tree), tree.depth
        self.head_rows = sum(map(len, tree.inner[1:]))
        self.passes = [self._plan(depth) for depth in range(len(tree.inner))]
        self.num_draws = [len(plan.inner) * plan.num_children for plan in self.passes]

    def resize(self, num_nodes, depth, paths=None):
        self._lay_out(StaticTree(paths, self.head.device))

    def _plan(self, depth: int) -> Pass:
        """The pass over the inner nodes of a depth; the root's is depth 0."""
        tree, device = self.tree, self.head.device
        inner, level = tree.inner[depth], tree.levels[depth]
        first = tree.levels[depth - 1].start if depth else -1
        above = {node: place for place, node in enumerate(tree.inner[depth - 1] if depth else ())}
        rows = [node for nodes in tree.inner[1 : depth + 1] for node in nodes]

        def tensor(places) -> Tensor:
            return torch.tensor(places, dtype=torch.long, device=device)

        ancestors = tree.tree.ancestors[:, tensor(inner) + 1]  # [1, r, 1+n]
        return Pass(
            inner=tensor(inner) - first,
            parents=tensor([above[tree.parent_list[node]] for node in inner if above]),
            ancestors=ancestors[:, :, tensor(rows) + 1],
            depths=torch.full((1, len(inner)), depth - 1, device=device),
            num_children=max(tree.num_children[1 + node] for node in inner),
            of_child=tensor([inner.index(parent) for parent in tree.parent_list[level]]),
            ranks=tree.ranks[level],
        )

    def propose(self):
        head, sampler, uniforms = self.head, self.sampler, None
        if not sampler.greedy:
            uniforms = sampler.spread(sum(self.num_draws)).to(head.device).split(self.num_draws, 1)
        features, levels, laws, offset = self.features.unsqueeze(1), [], [], 0
        finite = []
        for depth, plan in enumerate(self.passes):
            if depth:
                tokens = levels[-1][:, plan.inner]  # [B, r]
                inputs = tokens.clamp(min=0), features[:, plan.parents]
                features = head.read(inputs, self.longest, offset, plan.ancestors, plan.depths)
                offset += tokens.shape[1]
            logits = head.logits(features)  # [B, r, V of the head]
            finite.append(finite_rows(logits))
            if uniforms is None:
                children = top_ids(logits, plan.num_children)  # [B, r, k]
            else:
                drawn = uniforms[depth].view(*logits.shape[:2], plan.num_children)
                children, given = draw_distinct(sampler.warp(logits), drawn)
                if depth:  # below an inert node nothing is drafted
                    children = children.masked_fill(tokens.unsqueeze(-1) < 0, -1)
                laws.append(head.target_laws(given[:, plan.of_child, plan.ranks]))
            levels.append(head.target_ids(children[:, plan.of_child, plan.ranks]))
        probs, sound = torch.cat(laws, 1) if laws else None, torch.cat(finite, 1).all(1)
        return Draft(torch.cat(levels, 1), self.tree.tree, probs, sound=sound)


def draw_distinct(probs: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw without replacement: probs [.., V], uniforms [.., m] -> ids [.., m], given [.., m, V].

    given[j] is the distribution that draw j was made from: the earlier draws' mass taken out. Where
    no mass is left the id is -1 and the distribution 0.
    """
    ids, given = [], []
    for j in range(uniforms.shape[-1]):
        total = probs.sum(-1, keepdim=True)
        probs = torch.where(total > 0, probs / total.clamp(min=1e-38), 0.0)
        token = draw(probs, uniforms[..., j])
        ids.append(torch.where(total.squeeze(-1) > 0, token, -1))
        given.append(probs)
        probs = probs.scatter(-1, token.unsqueeze(-1), 0.0)
    return torch.stack(ids, -1), torch.stack(given, -2)
