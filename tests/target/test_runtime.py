"""runtime.py: recorded steps give the eager ids; the bookkeeping of graphs (compile: next door)."""

import pytest
import torch
from conftest import make_model, make_prompts
from oracle import (
    DRAFTERS,
    Chain,
    RandomTree,
    Sometimes,
    StaticTree,
    answers,
    decode,
    facts,
    lively,
    new_drafter,
    new_target,
    outputs,
)
from recording import Around
from replays import Replays, with_graphs
from tiny_methods import METHODS, MINI, build, mini_bench, mini_flags

from model.common.contract.drafter import Draft, Needs
from model.common.contract.sequence import EmptyDrafter
from model.common.contract.trees import Tree
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.target import runtime as runtime_module
from model.common.target.attention import additive
from model.common.target.loading import load_target
from model.common.target.model import Target
from model.common.target.runtime import (
    CudaCapture,
    CudaGraphs,
    Recorded,
    Runtime,
    compilations,
    make_runtime,
    tensors_of,
)

PROMPTS = make_prompts(4)
CPU = torch.device("cpu")


class Adder:
    """A function that counts its calls: data + offset + width, and the data as a hidden state."""

    def __init__(self):
        self.calls = 0

    def __call__(self, data, offset, width):
        self.calls += 1
        return data + width + (0 if offset is None else offset), {"last": data * 1}


def test_one_graph_per_shape_and_argument():
    capture, forward, before = Replays(), Adder(), compilations()
    graphs = Recorded(forward, capture)
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 7.0])
    first, _ = graphs(one, None, 64)
    assert first.tolist() == [65, 66] and capture.captured == 1
    second, states = graphs(two, None, 64)
    assert second.tolist() == [69, 71] and states["last"].tolist() == [5, 7]
    assert second is first and capture.captured == 1  # one result, rewritten
    assert one.tolist() == [1, 2] and two.tolist() == [5, 7]
    calls = [
        (one, None, 128),
        (one, one, 64),
        (torch.ones(3), None, 64),
        (torch.ones(2).double(), None, 64),
        (torch.ones(1, 2), None, 64),
    ]
    for number, arguments in enumerate(calls, 2):
        assert torch.equal(graphs(*arguments)[0], Adder()(*arguments)[0])
        assert capture.captured == number
    for arguments in calls:
        assert torch.equal(graphs(*arguments)[0], Adder()(*arguments)[0])
    assert capture.captured == 6 == compilations() - before
    assert forward.calls == capture.captured + capture.replayed
    two.fill_(0)  # the caller's tensor, not the graph's
    assert graphs(one, None, 64)[0].tolist() == [65, 66]


def test_a_failed_capture_says_so_once_and_runs_eager(capsys):
    def refuse(function):
        raise RuntimeError("out of capture\nmore lines")

    forward = Adder()
    graphs = Recorded(forward, refuse)
    for number in range(1, 4):
        assert graphs(torch.ones(number), None, 1)[0].tolist() == [2.0] * number
        assert forward.calls == number
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "--runtime cudagraph: out of capture; running eager\n"


def test_a_failed_capture_names_its_cause(capsys):
    """torch.cuda.graph ends the capture when it is left, and that fails in its own words."""

    def capture(function):
        try:
            raise RuntimeError("operation not permitted\nmore")
        finally:
            raise RuntimeError("failed due to a previous error")

    graphs = Recorded(lambda data: data + 1, capture)
    assert graphs(torch.ones(1)).item() == 2 and graphs.broken
    said = "--runtime cudagraph: operation not permitted; running eager\n"
    assert capsys.readouterr().err == said


def test_other_errors_are_not_hidden():
    def broken(function):
        raise TypeError("a bug")

    with pytest.raises(TypeError):
        Recorded(Adder(), broken)(torch.ones(1), None, 1)


class FakeCuda:
    """The parts of torch.cuda that a capture uses."""

    def __init__(self, monkeypatch):
        self.streams, self.pools, self.waits = [], [], []
        fake = self

        class Stream:
            def wait_stream(self, other):
                fake.waits.append((self, other))

        class Graph:
            def pool(self):
                return self

            def replay(self):
                raise AssertionError("not asked for")

        class Context:
            def __init__(self, *arguments, pool=None, stream=None):
                if stream is not None:
                    fake.pools.append((arguments[0], pool))
                    fake.streams.append(stream)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                return False

        main = Stream()
        for name, value in {
            "Stream": Stream,
            "CUDAGraph": Graph,
            "graph": Context,
            "stream": Context,
            "device": Context,
            "current_stream": lambda *_: main,
        }.items():
            monkeypatch.setattr(runtime_module.torch.cuda, name, value)


