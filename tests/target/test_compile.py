"""--runtime compile: eager's ids from few graphs, which write the cache in place."""

import pytest
import torch
from conftest import make_model, make_prompts
from oracle import Chain, RandomTree, Sometimes, StaticTree, decode, facts, new_drafter, outputs

from model.common.contract.drafter import Draft, Needs
from model.common.contract.sequence import EmptyDrafter
from model.common.target.model import Target
from model.common.target.runtime import compilations, make_runtime

pytestmark = pytest.mark.compiled
PROMPTS = make_prompts(4)
# hidden and head sizes that no attended width has: equal sizes are one to the compiler
SHAPE = {"scale": 0.3, "num_hidden_layers": 2, "hidden_size": 48, "head_dim": 12}
SHAPE["tie_word_embeddings"] = False
FAMILIES = {"llama": {}, "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]}}


@pytest.mark.parametrize(
    "family, rows, num_slots, most",
    [
        ("llama", [1], 1, 4),  # one row, few rows, few that are padded, more rows
        ("gemma3_text", [1], 1, 4),
        ("llama", [0, 1, 2, 3], 3, 4),  # and prompts that enter one of the slots
    ],
)
def test_few_graphs_give_the_eager_ids(family, rows, num_slots, most):
    """They serve all layers, row counts, attended widths and lengths, and a cache that grew."""
    eager, target = (
        Target(make_model(family, 3, **SHAPE, **FAMILIES[family]), name)
        for name in ("eager", "compile")
    )
    prompts, before = [PROMPTS[row] for row in rows], compilations()
    known = outputs(decode(eager, EmptyDrafter(), prompts, 40))
    assert len({token for ids in known for token in ids}) > 5
    for kind in (EmptyDrafter, StaticTree):
        decode(target, new_drafter(kind, known), prompts, 8, num_slots=num_slots)
        target.rehearse(new_drafter(kind, known), prompts[0])
    made = compilations()
    assert 0 < made - before <= most + 1  # the first is traced twice
    for kind in (EmptyDrafter, Chain, StaticTree, RandomTree, Sometimes):
        wanted = decode(eager, new_drafter(kind, known), prompts, 24, num_slots=num_slots)
        turns = decode(target, new_drafter(kind, known), prompts, 24, num_slots=num_slots)
        assert outputs(turns) == [ids[:24] for ids in known] and facts(turns) == facts(wanted)
        assert not any(turn.recompiled for turn in turns)
    long = [(PROMPTS[3] * 60)[:300], *prompts[1:]]
    found = [
        outputs(decode(t, EmptyDrafter(), long, 8, num_slots=num_slots)) for t in (eager, target)
    ]
    assert found[0] == found[1] and target.cache.capacity == 512
    assert compilations() == made


@torch.inference_mode()
def test_models_of_one_class_have_graphs_of_their_own():
    """Equal shapes: nothing but their weights tells two models apart."""
    ids, found = torch.tensor([[3, 4, 5]]), []
    for seed in (0, 1):
        pair = [Target(make_model("llama", seed), name) for name in ("eager", "compile")]
        for target in pair:
            target.reserve(1, 64)
            target.prefill([0], ids, [3], Needs())
        rows = [target.forward(ids[:, 0], Draft(ids[:, :2]), 4)[0] for target in pair]
        assert torch.allclose(*rows, atol=1e-5)
        found.append(rows[1].clone())
    assert not torch.allclose(*found, atol=1e-3)


@pytest.mark.parametrize("num_slots", [1, 3])
@torch.inference_mode()
def test_steps_write_the_cache_in_place(num_slots):
    """No allocation of a step is as large as a layer's keys: nothing copies the cache."""
    target = Target(make_model("llama"), "compile")
    ids = torch.tensor([[3, 4, 5]] * num_slots)
    target.reserve(num_slots, 4096)
    target.prefill(list(range(num_slots)), ids, [3] * num_slots, Needs())
    draft = Draft(ids.new_zeros(num_slots, 2))
    target.forward(ids[:, 0], draft, 4)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        target.forward(ids[:, 0], draft, 4)
        copy = target.cache.storage[0][0][0].clone()  # what would be found
    sizes = [event.cpu_memory_usage for event in profile.events()]
    assert max(sizes) >= copy.nbytes
    assert sum(size >= copy.nbytes / 2 for size in sizes) <= 3  # the clone, by its inner calls


def test_a_function_of_tensors_is_counted_once():
    """Whoever compiles it: a drafter's functions count as the target's layers do."""
    runtime = make_runtime("compile", torch.device("cpu"))
    function, before = runtime.compiled(lambda data: data * 2 + 1), compilations()
    for size in (5, 7, 9):
        assert function(torch.ones(size)).tolist() == [3] * size
    assert compilations() - before == 1
