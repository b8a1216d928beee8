"""What the tests of EAGLE's versions share: tiny targets, decoding, checks for all of them."""

import json

import torch
from conftest import SHAPE, make_model, make_prompts

from model.common import args as arguments
from model.common.contract.drafter import Needs
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.common.target.runtime import Eager, Graphs, compilations

LOOPY = {"vocab_size": 17, "num_hidden_layers": 2}
DEEP = {**LOOPY, "num_hidden_layers": 8}  # enough for EAGLE-3


def config_dir(folder, **shape):
    """A directory with a config.json that says a target's shape, for eagle_dirs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**SHAPE, **LOOPY, **shape}))
    return str(folder)


def loopy_prompts(num=4):
    return make_prompts(num, vocab_size=17)


def decode(target, drafter, prompts, limit=16, stop=None, sampler=None, batch=None):
    """(ids, accept lengths) of all prompts, decoded `batch` at a time."""
    turns, batch = [], batch or len(prompts)
    for begin in range(0, len(prompts), batch):
        part = prompts[begin : begin + batch]
        seeds = [7 * begin + 7 * row for row in range(len(part))]
        sampler, stop = sampler or Sampler(), stop or StopRules()
        turns += generate(target, drafter, part, sampler, seeds, stop, limit)
    return [turn.output_ids for turn in turns], [turn.accept_lengths for turn in turns]


def parsed(script, method, *flags):
    """A script's arguments."""
    parser = arguments.make_parser(method, script.__doc__, script.add_args)
    return parser.parse_args(["--model-path", "x", *map(str, flags)])


def cached(head, row, num):
    """Keys and values of a row's first columns."""
    return torch.cat([storage[:, :, row, :, :num] for storage in head.cache.storage])


class FreshCaches:
    """Compares a drafter's cache after each draft with one that reads the sequence at once."""

    def __init__(self, target_model, drafter, fresh_head):
        self.target, self.drafter, self.fresh = Target(target_model), drafter, fresh_head
        self.checked = 0

    def __call__(self, row, ids):
        length = len(ids) - 1
        assert self.drafter.head.cache.length[row] == length
        needs = Needs(hidden=tuple(self.fresh.needs))
        found = self.target.prefill(torch.tensor([ids[:-1]]), [length], 256, needs)
        rows = torch.tensor([ids[1:]]), self.fresh.features(found.hidden)
        self.fresh.read_prompt(*rows, torch.tensor([length]), 256)
        held = cached(self.drafter.head, row, length)
        assert torch.allclose(held, cached(self.fresh, 0, length), atol=1e-4)
        self.checked += 1


class HeadCapture:
    """Runs a head's forward once; a replay runs it again into the tensors of the first.

    By then the tensors of all other graphs are spoiled: nothing may be read of them any more.
    """

    def __init__(self):
        self.captured = self.replayed = 0
        self.results = []

    def __call__(self, function):
        self.captured += 1
        result = function()
        self.results.append(result)

        def replay():
            self.replayed += 1
            again = [part.clone() for part in function()]
            for other in self.results:
                for part in other:
                    part.fill_(float("nan") if part.is_floating_point() else 0)
            for old, new in zip(result, again):
                old.copy_(new)

        return replay, result


def with_graphs(drafter):
    """Let a drafter's head replay captured passes; the capture."""
    capture = HeadCapture()
    drafter.head.runtime = Graphs(drafter.head._rows, capture)
    return capture


class Guarded(Eager):
    """Notes what a compiler would guard: shapes, strides, types and inference mode of tensors, and
    numbers.
    """

    static_shapes = True

    def __init__(self, forward):
        super().__init__(forward)
        self.seen = set()

    def __call__(self, *arguments):
        self.seen.add(tuple(self.guard(argument) for argument in arguments))
        return self.forward(*arguments)

    @staticmethod
    def guard(argument):
        if not isinstance(argument, torch.Tensor):
            return argument
        return argument.dtype, argument.is_inference(), argument.shape, argument.stride()


def assert_warm_sees_every_shape(target, drafter, prompts, limit):
    """The passes of long answers are those of warm(), behind a first short answer."""
    drafter.head.runtime = runtime = Guarded(drafter.head._rows)
    decode(target, drafter, prompts, 3)
    short, cache = runtime.seen, drafter.head.cache
    runtime.seen = set()
    drafter.warm(max(map(len, prompts)) + limit)
    assert drafter.head.cache is cache and drafter.head.cache.capacity > 256
    capacity, warmed = cache.capacity, runtime.seen
    runtime.seen = set()
    decode(target, drafter, prompts, limit)
    assert drafter.head.cache.capacity == capacity
    assert len(runtime.seen) > len(short) and runtime.seen <= warmed


def assert_nothing_is_left_to_compile(target, drafter, prompts, limit, capture=None):
    """Warm for `limit` new tokens after a short answer; later, longer ones compile nothing."""
    target.reserve(len(prompts), 320)
    decode(target, drafter, prompts, 3)

    def count():
        return capture.captured if capture else compilations()

    capacity = max(map(len, prompts)) + limit
    target.warm(capacity + 100, drafter.shapes(), drafter.needs.hidden)
    drafter.warm(capacity)
    warmed = count()
    ids, _ = decode(target, drafter, prompts, limit)
    assert count() == warmed > 0
    return ids


def tiny_model(seed=0, **shape):
    """A random target whose answers vary."""
    return make_model(seed=seed, **{**LOOPY, **shape})
