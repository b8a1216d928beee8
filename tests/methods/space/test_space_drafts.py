"""SPACE's drafts: the published layout, a slow reference, slots, a model that answers positions."""

import pytest
import torch
from conftest import make_model, make_prompts
from oracle import decode, facts, outputs
from recording import Recording
from steps import prompt_step
from transformers import GPT2Config, GPT2LMHeadModel

from model.common.contract.drafter import Needs, Step
from model.common.contract.sequence import EmptyDrafter
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.attention import NAME, register
from model.common.target.model import Target
from model.space.drafter import SpaceDrafter, tree_parents

LOOPY = {"vocab_size": 11, "num_hidden_layers": 2}  # a random model that soon repeats itself
MASK = 9  # of the loopy model: one of its ordinary ids
SIZES = [1, 2, 3, 5]


def loopy_model():
    return make_model(dtype=torch.float64, **LOOPY)


@pytest.fixture(scope="module")
def target():
    return Target(loopy_model())


@pytest.fixture(scope="module")
def plain():
    """The same model without our masks and cache."""
    model = loopy_model()
    model.set_attn_implementation("sdpa")
    return model


@pytest.fixture(scope="module")
def baseline(target):
    """Greedy ids of 60 tokens after each of the loopy prompts."""
    return outputs(decode(target, EmptyDrafter(), loopy_prompts(), 60))


def loopy_prompts(num=6):
    return make_prompts(num, vocab_size=11)


def space(k, mask_id=MASK):
    return SpaceDrafter([mask_id] * k, "cpu")


# --- the layout ---


def roles(k):
    """Names of the rows, root included, in the published order."""
    names = ["root"]
    for group in range(k + 1):
        names += [("c", group)] if group else []
        names += [("m", group, j) for j in range(1, k + 1)]
    return names


def sees(one, other):
    """Whether a row reads another, by the published table."""
    group, own = (0, 0) if one == "root" else (one[1], one[2] if one[0] == "m" else 0)
    if other == "root":
        return True
    if other[0] == "c":
        return other[1] <= group
    return one != "root" and one[0] == "m" and other[1] == group and other[2] <= own


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_every_row_reads_what_the_table_says(k):
    drafter, names = space(k), roles(k)
    assert len(names) == 1 + k * (k + 2) == 1 + drafter.max_nodes
    expected = torch.tensor([[sees(one, other) for other in names] for one in names])
    assert torch.equal(drafter.tree.ancestors[0], expected)
    drafter.reserve(2, 64, Sampler())
    drafter.nodes[1] = drafter.nodes_of(torch.arange(k).unsqueeze(0) + 20)[0]
    draft = drafter.propose()
    assert draft.tree is drafter.tree and draft.probs is None and not draft.is_chain
    assert draft.probe.tolist() == [name[0] == "m" for name in names[1:]]
    assert draft.tokens.tolist() == [
        [MASK if name[0] == "m" else -1 for name in names[1:]],
        [MASK if name[0] == "m" else 19 + name[1] for name in names[1:]],
    ]
    assert draft.depth == drafter.max_depth == k
    assert drafter.reads_per_step == 0 and drafter.needs == Needs()


def test_published_example_of_three_tokens_and_two_masks():
    """Flat rows 3 to 10 behind x0 x1 x2: m01 m02 c1 m11 m12 c2 m21 m22."""
    tree = space(2).tree
    assert (2 + tree.depths[0]).tolist() == [2, 3, 4, 3, 4, 5, 4, 5, 6]
    row = 9 - 2  # the root is x2, flat index 2
    flat = [2 + i for i, seen in enumerate(tree.ancestors[0, row].tolist()) if seen]
    assert [0, 1, *flat] == [0, 1, 2, 5, 8, 9]
    assert roles(2)[row] == ("m", 2, 1)


