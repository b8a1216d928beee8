"""Greedy acceptance as one call of a runtime: what greedy() gives, and nothing to compile
in a step."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import make_prompts
from oracle import (
    Chain,
    Gaps,
    Masks,
    RandomTree,
    Scripted,
    Sometimes,
    StaticTree,
    Window,
    answers,
    decode,
    outputs,
)
from replays import Replays
from test_capture import META, Captured
from test_runtime import needs_compiler, with_graphs
from test_tree import random_parents

from model.common.contract import trees as tree
from model.common.contract.drafter import Draft, Drafter, chain_parents
from model.common.loop.acceptance import StaticGreedy
from model.common.loop.decode import _Loop
from model.common.loop.sampling import Sampler
from model.common.target.cache import KVCache, moves_of
from model.common.target.runtime import Graphs, compilations, make_runtime

V, N, DEPTH = 8, 12, 7  # ids, nodes, bound of the deepest
CPU = torch.device("cpu")
PROMPTS = make_prompts(4)


def runtime_of(kind, forward):
    """A runtime by its name, or graphs."""
    return Graphs(forward, Replays()) if kind == "graphs" else make_runtime(kind, forward)


def shallow_parents(seed):
    """Parents of N nodes, all of them above DEPTH."""
    while True:
        parents = random_parents(N, seed)
        draft = Draft(torch.zeros(1, N).long(), torch.tensor([parents]), DEPTH)
        if tree.layout(draft)[2].max() < DEPTH:
            return parents
        seed += 1000


STATIC = torch.tensor(shallow_parents(5))


def step_of(seed, batch, kind, probes):
    """(logits, draft, root, cache) of a step whose tokens are right more often than not."""
    chance = torch.Generator().manual_seed(seed)
    logits = torch.randint(4, (batch, 1 + N, V), generator=chance).float()  # with ties
    rows = torch.tensor([shallow_parents(100 * seed + row) for row in range(batch)])
    parents = {"static": STATIC, "dynamic": rows, "chain": chain_parents(N, CPU)}[kind]
    above = (parents + 1).expand(batch, N)
    tokens = logits.argmax(-1).gather(1, above)
    other = torch.randint(-1, V, tokens.shape, generator=chance)
    tokens = torch.where(torch.rand(tokens.shape, generator=chance) < 0.7, tokens, other)
    probe = torch.rand(N, generator=chance) < 0.1 if probes else None
    cache = KVCache([CPU] * 2, batch, 64)
    cache.slots, cache.view = torch.arange(64).expand(batch, 64), 64
    for layer in range(2):
        cache.update(*torch.rand(2, batch, 3, 64, 4, generator=chance), layer)
    cache.length += torch.randint(40, (batch,), generator=chance)
    root = torch.randint(V, (batch,), generator=chance)
    depth = {"static": DEPTH, "dynamic": DEPTH, "chain": N}[kind]
    return logits, Draft(tokens, parents, depth, probe=probe), root, cache


def alive_of(seed, batch):
    """Rows that go on, some of a batch at two steps of three; None = all."""
    chance = torch.Generator().manual_seed(seed)
    return torch.rand(batch, generator=chance) < 0.7 if batch > 1 and seed % 3 else None


def said(host):
    """What the host takes from its rows: committed ids and how many were drafted."""
    return [(row[2 : 2 + row[0]], row[1]) for row in host.tolist()]


KINDS = [
    "graphs",
    *(pytest.param(kind, marks=needs_compiler) for kind in ("compile", "frozen")),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "batch, kind_of_draft, num_nodes",
    [
        *((1, "static", N), (3, "static", N), (3, "dynamic", N)),
        *((1, "chain", N), (3, "chain", N), (1, "chain", 0), (3, "chain", 0)),
    ],
)
@torch.inference_mode()
def test_the_targets_call_gives_what_greedy_gives(kind, batch, kind_of_draft, num_nodes):
    """Counts, paths, tokens, new roots, the host's rows and the cache, with rows that ended."""
    target = SimpleNamespace(runs_ahead=False, device=CPU)
    target.acceptance = acceptance = StaticGreedy(target)
    target.runtime = runtime_of(kind, lambda then, logits, *rest: then(logits * 1, {}, *rest))
    counts, kept, graphs = set(), [], None
    for seed in range(30):
        logits, draft, root, fresh = step_of(seed, batch, kind_of_draft, kind_of_draft == "static")
        if kind_of_draft == "chain":
            logits, draft = logits[:, : 1 + num_nodes], Draft.chain(draft.tokens[:, :num_nodes])
        if seed == 0:
            target.cache = cache = fresh
        tensors = cache.length, *cache.storage
        for tensor, new in zip(tensors, (fresh.length, *fresh.storage)):
            tensor.copy_(new)
        loop = _Loop(target, Drafter(), None, Sampler(), None, root)
        loop.alive = alive_of(seed, batch)
        before = [tensor.clone() for tensor in tensors]
        layout = None if draft.is_chain else tree.layout(draft)
        then, (some, *rest) = acceptance.within(draft, layout, root, loop.alive)
        assert (some is None) == (batch == 1)
        _, _, *made = target.runtime(then, logits, root, draft.tokens, some, *rest)
        found = loop._accept(draft, logits, made)
        assert (cache.pending is None) == draft.is_chain
        cache.settle()
        after = [tensor.clone() for tensor in tensors]
        for tensor, old in zip(tensors, before):
            tensor.copy_(old)
        wanted = loop._accept(draft, logits, [])
        for name in ("count", "path", "tokens"):
            assert torch.equal(getattr(found[0], name), getattr(wanted[0], name)), name
        assert torch.equal(found[1], wanted[1]) and said(found[2]) == said(wanted[2])
        assert all(map(torch.equal, after, tensors))
        counts |= set(found[0].count.tolist())
        kept.append((found, [found[1].clone(), *(part.clone() for part in found[0])]))
        graphs = graphs or compilations()
    assert compilations() == graphs
    assert counts >= ({1, 2, 3} if num_nodes else {1})
    for found, copies in kept:  # no later step has written into them
        assert all(map(torch.equal, [found[1], *found[0]], copies))


