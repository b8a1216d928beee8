"""Token Recycling: the published tree, drafts against a slow reference, answers vanilla's."""

import json
import subprocess
import sys
from collections import Counter

import pytest
import torch
from conftest import make_model, make_prompts

from model.common import args as arguments
from model.common.contract import trees as tree
from model.common.contract.drafter import Drafter, EmptyDrafter, Needs, Step
from model.common.errors import BadInput
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.recycling import inference_recycling as script
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
SMALL = [(0,), (1,), (0, 0), (0, 2), (1, 0), (0, 0, 0)]


@pytest.fixture(scope="module")
def target():
    return Target(make_model(**LOOPY))


def loopy_prompts(num=4):
    return make_prompts(num, vocab_size=17)


def recycling(vocab_size=17, nodes=None, device="cpu", **settings):
    nodes = nodes or read_tree("2.2.2", vocab_size)
    return RecyclingDrafter(nodes, vocab_size, device, **settings)


def decode(target, drafter, prompts, limit=24, batch=1, stop=None, sampler=None):
    turns = []
    for begin in range(0, len(prompts), batch):
        part = prompts[begin : begin + batch]
        seeds = list(range(begin, begin + len(part)))
        stop = stop or StopRules()
        turns += generate(target, drafter, part, sampler or Sampler(), seeds, stop, limit)
    return [turn.output_ids for turn in turns], [turn.accept_lengths for turn in turns]


def started(drafter, roots, prompt_topk=None):
    """The drafter at the beginning of answers that follow prompts of two tokens."""
    batch = len(roots)
    drafter.start(
        Step(
            tokens=torch.tensor([[1, 2]] * batch),
            logits=None,
            hidden={},
            path=torch.tensor([[0, 1]] * batch),
            count=torch.full((batch,), 2),
            next_token=torch.tensor(roots),
            new_tokens=torch.tensor([[2, root] for root in roots]),
            host_ids=[[1, 2, root] for root in roots],
            max_committed=3,
            prompt_topk=prompt_topk,
        ),
        [100] * batch,
        Sampler(),
    )
    return drafter


def lines(drafter):
    """The lines of all tokens, [sequences (1 where warm), V, k]."""
    return drafter.matrix.view(-1, 1 + drafter.vocab_size, drafter.num_best)[:, 1:]


def observed(drafter, tokens, logits, count=None):
    """Let the drafter observe a step of these rows, [B, m] and [B, m, V]."""
    batch = len(tokens)
    count = torch.ones(batch, dtype=torch.long) if count is None else torch.tensor(count)
    device = logits.device
    drafter.observe(
        Step(
            tokens=torch.as_tensor(tokens, device=device),
            logits=logits,
            hidden={},
            path=torch.zeros(batch, 1, dtype=torch.long, device=device),
            count=count.to(device),
            next_token=torch.zeros(batch, dtype=torch.long, device=device),
            new_tokens=torch.zeros(batch, 1, dtype=torch.long, device=device),
            host_ids=[[0]] * batch,
            max_committed=4,
        )
    )


class Recording(Drafter):
    """Keeps every draft with what was committed before it; before(drafter, committed) each step."""

    def __init__(self, inner, before=None):
        self.inner, self.needs, self.before = inner, inner.needs, before
        self.drafts, self.starts = [], []

    def start(self, prefill, max_lengths, sampler):
        self.inner.start(prefill, max_lengths, sampler)
        self.committed = [list(ids) for ids in prefill.host_ids]
        self.starts.append(len(self.drafts))

    def propose(self):
        draft = self.inner.propose()
        self.drafts.append((draft.tokens.tolist(), [list(ids) for ids in self.committed]))
        if self.before:
            self.before(self.committed)
        return draft

    def observe(self, step):
        self.inner.observe(step)
        for ids, new in zip(self.committed, step.host_ids):
            ids.extend(new)


