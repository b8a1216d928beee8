"""How a step's forward is run: eager, compiled (frozen: weights and all), or as CUDA graphs of
either.

A forward is a function (tokens, known, depths, view, keep, hidden) -> (logits, states) that reads
and writes the target's cache. Shapes and the Python arguments select a graph; tensors are data.
"""

from __future__ import annotations

import sys

import torch

from model.common.errors import BadInput

CPU = torch.device("cpu")


def make_runtime(name: str, forward, device: torch.device = CPU):
    """The runtime of a name, for a forward on `device`.

    Without CUDA there are no graphs, and what they would have recorded is run, with one line.
    """
    from model.common.target.compiled import Compiled, Frozen  # which are Eager's children

    if name == "compile":
        return Compiled(forward, device.type == "cpu")
    if name == "frozen":
        if device.type != "cpu":
            raise BadInput(f"--runtime frozen: weights are packed for a CPU, not for {device}")
        return Frozen(forward)
    runtime = Eager(forward)
    if name.endswith("graph"):
        if name == "compile-graph":
            runtime = Compiled(forward, device.type == "cpu")
        if device.type == "cuda" and torch.cuda.is_available():
            return Graphs(runtime, CudaCapture(device), name)
        say(f"--runtime {name}: no CUDA device, running {runtime.name}")
    return runtime


said: set[str] = set()


def say(line: str) -> None:
    """On stderr, once: target, drafter and acceptance have runtimes of their own."""
    if line not in said:
        said.add(line)
        print(line, file=sys.stderr)


def compilations() -> int:
    """Graphs that this process has compiled or captured so far, of target and drafters alike."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # absent where nothing was compiled
    compiled = dynamo.counters["stats"]["unique_graphs"] if dynamo else 0
    return compiled + Graphs.captured


class Eager:
    """Calls the forward as it is.

    static_shapes: a new shape costs a compilation or capture; overwrites: a call's results stand
    until the next call of its graph; firsts: arguments of the first call of every graph so far, by
    what selects it, an entry for each argument.
    """

    name = "eager"
    static_shapes = overwrites = False

    def __init__(self, forward):
        self.forward = forward
        self.firsts: dict[tuple, tuple] = {}

    def __call__(self, *arguments):
        return self.forward(*arguments)

    def forget(self) -> None:
        """The cache was replaced."""


class Graphs(Eager):
    """Replays one captured graph per (shapes, Python arguments) from static input buffers.

    capture(function) runs the function once, records it and returns (replay, the run's result); the
    result's tensors are rewritten in place by every replay. What a forward writes is so written
    once a call, the first one included. A forward may be a compiled runtime, which that first run
    compiles. If a capture fails, the runtime says so once and calls the forward from then on.
    """

    static_shapes = overwrites = True
    captured = 0  # by all objects of this process

    def __init__(self, forward, capture, name: str = "cudagraph"):
        super().__init__(forward if isinstance(forward, Eager) else Eager(forward))
        self.capture, self.name = capture, name
        self.graphs: dict = {}
        self.broken = False

    def forget(self) -> None:
        """Graphs hold addresses of the cache: a new cache needs new graphs."""
        self.graphs.clear()
        self.forward.forget()

    def __call__(self, *arguments):
        if self.broken:
            return self.forward(*arguments)
        key = signature(arguments)
        if key not in self.graphs:
            self.firsts[key] = arguments
            try:
                self.graphs[key] = self._record(arguments)
                return self.graphs[key][-1]
            except RuntimeError as error:
                first = error.__context__ or error  # leaving a broken capture raises once more
                reason = str(first).split("\n")[0]
                say(f"--runtime {self.name}: {reason}; running {self.forward.name}")
                self.broken, self.name = True, self.forward.name
                return self.forward(*arguments)
        buffers, replay, result = self.graphs[key]
        for buffer, argument in zip(buffers, arguments):
            if isinstance(buffer, torch.Tensor):
                buffer.copy_(argument)
        replay()
        return result

    def _record(self, arguments):
        buffers = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        replay, result = self.capture(lambda: self.forward(*buffers))
        Graphs.captured += 1
        return buffers, replay, result


def signature(arguments) -> tuple:
    """What selects a graph: shapes and types of tensors, and other arguments themselves."""
    return tuple((a.shape, a.dtype) if isinstance(a, torch.Tensor) else a for a in arguments)


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
    """All tensors of a forward's result: a tensor, or nested tuples and dicts of tensors."""
    if isinstance(result, torch.Tensor):
        return [result]
    parts = result.values() if isinstance(result, dict) else result
    return [tensor for part in parts for tensor in tensors_of(part)]
