"""Models whose greedy answers are known from transformers' generate, and drafters that know them.

Scripted drafters lie in stated ways; what the loop commits has to be the known answer all the same.
"""

import random
from functools import lru_cache

import torch
from conftest import make_model, make_prompts

from model.common.contract.drafter import Draft, Drafter, EmptyDrafter
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.model import Target

VOCAB = 97
KNOWN = 40  # known tokens of each answer, more than any test asks for


@lru_cache(maxsize=16)
def lively(family, dtype, attention=None):
    """A random model whose greedy answers vary: norms near 1, embeddings that are heard.

    attention: one of transformers', None = the target's.
    """
    model = make_model(family, scale=0.3, tie_word_embeddings=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and "gemma" not in family:  # gemma's norms add the 1 themselves
                parameter.add_(1)
            if "embed" in name and "gemma" not in family:
                parameter.mul_(8)
    if attention:
        model.set_attn_implementation(attention)
    return model.to(dtype)


@lru_cache(maxsize=16)
def answers(family, dtype=torch.float32):
    """Greedy ids of transformers' generate after each of make_prompts(4), one prompt at a time."""
    model = lively(family, dtype, "eager")
    model.generation_config.eos_token_id = None
    found = []
    for ids in make_prompts(4):
        prompt = torch.tensor([ids])
        every = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=KNOWN,
            pad_token_id=0,
        )
        found.append(every[0, len(ids) :].tolist())
    return found


def decode(target, drafter, prompts, limit=24, sampler=None, stop=None, seeds=None):
    """generate() with the usual arguments."""
    seeds = seeds or list(range(len(prompts)))
    return generate(
        target, drafter, prompts, sampler or Sampler(), seeds, stop or StopRules(), limit
    )


def outputs(turns):
    return [turn.output_ids for turn in turns]


def new_target(family="llama", dtype=torch.float32, runtime="eager"):
    return Target(lively(family, dtype), runtime)


class Scripted(Drafter):
    """Knows each row's answer; guess() says what is made of it.

    right   how many tokens ahead are told right; the rest is wrong, or, for trees, wherever a
            wrong branch can have it
    """

    def __init__(self, known, right=3, seed=0):
        self.known, self.right, self.seed = known, right, seed

    parents = probe = torch.empty(0)  # of a static tree

    def start(self, prefill, max_lengths, sampler):
        self.device = prefill.tokens.device
        self.parents, self.probe = self.parents.to(self.device), self.probe.to(self.device)
        self.chance = random.Random(self.seed)
        self.place = [1] * len(self.known)
        self.steps = 0

    def observe(self, step):
        self.steps += 1
        for row, ids in enumerate(step.host_ids):
            self.place[row] += len(ids)

    def ahead(self, row, num):
        """The next tokens of a row, the first `right` of them right."""
        tokens = self.known[row][self.place[row] : self.place[row] + num]
        tokens = tokens + [0] * (num - len(tokens))
        return tokens[: self.right] + [wrong(token) for token in tokens[self.right :]]

    def rows(self):
        return range(len(self.known))

    def tensor(self, values):
        return torch.tensor(values, dtype=torch.long, device=self.device)


def wrong(token):
    return (token + 1) % VOCAB


class Chain(Scripted):
    """Five tokens in a row."""

    length = 5

    def propose(self):
        return Draft.chain(self.tensor([self.ahead(row, self.length) for row in self.rows()]))


class StaticTree(Scripted):
    """An oracle branch of four among wrong ones; right tokens hang in wrong places too."""

    #        0   1   2  3  4  5  6  7    the oracle's nodes are 1, 4, 5, 6
    parents = torch.tensor([-1, -1, 0, 1, 1, 4, 5, 3])

    def propose(self):
        tokens = []
        for row in self.rows():
            a, b, c, d = self.ahead(row, 4)
            tokens.append([wrong(wrong(a)), a, b, wrong(wrong(b)), b, c, d, c])
        return Draft(self.tensor(tokens), self.parents, 4)


class RandomTree(Scripted):
    """Another tree for each row and step, seven tokens in ten as if they were right."""

    num_nodes = 12

    def propose(self):
        tokens, parents = [], []
        for row in self.rows():
            ahead = self.ahead(row, self.num_nodes)
            own, depths = [], []
            for node in range(self.num_nodes):
                own.append(self.chance.randint(max(-1, node - 5), node - 1))
                depths.append(0 if own[-1] < 0 else depths[own[-1]] + 1)
            parents.append(own)
            other = [self.chance.randrange(-1, VOCAB) for _ in own]
            lucky = [self.chance.random() < 0.7 for _ in own]
            tokens.append([ahead[d] if y else o for d, y, o in zip(depths, lucky, other)])
        return Draft(self.tensor(tokens), self.tensor(parents), self.num_nodes)


class Window(Scripted):
    """Lookahead's rows: probes in two lines off the root, then the chain of candidates.

    The probes carry right tokens: committing one would not show in the ids, but in the counts.
    """

    parents = torch.tensor([-1, 0, 1, -1, 3, -1, 5, 6, 7])
    probe = torch.tensor([True] * 5 + [False] * 4)

    def propose(self):
        tokens = []
        for row in self.rows():
            right = self.known[row][self.place[row] : self.place[row] + 3]
            right = right + [0] * (3 - len(right))
            tokens.append(right + right[:2] + self.ahead(row, 4))
        return Draft(self.tensor(tokens), self.parents, 4, probe=self.probe)


class Masks(Scripted):
    """SPACE's rows: three candidates, and a line of two probes off the root and off each."""

    #        candidates 0-2, then the probes of the root, of 0, of 1 and of 2
    parents = torch.tensor([-1, 0, 1, -1, 3, 0, 5, 1, 7, 2, 9])
    probe = torch.tensor([False] * 3 + [True] * 8)

    def propose(self):
        tokens = []
        for row in self.rows():
            a, b, c = self.ahead(row, 3)
            tokens.append([a, b, c, a, b, b, c, c, 5, 5, 5])
        return Draft(self.tensor(tokens), self.parents, 3, probe=self.probe)


class Gaps(Scripted):
    """Inert rows in front of, between and above right tokens; below one nothing is committed."""

    parents = torch.tensor([-1, -1, 0, 1, 3, 4])

    def propose(self):
        tokens = []
        for row in self.rows():
            a, b, c = self.ahead(row, 3)
            tokens.append([-1, a, a, b, -1, c])
        return Draft(self.tensor(tokens), self.parents, 4)


class Sometimes(Scripted):
    """A chain of 0 to 4 tokens, cut somewhere for each row."""

    def propose(self):
        longest = self.chance.randint(0, 4)
        tokens = []
        for row in self.rows():
            own = self.ahead(row, self.chance.randint(0, longest))
            tokens.append(own + [-1] * (longest - len(own)))
        return Draft.chain(self.tensor(tokens).view(len(tokens), longest))


DRAFTERS = [EmptyDrafter, Chain, StaticTree, RandomTree, Window, Masks, Gaps, Sometimes]


def new_drafter(kind, known, right=3):
    return EmptyDrafter() if kind is EmptyDrafter else kind(known, right)
