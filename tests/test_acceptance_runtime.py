"""Greedy acceptance as one call of a runtime: what greedy() gives, and nothing to compile
in a step."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import make_prompts
from oracle import Gaps, Masks, RandomTree, StaticTree, Window, answers, decode, outputs
from replays import Replays
from test_capture import META, Captured
from test_runtime import needs_compiler, with_graphs
from test_tree import random_parents

from model.common import tree
from model.common.acceptance import StaticGreedy
from model.common.decode import _Loop
from model.common.drafter import Draft, Drafter, chain_parents
from model.common.kv_cache import KVCache
from model.common.ranking import best_id
from model.common.runtime import Graphs, compilations, make_runtime
from model.common.sampling import Sampler

V, N, DEPTH = 8, 12, 7  # ids, nodes, bound of the deepest
CPU = torch.device("cpu")
PROMPTS = make_prompts(4)


def runtime_of(kind, forward):
    """A runtime by its name, or graphs."""
    return Graphs(forward, Replays()) if kind == "graphs" else make_runtime(kind, forward)


def acceptance_of(kind, target):
    """A StaticGreedy of a runtime's name, or of graphs."""
    acceptance = StaticGreedy(target, "eager")
    acceptance.runtime = runtime_of(kind, acceptance._step)
    return acceptance


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
    depth = {"static": DEPTH, "dynamic": DEPTH - seed % 2, "chain": N}[kind]
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
    "batch, kind_of_draft, probes",
    [(1, "static", True), (3, "dynamic", False), (3, "static", True)],
)
@torch.inference_mode()
def test_one_call_gives_what_greedy_gives(kind, batch, kind_of_draft, probes):
    """Counts, paths, tokens, new roots, the host's rows and the cache, with rows that ended."""
    target, cache = SimpleNamespace(runs_ahead=False, device=CPU), None
    target.acceptance = acceptance = acceptance_of(kind, target)
    counts, kept = set(), []
    for seed in range(30):
        logits, draft, root, fresh = step_of(seed, batch, kind_of_draft, probes)
        target.cache = cache = cache or fresh
        for tensor, new in zip((cache.length, *cache.storage), (fresh.length, *fresh.storage)):
            tensor.copy_(new)
        alive = alive_of(seed, batch)
        before = [tensor.clone() for tensor in (cache.length, *cache.storage)]
        best = best_id(logits)
        if seed == 0:
            assert acceptance([best], draft, root, alive) is None
            assert all(map(torch.equal, before, (cache.length, *cache.storage)))
            acceptance.warm(best)
            for tensor, old in zip((cache.length, *cache.storage), before):
                tensor.copy_(old)
            graphs = compilations()
        loop = _Loop(target, Drafter(), None, Sampler(), None, root)
        loop.alive = alive
        found = loop._accept(draft, logits, [best])
        after = [tensor.clone() for tensor in (cache.length, *cache.storage)]
        for tensor, old in zip((cache.length, *cache.storage), before):
            tensor.copy_(old)
        wanted = loop._accept(draft, logits, [])
        for name in ("count", "path", "tokens"):
            assert torch.equal(getattr(found[0], name), getattr(wanted[0], name)), name
        assert torch.equal(found[1], wanted[1]) and said(found[2]) == said(wanted[2])
        assert all(map(torch.equal, after, (cache.length, *cache.storage)))
        counts |= set(found[0].count.tolist())
        kept.append((found, [found[1].clone(), *(part.clone() for part in found[0])]))
    deeper = Draft(draft.tokens, draft.parents, draft.depth + 2, probe=draft.probe)
    assert acceptance([best], deeper, root, None) is None
    cache.grow(128)
    assert acceptance([best], draft, root, None) is None
    assert compilations() == graphs
    assert {1, 2, 3} <= counts
    for found, copies in kept:  # no later step has written into them
        assert all(map(torch.equal, [found[1], *found[0]], copies))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch, num_nodes", [(1, N), (3, N), (1, 0), (3, 0)])
