"""SpecInfer's draft as SpecExec compares with it: several chains sampled from one draft model."""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter
from model.common.contract.trees import Tree
from model.common.loop.ranking import best_id, finite_rows, top_ids
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
    independently, at every temperature of the target. When sampling, every node carries the law it
    was drawn from, so multi-round acceptance is exact; at temperature 0 nodes are point guesses.
    With `best` nothing is drawn: the best first tokens, each continued by the best ones.
    """

    def __init__(self, reader: TreeReader, shape: Shape):
        self.reader, self.shape = reader, shape
        self.max_nodes = shape.num_beams * shape.beam_len
        self.max_depth = None if shape.num_beams == 1 else shape.beam_len
        self.trees: dict[int, Tree] = {}  # by their number of levels

    def reserve(self, num_slots, capacity, sampler):
        self.sampler = sampler
        self.reader.reserve(num_slots, capacity, self.max_nodes)

    def start(self, prompt):
        self.reader.start(prompt)

    def propose(self):
        reader, beams = self.reader, self.shape.num_beams
        device, num_levels = reader.draft_device, min(self.shape.beam_len, max(reader.room))
        room = torch.tensor(reader.room, device=device).unsqueeze(1)
        if num_levels == 0:
            return Draft(torch.empty(len(room), 0, dtype=torch.long, device=reader.device))
        logits, tokens, laws, finite = reader.catch_up(), [], [], []
        if not self.shape.best:
            num = reader.vocab_size + num_levels * beams
            self.uniforms = self.sampler.spread(num).to(device)
        for level in range(num_levels):
            if level > 0:
                above = tokens[-1]
                parents = self._columns(level - 2).expand_as(above)
                logits = reader.read(above, parents, torch.full_like(above, level - 1))
            chosen, law = self._choose(logits, level)
            tokens.append(chosen.masked_fill(room <= level, -1))
            laws.append(law)
            finite.append(finite_rows(logits).view(len(room), -1) | (room <= level))
        return self._as_draft(tokens, laws, torch.cat(finite, 1).all(1))

    def _columns(self, level: int) -> Tensor:
        """The draft model's columns of a level's nodes, [beams]; -1 = the root."""
        beams = torch.arange(self.shape.num_beams, device=self.reader.draft_device)
        return (level * self.shape.num_beams + beams).clamp(min=-1)

    def _choose(self, logits: Tensor, level: int) -> tuple[Tensor, Tensor | None]:
        """Choose a level's tokens from logits [B, V] after the root, [B, beams, V] after nodes.

        Returns (tokens [B, beams], the laws that they were drawn from [B, beams, V] or None).
        """
        beams, vocab_size = self.shape.num_beams, self.reader.vocab_size
        if self.shape.best:
            return (top_ids(logits, beams) if level == 0 else best_id(logits)), None
        law = (logits.float() / self.shape.temperature).softmax(-1)
        law = torch.nn.functional.pad(law, (0, vocab_size - law.shape[-1]))
        if level == 0 and not self.shape.replacement:
            return without_replacement(law, self.uniforms[:, :vocab_size], beams)
        if level == 0:
            law = law.unsqueeze(1).expand(-1, beams, -1)
        first = vocab_size + level * beams
        return draw(law, self.uniforms[:, first : first + beams]), law

    def _as_draft(self, tokens: list[Tensor], laws: list, sound: Tensor) -> Draft:
        device, probs = self.reader.device, None
        if not (self.shape.best or self.sampler.greedy):
            probs = torch.cat(laws, 1).to(device)
        tree = None if self.shape.num_beams == 1 else self._tree(len(tokens))
        return Draft(torch.cat(tokens, 1).to(device), tree, probs, sound=sound.to(device))

    def _tree(self, num_levels: int) -> Tree:
        """Level by level: node i goes on from node i - beams."""
        if num_levels not in self.trees:
            beams = self.shape.num_beams
            parents = torch.arange(-beams, beams * (num_levels - 1), device=self.reader.device)
            self.trees[num_levels] = Tree(parents.clamp(min=-1), num_levels)
        return self.trees[num_levels]

    def observe(self, step):
        columns = torch.arange(self.max_nodes, device=self.reader.draft_device).unsqueeze(0)
        self.reader.observe(step, columns)

    def end(self, slots):
        self.reader.end(slots)
