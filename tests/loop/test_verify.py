"""verify.py on hand-made logits: what each rule commits, and what it must never commit."""

import math
import random

import pytest
import torch
from slow_trees import random_parents, slow_lines

from model.common.contract.drafter import Draft
from model.common.contract.trees import Tree
from model.common.loop import verify
from model.common.loop.sampling import Sampler, warp

V = 8
NONE = -1


def wants(*best):
    """Logits of one sequence whose rows want these tokens: nearly all of the mass is theirs."""
    logits = torch.zeros(1, len(best), V)
    logits[0, torch.arange(len(best)), torch.tensor(best)] = 40.0
    return logits


def one_hot(tokens):
    """Proposals that put everything on the tokens, [B, n, V]; inert nodes' are flat."""
    probs = torch.nn.functional.one_hot(tokens.clamp(min=0), V).float()
    return torch.where(tokens.unsqueeze(-1) >= 0, probs, torch.full_like(probs, 1 / V))


def draft_of(tokens, parents=None, depth=None, probe=None):
    """A draft of B rows (lists of equal length); parents None = a chain."""
    tokens = torch.tensor(tokens).long().view(len(tokens), -1)
    if parents is None:
        return Draft(tokens)
    if probe is not None:
        probe = torch.tensor(probe)
    return Draft(tokens, Tree(torch.tensor(parents).long(), depth), probe=probe)


def outcomes(logits, draft):
    """What each exact rule makes of certain logits: they all have to agree."""
    warped = Sampler(1.0).warp
    batch = len(draft.tokens)
    middle = torch.full((batch, 1 + draft.depth), 0.5, dtype=torch.float64)
    found = {"greedy": verify.greedy(logits, draft)}
    found["token_matching"] = verify.token_matching(logits, draft, warped, middle)
    sampled = Draft(draft.tokens, draft.tree, one_hot(draft.tokens), draft.probe)
    found["multi_round"] = verify.multi_round(logits, sampled, warped, middle)
    if draft.is_chain:
        found["rejection"] = verify.rejection(logits, sampled, warped, middle)
    return found


def assert_commits(logits, draft, path, tokens):
    for name, accepted in outcomes(logits, draft).items():
        assert accepted.path.tolist() == path, name
        assert accepted.tokens.tolist() == tokens, name
        assert accepted.count.tolist() == [sum(row >= 0 for row in own) for own in path], name
        assert accepted.last.tolist() == [[i for i in own if i >= 0][-1] for own in tokens], name


