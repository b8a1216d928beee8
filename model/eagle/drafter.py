"""EAGLE's drafting: what all versions share, and the static tree of the first."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from model.common.devices import all_on, on
from model.common.drafter import Draft, Drafter, Needs, committed_rows
from model.common.heads import module_bytes
from model.common.ranking import top_ids
from model.common.sampling import draw
from model.common.static_tree import StaticTree


class EagleDrafter(Drafter):
    """Keeps the head's cache true: a step begins by reading real features of what was committed.

    head       an EagleHead or Eagle3Head. Its cache holds one slot for each committed token but
               the root, with the target's features; a tree's slots are written behind them and
               forgotten
    num_nodes  of its drafts
    rows       rows that a step can commit, 1 + the tree's depth
    slots      cache columns that a tree takes while it is drafted
    foreign    beside another drafter: rows that a step can commit, whoever made its draft
    first      what is made of the last slot's ([B, 1, H], [B, 1, V_d]), in the call that reads it;
               set by start()
    """

    ahead = True
    foreign = 0
    first = None

    def __init__(self, head, num_nodes: int, rows: int, slots: int):
        self.head, self.num_nodes = head, num_nodes
        self.rows, self.slots = rows, slots
        self.needs = Needs(hidden=tuple(head.needs))

    def facts(self):
        return {"head_bytes": module_bytes(self.head.module)}

    def start(self, prefill, max_lengths, sampler):
        self.sampler, self.device = sampler, prefill.tokens.device
        tokens = prefill.new_tokens.clamp(min=0).to(self.head.device)
        features = self.head.features(prefill.hidden)
        self.batch, self.dtype = len(tokens), features.dtype
        states = (prefill.hidden[name] for name in self.head.needs)
        self.states = [(part.shape[-1], part.dtype) for part in states]
        capacity = self._columns(max(max_lengths))
        inputs = (tokens, None, features)
        self.last = self.head.read_prompt(inputs, prefill.count, pick_at=1, capacity=capacity)
        self.width = self.last[0].shape[-1]
        if self.first is not None:
            self.last = self.first(self.last, None)
        self.committed = prefill.max_committed - 1
        self.unread = None

    def _columns(self, length: int) -> int:
        """Columns of the cache for sequences of a length, whose bound may be a step above it."""
        return length + 2 * max(self.rows, self.foreign) + self.slots

    def observe(self, step):
        if step.max_committed == 0:
            return
        self.catch_up()  # where another drafter made the last step's draft
        device, num_rows = self.head.device, step.path.shape[1]
        inputs = all_on(device, (step.new_tokens, step.count, step.path))
        states = [on(device, step.hidden[name]) for name in self.head.needs]
        read = inputs, num_rows, self._gather, states
        if self.foreign and self.head.static_shapes:
            if num_rows != self.rows or states[0].shape[1] != 1 + self.num_nodes:
                read = self._foreign_rows(*read[0], *states)
        self.unread = *read, step.max_committed - 1

    def _gather(self, tokens: Tensor, count: Tensor, path: Tensor, *states) -> tuple:
        """Inputs of the rows that a step committed, for the head's read_step(); nothing is left.

        tokens, path [B, 1+depth], count [B], states [B, 1+n, H] of each layer needed.
        """
        rows = (committed_rows(part, path) for part in states)
        features = self.head.features(dict(zip(self.head.needs, rows)))
        tokens = tokens.clamp(min=0)
        return (tokens, (count - 1).clamp(min=0), features), count, ()

    def _foreign_rows(self, *step) -> tuple:
        """What read_step() needs for a step of _gather()'s arguments, gathered and padded already.

        Other drafters' steps have shapes of many kinds, of which this makes one.
        """
        (tokens, _, features), count, _ = self._gather(*step)
        missing = max(self.foreign - tokens.shape[1], 0)
        tokens = torch.nn.functional.pad(tokens, (0, missing))
        features = torch.nn.functional.pad(features, (0, 0, 0, missing))
        return (tokens, count, features), tokens.shape[1], self._given, ()

    def _given(self, tokens: Tensor, count: Tensor, features: Tensor) -> tuple:
        return (tokens, (count - 1).clamp(min=0), features), count, ()

    def catch_up(self) -> tuple:
        """Read what was committed; what `first` makes of the last slot's feature and logits."""
        if self.unread is not None:
            inputs, num_rows, before, extras, longest = self.unread
            place = num_rows, self.committed, longest
            self.last = self.head.read_step(inputs, *place, before, self.first, extras)
            self.committed, self.unread = longest, None
        return self.last

    @torch.inference_mode()  # as the loop: a graph made for other tensors is not used there
    def warm(self, capacity):
        capacity = self._columns(capacity)
        tokens, path = self.blank(self.batch, self.rows), self.blank(self.batch, self.rows)
        inputs = tokens, self.blank(self.batch), path
        rows = (self.batch, 1 + self.num_nodes)
        states = [self.blank(*rows, width, dtype=dtype) for width, dtype in self.states]
        self.head.warm(capacity, inputs, None, 0, 0, self.first, states, self._gather)
        if self.foreign:
            inputs, _, before, extras = self._foreign_rows(*inputs, *states)
            self.head.warm(capacity, inputs, None, 0, 0, self.first, extras, before)
        self.warm_passes(capacity)

    def blank(self, *shape: int, dtype=torch.long) -> Tensor:
        """Zeros on the head's device, to warm up with."""
        return torch.zeros(shape, dtype=dtype, device=self.head.device)

    def warm_passes(self, capacity: int) -> None:
        """Compile or capture the passes that draft a tree."""
        raise NotImplementedError