class SlowRecycling:
    """The method by its definition: a dict of lists, and a plain forward of every node's path."""

    def __init__(self, model, nodes):
        self.model, self.nodes, self.best = model, nodes, {}
        self.num_best = 1 + max(max(path) for path in nodes)

    def top(self, sequences):
        """The best next ids after each sequence."""
        longest = max(map(len, sequences))
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sequences])
        logits = self.model(padded).logits
        return [
            logits[i, len(ids) - 1].argsort(descending=True)[: self.num_best].tolist()
            for i, ids in enumerate(sequences)
        ]

    def read_prompt(self, ids):
        for i, best in enumerate(self.top([ids[: i + 1] for i in range(len(ids))])):
            self.best[ids[i]] = best

    def draft(self, root):
        """Tokens of the nodes, -1 where a successor is not known."""
        token = {(): root}
        for path in self.nodes:
            known = self.best.get(token[path[:-1]])
            token[path] = known[path[-1]] if known else -1
        return [token[path] for path in self.nodes]

    def learn(self, committed, tokens):
        """Read the root and every node that has a token; the last one of a token counts."""
        token = dict(zip(self.nodes, tokens))
        lines = [committed]
        for path in self.nodes:
            if token[path] >= 0:
                lines.append(committed + [token[path[:end]] for end in range(1, len(path) + 1)])
        for ids, best in zip(lines, self.top(lines)):
            self.best[ids[-1]] = best


@pytest.mark.parametrize("seeds", [False, True])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("nodes", [None, SMALL])
@torch.inference_mode()
def test_drafts_equal_a_slow_reference(nodes, warm, seeds):
    shape = {**LOOPY, "dtype": torch.float64}  # near-ties would reorder the best
    target, model = Target(make_model(**shape)), make_model(**shape)
    model.set_attn_implementation("sdpa")
    drafter = Recording(recycling(nodes=nodes, warm=warm, seeds=seeds))
    prompts = loopy_prompts(3)
    ids, accepted = decode(target, drafter, prompts, 10)
    slow, known = None, 0
    for row, begin in enumerate(drafter.starts):
        if slow is None or not warm:
            slow = SlowRecycling(model, nodes or read_tree("2.2.2", 17))
        if seeds:
            slow.read_prompt(prompts[row])
        for number in range(len(accepted[row])):
            (tokens,), (committed,) = drafter.drafts[begin + number]
            assert tokens == slow.draft(committed[-1])
            known += sum(token >= 0 for token in tokens)
            slow.learn(committed, tokens)
    assert known > 20 and max(map(max, accepted)) > 1


@torch.inference_mode()
def test_warm_batches_equal_a_slow_reference():
    """Rows learn into one matrix, one after another."""
    shape = {**LOOPY, "dtype": torch.float64}
    target, model = Target(make_model(**shape)), make_model(**shape)
    model.set_attn_implementation("sdpa")
    drafter = Recording(recycling(nodes=SMALL, warm=True, seeds=True))
    prompts = loopy_prompts(3)
    ids, accepted = decode(target, drafter, prompts, 12, batch=3)
    slow = SlowRecycling(model, SMALL)
    for prompt in prompts:
        slow.read_prompt(prompt)
    for number, (drafts, committed) in enumerate(drafter.drafts):
        alive = [row for row in range(3) if number < len(accepted[row])]
        drafted = {row: slow.draft(committed[row][-1]) for row in alive}
        for row in alive:
            assert drafts[row] == drafted[row]
        for row in alive:
            slow.learn(committed[row], drafts[row])


