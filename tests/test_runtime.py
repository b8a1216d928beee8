"""runtime.py: compiled and captured steps give the eager ids; the bookkeeping of graphs."""

import re
import shutil

import pytest
import torch
from conftest import make_model, make_prompts
from oracle import (
    DRAFTERS,
    Chain,
    RandomTree,
    StaticTree,
    answers,
    decode,
    lively,
    new_drafter,
    new_target,
    outputs,
)
from replays import Held, Replays

from model.common.contract.drafter import Draft, DraftShape, EmptyDrafter, Needs
from model.common.errors import BadInput
from model.common.target.compiled import Compiled
from model.common.target.model import Target
from model.common.target.runtime import Eager, Graphs, compilations, make_runtime

PROMPTS = make_prompts(4)
needs_compiler = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="torch.compile needs a C compiler"
)


class Adder:
    """A forward that counts its calls: data + offset + view, and the data as a hidden state."""

    def __init__(self):
        self.calls = 0

    def __call__(self, data, offset, view):
        self.calls += 1
        return data + view + (0 if offset is None else offset), {"last": data * 1}


def test_one_graph_per_shape_and_argument():
    capture, forward = Replays(), Adder()
    graphs = Graphs(forward, capture)
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
    assert capture.captured == 6
    assert forward.calls == capture.captured + capture.replayed
    two.fill_(0)  # the caller's tensor, not the graph's
    assert graphs(one, None, 64)[0].tolist() == [65, 66]


def test_forget():
    capture = Replays()
    graphs = Graphs(Adder(), capture)
    for _ in range(2):
        graphs(torch.ones(2), None, 1)
    graphs.forget()
    graphs(torch.ones(2), None, 1)
    assert capture.captured == 2


def test_a_failed_capture_says_so_once_and_runs_eager(capsys):
    def refuse(function):
        raise RuntimeError("out of capture\nmore lines")

    forward = Adder()
    graphs = Graphs(forward, refuse)
    for number in range(1, 4):
        assert graphs(torch.ones(number), None, 1)[0].tolist() == [2.0] * number
        assert forward.calls == number
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "--runtime cudagraph: out of capture; running eager\n"


def test_other_errors_are_not_hidden():
    def broken(function):
        raise TypeError("a bug")

    with pytest.raises(TypeError):
        Graphs(Adder(), broken)(torch.ones(1), None, 1)


class CacheCapture(Held):
    """The target's cache stays where it was."""

    def places(self):
        cache = self.target.cache
        return [tensor.data_ptr() for tensor in (cache.length, *cache.storage)]


def with_graphs(model=None, capture=None):
    """A target that replays, on a CPU."""
    target = Target(model or lively("llama", torch.float32))
    capture = capture or CacheCapture()
    capture.target = target
    target.runtime = Graphs(target._rows, capture)
    return target, capture


@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("kind", DRAFTERS)
def test_replayed_steps_give_the_eager_ids(kind, rows):
    known, prompts = [answers("llama")[row] for row in rows], [PROMPTS[row] for row in rows]
    target, capture = with_graphs()
    for _ in range(2):  # the second answer replays the first one's graphs
        turns = decode(target, new_drafter(kind, known), prompts)
        assert outputs(turns) == [ids[:24] for ids in known]
        if kind in (Chain, StaticTree):
            assert {turn.accept_lengths[0] for turn in turns} == {4}
    widths = len({key[2][0] for key in target.runtime.graphs})
    assert capture.captured == len(target.runtime.graphs) == widths <= 5
    steps = 2 * max(len(turn.accept_lengths) for turn in turns)
    assert capture.captured + capture.replayed == steps


def test_hybrid_attention_is_replayed():
    known = answers("gemma2")
    target, _ = with_graphs(lively("gemma2", torch.float32))
    for kind in (StaticTree, RandomTree, EmptyDrafter):
        assert outputs(decode(target, new_drafter(kind, known), PROMPTS)) == [i[:24] for i in known]


def test_a_new_or_grown_cache_has_new_graphs():
    known = answers("llama")
    target, capture = with_graphs()
    decode(target, Chain(known), PROMPTS)
    assert capture.captured == 1
    decode(target, Chain(known[:1]), PROMPTS[:1])  # another batch: another cache
    assert capture.captured == 2 and len(target.runtime.graphs) == 1
    drafter = Chain(known[:1])
    drafter.length = 300
    turns = decode(target, drafter, PROMPTS[:1])
    assert outputs(turns) == [known[0][:24]]
    assert target.cache.capacity == 512 and len(target.runtime.graphs) == 1
    keys = [key[0] for key in target.runtime.graphs]
    assert keys == [512]  # the view


