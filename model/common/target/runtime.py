"""How forwards are run: eager, compiled layer by layer, or recorded as CUDA graphs.

eager      transformers' code as it is
compile    every layer by torch.compile, with dynamic shapes: one graph of one row, one of more
           rows serve all layers, row counts and cache lengths
cudagraph  eager's kernels of a whole step, recorded; shapes are padded so that they repeat
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

import torch

EAGER_BUCKET = 64  # columns: attended widths are multiples of it
STATIC_BUCKET = 256  # columns: recorded widths are powers of two from it
_made = {"graphs": 0, "failed": 0}  # compiled or captured by this process; captures that failed
told: set[str] = set()


def compilations() -> int:
    """Graphs that this process has compiled or captured so far, of target and drafters alike."""
    return _made["graphs"]


def tell_once(line: str) -> None:
    """A line on stderr, once: target, drafter and heads have runtimes of their own."""
    if line not in told:
        told.add(line)
        print(line, file=sys.stderr)


def make_runtime(name: str, device: torch.device) -> Runtime:
    """The runtime of a name; without CUDA there are no graphs, which one line says."""
    if name == "compile":
        return Compiled(device)
    if name == "cudagraph":
        if device.type == "cuda":
            return CudaGraphs(device)
        tell_once("--runtime cudagraph: no CUDA device, running eager")
    return Runtime(device)


class Runtime:
    """Eager: functions are called as they are. Others override what they do differently.

    static  every new shape costs a recording, so the loop pads drafts to a few widths
    """

    name = "eager"
    static = False

    def __init__(self, device: torch.device):
        self.device, self.failed = device, _made["failed"]

    @property
    def ran(self) -> str:
        """Its name, or "eager in part" where a capture has failed since it was made, be it of the
        target's step or of a drafter's function."""
        return self.name if _made["failed"] == self.failed else "eager in part"

    def compiled(self, function):
        """A function of tensors (or a module's forward), compiled where this runtime compiles."""
        return function

    def captured(self, function):
        """A function of tensors and hashable arguments, recorded where this runtime records.

        What a recorded function returns stands until its next call.
        """
        return function

    def prompts(self):
        """A context for reading prompts, which are eager in every runtime: their shapes vary."""
        return nullcontext()

    def width(self, needed: int) -> int:
        """Columns to attend to when `needed` are in use."""
        return -(-needed // EAGER_BUCKET) * EAGER_BUCKET

    def num_nodes(self, num_nodes: int, max_nodes: int) -> int:
        """Nodes that a draft is padded to."""
        return num_nodes

    def forget(self) -> None:
        """A cache was replaced: recordings hold addresses of the old one."""


class Compiled(Runtime):
    """torch.compile with dynamic shapes; on a CPU with Inductor's C++ wrapper."""

    name = "compile"

    def __init__(self, device):
        super().__init__(device)
        self.options = {"cpp_wrapper": True} if device.type == "cpu" else {}
        torch.compiler.config.recompile_limit = 64  # layers of a model may differ

    def compiled(self, function):
        def traced(*arguments, **named):
            if torch.compiler.is_compiling():
                _count_graph()
            return function(*arguments, **named)

        return torch.compile(traced, dynamic=True, options=self.options)

    def prompts(self):
        return torch.compiler.set_stance("force_eager")

    def width(self, needed):
        """No multiple of 64, as hidden sizes are: equal sizes would be a graph of their own."""
        return super().width(needed) + 8


@torch.compiler.assume_constant_result
def _count_graph() -> int:
    """Called when a graph is traced, and never by the compiled code."""
    _made["graphs"] += 1
    return 0


class CudaGraphs(Runtime):
    """One recorded CUDA graph for every set of shapes and other arguments of a function."""

    name = "cudagraph"
    static = True

    def __init__(self, device, capture=None):
        super().__init__(device)
        self.capture = capture or CudaCapture(device)
        self.recordings: list[Recorded] = []

    def captured(self, function):
        self.recordings.append(Recorded(function, self.capture))
        return self.recordings[-1]

    def width(self, needed):
        return max(STATIC_BUCKET, 1 << (needed - 1).bit_length())

    def num_nodes(self, num_nodes, max_nodes):
        """0, 4, 8, 16, ... or max_nodes."""
        if num_nodes == 0:
            return 0
        return max(num_nodes, min(max(4, 1 << (num_nodes - 1).bit_length()), max_nodes))

    def forget(self):
        for recorded in self.recordings:
            recorded.graphs.clear()


class Recorded:
    """A function that is replayed from static input buffers.

    capture(function) runs the function once, records it and returns (replay, the run's result); the
    result's tensors are rewritten by every replay. What a function writes is so written once a
    call, the first one included. If a capture fails, a line says so and the function is called from
    then on.
    """

    def __init__(self, function, capture):
        self.function, self.capture = function, capture
        self.graphs: dict[tuple, tuple] = {}
        self.broken = False

    def __call__(self, *arguments):
        if self.broken:
            return self.function(*arguments)
        key = tuple((a.shape, a.dtype) if isinstance(a, torch.Tensor) else a for a in arguments)
        if key not in self.graphs:
            return self._record(key, arguments)
        buffers, replay, result = self.graphs[key]
        for buffer, argument in zip(buffers, arguments):
            if isinstance(buffer, torch.Tensor):
                buffer.copy_(argument)
        replay()
        return result

    def _record(self, key, arguments):
        buffers = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        try:
            replay, result = self.capture(lambda: self.function(*buffers))
        except RuntimeError as error:
            first = error.__context__ or error  # leaving a broken capture raises once more
            reason = str(first).split("\n")[0]
            tell_once(f"--runtime cudagraph: {reason}; running eager")
            self.broken = True
            _made["failed"] += 1
            return self.function(*arguments)
        _made["graphs"] += 1
        self.graphs[key] = buffers, replay, result
        return result


class CudaCapture:
    """Records a call of a function as a CUDA graph, after one call that warms up.

    Both run on one side stream, for which cuBLAS has one workspace. All graphs share a memory pool,
    and every replay writes over it: results are copied to tensors outside, which stand until the
    same graph is replayed.
    """

    def __init__(self, device: torch.device):
        self.device, self.stream, self.first = device, None, None

    def __call__(self, function):
        with torch.cuda.device(self.device):
            self.stream = self.stream or torch.cuda.Stream()
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                kept = function()
            torch.cuda.current_stream().wait_stream(self.stream)
            graph, pool = torch.cuda.CUDAGraph(), self.first and self.first.pool()
            with torch.cuda.graph(graph, pool=pool, stream=self.stream):
                for tensor, new in zip(tensors_of(kept), tensors_of(function())):
                    tensor.copy_(new)
        self.first = self.first or graph  # a pool whose graphs are all gone cannot be shared again
        return graph.replay, kept


def tensors_of(result) -> list[torch.Tensor]:
    """All tensors of a function's result: a tensor, or nested tuples and dicts of tensors."""
    if isinstance(result, torch.Tensor):
        return [result]
    parts = result.values() if isinstance(result, dict) else result
    return [tensor for part in parts for tensor in tensors_of(part)]