def filled(batch, seed):
    """A cache of 40 columns of two layers, 20 committed or fewer."""
    chance = torch.Generator().manual_seed(seed)
    cache = KVCache([CPU] * 2, batch, 40)
    cache.slots, cache.view = torch.arange(40).expand(batch, 40), 40
    for layer in range(2):
        cache.update(*torch.rand(2, batch, 3, 40, 4, generator=chance), layer)
    cache.length += torch.randint(1, 20, (batch,), generator=chance)
    return cache


@pytest.mark.parametrize("batch", [1, 3])
def test_the_next_forward_moves_what_was_kept(batch):
    """As commit() does at once, its own rows behind; of what is settled or dropped nothing."""
    chance = torch.Generator().manual_seed(batch)
    for seed in range(20):
        path = torch.full((batch, 5), -1)
        for row in range(batch):
            count = int(torch.randint(1, 6, (1,), generator=chance))
            nodes = torch.randperm(9, generator=chance)[: count - 1].sort().values + 1
            path[row, :count] = torch.cat([torch.zeros(1).long(), nodes])
        count = (path >= 0).sum(1)
        now, later = filled(batch, seed), filled(batch, seed)
        now.commit(path, count)
        later.pending = moves_of(later.length, path)
        later.length.add_(count)
        rows = torch.rand(2, 2, batch, 3, 6, 4, generator=chance)
        now.slots = later.slots = now.length.unsqueeze(1) + torch.arange(6)
        later.moves = later.due(4)
        assert later.pending is None
        for layer in range(2):
            seen = [cache.update(*rows[layer], layer) for cache in (now, later)]
            for row in range(batch):  # what the old rows leave behind the new ones is not read
                end = now.slots[row, -1] + 1
                for wanted, found in zip(*seen):
                    assert torch.equal(wanted[row, :, :end], found[row, :, :end])
    assert not later.due(4).any()
    later.pending = moves_of(later.length, path)
    assert not later.due(3).any() and later.pending is None  # another depth's: made at once
    later.pending = moves_of(later.length, path)
    later.reset()
    assert later.pending is None


