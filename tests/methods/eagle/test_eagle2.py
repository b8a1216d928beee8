"""EAGLE-2's dynamic tree against its definition; its sizes and flags."""

import itertools
import math

import pytest
import torch
from eagle_checks import KINDS, parsed, tiny_model
from eagle_slow import ScriptedHead, dynamic_paths, whole_pool
from recording import Recording

from model.common.contract.drafter import Needs, Step
from model.common.errors import BadInput
from model.common.loop.sampling import Sampler
from model.common.target.model import Target
from model.eagle2 import inference_eagle2 as script
from model.eagle2.drafter import DynamicEagleDrafter, check_size


def drafted(guess, vocab_size, size, num_slots=1, kind=DynamicEagleDrafter, sampler=None):
    """(Draft, token paths of each slot's nodes) of a scripted head behind prompts of two tokens."""
    ones = torch.ones(num_slots, 2, dtype=torch.long)
    prompt = Step(
        slots=list(range(num_slots)),
        tokens=ones,
        path=torch.tensor([[0, 1]] * num_slots),
        count=torch.full((num_slots,), 2),
        new_tokens=ones,
        next_token=ones[:, 0],
        host_ids=[[1, 1, 1]] * num_slots,
        max_committed=3,
        hidden={"last": torch.zeros(num_slots, 2, 4)},
    )
    recording = Recording(kind(ScriptedHead(guess, vocab_size), *size))
    recording.reserve(num_slots, 100, sampler or Sampler())
    recording.start(prompt)
    return recording.propose(), [one.paths for one in recording.drafts]


def random_guess(vocab_size, seed, spread=2.0):
    """Logits that depend on slot and path alone."""

    def guess(slot, place, path):
        generator = torch.Generator().manual_seed(hash((seed, slot, path)) % 2**31)
        return (spread * torch.randn(vocab_size, generator=generator)).tolist()

    return guess


def best_of(guess, slot):
    """best() of the slow builders, for a guess."""

    def best(path, num):
        logp = torch.tensor(guess(slot, 1, path)).log_softmax(-1)
        ids = logp.argsort(descending=True)[:num].tolist()
        return [(i, logp[i].item()) for i in ids]

    return best


# --- the tree ---


def worked_example(slot, place, path):
    if path in ((), (0,), (1,)):
        chances = {(): (0.6, 0.3, 0.1), (0,): (0.1, 0.7, 0.2), (1,): (0.5, 0.3, 0.2)}[path]
    else:
        chances = (0.5, 0.3, 0.2)
    return torch.tensor(chances).log().tolist()


def test_worked_example():
    draft, paths = drafted(worked_example, 3, (5, 2, 2))
    assert draft.tokens.tolist() == [[0, 1, 1, 0, 0]]
    assert draft.tree.parents.tolist() == [[-1, -1, 0, 1, 2]]  # rows 0 0 1 2 3, row 0 is the root
    assert paths == [[(0,), (1,), (0, 1), (1, 0), (0, 1, 0)]]
    assert draft.tree.depths.tolist() == [[0, 1, 1, 2, 2, 3]] and draft.depth == 3
    for leaf, line in ((4, [0, 2, 4]), (5, [0, 1, 3, 5])):
        assert draft.tree.ancestors[0, leaf].nonzero().flatten().tolist() == line
    scores = [
        round(math.exp(score), 3) for _, score in whole_pool(best_of(worked_example, 0), 2, 2)
    ]
    assert scores == [0.6, 0.3, 0.42, 0.12, 0.15, 0.09, 0.21, 0.126, 0.075, 0.045]


@pytest.mark.parametrize(
    "num_nodes, depth, top_k",
    [(5, 2, 2), (59, 5, 10), (12, 3, 3), (1, 1, 1), (6, 5, 1), (30, 3, 3)],
)
def test_random_trees(num_nodes, depth, top_k):
    vocab_size, num_slots, size = 23, 4, (num_nodes, depth, top_k)
    for seed in range(3):
        guess = random_guess(vocab_size, seed)
        draft, every = drafted(guess, vocab_size, size, num_slots)
        parents = draft.tree.parents
        assert draft.tokens.shape == parents.shape == (num_slots, num_nodes)
        assert draft.depth == depth + 1 and draft.probs is None and draft.probe is None
        assert draft.tree.depths.max() <= depth + 1
        assert ((parents >= -1) & (parents < torch.arange(num_nodes))).all()
        for slot, paths in enumerate(every):
            assert len(set(paths)) == num_nodes
            assert paths == dynamic_paths(best_of(guess, slot), *size)