def test_published_tree():
    nodes = read_tree("2.2.2", 32000)
    assert Counter(map(len, nodes)) == {1: 8, 2: 21, 3: 25, 4: 15, 5: 8, 6: 3}
    assert nodes == sorted(nodes, key=lambda path: (len(path), path))
    assert all(path[:-1] in nodes or len(path) == 1 for path in nodes)
    drafter = recycling(32000)
    parents = [parent - 1 for level in CHILDREN for parent, num in level for _ in range(num)]
    assert drafter.parents.tolist() == parents
    assert len(set(range(80)) - set(parents)) == 40
    known = tree.ancestors(drafter.parents)
    assert known.sum() == 324
    assert (known.sum(-1) - 1).tolist() == [0, *map(len, nodes)]
    assert (drafter.num_best, drafter.depth) == (8, 6)


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
    assert draft.parents is drafter.shapes()[0][1] and drafter.shapes()[0][0] == 80
    assert drafter.reads_per_step == 0 and drafter.facts() == {"matrix_bytes": 11 * 8 * 4}


def test_nothing_known_is_an_inert_draft():
    drafter = started(recycling(10), [3, 4])
    assert drafter.propose().tokens.tolist() == [[-1] * 80] * 2
    observed(drafter, [[3, 5, -1, 5], [4, -1, -1, -1]], torch.randn(2, 4, 10), count=[1, 0])
    assert (lines(drafter)[0] >= 0).all(1).nonzero().flatten().tolist() == [3, 5]
    assert (lines(drafter)[1] == -1).all() and (drafter.matrix[::11] == -1).all()


@pytest.mark.parametrize("warm", [False, True])
def test_update(warm):
    """The lines of the distinct tokens read, and no others, are the best at each one's last row."""
    generator = torch.Generator().manual_seed(2)
    drafter = started(recycling(40, warm=warm), [0] * 3)
    expected = [[[-1] * 8 for _ in range(40)] for _ in range(1 if warm else 3)]
    for _ in range(3):
        tokens = torch.randint(-1, 30, (3, 81), generator=generator)
        logits = torch.randn(3, 81, 40, generator=generator)
        observed(drafter, tokens, logits)
        for row in range(3):
            for token, scores in zip(tokens[row].tolist(), logits[row]):
                if token >= 0:
                    best = scores.argsort(descending=True)[:8].tolist()
                    expected[0 if warm else row][token] = best
        assert lines(drafter).tolist() == expected


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


def test_start_forgets_when_cold_and_keeps_when_warm():
    logits = torch.randn(1, 1, 10)
    for warm in (False, True):
        drafter = started(recycling(10, warm=warm), [3])
        observed(drafter, [[3]], logits)
        held = drafter.matrix.clone()
        started(drafter, [3])
        assert torch.equal(drafter.matrix, held) == warm
        assert started(drafter, [3, 4]).matrix.shape == ((1 if warm else 2) * 11, 8)


def test_prompt_seeds():
    best = torch.tensor([[[5, 6], [7, 8]]])
    drafter = started(recycling(10, nodes=[(0,), (1,), (0, 1)], seeds=True), [2], best)
    assert drafter.needs == Needs(prompt_topk=2)
    assert drafter.propose().tokens.tolist() == [[7, 8, -1]]
    assert recycling(10).needs == Needs()


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("seeds", [False, True])
def test_answers_are_vanillas(target, batch, warm, seeds):
    prompts = loopy_prompts()
    expected, _ = decode(target, EmptyDrafter(), prompts)
    drafter = recycling(warm=warm, seeds=seeds)
    for _ in range(2):
        ids, accepted = decode(target, drafter, prompts, batch=batch)
        assert ids == expected
        assert [1 + sum(lengths) for lengths in accepted] == [24] * 4
        assert 1 < max(max(lengths) for lengths in accepted) <= 7


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma3_text"])
def test_other_families(family):
    target = Target(make_model(family, **{**LOOPY, "num_hidden_layers": 3}))
    expected, _ = decode(target, EmptyDrafter(), loopy_prompts())
    assert decode(target, recycling(seeds=True), loopy_prompts(), batch=4)[0] == expected


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
def test_sampled_answers_are_vanillas(target, batch, warm):
    prompts, sampler = loopy_prompts(), Sampler(1.0, top_p=0.8)
    expected, _ = decode(target, EmptyDrafter(), prompts, 40, sampler=sampler)
    ids, accepted = decode(target, recycling(warm=warm), prompts, 40, batch, sampler=sampler)
    assert ids == expected
    assert sum(map(len, accepted)) < 0.9 * 4 * 39


