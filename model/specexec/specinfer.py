"""SpecInfer's draft as SpecExec compares with it: several chains sampled from one draft model."""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter, DraftShape
from model.common.loop.ranking import best_id, top_ids
from model.common.loop.sampling import draw
from model.specexec.flags import Shape
from model.specexec.reader import TreeReader


def without_replacement(law: Tensor, uniforms: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Draw `num` tokens one after another from law [B, V], never the same twice.

    uniforms [B, V]. Returns (tokens [B, num], -1 where nothing was left, the law of each draw given
    those before it [B, num, V]). The largest of ln law + Gumbel noise follow that law in order.
    """
    noise = -(-uniforms.clamp(min=2.0**-60).log()).log()
    order = (law.double().log() + noise).sort(dim=1, descending=True, stable=True).indices
    tokens = order[:, :num]
    turn = torch.full(law.shape, num, device=law.device)
    turn.scatter_(1, tokens, torch.arange(num, device=law.device).expand_as(tokens))
    left = turn.unsqueeze(1) >= torch.arange(num, device=law.device).view(1, -1, 1)
    laws = law.unsqueeze(1) * left
    laws = laws / laws.sum(-1, keepdim=True).clamp(min=1e-38)
    own = laws.gather(2, tokens.unsqueeze(-1)).squeeze(-1)
    return tokens.masked_fill(own <= 0, -1), laws


class SpecInferDrafter(Drafter):
    """SpecInfer's tree (arXiv 2305.09781) as in arXiv 2406.02532: num_beams chains of beam_len.

    The chains' first tokens are drawn without replacement unless `replacement`, the later ones
    independently. Every node carries the law it was drawn from, so multi-round acceptance is exact.
    At temperature 0 nothing is drawn: the best first tokens, each continued by the best ones.
    """

    def __init__(self, reader: TreeReader, shape: Shape):
        self.reader, self.shape = reader, shape
        self.trees: dict[int, tuple] = {}  # levels -> (parents, columns) of the nodes

    def start(self, prefill, max_lengths, sampler):
        self.sampler = sampler
        self.reader.start(prefill, max_lengths, self._tree(self.shape.beam_len)[0].shape[0])

    def shapes(self):
        parents = self._tree(self.shape.beam_len)[0]
        if self.shape.num_beams == 1:
            return [DraftShape(len(parents))]
        return [DraftShape(len(parents), parents, self.shape.beam_len)]

    def warm(self, capacity):
        self.reader.draft.warm(capacity + self.shape.budget)

    def _tree(self, num_levels: int) -> tuple[Tensor, Tensor]:
        """(parents, draft model's columns) of the nodes, level by level; the last is never read."""
        if num_levels not in self.trees:
            beams, device = self.shape.num_beams, self.reader.device
            nodes = torch.arange(beams * num_levels, device=device)
            columns = nodes.masked_fill(nodes >= beams * (num_levels - 1), -1)
            columns = columns.to(self.reader.draft.device).unsqueeze(0)
            self.trees[num_levels] = ((nodes - beams).clamp(min=-1), columns)
        return self.trees[num_levels]

    def propose(self):
        reader, beams = self.reader, self.shape.num_beams
        self.num_levels = min(self.shape.beam_len, max(reader.room))
        if self.num_levels and reader.static_shapes:
            self.num_levels = self.shape.beam_len
        batch = len(reader.room)
        if self.num_levels == 0:
            return Draft.chain(torch.empty(batch, 0, dtype=torch.long, device=reader.device))
        room = reader.rooms().unsqueeze(1)
        tokens, laws = [], []
        for level in range(self.num_levels):
            if level == 0:
                chosen, law = self._first(reader.catch_up())
            else:
                parents = torch.full_like(chosen, -1)
                if level > 1:
                    parents = (level - 2) * beams + torch.arange(beams, device=chosen.device)
                    parents = parents.expand_as(chosen)
                logits = reader.read(chosen, parents, torch.full_like(chosen, level - 1))
                chosen, law = self._next(logits, level)
            chosen = chosen.masked_fill(room <= level, -1)
            tokens.append(chosen)
            laws.append(law)
        return self._as_draft(tokens, laws)

    def _law(self, logits: Tensor) -> Tensor:
        """Probabilities over the target's vocabulary."""
        law = (logits.float() / self.shape.temperature).softmax(-1)
        return torch.nn.functional.pad(law, (0, self.reader.vocab_size - law.shape[-1]))

    def _uniforms(self, first: int, num: int) -> Tensor:
        """This step's own uniforms [B, num], after its first ones: vocabulary, then nodes."""
        return self.sampler.spread(first + num)[:, first:].to(self.reader.draft.device)

    def _first(self, logits: Tensor):
        beams = self.shape.num_beams
        if self.sampler.greedy:
            return top_ids(logits, min(beams, logits.shape[-1])), None
        law = self._law(logits)
        if self.shape.replacement:
            wide = law.unsqueeze(1).expand(-1, beams, -1)
            return draw(wide, self._uniforms(law.shape[-1], beams)), wide
        return without_replacement(law, self._uniforms(0, law.shape[-1]), beams)

    def _next(self, logits: Tensor, level: int):
        if self.sampler.greedy:
            return best_id(logits), None
        law, beams = self._law(logits), self.shape.num_beams
        return draw(law, self._uniforms(law.shape[-1] + level * beams, beams)), law

    def _as_draft(self, tokens: list[Tensor], laws: list) -> Draft:
        nodes = torch.cat(tokens, 1).to(self.reader.device)
        probs = None if laws[0] is None else torch.cat(laws, 1).to(self.reader.device)
        if self.shape.num_beams == 1:
            return Draft.chain(nodes, probs)
        return Draft(nodes, self._tree(self.num_levels)[0], self.num_levels, probs)

    def observe(self, step):
        columns = self._tree(max(self.num_levels, 1))[1]
        self.reader.observe(step, columns)
