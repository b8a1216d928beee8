"""How a step's forward is run: eager, compiled, or captured in CUDA graphs.

A forward is a function (tokens, known, depths, view, keep, hidden) -> (logits, states) that reads
and writes the target's cache. Shapes and the Python arguments select a graph; tensors are data.
"""

from __future__ import annotations

import sys

import torch

RUNTIMES = ("eager", "compile", "cudagraph")


def make_runtime(name: str, forward, on_cpu: bool = True):
    """The runtime of a name; CUDA graphs without CUDA fall back to eager with one line."""
    if name == "compile":
        return Compiled(forward, on_cpu)
    if name == "cudagraph":
        if torch.cuda.is_available():
            return Graphs(forward, cuda_capture)
        print("--runtime cudagraph: no CUDA device, running eager", file=sys.stderr)
    return Eager(forward)


class Eager:
    """Calls the forward as it is."""

    name = "eager"
    static_shapes = False

    def __init__(self, forward):
        self.forward = forward

    def __call__(self, *arguments):
        return self.forward(*arguments)

    def forget(self) -> None:
        """The cache was replaced."""


class Compiled(Eager):
    """torch.compile with static shapes; one graph per (rows, view). `compilations` counts them.

    On a CPU the graph's own code is C++ too: calling 120 small kernels from Python took a third of
    the mini target's step (2.6 against 1.7 ms).
    """

    name = "compile"
    static_shapes = True

    def __init__(self, forward, on_cpu: bool):
        torch._dynamo.config.recompile_limit = 256
        torch._dynamo.config.accumulated_recompile_limit = 4096
        options = {"cpp_wrapper": True} if on_cpu else {}
        super().__init__(torch.compile(forward, fullgraph=True, dynamic=False, options=options))

    @property
    def compilations(self) -> int:
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]


class Graphs(Eager):
    """Replays one captured graph per (shapes, Python arguments) from static input buffers.

    capture(function) runs the function once while recording it and returns (replay, its result);
    the result's tensors are rewritten in place by every replay. If a capture fails, the runtime
    says so once and runs eager from then on.
    """

    name = "cudagraph"
    static_shapes = True

    def __init__(self, forward, capture):
        super().__init__(forward)
        self.capture = capture
        self.graphs: dict = {}
        self.broken = False

    def forget(self) -> None:
        """Graphs hold addresses of the cache: a new cache needs new graphs."""
        self.graphs.clear()

    def __call__(self, *arguments):
        if self.broken:
            return self.forward(*arguments)
        key = tuple(
            (tuple(a.shape), a.dtype) if isinstance(a, torch.Tensor) else a for a in arguments
        )
        if key not in self.graphs:
            try:
                self.graphs[key] = self._record(arguments)
            except RuntimeError as error:
                self.broken = True
                reason = str(error).splitlines()[0]
                print(f"--runtime cudagraph: {reason}; running eager", file=sys.stderr)
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
        return buffers, replay, result


def cuda_capture(function):
    """Warm up on a side stream, then record one call of `function` in a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return graph.replay, result
