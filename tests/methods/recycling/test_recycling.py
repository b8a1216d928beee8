"""Token Recycling: the published tree, the matrix rule by hand, drafts against a slow reference."""

import json
from collections import Counter

import pytest
import torch
from conftest import make_model, make_prompts
from oracle import outputs
from recycling_slow import SlowRecycling
from steps import chain_step, prompt_step
from tiny_methods import build

from model.common.contract.drafter import Needs
from model.common.contract.sequence import EmptyDrafter
from model.common.contract.trees import ancestors
from model.common.errors import BadInput
from model.common.loop.decode import Loop
from model.common.loop.sampling import Sampler
from model.common.loop.source import Prompts, Request
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.recycling.drafter import RecyclingDrafter, read_tree

LOOPY = {"vocab_size": 17, "num_hidden_layers": 2}  # a random model that soon repeats itself
# published parents, root = 0 and nodes from 1: (parent, children), level by level
CHILDREN = [
    [(0, 8)],
    [(1, 8), (2, 4), (3, 3), (4, 2), (5, 1), (6, 1), (7, 1), (8, 1)],
    [(9, 8), (10, 3), (11, 2), (12, 1), (13, 1), (14, 1), (15, 1), (16, 1)]
    + [(17, 2), (18, 1), (21, 1), (24, 1), (26, 1), (27, 1)],
    [(30, 5), (31, 2), (32, 1), (33, 1), (34, 1), (38, 1), (41, 1), (48, 1), (51, 1), (52, 1)],
    [(55, 3), (56, 1), (57, 1), (60, 1), (65, 1), (67, 1)],
    [(70, 2), (73, 1)],
]
LIMIT = 16  # tokens of an answer
SMALL = [(0,), (1,), (0, 0), (0, 2), (1, 0), (0, 0, 0)]


def recycling(vocab_size=17, nodes=None, device="cpu", **settings):
    nodes = nodes or read_tree("2.2.2", vocab_size)
    return RecyclingDrafter(nodes, vocab_size, device, **settings)


def started(drafter, roots, topk=None):
    """The drafter at the beginning of answers that follow prompts of two tokens."""
    drafter.reserve(len(roots), 64, Sampler())
    begin(drafter, roots, topk=topk)
    return drafter


def begin(drafter, roots, slots=None, continues=None, topk=None):
    """Prompts 1, 2 and their first tokens begin in slots."""
    prompt = prompt_step([[1, 2, root] for root in roots], slots=slots)
    prompt.continues = continues or [False] * len(roots)
    prompt.topk = topk
    for name in ("tokens", "next_token"):
        setattr(prompt, name, getattr(prompt, name).to(drafter.device))
    drafter.start(prompt)


def lines(drafter):
    """The lines of all tokens, [slots (1 where warm), V, k]."""
    return drafter.matrix.view(-1, 1 + drafter.vocab_size, drafter.num_best)[:, 1:]


def observed(drafter, tokens, logits, count=None):
    """Let the drafter observe rows [B, r] and logits [B, r, V]; count committed tokens, 1 each."""
    count = count or [1] * len(tokens)
    step = chain_step([[0] * num for num in count])
    step.count, step.logits = torch.tensor(count, device=drafter.device), logits
    step.tokens = torch.as_tensor(tokens, device=drafter.device)
    step.next_token = step.next_token.to(drafter.device)
    drafter.observe(step)


@pytest.fixture(scope="module")
def model():
    """In float64: near-ties would reorder the best."""
    plain = make_model(**LOOPY, dtype=torch.float64)
    plain.set_attn_implementation("sdpa")
    return plain


@pytest.fixture(scope="module")
def target():
    return Target(make_model(**LOOPY, dtype=torch.float64))


def decode(target, drafter, turns, num_slots=1, stop=None, sampler=None):
    """Turns of (prompt, whether it goes on with its slot's question)."""
    requests = [Request(ids, LIMIT, seed, goes_on) for seed, (ids, goes_on) in enumerate(turns)]
    source, capacity = Prompts(requests), LIMIT + max(len(ids) for ids, _ in turns)
    loop = Loop(target, drafter, sampler or Sampler(), stop or StopRules(), num_slots, capacity)
    loop.run(source)
    return source.turns


