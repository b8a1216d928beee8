"""What a CUDA graph must not hold, shown without a GPU: everything is moved to the meta device.

There a read of a value fails by itself (`.item()`, `nonzero`, boolean indexing), as it does while a
graph is captured; two modes refuse what else a capture refuses, data of the host.
"""

import importlib
import types

import pytest
import torch
from conftest import make_model
from test_methods import (
    MINI,
    TINY_FLAGS,
    build,
    decode,
    mini_flags,
    paths,  # noqa: F401
    tiny_shape,
    tiny_target,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from model.common.contract.drafter import EmptyDrafter, Step
from model.common.loop import verify
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.prompts.prompter import Prompter, load_tokenizer
from model.common.prompts.questions import read_questions
from model.common.target import runtime
from model.common.target.attention import SuffixMasks
from model.common.target.loading import load_target
from model.common.target.model import Prefilled, Target
from model.common.target.runtime import CudaCapture, Graphs, make_runtime, tensors_of

META = torch.device("meta")
LENGTH, LIMIT = 9, 24  # of the prompt, of prompt and answer


FROM_HOST = (torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor)


class NoHostData(TorchFunctionMode):
    """Refuses tensors made from lists and numbers: they would be copied to the device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in FROM_HOST:
            raise RuntimeError("a tensor is made from host data")
        return func(*args, **(kwargs or {}))


class NoHostTensors(TorchDispatchMode):
    """Refuses tensors of the host in an operation; one of 0 dimensions is passed by value."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in (*args, result) if isinstance(t, torch.Tensor)]
        if any(t.device != META and t.dim() for t in tensors):
            raise RuntimeError(f"{func} has a tensor of the host")
        return result


class Captured:
    """A capture for Graphs that runs the function by the rules; counts, and replays nothing."""

    def __init__(self):
        self.count = 0

    def __call__(self, function):
        self.count += 1
        try:
            with NoHostData(), NoHostTensors():
                return (lambda: None), function()
        except RuntimeError as error:  # at which a runtime of graphs would turn eager
            raise AssertionError("a forward cannot be captured") from error


def to_meta(value, known: dict):
    """Move everything that hangs on an object to the meta device; one tensor stays one tensor."""
    if id(value) in known:
        return known[id(value)][1]
    moved = value
    if isinstance(value, torch.Tensor):
        moved = value.to(META)
    elif isinstance(value, torch.device):
        moved = META
    elif isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        moved = type(value)(to_meta(part, known) for part in value)
    elif type(value) is dict:
        moved = {key: to_meta(part, known) for key, part in value.items()}
    known[id(value)] = value, moved  # the value too: its id must not be given away
    if isinstance(value, torch.nn.Module):
        value.to(META)
        for part in value.modules():
            if isinstance(getattr(part, "borrowed", None), tuple):
                to_meta(part.borrowed, known)
    elif type(value).__module__.startswith("model."):
        for name, part in list(getattr(value, "__dict__", {}).items()):
            if not isinstance(part, types.MethodType):
                object.__setattr__(value, name, to_meta(part, known))
    return moved


OWN_RUNTIMES = ("medusa", "hydra", "recycling", "space")


@pytest.fixture
def capture(monkeypatch):
    """Every runtime made from here on is one of graphs."""
    found = Captured()
    for name in ("common.cached", *(f"{method}.drafter" for method in OWN_RUNTIMES)):
        module = importlib.import_module(f"model.{name}")
        monkeypatch.setattr(module, "make_runtime", lambda _, forward, __: Graphs(forward, found))
    return found


def blank_prefill(target, ids, lengths, capacity, needs):
    """What Target.prefill() returns, with nothing read: it may ask the device as it likes."""
    target.reserve(len(ids), capacity)
    width = target.config.hidden_size
    hidden = {name: torch.zeros(*ids.shape, width, device=META) for name in needs.hidden}
    topk = None
    if needs.prompt_topk:
        topk = torch.zeros(*ids.shape, needs.prompt_topk, dtype=torch.long, device=META)
    return Prefilled(torch.zeros(len(ids), target.vocab_size, device=META), hidden, topk)


def prompt_step(target, needs) -> Step:
    """The Step of a prompt on the meta device."""
    ids = torch.zeros(1, LENGTH, dtype=torch.long, device=META)
    read = target.prefill(ids, [LENGTH], LIMIT, needs)
    root = ids[:, 0]
    return Step(
        tokens=ids,
        logits=None,
        hidden=read.hidden,
        path=ids,
        count=root,
        next_token=root,
        new_tokens=ids,
        host_ids=[list(range(LENGTH + 1))],
        max_committed=LENGTH + 1,
        prompt_topk=read.topk,
    )


def step_on_meta(target, drafter, root) -> Step:
    """One step of the loop as far as nothing is read."""
    draft = drafter.propose()
    logits, hidden = target.forward(root, draft, LENGTH + 1, drafter.needs.hidden)
    accepted = verify.greedy(logits, draft)
    target.cache.commit(None if draft.is_chain else accepted.path, accepted.count)
    return Step(
        tokens=torch.cat([root.unsqueeze(1), draft.tokens], 1),
        logits=logits,
        hidden=hidden,
        path=accepted.path,
        count=accepted.count,
        next_token=accepted.last,
        new_tokens=accepted.tokens,
        host_ids=[[1]],
        max_committed=LENGTH + 2,
    )


TENSOR_METHODS = {  # method: forwards of its own that are captured
    "vanilla": 0,
    "recycling": 2,
    "space": 1,
    "sps": 1,
    "medusa": 1,
    "hydra": 1,
    "eagle": 1,
    "eagle2": 1,
    "eagle3": 1,
}


@pytest.mark.parametrize(
    "method, temperature", [*((method, 0.0) for method in TENSOR_METHODS), ("eagle", 0.8)]
)
@torch.inference_mode()
def test_a_step_can_be_captured(method, temperature, paths, capture, monkeypatch):  # noqa: F811
    """Steps and warm-up of target and drafter on the meta device, every forward by the rules."""
    folder = tiny_target(method, paths["target"])
    vocab = len(load_tokenizer(folder))
    target = Target(make_model(vocab_size=vocab, **tiny_shape(method, "llama")))
    flags = TINY_FLAGS.get(method, lambda _: [])({**paths, "target": folder})
    drafter = build(method, folder, target, flags)
    monkeypatch.setattr(Target, "prefill", blank_prefill)
    known = {}
    to_meta(target, known)
    to_meta(drafter, known)
    prefill = prompt_step(target, drafter.needs)
    sampler = Sampler(temperature, top_k=5, top_p=0.9)
    sampler.start([0], LIMIT, META)
    drafter.start(prefill, [LIMIT], sampler)
    root = prefill.next_token
    for _ in range(2):
        step = step_on_meta(target, drafter, root)
        drafter.observe(step)
        root = step.next_token
    assert capture.count >= 1 + TENSOR_METHODS[method]
    target.warm(LIMIT, drafter.shapes(), drafter.needs.hidden)
    drafter.warm(LIMIT)
    stepped = capture.count
    drafter.observe(step_on_meta(target, drafter, root))
    assert capture.count == stepped, "a shape that the warm-up did not meet"


def refused(function) -> str:
    """Why a function cannot be captured."""
    with pytest.raises(AssertionError) as found:
        Captured()(function)
    return str(found.value.__cause__)


def test_the_rules_refuse_what_a_capture_refuses():
    data = torch.ones(3, device=META)
    assert "host data" in refused(lambda: torch.tensor([1, 2], device=META))
    assert "of the host" in refused(lambda: torch.arange(3))
    assert "of the host" in refused(lambda: data.copy_(torch.ones(3)))
    for read in (data[0].item, data.tolist, data.nonzero, data.unique, lambda: data[data > 0]):
        assert refused(read)
    assert refused(data.cpu)
    Captured()(lambda: data * 2 + torch.where(data > 0, data, -1.0) + torch.arange(3, device=META))


class FakeCuda:
    """The parts of torch.cuda that a capture uses; a replay runs the recorded function's steps."""

    def __init__(self):
        self.streams, self.pools, self.waits = [], [], []

    def install(self, monkeypatch):
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
            monkeypatch.setattr(runtime.torch.cuda, name, value)


def test_graphs_share_a_pool_and_leave_their_results_outside(monkeypatch):
    fake = FakeCuda()
    fake.install(monkeypatch)
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


def test_a_failed_capture_names_its_cause(capsys):
    """torch.cuda.graph ends the capture when it is left, and that fails in its own words."""

    def capture(function):
        try:
            raise RuntimeError("operation not permitted\nmore")
        finally:
            raise RuntimeError("failed due to a previous error")

    graphs = Graphs(lambda data: data + 1, capture)
    assert graphs(torch.ones(1)).item() == 2 and graphs.broken
    said = "--runtime cudagraph: operation not permitted; running eager\n"
    assert capsys.readouterr().err == said


def test_graphs_are_for_forwards_on_a_gpu(monkeypatch, capsys):
    """A captured forward of the CPU would leave an empty graph, and a replay the old result."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert make_runtime("cudagraph", lambda: 3, torch.device("cpu")).name == "eager"
    assert capsys.readouterr().err == "--runtime cudagraph: no CUDA device, running eager\n"
    assert make_runtime("cudagraph", lambda: 3, torch.device("cuda")).name == "cudagraph"


@pytest.mark.parametrize("num_rows", [1, 7])
def test_masks_of_a_gpu_are_aligned(num_rows):
    """The kernels that take a mask refuse one that begins inside a line of 16 bytes."""
    masks = SuffixMasks(torch.bfloat16, 64)
    tree = torch.eye(num_rows, dtype=torch.bool, device=META)
    for start in (0, 1, 37, 63, 300):
        for known in (None, tree):
            view = -(-(start + num_rows) // 64) * 64
            mask = masks(known, num_rows, start, view, META)
            assert mask.shape == (1, 1, num_rows, view)
            assert mask.storage_offset() == 0 and mask.stride()[2:] == (view, 1)


def test_attention_builds_no_plan_for_a_shape():
    """cuDNN's, which PyTorch prefers on recent GPUs, would do so within timed steps."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    Target(make_model())
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("chosen", ["eager", "cudagraph", "compile-graph"])
@pytest.mark.parametrize("method", [name for name in TENSOR_METHODS if name != "space"])
def test_mini_models_on_a_gpu(method, chosen, batch, capsys):
    """Drafters with models of their own: ids of the CPU's vanilla, nothing captured while timed."""
    path = str(MINI / "target")
    plain = load_target(path, "float32", "cpu", "eager")
    prompter = Prompter(load_tokenizer(path))
    stop = prompter.stop_rules(plain.model.generation_config)
    questions = read_questions(MINI.parent / "mini_bench" / "question.jsonl")[:4]
    prompts = [prompter.render(question["turns"], []) for question in questions]
    expected, _ = decode(plain, EmptyDrafter(), prompts, stop, 60)
    target = load_target(path, "float32", "cuda", chosen)
    flags = [*mini_flags(method), "--runtime", chosen, "--device", "cuda"]
    drafter = build(method, path, target, flags)
    capacity = max(map(len, prompts)) + 61
    target.reserve(batch, capacity + 128)
    for warmed in (False, True):
        turns = []
        for begin in range(0, 4, batch):
            part = prompts[begin : begin + batch]
            turns += generate(target, drafter, part, Sampler(), [0] * batch, stop, 60)
        assert [turn.output_ids for turn in turns] == expected
        if warmed:
            assert not any(turn.recompiled for turn in turns)
        elif target.static_shapes:
            target.warm(capacity, drafter.shapes(), drafter.needs.hidden)
            drafter.warm(capacity)
    assert "; running" not in capsys.readouterr().err