def test_graphs_share_a_pool_and_leave_their_results_outside(monkeypatch):
    fake = FakeCuda(monkeypatch)
    capture, made = CudaCapture(torch.device("cuda:1")), []

    def forward():
        made.append((torch.full((2,), 1.0 + len(made)), {"last": (torch.full((1,), 7.0),)}))
        return made[-1]

    for number in range(3):
        replay, kept = capture(forward)
        warm_up, recorded = made[2 * number :]
        assert kept is warm_up and kept is not recorded
        assert torch.equal(kept[0], recorded[0])  # the recording copies what it finds
        assert replay.__self__ is fake.pools[number][0]
    first = fake.pools[0][0]
    assert [pool for _, pool in fake.pools] == [None, first, first]
    assert len(set(fake.streams)) == 1  # one side stream, which waits and is waited for
    assert len(fake.waits) == 6
    assert len(tensors_of(made[0])) == 2


def test_graphs_are_for_forwards_on_a_gpu(monkeypatch, capsys):
    """A captured forward of the CPU would leave an empty graph, and a replay the old result."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for _ in range(2):  # the line is said once
        assert type(make_runtime("cudagraph", CPU)) is Runtime
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "--runtime cudagraph: no CUDA device, running eager\n"
    assert make_runtime("cudagraph", torch.device("cuda")).name == "cudagraph"
    known = answers("llama")
    target = new_target(runtime="cudagraph")
    assert outputs(decode(target, Chain(known), PROMPTS)) == [ids[:24] for ids in known]
    assert target.runtime.name == "eager" and capsys.readouterr().err == ""


def test_widths_are_few_and_aligned():
    """Kernels that take a mask refuse one that begins inside a line of 16 bytes."""
    eager, graphs = Runtime(CPU), CudaGraphs(CPU, Replays())
    for needed in range(1, 3000):
        assert needed <= eager.width(needed) < needed + 64 and eager.width(needed) % 8 == 0
    widths = {graphs.width(needed) for needed in range(1, 3000)}
    assert widths == {256, 512, 1024, 2048, 4096}
    assert [graphs.num_nodes(n, 60) for n in (0, 1, 4, 5, 9, 33, 60)] == [0, 4, 4, 8, 16, 60, 60]
    assert [graphs.num_nodes(n, 5) for n in (0, 1, 5, 7)] == [0, 4, 5, 7]  # 7: more than it said
    assert {eager.num_nodes(n, 60) for n in range(61)} == set(range(61))
    for num_rows in (1, 7):
        mask = additive(torch.ones(1, num_rows, 64, dtype=torch.bool), torch.bfloat16)
        assert mask.storage_offset() == 0 and mask.stride()[2:] == (64, 1)


def test_attention_builds_no_plan_for_a_shape():
    """cuDNN's, which PyTorch prefers on recent GPUs, would do so within timed steps."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    Target(make_model())
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_drafts_are_padded_where_shapes_are_static():
    """Inert rows are added, and paths get one depth; eager drafts stay as they are."""
    target, _ = with_graphs(lively("llama", torch.float32))
    drafter = RandomTree([])  # 12 nodes, 12 deep
    tree = Tree(torch.tensor([[-1, 0, -1, 1, 1], [-1, -1, -1, 0, 0]]), 3)
    tokens = torch.arange(10).view(2, 5)
    probe, probs = torch.tensor([False, True, False, False, False]), torch.rand(2, 5, 7)
    draft = Draft(tokens, tree, probs, probe)
    padded = target.padded(draft, drafter)
    assert padded.tokens.tolist() == [[*line, -1, -1, -1] for line in tokens.tolist()]
    assert padded.tree.parents.tolist() == [[*line, -1, -1, -1] for line in tree.parents.tolist()]
    assert padded.depth == 12 and padded.probe.tolist() == [False, True] + [False] * 6
    assert torch.equal(padded.probs[:, :5], probs) and not padded.probs[:, 5:].any()
    chain = target.padded(Draft(tokens), drafter)
    assert chain.is_chain and chain.depth == 8 and (chain.tokens[:, 5:] == -1).all()
    eager = new_target().padded(draft, drafter)
    assert eager.tree is tree and torch.equal(eager.tokens, tokens)


@pytest.mark.parametrize("rows, num_slots", [([1], 1), ([0, 1, 2, 3], 4), ([0, 1, 2, 3], 2)])
@pytest.mark.parametrize("kind", DRAFTERS)
def test_replayed_steps_give_the_eager_ids(kind, rows, num_slots):
    """And the same accept lengths; a second answer replays the first one's graphs."""
    known, prompts = [answers("llama")[row] for row in rows], [PROMPTS[row] for row in rows]
    eager = decode(new_target(), new_drafter(kind, known), prompts, num_slots=num_slots)
    assert outputs(eager) == [ids[:24] for ids in known]
    target, capture = with_graphs(lively("llama", torch.float32))
    for again in range(2):
        before = capture.captured
        turns = decode(target, new_drafter(kind, known), prompts, num_slots=num_slots)
        assert facts(turns) == facts(eager)
        assert not again or capture.captured == before
    assert capture.captured == len(target.step.graphs) <= (2 if kind is Sometimes else 1)
    if num_slots == len(rows):
        steps = 2 * max(len(turn.accept_lengths) for turn in turns)
        assert capture.captured + capture.replayed == steps


