"""SpecDec++: the stop rule against its definition, exactness, host reads, what is refused."""

from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_prompts, save_model
from specdecpp_dirs import make_head, specdecpp_dir
from test_runtime import needs_compiler
from test_sps import DRAFTS, Recording, decode, next_logits, plain

from model.common import args as arguments
from model.common.contract.drafter import EmptyDrafter
from model.common.errors import BadInput
from model.common.loop.sampling import Sampler, seed_of
from model.common.target.loading import load_target
from model.common.target.model import Target
from model.specdecpp import inference_specdecpp as script
from model.specdecpp.drafter import SpecDecPPDrafter
from model.sps.drafter import SpSDrafter

LIMIT = 30
FIRST = 10  # candidate s of a scripted draft is the token FIRST + s


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


@pytest.fixture(scope="module")
def drafts():
    return {name: Target(make()) for name, make in DRAFTS.items()}


def ada(draft, target, head=None, threshold=0.6, bounds=(1, 8), eos_ids=()):
    head = head or make_head(draft.config.hidden_size).accepted
    return SpecDecPPDrafter(draft, target, head, threshold, bounds, eos_ids)


class Counting:
    """A draft model that answers token t with t + 1 and whose state is the token it read."""

    def __init__(self, batch):
        self.device, self.vocab_size = torch.device("cpu"), 97
        self.static_shapes = False
        self.cache = SimpleNamespace(length=torch.zeros(batch, dtype=torch.long))

    def prefill(self, ids, lengths, capacity, needs):
        self.cache.length.copy_(torch.tensor(lengths))

    def read(self, tokens, known, depths, needed, hidden=()):
        assert hidden == ("last",)
        logits = torch.nn.functional.one_hot(tokens + 1, 97).float() * 50
        return logits, {"last": tokens.unsqueeze(-1).float()}


def started(chances, threshold, bounds, eos_ids=(), room=1000, static=False):
    """A drafter for which candidate s of row b is accepted with chances[b][s - 1].

    The head knows a candidate by the state that has read it, and never sees the root's.
    """
    batch = len(chances)

    def head(states):
        place = states[:, 0].long() - FIRST - 1
        assert (place >= 0).all()
        return torch.tensor([row[min(i, len(row) - 1)] for row, i in zip(chances, place.tolist())])

    fake = SimpleNamespace(vocab_size=97, static_shapes=static)
    drafter = SpecDecPPDrafter(Counting(batch), fake, head, threshold, bounds, eos_ids)
    prompt = torch.tensor([[1, 2, 3]] * batch)
    step = SimpleNamespace(
        tokens=prompt,
        host_ids=[[1, 2, 3, FIRST]] * batch,
        max_committed=4,
        count=torch.tensor([3] * batch),
    )
    drafter.start(step, [3 + room] * batch, Sampler())
    return drafter


def scripted(*how, **more):
    """Draft lengths of the rows of one proposal."""
    rows = started(*how, **more).propose().tokens.tolist()
    for row in rows:
        kept = [token for token in row if token >= 0]
        assert kept == list(range(FIRST + 1, FIRST + 1 + len(kept)))
        assert row[len(kept) :] == [-1] * (len(row) - len(kept))
    lengths = [sum(token >= 0 for token in row) for row in rows]
    assert len(rows[0]) == max(lengths)  # no forward is run for nothing
    return lengths


@pytest.mark.parametrize(
    "chances, threshold, bounds, length",
    [
        ([0.9, 0.8, 0.5, 0.9], 0.3, (2, 20), 4),
        ([0.2], 0.3, (2, 20), 2),
        ([0.999], 0.3, (2, 20), 20),
        ([0.2], 0.3, (1, 20), 2),
        ([1.0], 0.0, (2, 20), 20),
        ([0.0], 0.9, (2, 20), 2),
        ([0.0], 0.9, (1, 20), 2),
        ([0.0], 0.9, (5, 20), 5),
        ([0.0], 1.0, (2, 20), 20),
        ([0.99], 0.0, (2, 20), 2),
        ([0.99], 0.0, (3, 20), 3),
        ([0.1], 0.5, (1, 1), 1),
        ([0.1], 0.5, (7, 7), 7),
        ([0.9], 0.7, (2, 20), 13),  # 0.9 ** 12 is the first below 0.3
    ],
)
def test_stop_lengths(chances, threshold, bounds, length):
    assert scripted([chances], threshold, bounds) == [length]