@pytest.mark.parametrize("seeds", [False, True])
def test_cold_runs_do_not_depend_on_order_or_batch(target, seeds):
    drafter, prompts = recycling(seeds=seeds), loopy_prompts()
    ids, accepted = decode(target, drafter, prompts)
    assert decode(target, drafter, prompts[::-1]) == (ids[::-1], accepted[::-1])
    assert decode(target, drafter, prompts, batch=4) == (ids, accepted)
    assert decode(target, drafter, prompts) == (ids, accepted)


def test_warm_runs_profit_from_what_was_read(target):
    drafter, prompts = recycling(warm=True), loopy_prompts()
    ids, first = decode(target, drafter, prompts)
    again, second = decode(target, drafter, prompts)
    assert again == ids
    assert sum(map(len, second)) < sum(map(len, first))
    _, cold = decode(target, recycling(), prompts)
    assert first[0] == cold[0] and first[1:] != cold[1:]


def test_rows_that_end_early_leave_the_others_alone(target):
    prompts = loopy_prompts()
    ids, _ = decode(target, recycling(), prompts)
    stop = StopRules(frozenset({ids[0][1]}))
    expected, _ = decode(target, EmptyDrafter(), prompts, stop=stop)
    assert len(expected[0]) < 4 < max(map(len, expected))
    cold = decode(target, recycling(), prompts, stop=stop)
    assert cold[0] == expected
    assert decode(target, recycling(), prompts, batch=4, stop=stop) == cold
    assert decode(target, recycling(warm=True), prompts, batch=4, stop=stop)[0] == expected


@pytest.mark.parametrize("batch", [1, 4])
def test_cache_equals_a_fresh_prefill(target, batch):
    fresh, checked = Target(make_model(**LOOPY)), []

    def columns(held, row, num):
        return torch.cat([storage[:, :, row, :, :num] for storage in held.cache.storage])

    def check(committed):
        for row, ids in enumerate(committed):
            if target.cache.length[row]:
                fresh.prefill(torch.tensor([ids[:-1]]), [len(ids) - 1], 256, Needs())
                expected = columns(fresh, 0, len(ids) - 1)
                assert torch.allclose(columns(target, row, len(ids) - 1), expected, atol=1e-4)
                checked.append(row)

    _, accepted = decode(target, Recording(recycling(), check), loopy_prompts(batch), 16, batch)
    assert len(checked) == sum(map(len, accepted))


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
    parser = arguments.make_parser("recycling", script.__doc__, script.add_args)
    args = parser.parse_args(["--model-path", "x"])
    drafter = script.build(args, target)
    assert len(drafter.parents) == 80 and not drafter.is_warm and drafter.needs == Needs()
    flags = ["--model-path", "x", "--state", "warm", "--prompt-seeds", "--tree", str(path)]
    drafter = script.build(parser.parse_args(flags), target)
    assert len(drafter.parents) == 6 and drafter.is_warm and drafter.needs == Needs(prompt_topk=3)


def test_light_imports():
    code = "import sys, model.recycling.inference_recycling; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


def test_idle_rows_teach_nothing():
    """A static runtime fills a batch up; what those rows read must not reach a warm matrix."""
    matrices = []
    for static in (False, True):
        target = Target(make_model(**LOOPY))
        if static:
            target.static_batch = 3
            target.runtime.static_shapes = True
        drafter = recycling(nodes=SMALL, warm=True, seeds=True)
        decode(target, drafter, loopy_prompts(2), 12)
        matrices.append(drafter.matrix.clone())
    assert torch.equal(*matrices) and (matrices[0] >= 0).any()