def test_kept_nodes_are_the_best_parent_closed_set():
    """Against every set of five of the ten nodes of a pool."""
    for seed in range(12):
        guess = random_guess(9, seed, 0.5)
        _, (kept,) = drafted(guess, 9, (5, 2, 2))
        scores = dict(whole_pool(best_of(guess, 0), 2, 2))
        assert len(scores) == 10
        closed = [
            sum(scores[path] for path in chosen)
            for chosen in itertools.combinations(scores, 5)
            if all(len(path) == 1 or path[:-1] in chosen for path in chosen)
        ]
        assert abs(sum(scores[path] for path in kept) - max(closed)) < 1e-5


class Tied(DynamicEagleDrafter):
    """All log probabilities are 0, as in half precision where the head is certain."""

    def _best(self, logits):
        ids, logp = super()._best(logits)
        return ids, torch.zeros_like(logp)


@pytest.mark.parametrize("num_nodes", [3, 7, 12, 20, 21])
def test_ties_go_to_the_earlier_node(num_nodes):
    """Parents are in the pool before their children, so they are always kept with them."""
    given = random_guess(11, 0), 11, (num_nodes, 2, 3), 2, Tied
    draft, every = drafted(*given)
    for parents, paths in zip(draft.tree.parents.tolist(), every):
        assert parents[:3] == [-1, -1, -1]
        assert parents[3:12] == [node // 3 for node in range(9)][: num_nodes - 3]
        assert all(-1 <= parent < node for node, parent in enumerate(parents))
        assert len(set(paths)) == num_nodes
    again, _ = drafted(*given)
    assert torch.equal(draft.tokens, again.tokens)
    assert torch.equal(draft.tree.parents, again.tree.parents)


def test_scores_are_sums_of_log_probabilities_at_temperature_one():
    """A likely child of an unlikely node stays behind; sampling settings change no draft."""
    chances = {(): (0.9, 0.08, 0.02), (0,): (0.5, 0.4, 0.1), (1,): (0.98, 0.01, 0.01)}

    def guess(slot, place, path):
        return torch.tensor(chances.get(path, (0.4, 0.3, 0.3))).log().tolist()

    for sampler in (Sampler(), Sampler(0.2, top_p=0.5)):
        _, (paths,) = drafted(guess, 3, (3, 1, 2), sampler=sampler)
        assert paths == [(0,), (0, 0), (0, 1)]


@pytest.mark.parametrize(
    "size, words",
    [
        ((60, 1, 3, 97), "--total-token 60: --draft-top-k 3 and --depth 1 allow 2 to 13"),
        ((14, 1, 3, 97), "allow 2 to 13"),
        ((1, 5, 10, 97), "allow 2 to 511"),
        ((60, 5, 10, 9), "--draft-top-k 10: the head drafts 9 tokens"),
    ],
)
def test_impossible_sizes_are_one_line(size, words):
    with pytest.raises(BadInput, match=words) as error:
        check_size(*size)
    assert "\n" not in str(error.value)


def test_possible_sizes(tmp_path):
    folder, target = KINDS["eagle2"].new_head(tmp_path), Target(tiny_model())
    assert check_size(13, 1, 3, 97) == 12 and check_size(2, 1, 1, 1) == 1
    assert check_size(511, 5, 10, 10) == 510
    args = parsed(script, "eagle2", "--eagle-path", folder)
    assert (args.total_token, args.depth, args.draft_top_k) == (60, 5, 10)
    drafter = script.build(args, target)
    assert (drafter.max_nodes, drafter.depth, drafter.top_k) == (59, 5, 10)
    assert drafter.needs == Needs(hidden=("last",))
    args = parsed(script, "eagle2", "--eagle-path", folder, "--draft-top-k", 18)
    with pytest.raises(BadInput, match="17 tokens"):
        script.build(args, target)