@torch.inference_mode()
def test_chains_are_accepted_in_the_targets_call(kind, batch, num_nodes):
    """As above: what greedy() gives, the lengths in the cache, and nothing moved there."""
    target = SimpleNamespace(runs_ahead=False, device=CPU)
    target.acceptance = acceptance = StaticGreedy(target, "eager")
    target.runtime = runtime_of(kind, lambda logits, *rest: acceptance.chain(logits * 1, {}, *rest))
    _, _, _, target.cache = step_of(0, batch, "chain", False)
    counts, kept, length, storage = set(), [], target.cache.length, target.cache.storage[0]
    for seed in range(30):
        logits, draft, root, fresh = step_of(seed, batch, "chain", False)
        logits, draft = logits[:, : 1 + num_nodes], Draft.chain(draft.tokens[:, :num_nodes])
        length.copy_(fresh.length)
        alive = alive_of(seed, batch)
        loop = _Loop(target, Drafter(), None, Sampler(), None, root)
        loop.alive, before = alive, [length.clone(), storage.clone()]
        then, (some,) = acceptance.within(draft, root, alive)
        assert then == acceptance.chain and (some is None) == (batch == 1)
        _, _, *made = target.runtime(logits, root, draft.tokens, some)
        found = loop._accept(draft, logits, made)
        after = length.clone()
        length.copy_(before[0])
        wanted = loop._accept(draft, logits, [])
        for name in ("count", "path", "tokens"):
            assert torch.equal(getattr(found[0], name), getattr(wanted[0], name)), name
        assert torch.equal(found[1], wanted[1]) and said(found[2]) == said(wanted[2])
        assert torch.equal(after, length) and torch.equal(storage, before[1])
        counts |= set(found[0].count.tolist())
        kept.append((found, [found[1].clone(), *(part.clone() for part in found[0])]))
    assert counts >= ({1, 2, 3} if num_nodes else {1})
    for found, copies in kept:  # no later step has written into them
        assert all(map(torch.equal, [found[1], *found[0]], copies))


@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("kind", [StaticTree, RandomTree, Window, Masks, Gaps])
def test_replayed_acceptance_gives_the_eager_ids(kind, rows):
    """The first answer shows the trees, warm() captures them, and every later step is a replay."""
    known, prompts = [answers("llama")[row] for row in rows], [PROMPTS[row] for row in rows]
    target, _ = with_graphs()
    target.acceptance = acceptance_of("graphs", target)
    capture = target.acceptance.runtime.capture
    decode(target, kind(known), prompts)
    assert capture.captured == 0
    target.warm(200)
    assert capture.captured == len(target.acceptance.warmed) == 1
    replayed = capture.replayed
    for _ in range(2):
        turns = decode(target, kind(known), prompts)
        assert outputs(turns) == [ids[:24] for ids in known]
    assert capture.captured == 1 and not any(turn.recompiled for turn in turns)
    steps = max(len(turn.accept_lengths) for turn in turns)
    assert capture.replayed - replayed == 2 * steps


@torch.inference_mode()
def test_the_call_can_be_captured():
    """By a CUDA graph's rules: no value is read, no data comes from the host."""
    some = torch.ones(2, dtype=torch.bool, device=META)
    for kind, alive in [("static", None), ("dynamic", some), ("chain", None), ("chain", some)]:
        logits, draft, root, cache = step_of(0, 2, kind, kind != "chain")
        tensors = logits, draft.tokens, draft.probe, *tree.layout(draft), root
        logits, tokens, *tree_of, root = (None if t is None else t.to(META) for t in tensors)
        target = SimpleNamespace(device=META, cache=KVCache([META], 2, 64))
        acceptance = acceptance_of("eager", target)
        acceptance.cache = target.cache
        acceptance.cache.storage = [storage.to(META) for storage in cache.storage]
        if kind == "chain":
            Captured()(partial(acceptance.chain, logits, {}, root, tokens, alive))
        else:
            rest = best_id(logits), tokens, *tree_of, draft.depth, root, alive
            Captured()(partial(acceptance._step, *rest))