CHAINS = {
    "all match": ([1, 2, 3], [1, 2, 3, 4], [0, 1, 2, 3], [1, 2, 3, 4]),
    "first mismatch": ([5, 2, 3], [1, 2, 3, 4], [0, -1, -1, -1], [1, -1, -1, -1]),
    "middle mismatch": ([1, 6, 3], [1, 2, 3, 4], [0, 1, -1, -1], [1, 2, -1, -1]),
    "last mismatch": ([1, 2, 6], [1, 2, 3, 4], [0, 1, 2, -1], [1, 2, 3, -1]),
    "empty draft": ([], [3], [0], [3]),
    "token 0": ([0, 0], [0, 0, 0], [0, 1, 2], [0, 0, 0]),
    "inert from the start": ([-1, -1], [0, 0, 0], [0, -1, -1], [0, -1, -1]),
    "a gap in the chain": ([1, -1, 3], [1, 2, 3, 4], [0, 1, -1, -1], [1, 2, -1, -1]),
    "right again behind the mismatch": ([6, 2, 3], [1, 2, 3, 4], [0] + [-1] * 3, [1] + [-1] * 3),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("as_tree", [False, True])
def test_chain(name, as_tree):
    tokens, best, path, committed = CHAINS[name]
    parents = list(range(-1, len(tokens) - 1)) if as_tree else None
    draft = draft_of([tokens], parents, len(tokens))
    assert draft.is_chain is not as_tree
    assert_commits(wants(*best), draft, [path], [committed])


# nodes:       0   1   2  3  4  5     node 0 and its rival 1, children 2, 3 of 0 and 4 of 1, 5 of 4
BRANCHES = [-1, -1, 0, 0, 1, 4]
TREES = {  # node tokens, what rows 0-6 want, the path's rows, what is committed
    "second branch to the end": (
        [1, 2, 3, 4, 5, 6],
        [2, 0, 5, 0, 0, 6, 7],
        [0, 2, 5, 6],
        [2, 5, 6, 7],
    ),
    "second sibling": ([1, 2, 3, 4, 5, 6], [1, 4, 0, 0, 3, 0, 0], [0, 1, 4], [1, 4, 3]),
    "root only": ([1, 2, 3, 4, 5, 6], [7, 3, 5, 0, 0, 6, 0], [0], [7]),
    "child of the wrong parent": ([1, 2, 3, 4, 5, 6], [1, 5, 0, 0, 0, 0, 0], [0, 1], [1, 5]),
    "equal siblings": ([1, 1, 2, 2, 3, 4], [1, 2, 3, 6, 0, 0, 0], [0, 1, 3], [1, 2, 6]),
    "inert sibling first": ([-1, 2, 3, 4, 5, 6], [2, 0, 5, 0, 0, 1, 0], [0, 2, 5], [2, 5, 1]),
    "inert parent": ([1, -1, 3, 4, 5, 6], [0, 0, 5, 0, 0, 6, 7], [0], [0]),
    "inert inside": ([1, 2, 3, 4, -1, 6], [2, 0, 0, 0, 0, 6, 7], [0, 2], [2, 0]),
    "all inert": ([-1] * 6, [0] * 7, [0], [0]),
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("batched", [False, True])
def test_tree(name, batched):
    tokens, best, path, committed = TREES[name]
    draft = draft_of([tokens], [BRANCHES] if batched else BRANCHES, 3)
    pad = [-1] * (4 - len(path))
    assert_commits(wants(*best), draft, [path + pad], [committed + pad])


def test_deepest_of_equal_branches():
    """Two siblings carry the same right token and only the second goes on."""
    draft = draft_of([[1, 1, 2]], [-1, -1, 1], 2)
    accepted = verify.greedy(wants(1, 2, 2, 3), draft)
    assert accepted.path.tolist() == [[0, 2, 3]] and accepted.tokens.tolist() == [[1, 2, 3]]


def test_probe_rows_are_never_committed():
    """Right tokens everywhere, but the first sibling, and a child of the second, are probes."""
    probe = [True, False, False, True, False]
    draft = draft_of([[1, 1, 2, 2, 3]], [-1, -1, 0, 1, 1], 2, probe)
    assert_commits(wants(1, 2, 2, 3, 3, 3), draft, [[0, 2, -1]], [[1, 2, -1]])
    draft = draft_of([[1, 2, 3]], [-1, 0, 1], 3, [False, True, False])
    assert_commits(wants(1, 2, 3, 4), draft, [[0, 1, -1, -1]], [[1, 2, -1, -1]])
    draft = draft_of([[1, 2]], [-1, 0], 2, [True, True])
    assert_commits(wants(1, 2, 3), draft, [[0, -1, -1]], [[1, -1, -1]])


def test_unequal_drafts_in_a_batch():
    logits = torch.cat([wants(1, 2, 3, 4)] * 4)
    draft = draft_of([[1, 2, 3], [1, -1, -1], [-1, -1, -1], [1, 7, -1]])
    path = [[0, 1, 2, 3], [0, 1, -1, -1], [0, -1, -1, -1], [0, 1, -1, -1]]
    tokens = [[1, 2, 3, 4], [1, 2, -1, -1], [1, -1, -1, -1], [1, 2, -1, -1]]
    assert_commits(logits, draft, path, tokens)
    parents = [[-1, 0, 1], [-1, -1, -1], [-1, -1, 1], [-1, -1, 1]]
    draft = draft_of([[1, 2, 3], [5, 1, -1], [-1, 1, 3], [6, 1, 3]], parents, 3)
    logits[1:, 2] = wants(3)[0, 0]  # row 2 is the second child of the root in the last three
    path = [[0, 1, 2, 3], [0, 2, -1, -1], [0, 2, 3, -1], [0, 2, 3, -1]]
    tokens = [[1, 2, 3, 4], [1, 3, -1, -1], [1, 3, 4, -1], [1, 3, 4, -1]]
    assert_commits(logits, draft, path, tokens)


def test_only_the_running_rows():
    for parents in (None, [-1, 0]):
        draft = draft_of([[1, 2]] * 3, parents, 2)
        for name, accepted in outcomes(wants(1, 2, 3).repeat(3, 1, 1), draft).items():
            left = accepted.only(torch.tensor([True, False, True]))
            assert left.count.tolist() == [3, 0, 3], name
            assert left.path.tolist() == [[0, 1, 2], [-1] * 3, [0, 1, 2]], name
            assert left.tokens.tolist() == [[1, 2, 3], [-1] * 3, [1, 2, 3]], name


def test_bound_deeper_than_the_tree():
    draft = draft_of([[1, 2]], [-1, 0], 5)
    assert_commits(wants(1, 2, 3), draft, [[0, 1, 2, -1, -1, -1]], [[1, 2, 3, -1, -1, -1]])


def test_first_of_tied_logits():
    """Greedy takes the lowest id of a tie, the baseline's choice."""
    logits = torch.zeros(1, 2, V)
    logits[0, :, [2, 5]] = 1.0
    assert verify.greedy(logits, draft_of([[2]])).tokens.tolist() == [[2, 2]]
    assert verify.greedy(logits, draft_of([[5]])).tokens.tolist() == [[2, -1]]
    assert verify.greedy(logits, draft_of([[5]], [-1], 1)).tokens.tolist() == [[2, -1]]


def slow_greedy(logits, tokens, parents, probe):
    """The tokens a greedy decoder commits when it may walk the tree: the longest walk."""
    best = logits.argmax(-1).tolist()
    longest = [best[0]]
    for line in slow_lines(parents)[1:]:
        nodes = [row - 1 for row in line[1:]]
        walked = all(tokens[node] == best[parents[node] + 1] and not probe[node] for node in nodes)
        if walked and len(nodes) + 1 > len(longest):
            longest = [tokens[node] for node in nodes] + [best[line[-1]]]
    return longest


def test_greedy_against_reference():
    chance = random.Random(0)
    logits = torch.randn(60, 13, V, generator=torch.Generator().manual_seed(0))
    parents = [random_parents(12, seed) for seed in range(60)]
    best = logits.argmax(-1)
    tokens = [
        [
            int(best[row, up + 1]) if chance.random() < 0.7 else chance.randint(-1, V - 1)
            for up in own
        ]
        for row, own in enumerate(parents)
    ]
    probe = [chance.random() < 0.1 for _ in range(12)]
    accepted = verify.greedy(logits, draft_of(tokens, parents, 12, probe))
    counts = set()
    for row in range(60):
        wanted = slow_greedy(logits[row], tokens[row], parents[row], probe)
        count = int(accepted.count[row])
        counts.add(count)
        assert accepted.tokens[row, :count].tolist() == wanted
        assert (accepted.tokens[row, count:] == -1).all() and (
            accepted.path[row, count:] == -1
        ).all()
    assert {1, 2, 3, 4} <= counts


def test_multi_round_passes_over_what_was_not_drawn():
    """A sibling that its own proposal gives no mass says nothing about the target."""
    draft = draft_of([[1, 2]], [-1, -1], 1)
    draft.probs = one_hot(torch.tensor([[3, 2]]))  # node 0 claims to be drawn where only 3 is
    half = torch.full((1, 3, V), -40.0)
    half[..., 2:4] = 0.0  # the target wants 2 or 3, and 3 is what a refusal would take away
    for uniform, token in [(0.4, 2), (0.9, 3)]:
        uniforms = torch.full((1, 2), uniform, dtype=torch.float64)
        accepted = verify.multi_round(half, draft, Sampler(1.0).warp, uniforms)
        assert accepted.tokens[0, 0] == token
        assert accepted.path.tolist() == [[0, 2 if token == 2 else -1]]


def test_token_matching_warps_visited_rows_only():
    """One call per level, and only as many as somebody walks."""
    calls = []

    def counted(logits):
        calls.append(logits.shape)
        return warp(logits, 1.0)

    draft = draft_of([[1, 2, 3], [5, 2, 3]])
    uniforms = torch.full((2, 4), 0.5, dtype=torch.float64)
    verify.token_matching(wants(1, 7, 3, 4).repeat(2, 1, 1), draft, counted, uniforms)
    assert calls == [(2, V)] * 2


def test_token_matching_walks_chains_that_share_a_prefix():
    """Nodes may spell the same prefix twice: the walk goes on in whichever chain is right."""
    draft = draft_of([[1, 2, 3, 1, 2, 4]], [-1, 0, 1, -1, 3, 4], depth=3)
    logits = wants(1, 2, 4, 7, 2, 4, 5)
    for uniform in (1e-6, 0.5, 1 - 1e-6):
        uniforms = torch.full((1, 4), uniform, dtype=torch.float64)
        accepted = verify.token_matching(logits, draft, Sampler(1.0).warp, uniforms)
        assert accepted.path.tolist() == [[0, 4, 5, 6]]
        assert accepted.tokens.tolist() == [[1, 2, 4, 5]]


def assert_same(found, wanted):
    for field in ("count", "tokens", "path"):
        assert torch.equal(getattr(found, field), getattr(wanted, field)), field


def test_choose():
    """Which rule goes with which sampler and draft."""
    chain, tree = draft_of([[1, 2]]), draft_of([[1, 2]], [-1, -1], 1)
    with_probs = Draft(chain.tokens, probs=one_hot(chain.tokens))
    tree_probs = Draft(tree.tokens, tree.tree, one_hot(tree.tokens))
    sampler = Sampler(1.0)
    sampler.reserve(1, torch.device("cpu"))
    sampler.begin([0], [3], [9])
    logits = torch.randn(1, 3, V, generator=torch.Generator().manual_seed(0))
    uniforms = sampler.uniform(3, 0)
    for draft, rule in [
        (chain, verify.token_matching),
        (tree, verify.token_matching),
        (with_probs, verify.rejection),
        (tree_probs, verify.multi_round),
    ]:
        wanted = rule(logits, draft, sampler.warp, uniforms[:, : 1 + draft.depth])
        found = verify.choose(sampler, draft)(logits)
        assert_same(found, wanted)
        greedy = verify.choose(Sampler(), draft)(logits)
        assert torch.equal(greedy.tokens, verify.greedy(logits, draft).tokens)
    lossy = verify.choose(sampler, tree, (0.2, 0.4))(logits)
    wanted = verify.typical_acceptance(logits, tree, 1.0, 0.2, 0.4)
    assert_same(lossy, wanted)


def slow_typical(logits, tokens, parents, temperature, epsilon, delta):
    """Medusa's rule as its paper writes it: (accepted rows, next token)."""
    probs = (logits.double() / temperature).softmax(-1).tolist()
    best, best_score = [0], 0.0
    for line in slow_lines(parents)[1:]:
        score, kept = 0.0, [0]
        for above, row in zip(line, line[1:]):
            law, token = probs[above], tokens[row - 1]
            entropy = -sum(p * math.log(p + 1e-5) for p in law)
            if token < 0 or law[token] <= min(epsilon, delta * math.exp(-entropy)):
                break
            score += math.log(law[token])
            kept.append(row)
        if len(kept) > len(best) or (len(kept) == len(best) > 1 and score > best_score + 1e-12):
            best, best_score = kept, score
    return best, int(logits[best[-1]].argmax())


@pytest.mark.parametrize("temperature, epsilon, delta", [(1.0, 0.09, 0.3), (0.7, 0.2, 0.5)])
@pytest.mark.parametrize("spread", [0.7, 2.0])
def test_typical_against_reference(temperature, epsilon, delta, spread):
    chance = random.Random(1)
    logits = torch.randn(80, 11, V, generator=torch.Generator().manual_seed(2)) * spread
    parents = [random_parents(10, seed) for seed in range(80)]
    tokens = [[chance.randint(-1, V - 1) for _ in range(10)] for _ in range(80)]
    accepted = verify.typical_acceptance(
        logits, draft_of(tokens, parents, 10), temperature, epsilon, delta
    )
    lengths = set()
    for row in range(80):
        wanted, following = slow_typical(
            logits[row], tokens[row], parents[row], temperature, epsilon, delta
        )
        count = int(accepted.count[row])
        lengths.add(count)
        assert accepted.path[row, :count].tolist() == wanted
        chosen = [tokens[row][at - 1] for at in wanted[1:]] + [following]
        assert accepted.tokens[row, :count].tolist() == chosen
    assert {1, 2, 3} <= lengths


def test_typical_at_temperature_0_reads_1_and_prefers_the_likelier_path():
    logits = torch.tensor([[[2.0, 1.9, 0.0, -3.0]] * 3])
    draft = draft_of([[1, 0]], [-1, -1], 1)
    for temperature in (0.0, 1.0):
        accepted = verify.typical_acceptance(logits, draft, temperature)
        assert accepted.path.tolist() == [[0, 2]] and accepted.tokens.tolist() == [[0, 0]]