@pytest.mark.parametrize("num_slots", [1, 2])
@pytest.mark.parametrize(
    "nodes, settings",
    [
        (None, {}),
        (None, {"warm": True, "seeds": True}),
        (SMALL, {"seeds": True}),
        (SMALL, {"warm": True}),
        (SMALL, {"warm": True, "seeds": True}),
        (SMALL, {"unknown": "none"}),
        (SMALL, {"unknown": "none", "warm": True, "seeds": True}),
    ],
)
@torch.inference_mode()
def test_drafts_equal_a_slow_reference(target, model, num_slots, nodes, settings):
    """Questions of two turns one after another, or single turns in slots that are filled again.

    Among the answers are some that end with a step's bonus, and some inside a path.
    """
    slow = SlowRecycling(recycling(nodes=nodes, **settings), model, nodes or read_tree("2.2.2", 17))
    firsts = make_prompts(3, vocab_size=17)
    turns = [(ids, False) for ids in firsts]
    if num_slots == 1:
        turns = [turn for ids in firsts for turn in ((ids, False), (ids + [5] + ids[:3], True))]
    stop = StopRules(frozenset({8}))
    found = decode(target, slow, turns, num_slots, stop)
    assert outputs(found) == outputs(decode(target, EmptyDrafter(), turns, num_slots, stop))
    lengths = [length for turn in found for length in turn.accept_lengths]
    assert slow.num_known > 20 and slow.learned > 0 and max(lengths) > 1
    assert slow.cut > 0 or num_slots > 1
    assert {"stop", "length"} == {turn.finish_reason for turn in found if turn.accept_lengths}


def test_published_tree():
    nodes = read_tree("2.2.2", 32000)
    assert Counter(map(len, nodes)) == {1: 8, 2: 21, 3: 25, 4: 15, 5: 8, 6: 3}
    assert nodes == sorted(nodes, key=lambda path: (len(path), path))
    assert all(path[:-1] in nodes or len(path) == 1 for path in nodes)
    drafter = recycling(32000)
    parents = [parent - 1 for level in CHILDREN for parent, num in level for _ in range(num)]
    assert drafter.tree.parents.tolist() == parents
    assert len(set(range(80)) - set(parents)) == 40
    known = ancestors(drafter.tree.parents)
    assert known.sum() == 324
    assert (known.sum(-1) - 1).tolist() == [0, *map(len, nodes)]
    assert (drafter.num_best, drafter.max_depth, drafter.max_nodes) == (8, 6, 80)


def test_toy_draft():
    drafter = started(recycling(10), [0])
    steps = torch.arange(10).unsqueeze(1) + torch.arange(1, 9)
    lines(drafter)[0] = (steps % 10).int()
    draft = drafter.propose()
    token = dict(zip(read_tree("2.2.2", 10), draft.tokens[0].tolist()))
    assert [token[(i,)] for i in range(8)] == [*range(1, 9)]
    assert (token[0, 0], token[1, 3]) == (2, 6)
    assert [token[(0,) * 6], token[0, 0, 0, 0, 0, 1], token[0, 0, 0, 1, 0, 0]] == [6, 7, 7]
    assert draft.tokens.dtype == torch.long and draft.depth == 6
    assert draft.tree is drafter.tree.tree and draft.probs is draft.probe is None
    assert drafter.reads_per_step == 0 and drafter.facts() == {"matrix_bytes": 11 * 8 * 4}


def test_unknown_successors_are_token_zero():
    """As published: 80 copies of it at first, and below a token that is known the line of 0."""
    drafter = started(recycling(10, nodes=[(0,), (1,), (0, 0), (0, 1), (1, 0)]), [3])
    assert drafter.propose().tokens.tolist() == [[0] * 5]
    logits = torch.zeros(1, 6, 10)
    logits[0, 0, [7, 0]] = torch.tensor([2.0, 1.0])  # after the root, 3
    logits[0, 1:, [4, 5]] = torch.tensor([2.0, 1.0])  # after the nodes, 0
    observed(drafter, [[3, 0, 0, 0, 0, 0]], logits)
    drafter.root = torch.tensor([3])
    assert drafter.propose().tokens.tolist() == [[7, 0, 0, 0, 4]]  # 7 is unknown, 0 is not
    assert (lines(drafter)[0].sum(1) > 0).nonzero().flatten().tolist() == [0, 3]


def test_nothing_known_can_be_an_inert_draft():
    drafter = started(recycling(10, unknown="none"), [3, 4])
    assert drafter.propose().tokens.tolist() == [[-1] * 80] * 2
    observed(drafter, [[3, 5, -1, 5], [4, -1, -1, -1]], torch.randn(2, 4, 10), count=[1, 0])
    assert (lines(drafter)[0] >= 0).all(1).nonzero().flatten().tolist() == [3, 5]
    assert (lines(drafter)[1] == -1).all() and (drafter.matrix[::11] == -1).all()