def test_every_row_stops_for_itself():
    chances = [[0.9, 0.8, 0.5], [0.2], [0.999], [0.75, 0.5]]
    alone = [scripted([row], 0.3, (2, 9))[0] for row in chances]
    assert scripted(chances, 0.3, (2, 9)) == alone == [4, 2, 9, 3]


def test_a_draft_ends_with_eos_and_within_its_room():
    eos = (FIRST + 3,)
    assert scripted([[1.0]], 0.3, (2, 20), eos) == [3]
    assert scripted([[1.0]], 0.3, (5, 20), eos) == [3]
    assert scripted([[1.0]], 0.3, (2, 20), (FIRST + 1,)) == [1]
    assert scripted([[1.0]], 0.3, (2, 20), room=6) == [4]


def test_host_reads_are_declared_and_kept(target, drafts, monkeypatch):
    reads = []
    inside = torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda t: reads.append(1) or inside(t))
    scripted([[1.0]], 0.3, (2, 20))
    assert len(reads) == 19 + 18  # and one in each call of this test's own head
    for most in (1, 2, 20):
        assert ada(drafts["noisy"], target, bounds=(1, most)).reads_per_step == most - 1


def test_shapes_hold_every_draft(target, drafts):
    for most in (1, 3, 4, 5, 8, 20, 33):
        shapes = [n for n, *_ in ada(drafts["noisy"], target, bounds=(1, most)).shapes()]
        assert shapes[0] == 4 and shapes[-1] >= most
        assert all(b == 2 * a for a, b in zip(shapes, shapes[1:]))
        assert len(shapes) == 1 or shapes[-2] < most


@pytest.mark.parametrize("chance", [0.2, 0.8, 0.99])
def test_static_runtimes_see_the_announced_shapes(chance):
    drafter = started([[chance]], 0.5, (2, 20), static=True)
    draft = drafter.propose()
    assert draft.tokens.shape[1] in [num_nodes for num_nodes, *_ in drafter.shapes()]
    assert (draft.tokens >= 0).sum() == {0.2: 2, 0.8: 5, 0.99: 20}[chance]


def test_an_ended_row_is_not_waited_for():
    drafter = started([[1.0], [0.2]], 0.3, (2, 20))
    assert drafter.propose().tokens.shape == (2, 20)
    step = SimpleNamespace(
        count=torch.tensor([0, 1]),
        new_tokens=torch.tensor([[-1], [FIRST]]),
        host_ids=[[], [FIRST]],
        max_committed=5,
    )
    drafter.observe(step)
    draft = drafter.propose()
    assert draft.tokens.shape == (2, 2) and (draft.tokens[1] >= 0).all()


@pytest.mark.parametrize(
    "name, tied", [("target", True), ("random", True), ("noisy", True), ("noisy", False)]
)
def test_greedy_ids_equal_vanilla(target, drafts, name, tied):
    expected = [decode(target, EmptyDrafter(), [p])[0].output_ids for p in make_prompts(4)]
    drafter = ada(drafts[name], target, make_head(tied=tied).accepted)
    alone = [decode(target, drafter, [prompt])[0] for prompt in make_prompts(4)]
    together = decode(target, drafter, make_prompts(4))
    for turns in (alone, together):
        assert [turn.output_ids for turn in turns] == expected
    assert [t.accept_lengths for t in together] == [t.accept_lengths for t in alone]
    assert [t.drafted for t in together] == [t.drafted for t in alone]
    assert len({n for turn in alone for n in turn.drafted}) > 3  # the head decides
    for turn in alone:
        assert all(1 <= n <= 1 + k for n, k in zip(turn.accept_lengths, turn.drafted))


@needs_compiler
def test_a_compiled_draft_model_tells_its_states(target):
    """Of a model whose first forward with states would else be a compiled one."""
    draft, prompts = Target(DRAFTS["random"](), "compile"), make_prompts(1)
    expected = decode(target, EmptyDrafter(), prompts, 8)[0].output_ids
    assert decode(target, ada(draft, target), prompts, 8)[0].output_ids == expected