class StaticEagleDrafter(EagleDrafter):
    """EAGLE: a node is the child of a rank of its parent's own distribution, level by level.

    Greedy: ranks of logits. Sampling: children are drawn without replacement from the warped
    distribution, in the order of their ranks, and the draft says what each was drawn from.
    """

    def __init__(self, head, tree: StaticTree):
        self.tree = tree
        self.inner = [torch.tensor(nodes, device=head.device) for nodes in tree.inner]
        slots = sum(len(nodes) for nodes in self.inner[1:])
        super().__init__(head, len(tree), 1 + tree.depth, slots)
        self.passes = [self._pass(depth) for depth in range(len(self.inner))]
        self.best = [partial(self._best, depth) for depth in range(len(self.inner))]

    def _pass(self, depth: int):
        """What drafting the children of the inner nodes of a depth needs, as index tensors.

        known [r, w] ancestors among the tree's slots; parent: place of each row's parent among the
        inner nodes above; place, rank of the level's nodes in the candidates; most children.
        """
        tree, device = self.tree, self.head.device
        inner = tree.inner[depth]
        level = tree.levels[depth]
        nodes = range(level.start, level.stop)
        place = [inner.index(tree.parent_list[node]) for node in nodes]
        most = max(tree.num_children[1 + node] for node in inner)
        known = parent = None
        if depth:
            slots = [node for above in tree.inner[1 : depth + 1] for node in above]
            lines = {-1: set()}
            for node in slots:
                lines[node] = lines[tree.parent_list[node]] | {node}
            known = torch.tensor([[slot in lines[node] for slot in slots] for node in inner])
            above = [tree.inner[depth - 1].index(tree.parent_list[node]) for node in inner]
            known, parent = known.to(device), torch.tensor(above, device=device)
        return known, parent, torch.tensor(place, device=device), tree.ranks[level], most

    def shapes(self):
        return [self.tree.shape]

    def start(self, prefill, max_lengths, sampler):
        self.first = self.best[0] if sampler.greedy else None
        super().start(prefill, max_lengths, sampler)

    def propose(self):
        tokens, given = self._likeliest() if self.sampler.greedy else self._sampled()
        return Draft(on(self.device, tokens), self.tree.parents, self.tree.depth, given)

    def _likeliest(self) -> tuple[Tensor, None]:
        """The tokens [B, n] that are the best by rank."""
        found, *inputs = self.catch_up()
        read, offset = self.head.reader(self.committed, self.slots), 0
        for depth, (known, parent, *_) in enumerate(self.passes[1:], 1):
            tokens, features = inputs
            place = (known, offset, depth - 1, self.best[depth], (found,))
            found, *inputs = read((tokens, None, features), *place)
            offset += parent.shape[0]
        return found, None

    def _best(self, depth: int, out, _, *above) -> tuple:
        """The tokens so far, and those and the features that the next pass reads."""
        features, logits = out
        *_, place, rank, most = self.passes[depth]
        level = top_ids(logits, most)[:, place, rank]
        found = torch.cat([*above, level], 1)
        if depth + 1 == len(self.passes):
            return (found,)
        inner = self.inner[depth + 1] - self.tree.levels[depth].start
        return found, level[:, inner], features[:, self.passes[depth + 1][1]]

    def _sampled(self) -> tuple[Tensor, Tensor]:
        """Tokens [B, n], drawn, and what each was drawn from, [B, n, V_d]."""
        features, logits = self.catch_up()
        read, offset = self.head.reader(self.committed, self.slots), 0
        drawn, used, levels, probs = self._uniforms(), 0, [], []
        for depth, (known, parent, place, rank, most) in enumerate(self.passes):
            if depth:
                inner = levels[-1][:, self.inner[depth] - self.tree.levels[depth - 1].start]
                inputs = (inner.clamp(min=0), None, features[:, parent])
                features, logits = read(inputs, known, offset, depth - 1)
                offset += len(parent)
            num = most * logits.shape[1]
            uniforms = drawn[:, used : used + num].view(*logits.shape[:2], most)
            candidates, given = draw_distinct(self.sampler.warp(logits), uniforms)
            used += num
            probs.append(given[:, place, rank])
            if depth:  # below an inert node nothing is drafted
                candidates = candidates.masked_fill(inner.unsqueeze(-1) < 0, -1)
            levels.append(candidates[:, place, rank])
        return torch.cat(levels, 1), torch.cat(probs, 1).to(self.device)

    def _uniforms(self) -> Tensor:
        """One for every candidate of the step."""
        num = sum(len(inner) * most for inner, (*_, most) in zip(self.inner, self.passes))
        return self.sampler.spread(num).to(self.head.device)

    def warm_passes(self, capacity):
        offset = 0
        for depth, (known, parent, *_) in enumerate(self.passes):
            if depth:
                num_rows = len(parent)
                rows = self.blank(self.batch, num_rows, self.width, dtype=self.dtype)
                place = (known, offset, depth - 1)
                if self.first is not None:
                    above = self.blank(self.batch, self.tree.levels[depth].start)
                    place = (*place, self.best[depth], (above,))
                self.head.warm(capacity, (self.blank(self.batch, num_rows), None, rows), *place)
                offset += num_rows


def draw_distinct(probs: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw without replacement: probs [.., V], uniforms [.., m] -> ids [.., m], given [.., m, V].

    given[j] is the distribution that draw j was made from: the earlier draws' mass taken out. Where
    no mass is left the id is -1 and the distribution 0.
    """
    ids, given = [], []
    for j in range(uniforms.shape[-1]):
        total = probs.sum(-1, keepdim=True)
        probs = torch.where(total > 0, probs / total.clamp(min=1e-38), 0.0)
        token = draw(probs, uniforms[..., j]).clamp(max=probs.shape[-1] - 1)
        ids.append(torch.where(total.squeeze(-1) > 0, token, -1))
        given.append(probs)
        probs = probs.scatter(-1, token.unsqueeze(-1), 0.0)
    return torch.stack(ids, -1), torch.stack(given, -2)
