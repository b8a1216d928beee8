"""Markov targets and proposals with known laws, and a loop that samples from them many at a time.

The target's logits for a row are a line of a table, chosen by the row's own token, so the law of
the next tokens is a product of lines. Thousands of sequences are rows of one batch.
"""

import torch
from laws import count_words

from model.common.contract.drafter import Draft
from model.common.contract.trees import Accepted, Tree
from model.common.loop.sampling import draw

V = 5
START = 2  # the root every sequence begins with
OUT = float("-inf")
WIDTH = 24  # positions with uniforms, more than a test's steps can commit


def tables(case: str):
    """Logits (target [V, V], proposal [V, V]); line t follows token t."""
    generator = torch.Generator().manual_seed(11)
    target = torch.randn(V, V, generator=generator, dtype=torch.float64) * 1.2
    proposal = target + torch.randn(V, V, generator=generator, dtype=torch.float64)
    if case == "same":
        proposal = target.clone()
    elif case == "uniform":
        proposal = torch.zeros(V, V, dtype=torch.float64)
    elif case == "disjoint":  # what the one says the other never does; both go on for any token
        target[:, 3:] = OUT
        proposal[:, :3] = OUT
    elif case == "one-hot":  # certain after tokens 0 and 1
        target[:2] = OUT
        target[0, 3], target[1, 2] = 0.0, 0.0
    elif case == "other one-hot":  # a proposal that is certain and mostly wrong
        proposal = torch.full((V, V), OUT, dtype=torch.float64)
        proposal[torch.arange(V), torch.tensor([1, 4, 3, 0, 2])] = 0.0
    return target, proposal


def word_law(target, warp, length: int):
    """Probabilities of the words after START, [V ** length]."""
    lines = warp(target)
    law = lines[START]
    for _ in range(length - 1):
        law = (law.view(-1, V, 1) * lines).flatten()
    return law


class Proposer:
    """Samples trees from the proposal; parents as in Draft, siblings in the order of their draws.

    distinct    siblings are drawn without replacement, and say so in probs
    guesses     probs are left out: the rule sees point guesses
    hidden_fate a fault: siblings are drawn without replacement and probs do not say so
    """

    def __init__(self, parents, distinct=False, guesses=False, hidden_fate=False):
        self.chain = parents == list(range(-1, len(parents) - 1))
        self.parents = torch.tensor(parents)
        self.distinct, self.guesses, self.hidden_fate = distinct, guesses, hidden_fate
        lines = [[-1]]
        for parent in parents:
            lines.append(lines[parent + 1] + [0])
        self.levels = [len(line) - 2 for line in lines[1:]]
        self.depth = max(self.levels) + 1
        self.ranks = [parents[:node].count(parent) for node, parent in enumerate(parents)]

    def __call__(self, root, proposal, warp, uniforms):
        """A draft of every root [B]; uniforms [ranks, B, depth], one a sibling and position."""
        lines = warp(proposal)
        tokens, probs, left = [], [], {}
        for node, parent in enumerate(self.parents.tolist()):
            above = root if parent < 0 else tokens[parent].clamp(min=0)
            fresh = lines[above]
            law = left.get(parent, fresh) if self.distinct or self.hidden_fate else fresh
            total = law.sum(-1, keepdim=True)
            law = law / total.clamp(min=1e-300)
            token = draw(law, uniforms[self.ranks[node], :, self.levels[node]])
            token = torch.where(total.squeeze(-1) > 0, token.clamp(max=law.shape[-1] - 1), -1)
            left[parent] = law.scatter(-1, token.clamp(min=0).unsqueeze(-1), 0.0)
            tokens.append(token)
            probs.append(fresh if self.hidden_fate else law)
        tokens, probs = torch.stack(tokens, 1), torch.stack(probs, 1)
        if self.guesses:
            probs = None
        if self.chain:
            return Draft(tokens, probs=probs)
        return Draft(tokens, Tree(self.parents, self.depth), probs)


def sample(case, proposer, warp, rule, num, length, seed=0, fresh=False, shared=False):
    """(words [num, length], counts [num, steps]) that `rule` commits from START in the loop's way.

    A position has one uniform of the rule and one of the proposer per sibling, kept when the
    position is drafted again; fresh: all are new in every step. The rule's depend on seed and num
    alone. shared, a fault: the proposer's first sibling uses the rule's.
    """
    target, proposal = tables(case)
    generators = [torch.Generator().manual_seed(1000 * seed + own) for own in (0, 1)]
    words = torch.full((num, WIDTH), -1)
    root, position = torch.full((num,), START), torch.zeros(num, dtype=torch.long)
    counts = []
    for step in range(length):
        if fresh or step == 0:
            table = torch.cat(
                [
                    torch.rand(size, num, WIDTH, dtype=torch.float64, generator=generator)
                    for size, generator in zip((1, 1 + max(proposer.ranks)), generators)
                ]
            )
            if shared:
                table[1] = table[0]
        columns = position.unsqueeze(1) + torch.arange(1 + proposer.depth)
        uniforms = table.gather(2, columns.expand(len(table), *columns.shape))
        draft = proposer(root, proposal, warp, uniforms[1:])
        rows = torch.cat([root.unsqueeze(1), draft.tokens.clamp(min=0)], 1)
        accepted = rule(target[rows], draft, warp, uniforms[0])
        words.scatter_(1, columns[:, : accepted.tokens.shape[1]], accepted.tokens)
        root, position = accepted.last, position + accepted.count
        counts.append(accepted.count)
    return words[:, :length], torch.stack(counts, 1)


def word_counts(words):
    return count_words(words, V)


def written_out(fault=None):
    """Rejection on a chain, level by level, from the papers; with one thing wrong."""

    def rule(logits, draft, warp, uniforms):
        num = draft.tokens.shape[1]
        batch = torch.arange(len(uniforms))
        target, plain = warp(logits), logits.softmax(-1)
        judge = plain if fault == "acceptance by unwarped target" else target
        count = torch.zeros(len(uniforms), dtype=torch.long)
        going = torch.ones(len(uniforms), dtype=torch.bool)
        committed = torch.full((len(uniforms), num + 1), -1)
        for level in range(num):
            token, law = draft.tokens[:, level], draft.probs[:, level]
            chance = (judge[batch, level, token] / law[batch, token]).clamp(max=1)
            uniform = uniforms[:, level]
            taken = going & (uniform < chance)
            left = (target[:, level] - law).clamp(min=0)
            empty = left.sum(-1, keepdim=True) <= 0
            left = torch.where(empty, target[:, level], left)
            if fault == "no residual":
                left = target[:, level]
            if fault != "uniform not rescaled":
                uniform = (uniform - chance) / (1 - chance).clamp(min=1e-300)
            instead = draw(left, uniform.clamp(min=0))
            here = torch.where(taken, token, torch.where(going, instead, -1))
            committed[:, level] = here
            count += going.long()
            going = taken
        last = plain[:, -1] if fault == "bonus not warped" else target[:, -1]
        committed[:, -1] = torch.where(going, draw(last, uniforms[:, num]), -1)
        return Accepted(count + going.long(), committed)

    return rule