def test_sampled_answers_do_not_depend_on_the_batch(target, drafts):
    sampler = Sampler(1.0, top_p=0.95)
    drafter = ada(drafts["noisy"], target)
    seeds = [seed_of(0, i, 0, 0) for i in range(4)]
    together = decode(target, drafter, make_prompts(4), 20, sampler=sampler, seeds=seeds)
    for prompt, seed, turn in zip(make_prompts(4), seeds, together):
        alone = decode(target, drafter, [prompt], 20, sampler=sampler, seeds=[seed])[0]
        assert turn.output_ids == alone.output_ids and turn.drafted == alone.drafted


@torch.inference_mode()
def slow_length(model, head, committed, tokens, threshold, bounds):
    """How long a draft has to be, each score from a whole forward without a cache."""
    survival, length = 1.0, 0
    while length < bounds[1]:
        length += 1
        if length > 1:
            ids = torch.tensor([[*committed, *tokens[: length - 1]]])
            out = model(ids, output_hidden_states=True, use_cache=False)
            survival *= head.accepted(out.hidden_states[-1][0, -1]).item()
        if length >= bounds[0] and 1 - survival > threshold:
            break
    return length


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("bounds", [(1, 6), (3, 9)])
def test_lengths_and_tokens_equal_a_slow_reference(target, drafts, bounds, batch, temperature):
    head = make_head(tied=False, seed=2, scale=0.25)
    recording = Recording(ada(drafts["noisy"], target, head.accepted, 0.6, bounds))
    prompts = make_prompts(batch)
    sampler = Sampler(temperature)
    turns = decode(target, recording, prompts, 24, sampler=sampler)
    model, lengths = plain(drafts["noisy"].model), set()
    for row, committed, tokens, probs in recording.drafts:
        room = len(prompts[row]) + 24 - 1 - len(committed)
        if len(committed) >= len(prompts[row]) + len(turns[row].output_ids) or room < bounds[1]:
            continue  # of an ended row, or cut by the answer's limit
        tokens = [token for token in tokens if token >= 0]
        lengths.add(len(tokens))
        assert len(tokens) == slow_length(model, head, committed, tokens, 0.6, bounds)
        for node, token in enumerate(tokens):
            logits = next_logits(model, committed + tokens[:node])
            if temperature == 0:
                assert token == logits.argmax()
            else:
                assert torch.allclose(probs[node], sampler.warp(logits), atol=1e-4)
                assert probs[node][token] > 0
    assert len(lengths) > 1


@pytest.fixture(scope="module")
def dirs(tmp_path_factory):
    target = save_model(tmp_path_factory.mktemp("target"))
    draft = save_model(tmp_path_factory.mktemp("draft"), seed=5, num_hidden_layers=1)
    return SimpleNamespace(target=target, draft=draft, head=specdecpp_dir(draft))


def build(dirs, *flags):
    parser = arguments.make_parser("specdecpp", script.__doc__, script.add_args)
    paths = ["--model-path", dirs.target, "--drafter-path", dirs.draft, "--dtype", "float32"]
    target = load_target(dirs.target, "float32", "cpu", "eager")
    return script.build(parser.parse_args([*paths, *flags]), target)


def test_schedules(dirs):
    drafter = build(dirs, "--head-path", dirs.head, "--threshold", "0.4", "--bound", "3", "9")
    assert type(drafter) is SpecDecPPDrafter
    assert (drafter.threshold, drafter.fewest, drafter.num_draft) == (0.4, 3, 9)
    assert drafter.eos_ids.tolist() == [1]
    for name in ("constant", "heuristic"):
        other = build(dirs, "--schedule", name, "--num-draft", "7")
        assert type(other) is SpSDrafter
        assert (other.schedule, other.num_draft) == (name, 7)
    assert type(build(dirs, "--schedule", "none")) is EmptyDrafter


def test_what_cannot_be_built_is_one_line(dirs, tmp_path):
    with pytest.raises(BadInput, match="^--schedule ada needs --head-path$"):
        build(dirs)
    with pytest.raises(BadInput, match="^--bound 9 3: the first is above the second$"):
        build(dirs, "--head-path", dirs.head, "--bound", "9", "3")
    with pytest.raises(BadInput, match="no such model directory"):
        build(dirs, "--head-path", str(tmp_path / "none"))
    with pytest.raises(SystemExit):
        build(dirs, "--head-path", dirs.head, "--threshold", "1.5")
    with pytest.raises(SystemExit):
        build(dirs, "--head-path", dirs.head, "--bound", "0", "3")