def test_failed_capture_in_the_loop(capsys):
    def refuse(function):
        raise RuntimeError("no capture here")

    known = answers("llama")
    target, _ = with_graphs(capture=refuse)
    for kind in (Chain, StaticTree):
        assert outputs(decode(target, kind(known), PROMPTS)) == [ids[:24] for ids in known]
    assert capsys.readouterr().err.count("\n") == 1


def test_warm_leaves_nothing_to_capture():
    known = answers("llama")
    target, capture = with_graphs()
    target.reserve(4, 700)
    decode(target, StaticTree(known), PROMPTS, 4)
    drafter = StaticTree(known)
    target.warm(700, [DraftShape(0), DraftShape(5), DraftShape(8, drafter.parents, 4)])
    warmed = capture.captured
    assert warmed == 3 * 3  # widths 1, 6 and 9 in views of 256, 512 and 768 columns
    long = (PROMPTS[3] * 70)[:450]
    for kind in (EmptyDrafter, Chain, StaticTree):
        for last in (PROMPTS[3], long):
            decode(target, new_drafter(kind, known), [*PROMPTS[:3], last], 30)
    assert capture.captured == warmed


def test_batches_are_filled_up_with_idle_rows():
    """A static runtime sees one batch size; idle rows answer nothing and change nothing."""
    known = answers("llama")
    target, capture = with_graphs()
    target.static_batch = 4
    for rows in ([0, 1, 2, 3], [2], [3, 1]):
        turns = decode(
            target, Chain([*[known[row] for row in rows], *known][:4]), [PROMPTS[r] for r in rows]
        )
        assert outputs(turns) == [known[row][:24] for row in rows]
    assert capture.captured == 1