def test_a_move_left_out_is_seen(monkeypatch):
    """The ids tell whether accepted rows have been moved."""
    monkeypatch.setattr(KVCache, "_joined", lambda cache, slots: (slots[:, :0], slots))
    known = answers("llama")[:1]
    target, _ = with_graphs()
    target.acceptance = StaticGreedy(target)
    assert outputs(decode(target, StaticTree(known), PROMPTS[:1])) != [known[0][:24]]


class Changing(Scripted):
    """Trees of several depths and chains in turn: moves are made by the next forward or before."""

    kinds = StaticTree, StaticTree, Chain, Masks, Gaps, Sometimes

    def start(self, prefill, max_lengths, sampler):
        super().start(prefill, max_lengths, sampler)
        self.others = [kind(self.known) for kind in self.kinds]
        for other in self.others:
            other.start(prefill, max_lengths, sampler)

    def propose(self):
        other = self.others[self.steps % len(self.others)]
        other.place = self.place
        return other.propose()


@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("kind", [StaticTree, RandomTree, Window, Masks, Gaps, Changing])
def test_replayed_acceptance_gives_the_eager_ids(kind, rows):
    """Every tree and view is captured once."""
    known, prompts = [answers("llama")[row] for row in rows], [PROMPTS[row] for row in rows]
    target, capture = with_graphs()
    target.acceptance = StaticGreedy(target)
    decode(target, kind(known), prompts)
    target.warm(200)
    captured, replayed = capture.captured, capture.replayed
    for _ in range(2):
        turns = decode(target, kind(known), prompts)
        assert outputs(turns) == [ids[:24] for ids in known]
    assert capture.captured == captured and not any(turn.recompiled for turn in turns)
    steps = max(len(turn.accept_lengths) for turn in turns)
    assert capture.replayed - replayed == 2 * steps


def test_warming_a_smaller_cache():
    """Rows of the calls so far may have been moved where it has no columns."""
    known = answers("llama")
    target, capture = with_graphs()
    target.acceptance = StaticGreedy(target)
    decode(target, StaticTree(known[:1]), PROMPTS[:1])
    decode(target, StaticTree(known[:1]), [(PROMPTS[0] * 120)[:495]])  # into another view
    decode(target, StaticTree(known), PROMPTS)
    decode(target, StaticTree(known[:1]), PROMPTS[:1])
    assert target.cache.capacity == 256
    target.warm(100)
    captured = capture.captured
    assert outputs(decode(target, StaticTree(known[:1]), PROMPTS[:1])) == [known[0][:24]]
    assert capture.captured == captured


@torch.inference_mode()
def test_the_call_can_be_captured():
    """By a CUDA graph's rules: no value is read, no data comes from the host."""
    some = torch.ones(2, dtype=torch.bool, device=META)
    for kind, alive in [("static", None), ("dynamic", some), ("chain", None), ("chain", some)]:
        logits, draft, root, cache = step_of(0, 2, kind, kind != "chain")
        target = SimpleNamespace(device=META, cache=KVCache([META], 2, 64))
        layout = None if kind == "chain" else tree.layout(draft)
        then, (_, *rest) = StaticGreedy(target).within(draft, layout, root, None)
        tensors = logits, root, draft.tokens, *rest
        logits, *rest = (None if t is None else t.to(META) for t in tensors)
        root, tokens, *rest = rest
        Captured()(partial(then, logits, {}, root, tokens, alive, *rest))
