"""Models whose greedy answers are known from transformers' generate, and drafters that know them.

Scripted drafters lie in stated ways; what the loop commits has to be the known answer all the same.
"""

import random
from functools import lru_cache

import torch
from conftest import make_model, make_prompts

from model.common.contract.drafter import Draft, Drafter
from model.common.contract.sequence import EmptyDrafter
from model.common.contract.trees import Tree
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


def decode(target, drafter, prompts, limit=24, sampler=None, stop=None, seeds=None, num_slots=None):
    """generate() with the usual arguments; a scripted drafter is told the prompts."""
    seeds = seeds or list(range(len(prompts)))
    inner = drafter
    while inner is not None:
        if isinstance(inner, Scripted):
            inner.prompts = prompts
        inner = getattr(inner, "inner", None)
    sampler, stop = sampler or Sampler(), stop or StopRules()
    return generate(target, drafter, prompts, sampler, seeds, stop, limit, num_slots=num_slots)


def outputs(turns):
    return [turn.output_ids for turn in turns]


def facts(turns):
    """What was committed and how it came about, which nobody in the same batch changes."""
    return [(turn.output_ids, turn.accept_lengths, turn.drafted, turn.depth) for turn in turns]


def new_target(family="llama", dtype=torch.float32, runtime="eager"):
    return Target(lively(family, dtype), runtime)


class Scripted(Drafter):
    """Knows each prompt's answer; propose() says what is made of it. Idle slots draft -1 or worse.

    known   answers in the order of decode()'s prompts
    right   how many tokens ahead are told right; the rest is wrong, or, for trees, wherever a
            wrong branch can have it
    What a sequence is told depends on its prompt alone, not on its slot or on who is beside it.
    """

    prompts = None
    parents = None  # of a static tree
    probe = None

    def __init__(self, known, right=3, seed=0):
        self.known, self.right, self.seed = known, right, seed

    def reserve(self, num_slots, capacity, sampler):
        self.answers = [None] * num_slots
        self.place = [0] * num_slots
        self.steps = [0] * num_slots
        self.chance = [random.Random(0)] * num_slots

    def start(self, prompt):
        self.device = prompt.tokens.device
        if self.parents is not None:
            self.tree = Tree(torch.tensor(self.parents, device=self.device), self.max_depth)
        for slot, ids in zip(prompt.slots, prompt.host_ids):
            number = self.prompts.index(ids[:-1])
            self.answers[slot] = self.known[number]
            self.place[slot], self.steps[slot] = 1, 0
            self.chance[slot] = random.Random(f"{self.seed}/{number}")

    def observe(self, step):
        for slot, ids in enumerate(step.host_ids):
            self.place[slot] += len(ids)
            self.steps[slot] += 1

    def end(self, slots):
        for slot in slots:
            self.answers[slot] = None

    def ahead(self, slot, num, right=None):
        """The next tokens of a slot, the first `right` of them right; -1 where it is idle."""
        if self.answers[slot] is None:
            return [-1] * num
        right = self.right if right is None else right
        tokens = self.answers[slot][self.place[slot] : self.place[slot] + num]
        tokens = tokens + [0] * (num - len(tokens))
        return tokens[:right] + [wrong(token) for token in tokens[right:]]

    def slots(self):
        return range(len(self.answers))

    def tensor(self, values):
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def static(self, tokens):
        """A draft of the class' own tree."""
        probe = None if self.probe is None else torch.tensor(self.probe, device=self.device)
        return Draft(self.tensor(tokens), self.tree, probe=probe)


def wrong(token):
    return (token + 1) % VOCAB


class Chain(Scripted):
    """Five tokens in a row."""

    max_nodes = 5

    def propose(self):
        return Draft(self.tensor([self.ahead(slot, self.max_nodes) for slot in self.slots()]))


class StaticTree(Scripted):
    """An oracle branch of four among wrong ones; right tokens hang in wrong places too."""

    #        0   1   2  3  4  5  6  7    the oracle's nodes are 1, 4, 5, 6
    parents = [-1, -1, 0, 1, 1, 4, 5, 3]
    max_nodes, max_depth = 8, 4

    def propose(self):
        tokens = []
        for slot in self.slots():
            a, b, c, d = self.ahead(slot, 4)
            tokens.append([wrong(wrong(a)), a, b, wrong(wrong(b)), b, c, d, c])
        return self.static(tokens)


class RandomTree(Scripted):
    """Another tree for each slot and step, seven tokens in ten as if they were right."""

    max_nodes, max_depth = 12, 12

    def propose(self):
        tokens, parents = [], []
        for slot in self.slots():
            ahead, chance = self.ahead(slot, self.max_nodes), self.chance[slot]
            own, depths = [], []
            for node in range(self.max_nodes):
                own.append(chance.randint(max(-1, node - 5), node - 1))
                depths.append(0 if own[-1] < 0 else depths[own[-1]] + 1)
            parents.append(own)
            other = [chance.randrange(-1, VOCAB) for _ in own]
            lucky = [chance.random() < 0.7 for _ in own]
            tokens.append([ahead[d] if y else o for d, y, o in zip(depths, lucky, other)])
        return Draft(self.tensor(tokens), Tree(self.tensor(parents), self.max_depth))


class Window(Scripted):
    """Lookahead's rows: probes in two lines off the root, then the chain of candidates.

    The probes carry right tokens: committing one would not show in the ids, but in the counts.
    """

    parents = [-1, 0, 1, -1, 3, -1, 5, 6, 7]
    probe = [True] * 5 + [False] * 4
    max_nodes, max_depth = 9, 4

    def propose(self):
        tokens = []
        for slot in self.slots():
            right = self.ahead(slot, 3, right=3)
            tokens.append(right + right[:2] + self.ahead(slot, 4))
        return self.static(tokens)


class Masks(Scripted):
    """SPACE's rows: three candidates, and a line of two probes off the root and off each."""

    #        candidates 0-2, then the probes of the root, of 0, of 1 and of 2
    parents = [-1, 0, 1, -1, 3, 0, 5, 1, 7, 2, 9]
    probe = [False] * 3 + [True] * 8
    max_nodes, max_depth = 11, 3

    def propose(self):
        tokens = []
        for slot in self.slots():
            a, b, c = self.ahead(slot, 3)
            tokens.append([a, b, c, a, b, b, c, c, 5, 5, 5])
        return self.static(tokens)


class Gaps(Scripted):
    """Inert rows in front of, between and above right tokens; below one nothing is committed."""

    parents = [-1, -1, 0, 1, 3, 4]
    max_nodes, max_depth = 6, 4

    def propose(self):
        tokens = []
        for slot in self.slots():
            a, b, c = self.ahead(slot, 3)
            tokens.append([-1, a, a, b, -1, c])
        return self.static(tokens)


class Sometimes(Scripted):
    """A chain of 0 to 4 tokens, cut somewhere for each slot."""

    max_nodes = 4

    def propose(self):
        lengths = [self.chance[slot].randint(0, self.max_nodes) for slot in self.slots()]
        longest, tokens = max(lengths), []
        for slot, length in enumerate(lengths):
            tokens.append(self.ahead(slot, length) + [-1] * (longest - length))
        return Draft(self.tensor(tokens).view(len(tokens), longest))


DRAFTERS = [EmptyDrafter, Chain, StaticTree, RandomTree, Window, Masks, Gaps, Sometimes]


def new_drafter(kind, known, right=3):
    return EmptyDrafter() if kind is EmptyDrafter else kind(known, right)