def test_sampled_steps_are_replayed():
    """Rules read what a replay has written, before the next one writes over it."""
    sampler, found = Sampler(0.9, 0, 0.95), []
    for target in (new_target(), with_graphs(lively("llama", torch.float32))[0]):
        drafter = RandomTree(answers("llama"), 99)
        found.append(facts(decode(target, drafter, PROMPTS, 24, sampler, num_slots=2)))
    assert found[0] == found[1]


def test_hybrid_attention_is_replayed():
    known = answers("gemma2")
    target, _ = with_graphs(lively("gemma2", torch.float32))
    for kind in (StaticTree, RandomTree, EmptyDrafter):
        turns = decode(target, new_drafter(kind, known), PROMPTS)
        assert outputs(turns) == [ids[:24] for ids in known]


def test_a_new_or_grown_cache_has_new_graphs():
    known = answers("llama")
    target, capture = with_graphs(lively("llama", torch.float32))
    decode(target, Chain(known), PROMPTS)
    assert capture.captured == 1
    decode(target, Chain(known[:1]), PROMPTS[:1])  # another number of slots: another cache
    assert capture.captured == 2 and len(target.step.graphs) == 1
    drafter = Around(Chain(known[:1]))  # which drafts more than it says
    drafter.inner.max_nodes = 300
    turns = decode(target, drafter, PROMPTS[:1])
    assert outputs(turns) == [known[0][:24]]
    assert target.cache.capacity == 512
    assert [key[0] for key in target.step.graphs] == [512]  # the attended width


class Feeling(StaticTree):
    """One that wants hidden states: its graphs are others."""

    needs = Needs(hidden=("last", 1))


@pytest.mark.parametrize("kind", [EmptyDrafter, Chain, StaticTree, Sometimes, Feeling])
def test_a_rehearsal_leaves_nothing_to_record(kind):
    """Every width of a draft at every attended width up to the cache's capacity, 768 columns."""
    known = answers("llama")
    target, capture = with_graphs(lively("llama", torch.float32))
    long = (PROMPTS[3] * 70)[:450]
    drafter = new_drafter(kind, [*known[:3], known[3]])
    target.reserve(4, 700)
    shown = target.rehearse(drafter, PROMPTS[3])
    assert {len(ids) for ids in shown} == {1, 257, 513}
    warmed = capture.captured
    for last in (PROMPTS[3], long):
        turns = decode(target, drafter, [*PROMPTS[:3], last], 30)
        assert not any(turn.recompiled for turn in turns)
    decode(target, EmptyDrafter(), [*PROMPTS[:3], long], 30)  # a paired baseline
    assert capture.captured == warmed


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("kind", [EmptyDrafter, Chain, StaticTree, RandomTree])
def test_cuda_graphs_give_the_eager_ids(kind, rows, capsys):
    """Captured for real, on the device, in float32: ids equal eager's on the same device."""
    model = make_model("llama", scale=0.3, tie_word_embeddings=False).to("cuda")
    prompts = [PROMPTS[row] for row in rows]
    plain = outputs(decode(Target(model), EmptyDrafter(), prompts, 40))
    graphs = Target(model, "cudagraph")
    for num_slots in (len(rows), max(1, len(rows) // 2)):
        for _ in range(2):
            turns = decode(graphs, new_drafter(kind, plain), prompts, num_slots=num_slots)
            assert outputs(turns) == [ids[:24] for ids in plain]
    eager = decode(Target(model), new_drafter(kind, plain), prompts)
    assert facts(eager) == facts(turns)
    assert capsys.readouterr().err == "" and not graphs.step.broken and graphs.step.graphs


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("chosen", ["eager", "cudagraph", "compile"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "space"])
def test_mini_models_on_a_gpu(method, chosen, batch, capsys):
    """Every method: ids of the CPU's vanilla, and nothing is made while a second run is timed."""
    path = str(MINI / "target")
    plain = load_target(path, "float32", "cpu", "eager")
    prompter, stop, questions = mini_bench()
    prompts = [prompter.render(question["turns"], []) for question in questions[:4]]

    def run(target, drafter, num_slots):
        given = target, drafter, prompts, Sampler(), [0] * 4, stop, 60
        return generate(*given, num_slots=num_slots)

    expected = outputs(run(plain, EmptyDrafter(), 4))
    target = load_target(path, "float32", "cuda", chosen)
    flags = [*mini_flags(method), "--runtime", chosen, "--device", "cuda"]
    drafter = build(method, path, target, flags)
    for warmed in (False, True):
        turns = run(target, drafter, batch)
        assert outputs(turns) == expected
        assert not warmed or not any(turn.recompiled for turn in turns)
    assert "; running" not in capsys.readouterr().err
