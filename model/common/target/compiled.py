"""Steps compiled by torch.compile, and called past what PyTorch puts before compiled code."""

from __future__ import annotations

from contextlib import contextmanager
from operator import is_, itemgetter

import torch

from model.common.target.runtime import Eager


class Compiled(Eager):
    """torch.compile with static shapes; one graph per (rows, view).

    On a CPU the graph's own code is C++ too: calling 120 small kernels from Python took a third of
    the mini target's step (2.6 against 1.7 ms). A graph is looked up by the arguments alone and its
    code is called directly (Call): asking at every step whether weights, cache and code are still
    what they were took as long as a draft model's forward. What a forward reads of its object
    therefore has to stay the same tensors until forget(), as for captured graphs.
    """

    name = "compile"
    static_shapes = True

    def __init__(self, forward, on_cpu: bool):
        torch._dynamo.config.recompile_limit = 256
        torch._dynamo.config.accumulated_recompile_limit = 4096
        self.options = {"cpp_wrapper": True} if on_cpu else {}
        self.calls: dict = {}  # layouts of the arguments -> a Call
        self.graphs: list[tuple] = []  # (graph, its inputs, its outputs) that a traced call ran
        super().__init__(
            torch.compile(forward, fullgraph=True, dynamic=False, backend=self._backend)
        )

    def forget(self) -> None:
        """Calls hold the cache's tensors: a new cache needs new ones."""
        self.calls.clear()

    def __call__(self, *arguments):
        key = layouts(arguments)
        if key in self.calls:
            return self.calls[key](arguments)
        self.firsts[key] = arguments
        with codes_called() as codes:
            result = self._trace(arguments)
        self.calls[key] = Call(arguments, result, self.graphs.pop(), codes)
        self.graphs.clear()
        return result

    def _trace(self, arguments):
        """The first call of a graph, which is traced and compiled."""
        return self.forward(*arguments)

    def _backend(self, graph, examples):
        """Inductor, with a note of what its graph is called with."""
        from torch._inductor.compile_fx import compile_fx

        compiled = compile_fx(graph, examples, config_patches=self.options)

        def noted(*inputs):
            outputs = compiled(*inputs)
            self.graphs.append((compiled, inputs, outputs))
            return outputs

        return noted


@contextmanager
def codes_called():
    """A list of (code, inputs, outputs), to which every call of Inductor's code adds itself.

    code(inputs): what runs the kernels, and nothing before it; it empties the list of its inputs.
    """
    from torch._inductor.output_code import CompiledFxGraph

    codes, original = [], CompiledFxGraph.__call__

    def noted(graph, inputs):
        kept = list(inputs)
        outputs = original(graph, inputs)
        codes.append((graph.current_callable, kept, outputs))
        return outputs

    CompiledFxGraph.__call__ = noted
    try:
        yield codes
    finally:
        CompiledFxGraph.__call__ = original


class Call:
    """A compiled graph with its inputs: those of the arguments to be filled in, the others kept.

    Where the graph does nothing but run its code (inputs and outputs are the same tensors), the
    code is called; autograd's and the tracer's wrappers took 0.03 to 0.06 ms a call.

    arguments, result  of the call that was traced
    graph              (graph, inputs, outputs) that it ran
    codes              what codes_called() heard meanwhile
    """

    def __init__(self, arguments, result, graph: tuple, codes: list[tuple]):
        self.code, inputs, outputs = innermost(*graph, codes)
        self.inputs = list(inputs)
        self.places = [
            (place, number)
            for place, tensor in enumerate(inputs)
            for number, argument in enumerate(arguments)
            if argument is tensor
        ]
        for place, _ in self.places:
            self.inputs[place] = None
        self.fill = filler(result, {id(tensor): i for i, tensor in enumerate(outputs)})

    def __call__(self, arguments):
        inputs = self.inputs.copy()
        for place, number in self.places:
            inputs[place] = arguments[number]
        return self.fill(self.code(inputs))


def innermost(graph, inputs, outputs, codes: list[tuple]) -> tuple:
    """(code(list of inputs), inputs, outputs): the graph's own code if that is all it runs.

    It is not where a wrapper makes outputs (views of inputs), writes to inputs afterwards, or hands
    over other tensors than it was given.
    """
    if len(codes) == 1:
        code, own_inputs, own_outputs = codes[0]
        given = {id(tensor) for tensor in inputs}
        same = len(outputs) == len(own_outputs) and all(map(is_, outputs, own_outputs))
        if same and all(id(tensor) in given for tensor in own_inputs):
            return code, own_inputs, own_outputs
    return (lambda filled: graph(*filled)), inputs, outputs


def filler(result, numbers: dict):
    """A function from a graph's outputs to a result like this one.

    numbers: id of each tensor of the result -> number of the output that it was.
    """
    if isinstance(result, torch.Tensor):
        return itemgetter(numbers[id(result)])
    if isinstance(result, dict):
        parts = [(name, filler(part, numbers)) for name, part in result.items()]
        return lambda outputs: {name: part(outputs) for name, part in parts}
    parts = [filler(part, numbers) for part in result]
    return lambda outputs: tuple([part(outputs) for part in parts])


class Frozen(Compiled):
    """Compiled with the weights as constants, laid out anew for matrix products written for them.

    For CPUs and small models: for a few rows the library's products lay the weights out anew at
    every call. Every graph holds weights of its own and takes some twenty seconds to compile, where
    the plain one takes three.
    """

    name = "frozen"

    def __init__(self, forward):
        super().__init__(forward, True)

    def _trace(self, arguments):
        try:
            return self._frozen(arguments, "CPP")
        except torch._inductor.exc.InductorError as error:
            if "NoValidChoicesError" not in str(error):
                raise
            return self._frozen(arguments, "CPP,ATEN")  # in float64 no product can be written

    def _frozen(self, arguments, products: str):
        options = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": products}
        with torch._inductor.config.patch(options):  # the tracer asks whether weights are constants
            return self.forward(*arguments)


def layouts(arguments) -> tuple:
    """What selects compiled code: also strides, and which tensors are one and the same."""
    seen: dict = {}
    return tuple(
        [
            (a.shape, a.dtype, a.stride(), seen.setdefault(id(a), len(seen)))
            if isinstance(a, torch.Tensor)
            else a
            for a in arguments
        ]
    )
