"""compiled.py: code is called directly where a graph does nothing else, and rightly elsewhere."""

import pytest
import torch
from test_runtime import needs_compiler

from model.common.target.compiled import Compiled, codes_called, innermost


class Toy:
    """Forwards over a buffer that they own."""

    def __init__(self):
        self.memory = torch.zeros(4)

    def plain(self, data, scale: int):
        """Reads an argument and the buffer, writes to the buffer in place."""
        out = data * scale + self.memory
        self.memory.add_(1)
        return out, {"sum": out.sum()}

    def view(self, data, scale: int):
        """An output that is a view of an input."""
        return data.unsqueeze(0), {"sum": (data * scale).sum()}

    def nothing(self, data, scale: int):
        """Nothing but a write."""
        self.memory.add_(data * scale)
        return ()


def direct(call):
    """Whether a Call runs Inductor's code, not what PyTorch puts before it."""
    return call.code.__name__ != "<lambda>"


@needs_compiler
@pytest.mark.parametrize("name, is_direct", [("plain", True), ("view", False), ("nothing", True)])
@torch.inference_mode()
def test_calls_give_what_the_forward_gives(name, is_direct):
    own, other = Toy(), Toy()
    compiled, forward = Compiled(getattr(own, name), True), getattr(other, name)
    kept = []
    for number in range(6):
        data, scale = torch.arange(4.0) + number, 2 + number % 2
        with codes_called() as codes:
            found = compiled(data, scale)
        wanted = forward(data, scale)
        assert len(found) == len(wanted)
        if found:
            kept.append((found[0], wanted[0]))
            assert found[1]["sum"] == wanted[1]["sum"]
        assert torch.equal(own.memory, other.memory)
        # the first call of each scale is PyTorch's, later ones are not heard where they are direct
        assert len(codes) == (number < 2 or not is_direct)
    for found, wanted in kept:
        assert torch.equal(found, wanted)
    assert [direct(call) for call in compiled.calls.values()] == [is_direct] * 2
    assert not compiled.graphs  # no tensors of a traced call are kept alive


def test_code_is_called_only_where_it_is_all():
    one, two, out = torch.ones(1), torch.ones(1), torch.ones(1)

    def graph(*inputs):
        return "graph", *inputs

    def code(inputs):
        return ["code", *inputs]

    def chosen(*codes):
        return innermost(graph, (one, two), [out], list(codes))

    found, inputs, outputs = chosen((code, [two, one], [out]))
    assert found is code and inputs[0] is two and outputs[0] is out
    for codes in (
        [],  # none was heard
        [(code, [one], [out])] * 2,  # or several
        [(code, [one, two], [out.clone()])],  # an output was made of another
        [(code, [one, two], [out, two])],  # something is written back
        [(code, [one, torch.ones(1)], [out])],  # an input was made
    ):
        found, inputs, outputs = chosen(*codes)
        assert found([1, 2]) == ("graph", 1, 2) and inputs == (one, two) and outputs[0] is out
