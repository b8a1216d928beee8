"""Graphs made inside a timed region are counted, whoever makes them; eager steps make none."""

import pytest
import torch
from conftest import make_prompts
from oracle import DRAFTERS, Chain, StaticTree, answers, decode, lively, new_drafter, new_target
from replays import with_graphs

from model.common.contract.sequence import EmptyDrafter
from model.common.target.runtime import compilations

PROMPTS = make_prompts(4)


def test_a_planted_recording_is_counted():
    """A shape that no warm-up met is captured in a timed step, and again after a new cache."""
    known, before = answers("llama"), compilations()
    target, _ = with_graphs(lively("llama", torch.float32))

    def recompiled(drafter, prompts=PROMPTS[:1], limit=24, **more):
        turns = decode(target, drafter, prompts, limit, **more)
        return [turn.recompiled for turn in turns]

    assert recompiled(Chain(known[:1])) == [1] and compilations() - before == 1
    assert recompiled(Chain(known[:1])) == [0]
    tree = StaticTree(known[:1])
    assert recompiled(tree) == [1]
    target.runtime.forget()
    assert recompiled(tree) == [1]
    assert recompiled(Chain(known), PROMPTS, 6) == [1] * 4
    assert recompiled(EmptyDrafter(), limit=1) == [0]  # no step
    # refilled slots: whoever was beside the first step has it in its wall time, nobody later
    assert recompiled(Chain(known), PROMPTS, num_slots=2) == [1, 1, 0, 0]


@pytest.mark.parametrize("kind", DRAFTERS)
def test_eager_steps_make_nothing(kind):
    turns = decode(new_target(), new_drafter(kind, answers("llama")), PROMPTS, num_slots=2)
    assert [turn.recompiled for turn in turns] == [0] * 4


def test_what_a_drafter_records_counts_too():
    target, capture = with_graphs(lively("llama", torch.float32))
    decode(target, EmptyDrafter(), PROMPTS[:1], 9)
    recorded = target.runtime.captured(lambda data: data + 1)

    class Recording(EmptyDrafter):
        """A graph for every length of its data."""

        def propose(self):
            self.steps = getattr(self, "steps", 0) + 1
            recorded(torch.ones(self.steps))
            return super().propose()

    turns = decode(target, Recording(), PROMPTS[:1], 5)
    assert turns[0].recompiled == 4