def test_published_example_of_ten_tokens_and_five_masks():
    drafter = space(5)
    assert 9 + 1 + drafter.max_nodes == 45
    assert (10 + drafter.candidates).tolist() == [15, 21, 27, 33, 39]
    groups = [[*range(10 + i, 15 + i)] for i in range(6)]
    expected = groups[0] + [p for i in range(1, 6) for p in [9 + i, *groups[i]]]
    assert (9 + drafter.tree.depths[0, 1:]).tolist() == expected


def test_parents_of_one_mask():
    assert tree_parents(1) == [-1, -1, 1]


# --- drafts ---


@pytest.mark.parametrize("k", SIZES)
@torch.inference_mode()
def test_rows_equal_plain_forwards(target, plain, k):
    """Root and candidates are an ordinary forward's, and so is every group behind its prefix."""
    prompt, root, drafter = [3, 1, 4, 1, 5], 2, space(k)
    candidates = [(7 * i + 1) % 9 for i in range(k)]
    target.reserve(1, 128)
    target.prefill([0], torch.tensor([prompt]), [len(prompt)], Needs())
    drafter.nodes = drafter.nodes_of(torch.tensor([candidates]))
    logits, _ = target.forward(torch.tensor([root]), drafter.propose(), len(prompt) + 1)
    text = plain(torch.tensor([prompt + [root] + candidates])).logits[0, len(prompt) :]
    rows = [0, *(1 + drafter.candidates).tolist()]
    torch.testing.assert_close(logits[0, rows], text, atol=1e-5, rtol=1e-5)
    for group in range(k + 1):
        ids = prompt + [root] + candidates[:group] + [MASK] * k
        wanted = plain(torch.tensor([ids])).logits[0, -k:]
        begin = 1 + group * (k + 1)
        torch.testing.assert_close(logits[0, begin : begin + k], wanted, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def slow_draft(model, committed, masks):
    """Candidates after `committed`: what a plain forward says at masks in the root's place on."""
    logits = model(torch.tensor([committed[:-1] + masks])).logits[0, -len(masks) :]
    logits[:, masks] = float("-inf")
    return logits.argmax(-1).tolist()


@pytest.mark.parametrize("num_slots", [1, 3])
@pytest.mark.parametrize("masks", [[9], [9] * 3, [9, 4, 7], [9] * 5], ids=str)
def test_drafts_equal_a_slow_reference(target, plain, masks, num_slots):
    k, prompts = len(masks), loopy_prompts()
    recording = Recording(SpaceDrafter(masks, "cpu"))
    turns = decode(target, recording, prompts, 24, num_slots=num_slots)
    accepted = [turn.accept_lengths for turn in turns]
    assert max(map(max, accepted)) > 1
    assert len(recording.drafts) == sum(map(len, accepted)) >= 24
    probe, firsts = recording.inner.probe.tolist(), 0
    for one in recording.drafts:
        heard = [token for token, masked in zip(one.tokens, probe) if masked]
        candidates = [token for token, masked in zip(one.tokens, probe) if not masked]
        assert heard == masks * (k + 1) and one.parents == tree_parents(k)
        first = one.ids[:-1] in prompts  # masks only
        wanted = [-1] * k if first else slow_draft(plain, one.ids, masks)
        assert candidates == wanted
        firsts += first
    assert firsts == len(prompts)


@torch.inference_mode()
def test_the_group_behind_the_last_accepted_candidate_is_heard():
    """Masks are no candidates, the logits stay as they were, and an idle slot does no harm."""
    masks, k, counts = [9, 4, 7], 3, [1, 2, 3, 4, 0]
    drafter, generator = SpaceDrafter(masks, "cpu"), torch.Generator().manual_seed(0)
    logits = torch.randn(len(counts), 1 + k * (k + 2), 11, generator=generator)
    logits[:, :, 4] += 9  # the best everywhere, but a mask
    kept = logits.clone()
    drafter.reserve(len(counts), 64, Sampler())
    drafter.observe(step_of(logits, counts))
    nodes = drafter.propose().tokens
    assert torch.equal(logits, kept)
    kept[..., masks] = float("-inf")
    for slot, count in enumerate(counts):
        begin = 1 + max(count - 1, 0) * (k + 1)
        wanted = kept[slot, begin : begin + k].argmax(-1)
        assert torch.equal(nodes[slot, drafter.candidates], wanted)
        assert nodes[slot, drafter.probe].tolist() == masks * (k + 1)


def step_of(logits, counts):
    """A step of all slots as far as SPACE reads it."""
    rows = torch.zeros(logits.shape[:2], dtype=torch.long)
    ids = [[1] * count for count in counts]
    given = {"host_ids": ids, "max_committed": 9, "logits": logits}
    return Step([*range(len(ids))], rows, rows, torch.tensor(counts), rows, rows[:, 0], **given)


@torch.inference_mode()
def test_slots_begin_while_others_go_on():
    drafter, generator = space(3), torch.Generator().manual_seed(1)
    drafter.reserve(3, 64, Sampler())
    drafter.start(prompt_step([[1, 2], [3, 4, 5], [6, 7]]))
    candidates = drafter.propose().tokens[:, drafter.candidates]
    assert (candidates == -1).all() and len(candidates) == 3
    for slots in ([1], [0, 2]):
        drafter.observe(step_of(torch.randn(3, 16, 11, generator=generator), [1, 4, 2]))
        before = drafter.propose().tokens.clone()
        assert (before >= 0).all()
        drafter.end(slots)
        drafter.start(prompt_step([[1, 2, 3]] * len(slots), slots=slots))
        after = drafter.propose().tokens
        for slot in range(3):
            wanted = torch.where(drafter.probe, before[slot], -1) if slot in slots else before[slot]
            assert torch.equal(after[slot], wanted)
    drafter.reserve(2, 64, Sampler())  # a new run of the loop
    assert (drafter.propose().tokens[:, drafter.candidates] == -1).all()


# --- answers: what the conformance tests say with five masks, for other numbers of them ---


@pytest.mark.parametrize("k", SIZES)
def test_answers_are_vanillas(target, baseline, k):
    runs = [decode(target, space(k), loopy_prompts(), 60, num_slots=num) for num in (1, 2, 4, 6)]
    assert outputs(runs[0]) == baseline
    assert all(facts(turns) == facts(runs[0]) for turns in runs)
    accepted = [turn.accept_lengths for turn in runs[0]]
    assert all(lengths[0] == 1 for lengths in accepted)  # masks only
    assert 1 < max(max(lengths) for lengths in accepted) <= k + 1
    for turn in runs[0]:
        assert turn.drafted == [0] + [k] * (len(turn.drafted) - 1)  # masks do not count


@pytest.mark.parametrize("k", SIZES)
def test_sampled_answers_are_vanillas(target, k):
    prompts, sampler = loopy_prompts(), Sampler(1.0, top_p=0.8)
    expected = outputs(decode(target, EmptyDrafter(), prompts, 40, sampler))
    for num_slots in (1, 4):
        turns = decode(target, space(k), prompts, 40, sampler, num_slots=num_slots)
        assert outputs(turns) == expected


def test_rows_that_end_early_leave_the_others_alone(target, baseline):
    ends = frozenset({baseline[0][1]})
    prompts, stop = loopy_prompts(), StopRules(ends)
    alone = decode(target, space(3), prompts, 60, stop=stop, num_slots=1)
    lengths = [next((i + 1 for i, t in enumerate(ids) if t in ends), 60) for ids in baseline]
    assert lengths[0] < 4 < max(lengths)
    assert outputs(alone) == [ids[:num] for ids, num in zip(baseline, lengths)]
    for num_slots in (2, 3, 6):
        turns = decode(target, space(3), prompts, 60, stop=stop, num_slots=num_slots)
        assert facts(turns) == facts(alone)


def test_long_answers_are_vanillas():
    """More than 200 tokens of an unquiet model whose last id is the mask."""
    target = Target(make_model(scale=0.3, vocab_size=98))
    prompts = make_prompts(2)
    expected = outputs(decode(target, EmptyDrafter(), prompts, 220))
    assert outputs(decode(target, space(5, 97), prompts, 220)) == expected


# --- an oracle: a model that answers positions, at masks as everywhere ---


def oracle(period=7, vocab_size=12, right=99):
    """At position p it says p + 1 modulo the period, at masks too.

    GPT-2 with nothing but learned positions. The ids from period + right on say 11 instead: as the
    masks of a group's places they make those after the first `right` wrong.
    """
    config = GPT2Config(
        vocab_size=vocab_size, n_positions=128, n_embd=32, n_layer=1, n_head=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.ln_f.weight.fill_(1)
        model.transformer.wpe.weight.copy_(torch.eye(period, 32)[torch.arange(128) % period])
        wanted = (torch.arange(period) + 1) % period
        model.lm_head.weight[wanted, torch.arange(period)] = 1.0
        model.transformer.wte.weight[period + right :, 20] = 50.0
        model.lm_head.weight[11, 20] = 1.0
    register()
    model.set_attn_implementation(NAME)
    return Target(model)


def position_answer(prompt, limit, period=7):
    return [(len(prompt) + i) % period for i in range(limit)]


@pytest.mark.parametrize("num_slots", [1, 2, 3])
@pytest.mark.parametrize("k", SIZES)
def test_an_oracle_commits_k_and_the_bonus(k, num_slots):
    prompts = [[1, 2, 3], [4] * 8, [0]]
    turns = decode(oracle(), space(k, 11), prompts, 40, num_slots=num_slots)
    assert outputs(turns) == [position_answer(prompt, 40) for prompt in prompts]
    steps, rest = divmod(40 - 2, k + 1)
    wanted = [1] + [k + 1] * steps + [rest] * (rest > 0)
    assert [turn.accept_lengths for turn in turns] == [wanted] * 3


@pytest.mark.parametrize("right", range(4))
def test_masks_right_for_some_places(right):
    """Separate ids; those of the places after `right` say something wrong."""
    drafter = SpaceDrafter([7, 8, 9], "cpu")
    (turn,) = decode(oracle(right=right), drafter, [[1, 2]], 20)
    assert turn.output_ids == position_answer([1, 2], 20)
    full = 1 + min(right, 3)
    assert set(turn.accept_lengths[1:-1]) == {full} and turn.accept_lengths[0] == 1


def test_the_end_inside_the_candidates():
    """Nothing after it is committed, and nothing that pads is counted."""
    drafter, stop = space(5, 11), StopRules(frozenset({0}))
    for length, steps in ((1, [1, 5]), (2, [1, 4]), (5, [1, 1]), (6, [1]), (7, [])):
        (turn,) = decode(oracle(), drafter, [[1] * length], 40, stop=stop)
        wanted = position_answer([1] * length, 40)
        assert turn.output_ids == wanted[: wanted.index(0) + 1]
        assert turn.accept_lengths == steps


def test_the_end_of_the_context():
    """Learned positions have none behind the model's last one."""
    prompt = [1] * 100
    (turn,) = decode(oracle(), space(5, 11), [prompt], 100)
    assert turn.output_ids == position_answer(prompt, 28) and sum(turn.accept_lengths) == 27


def test_a_fixed_group_is_seen():
    """The fault that greedy output hides: group 0 whatever was accepted."""

    class Fixed(SpaceDrafter):
        def observe(self, step):
            step.count = torch.ones_like(step.count)
            super().observe(step)

    (turn,) = decode(oracle(), Fixed([11] * 5, "cpu"), [[1, 2, 3]], 40)
    assert turn.output_ids == position_answer([1, 2, 3], 40)
    assert turn.accept_lengths[:4] != [1, 6, 6, 6]