def test_cudagraph_without_cuda_says_so_once(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runtime = make_runtime("cudagraph", lambda: 3)
    assert type(runtime) is Eager and not runtime.static_shapes and runtime() == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "--runtime cudagraph: no CUDA device, running eager\n"
    known = answers("llama")
    target = new_target(runtime="cudagraph")
    assert outputs(decode(target, Chain(known), PROMPTS)) == [ids[:24] for ids in known]
    assert capsys.readouterr().err == ""


def test_compiled_graphs_without_cuda_are_compiled(capsys):
    runtime = make_runtime("compile-graph", lambda: 3)
    assert runtime.name == "compile" and runtime.static_shapes and not runtime.overwrites
    assert capsys.readouterr().err == "--runtime compile-graph: no CUDA device, running compile\n"


@needs_compiler
def test_graphs_of_compiled_steps_give_the_eager_ids():
    """A graph's first run compiles, the second is recorded; a new cache needs both anew."""
    model = make_model("llama", 3, 0.3, num_hidden_layers=1)
    plain = outputs(decode(Target(model), EmptyDrafter(), PROMPTS[:1], 40))
    target, capture = with_graphs(model)
    compiled = Compiled(target._rows, True)
    target.runtime = Graphs(compiled, capture, "compile-graph")
    for capacity in (200, 600):
        target.reserve(1, capacity)
        assert not compiled.calls and not target.runtime.graphs
        for number in range(2):
            turn = decode(target, StaticTree(plain), PROMPTS[:1])[0]
            assert turn.output_ids == plain[0][:24]
            assert bool(turn.recompiled) == (number == 0)
        assert len(compiled.calls) == len(target.runtime.graphs) == 1
        assert target.runtime.name == "compile-graph" and not target.runtime.broken
    assert capture.captured == 2 and capture.replayed > 10


def test_a_failed_capture_of_compiled_steps_runs_them_compiled(capsys):
    def refuse(function):
        raise RuntimeError("no room")

    inner = Eager(Adder())
    inner.name = "compile"
    graphs = Graphs(inner, refuse, "compile-graph")
    assert graphs(torch.ones(1), None, 1)[0].item() == 2 and graphs.name == "compile"
    assert capsys.readouterr().err == "--runtime compile-graph: no room; running compile\n"


@needs_compiler
def test_compiled_steps_give_the_eager_ids():
    """About half a minute, nearly all of it in the compiler; nothing is compiled twice."""
    model = make_model("llama", 3, 0.3, num_hidden_layers=1)
    plain = outputs(decode(Target(model), EmptyDrafter(), PROMPTS[:1], 40))
    assert len(set(plain[0])) > 5
    target = Target(model, "compile")
    target.reserve(1, 200)
    drafter = StaticTree(plain)
    decode(target, StaticTree(plain), PROMPTS[:1], 4)  # shows the tree as it is accepted
    target.warm(200, [DraftShape(0), DraftShape(8, drafter.parents, 4)])
    compiled = compilations()
    assert len(target.runtime.firsts) == 2  # the tree, once
    for kind in (EmptyDrafter, StaticTree):
        turns = decode(target, new_drafter(kind, plain), PROMPTS[:1])
        assert outputs(turns) == [plain[0][:24]]
        assert not turns[0].recompiled
    assert compilations() == compiled


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.inference_mode()
def test_frozen_steps_give_the_eager_logits(dtype):
    """Products are the graph's own code, but in float64, for which nobody writes any."""
    from torch._inductor.utils import run_and_get_code

    model = make_model("llama", num_hidden_layers=1).to(dtype)
    ids, found = torch.tensor([PROMPTS[0]]), []
    for runtime in ("eager", "frozen"):
        target = Target(model, runtime)
        target.prefill(ids, [ids.shape[1]], 64, Needs())
        draft = Draft.chain(ids[:, :4])
        (logits, _), codes = run_and_get_code(target.forward, ids[:, 0], draft, ids.shape[1] + 1)
        found.append(logits)
    assert torch.allclose(*found, atol=1e-5)
    products = [line for code in codes for line in code.splitlines() if "cpu_mm_out(" in line]
    assert bool(products) == (dtype is torch.float64)  # else they are the graph's own


def test_frozen_is_for_cpus():
    with pytest.raises(BadInput, match="--runtime frozen: .* not for cuda"):
        make_runtime("frozen", lambda: 3, torch.device("cuda"))


@needs_compiler
@pytest.mark.parametrize("batch", [1, 3])
@torch.inference_mode()
def test_compiled_steps_write_the_cache_in_place(batch):
    """No loop of a step's code is as long as the columns of a head: nothing copies the cache."""
    from torch._inductor import config
    from torch._inductor.utils import run_and_get_code

    target = Target(make_model("llama"), "compile")
    ids = torch.tensor([[3, 4, 5]] * batch)
    target.prefill(ids, [3] * batch, 4096, Needs())
    keys = target.cache.layers[0][0]
    draft = Draft.chain(ids.new_zeros(batch, 2))
    with config.patch(fx_graph_cache=False):  # else there may be no code to see
        _, codes = run_and_get_code(target.forward, ids[:, 0], draft, 4)
    bounds = [
        int(n) for code in codes for n in re.findall(r"<static_cast<int64_t>\((\d+)L\)", code)
    ]
    assert len(bounds) > 20 and max(bounds) < keys.shape[2] * keys.shape[3]


@needs_compiler
@torch.inference_mode()
def test_models_of_one_class_have_graphs_of_their_own():
    """Weights are not asked for, so that nothing else tells two models of equal shapes apart."""
    ids = torch.tensor([[3, 4, 5]])
    found = []
    for seed in (0, 1):
        model = make_model("llama", seed)
        pair = Target(model, "eager"), Target(model, "compile")
        for target in pair:
            target.prefill(ids, [3], 64, Needs())
        rows = [t.forward(ids[:, 0], Draft.chain(ids[:, :2]), 4)[0] for t in pair]
        assert torch.allclose(*rows, atol=1e-5)
        found.append(rows[1].clone())
    assert not torch.allclose(*found, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("kind", [EmptyDrafter, Chain, StaticTree, RandomTree])
@pytest.mark.parametrize("name", ["cudagraph", "compile-graph"])
def test_cuda_graphs_give_the_eager_ids(name, kind, rows, capsys):
    """Captured for real, on the device, in float32: ids equal eager's on the same device."""
    model = make_model("llama", scale=0.3, tie_word_embeddings=False).to("cuda")
    prompts = [PROMPTS[row] for row in rows]
    plain = outputs(decode(Target(model), EmptyDrafter(), prompts, 40))
    graphs = Target(model, name)
    for _ in range(2):
        turns = decode(graphs, new_drafter(kind, plain), prompts)
        assert outputs(turns) == [ids[:24] for ids in plain]
        assert outputs(decode(Target(model), new_drafter(kind, plain), prompts)) == outputs(turns)
    assert capsys.readouterr().err == "" and not graphs.runtime.broken
    assert graphs.runtime.graphs
