"""EAGLE's drafting: what all versions share, and the static tree of the first."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter, Needs, committed_rows, end_of_prompt
from model.common.contract.static_tree import StaticTree
from model.common.heads.head import module_bytes
from model.common.loop.ranking import top_ids
from model.common.loop.sampling import draw, warp
from model.common.target.attention import additive
from model.common.target.devices import all_on, on


class EagleDrafter(Drafter):
    """Keeps the head's cache true: a step's rows are read, with real features, before the next one.

    head       an EagleHead or Eagle3Head. Its cache holds one slot for each committed token but
               the root, with the target's features
    num_nodes  of its drafts
    rows       rows that a step can commit, 1 + the tree's depth
    foreign    beside another drafter: rows that a step can commit, whoever made its draft
    unread     of the last step, (inputs, states, before) of the head's read_step(); behind a prompt
               its last row, as of such a step
    """

    ahead = True
    foreign = 0

    def __init__(self, head, num_nodes: int, rows: int):
        self.head, self.num_nodes, self.rows = head, num_nodes, rows
        self.needs = Needs(hidden=tuple(head.needs))

    def facts(self):
        return {"head_bytes": module_bytes(self.head.module)}

    def start(self, prefill, max_lengths, sampler):
        self.sampler, self.device = sampler, prefill.tokens.device
        device, hidden = self.head.device, prefill.hidden
        tokens, count, root = all_on(
            device, (prefill.new_tokens, prefill.count, prefill.next_token)
        )
        rows = tokens.clamp(min=0), self.head.features(hidden)
        lengths = (count - 1).clamp(min=0)
        self.head.read_prompt(*rows, lengths, self._columns(max(max_lengths)))
        self.committed, self.longest = prefill.max_committed - 2, prefill.max_committed - 1
        first = root.new_zeros(len(root), self.rows)
        first[:, 0] = root
        states = [
            end_of_prompt(on(device, hidden[name]), count, self.num_nodes)
            for name in self.head.needs
        ]
        self.unread = self._taken((first, count.clamp(max=1), torch.zeros_like(first)), states)
        self.is_read = False

    def _columns(self, length: int) -> int:
        """Columns of the cache for sequences of a length, whose bound may be a step above it."""
        return length + 2 * max(self.rows, self.foreign)

    def observe(self, step):
        if step.max_committed == 0:
            return
        if not self.is_read:  # another drafter made the step's draft
            self._read(None)
        device = self.head.device
        inputs = all_on(device, (step.new_tokens, step.count, step.path))
        states = [on(device, step.hidden[name]) for name in self.head.needs]
        self.unread = self._taken(inputs, states)
        self.longest, self.is_read = step.max_committed - 1, False

    def _taken(self, inputs: tuple, states: list) -> tuple:
        """`unread`, of a step's (new_tokens, count, path) and the states that the head needs.

        Steps of other drafters have shapes of many kinds, of which this makes one; and the next
        forward, which may overwrite the states, can come before they are read.
        """
        if not (self.foreign and self.head.static_shapes):
            return inputs, states, self._gather
        (tokens, _, features), count, _ = self._gather(*inputs, *states)
        missing = max(self.foreign - tokens.shape[1], 0)
        tokens = torch.nn.functional.pad(tokens, (0, missing))
        features = torch.nn.functional.pad(features, (0, 0, 0, missing))
        return (tokens, count, features), (), self._given

    def _read(self, then, extras: tuple = ()) -> tuple:
        """Read the rows of the last step; what `then` makes of the last one's feature and logits,
        then(([B, 1, H], [B, 1, V_d]), *extras), in the same call."""
        inputs, states, before = self.unread
        place = inputs[0].shape[1], self.committed, self.longest
        out = self.head.read_step(inputs, *place, before, then, (*states, *extras))
        self.committed, self.is_read = self.longest, True
        return out

    def _gather(self, tokens: Tensor, count: Tensor, path: Tensor, *extras) -> tuple:
        """Rows that a step committed, for the head's read_step().

        tokens, path [B, 1+depth], count [B]; in extras first the states [B, 1+n, H] of each layer
        needed.
        """
        rows = [committed_rows(part, path) for part in extras[: len(self.head.needs)]]
        features = self.head.features(dict(zip(self.head.needs, rows)))
        inputs = tokens.clamp(min=0), (count - 1).clamp(min=0), features
        return inputs, count, extras[len(rows) :]

    def _given(self, tokens: Tensor, count: Tensor, features: Tensor, *extras) -> tuple:
        """The same of rows that are gathered."""
        return (tokens, (count - 1).clamp(min=0), features), count, extras

    @torch.inference_mode()  # as the loop: a graph made for other tensors is not used there
    def warm(self, capacity):
        *parts, before = self.unread
        inputs, states = ([torch.zeros_like(part) for part in tensors] for tensors in parts)
        for then, extras in self.calls():
            self.head.warm(self._columns(capacity), inputs, before, then, (*states, *extras))

    def calls(self) -> list[tuple]:
        """(then, extras) of _read() in a run."""
        return [self.drafting()] + ([(None, ())] if self.foreign else [])

    def drafting(self) -> tuple:
        """(then, extras) of the _read() that drafts a tree."""
        raise NotImplementedError


class StaticEagleDrafter(EagleDrafter):
    """EAGLE: a node is the child of a rank of its parent's own distribution, level by level.

    Greedy: ranks of logits. Sampling: children are drawn without replacement from the warped
    distribution, in the order of their ranks, and the draft says what each was drawn from.
    """

    def __init__(self, head, tree: StaticTree):
        super().__init__(head, len(tree), 1 + tree.depth)
        self.tree = tree
        self.inner = [torch.tensor(nodes, device=head.device) for nodes in tree.inner]
        self.passes = [self._pass(depth) for depth in range(len(tree.inner))]
        widths = zip(self.inner, self.passes)
        self.num_candidates = sum(len(inner) * most for inner, (*_, most) in widths)
        self.sampled = cache(lambda *settings: partial(self._sampled, settings))

    def _pass(self, depth: int):
        """What drafting the children of the inner nodes of a depth needs, as tensors.

        mask of read_below(); parent: place of each row's parent among the inner nodes above; place,
        rank of the level's nodes in the candidates; most children.
        """
        tree, device = self.tree, self.head.device
        inner = tree.inner[depth]
        level = tree.levels[depth]
        nodes = range(level.start, level.stop)
        place = [inner.index(tree.parent_list[node]) for node in nodes]
        most = max(tree.num_children[1 + node] for node in inner)
        mask = parent = None
        if depth:
            slots = [node for above in tree.inner[1 : depth + 1] for node in above]
            lines = {-1: set()}
            for node in slots:
                lines[node] = lines[tree.parent_list[node]] | {node}
            known = torch.tensor([[slot in lines[node] for slot in slots] for node in inner])
            mask = additive(known.unsqueeze(0), self.head.dtype).to(device)
            above = [tree.inner[depth - 1].index(tree.parent_list[node]) for node in inner]
            parent = torch.tensor(above, device=device)
        return mask, parent, torch.tensor(place, device=device), tree.ranks[level], most

    def shapes(self):
        return [self.tree.shape]

    def propose(self):
        tokens, *given = self._read(*self.drafting())
        given = given[0].to(self.device) if given else None
        return Draft(on(self.device, tokens), self.tree.parents, self.tree.depth, given)

    def drafting(self):
        sampler = self.sampler
        if sampler.greedy:
            return self._likeliest, ()
        settings = sampler.temperature, sampler.top_k, sampler.top_p
        return self.sampled(*settings), (sampler.spread(self.num_candidates).to(self.head.device),)

    def _likeliest(self, out) -> tuple[Tensor]:
        """The tokens [B, n] that are the best by rank."""
        rows, levels = self.head.tree(), []
        for depth, (*_, place, rank, most) in enumerate(self.passes):
            if depth:
                out = self._below(depth, self._inner(depth, levels), out[0], rows)
            levels.append(top_ids(out[1], most)[:, place, rank])
        return (torch.cat(levels, 1),)

    def _inner(self, depth: int, levels: list[Tensor]) -> Tensor:
        """Tokens of the inner nodes of a depth, [B, r], from those of the levels so far."""
        return levels[-1][:, self.inner[depth] - self.tree.levels[depth - 1].start]

    def _below(self, depth: int, tokens: Tensor, features: Tensor, rows) -> tuple:
        """The head's output for these inner nodes, from the features of those above [B, r', H]."""
        mask, parent, *_ = self.passes[depth]
        inputs = tokens.clamp(min=0), None, features[:, parent]
        return self.head.read_below(inputs, mask, depth - 1, rows)

    def _sampled(self, settings: tuple, out, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, n], drawn, and what each was drawn from, [B, n, V_d].

        settings: warp()'s; uniforms [B, m]: one for every candidate of the step.
        """
        rows, levels, probs, used = self.head.tree(), [], [], 0
        for depth, (*_, place, rank, most) in enumerate(self.passes):
            if depth:
                inner = self._inner(depth, levels)
                out = self._below(depth, inner, out[0], rows)
            logits = out[1]
            num = most * logits.shape[1]
            drawn = uniforms[:, used : used + num].view(*logits.shape[:2], most)
            candidates, given = draw_distinct(warp(logits, *settings), drawn)
            used += num
            if depth:  # below an inert node nothing is drafted
                candidates = candidates.masked_fill(inner.unsqueeze(-1) < 0, -1)
            levels.append(candidates[:, place, rank])
            probs.append(given[:, place, rank])
        return torch.cat(levels, 1), torch.cat(probs, 1)


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