@pytest.mark.gpu
def test_update_is_the_same_on_a_gpu():
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(-1, 30, (3, 81), generator=generator)
    logits = torch.randn(3, 81, 40, generator=generator)
    results = []
    for device in ["cpu"] + ["cuda"] * 20:
        drafter = started(recycling(40, device=device, warm=True), [0] * 3)
        observed(drafter, tokens.to(device), logits.to(device))
        results.append(drafter.matrix.tolist())
    assert all(result == results[0] for result in results)


def test_cold_forgets_by_the_question():
    """Its second turn goes on with what the first one taught; the slots beside are left alone."""
    drafter = started(recycling(10), [0] * 3)
    observed(drafter, [[3], [4], [5]], torch.randn(3, 1, 10))
    held = lines(drafter).clone()
    begin(drafter, [7, 8], slots=[0, 2], continues=[True, False])
    assert torch.equal(lines(drafter)[:2], held[:2]) and not lines(drafter)[2].any()
    assert drafter.root.tolist() == [7, 0, 8]
    drafter.reserve(2, 64, Sampler())
    assert lines(drafter).shape == (2, 10, 8) and not drafter.matrix.any()


def test_warm_keeps_until_forget():
    drafter = started(recycling(10, warm=True), [3])
    observed(drafter, [[3]], torch.randn(1, 1, 10))
    held = drafter.matrix.clone()
    assert torch.equal(started(drafter, [3, 4]).matrix, held) and held.any()
    drafter.forget()
    assert drafter.facts() == {}
    assert not started(drafter, [3, 4]).matrix.any()


@pytest.mark.parametrize("warm", [False, True])
def test_prompt_seeds(warm):
    """Prompt rows teach their slot's lines; padding teaches nothing."""
    best = torch.tensor([[[5, 6], [7, 8]]])
    nodes = [(0,), (1,), (0, 1)]
    drafter = started(recycling(10, nodes=nodes, seeds=True, warm=warm), [2], best)
    assert drafter.needs == Needs(prompt_topk=2) and recycling(10).needs == Needs()
    assert drafter.propose().tokens.tolist() == [[7, 8, 0]]
    drafter.reserve(2, 64, Sampler())
    prompt = prompt_step([[1, 2, 3], [4, 1]], slots=[0, 1])
    prompt.topk = torch.tensor([[[5, 6], [7, 8]], [[9, 3], [1, 1]]])
    drafter.start(prompt)
    found = {(slot, t): lines(drafter)[slot, t].tolist() for slot in range(1 if warm else 2)
             for t in range(10) if lines(drafter)[slot, t].any()}  # fmt: skip
    other = 0 if warm else 1
    assert found == {(0, 1): [5, 6], (0, 2): [7, 8], (other, 4): [9, 3]}


@pytest.mark.parametrize(
    "text, words",
    [
        ("[[0], [1, 0]]", "[1, 0] without [1]"),
        ("[[0], [0]]", "twice"),
        ("[]", "not a list of paths"),
        ("{}", "not a list of paths"),
        ("[[]]", "[] is not a list of ranks"),
        ("[[0], 3]", "3 is not a list of ranks"),
        ("[[true]]", "[True] is not a list of ranks"),
        ("[[0], [-1]]", "from 0 to 16"),
        ("[[17]]", "from 0 to 16"),
        ("[[0]", "not JSON"),
    ],
)
def test_bad_trees(text, words, tmp_path):
    path = tmp_path / "tree.json"
    path.write_text(text)
    with pytest.raises(BadInput) as error:
        read_tree(str(path), 17)
    message = str(error.value)
    assert message.startswith(f"--tree {path}: ") and words in message and "\n" not in message


def test_missing_tree_names_the_known_ones():
    with pytest.raises(BadInput, match="--tree 9.9.9: neither a JSON file nor one of .*2.2.2"):
        read_tree("9.9.9", 17)


def test_tree_files_and_flags(target, tmp_path):
    path = tmp_path / "tree.json"
    path.write_text(json.dumps([[0, 0], [1], [0], [0, 0, 0], [1, 0], [0, 2]]))
    assert read_tree(str(path), 17) == SMALL  # in any order
    drafter = build("recycling", "x", target, [])
    assert drafter.max_nodes == 80 and not drafter.is_warm and drafter.needs == Needs()
    assert drafter.unknown == 0
    flags = ["--state", "warm", "--prompt-seeds", "--tree", str(path), "--unknown", "none"]
    drafter = build("recycling", "x", target, flags)
    assert drafter.max_nodes == 6 and drafter.is_warm and drafter.needs == Needs(prompt_topk=3)
    assert drafter.unknown == -1
