"""SPACE's drafts: the published layout, a slow reference, slots, a model that answers positions."""

import pytest
import torch
from conftest import make_model, make_prompts
from oracle import decode, facts, outputs
from recording import Recording
from transformers import GPT2Config, GPT2LMHeadModel

from model.common.contract.drafter import Needs
from model.common.contract.sequence import EmptyDrafter
from model.common.loop.sampling import Sampler
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


# --- drafts ---


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


# --- answers: what the conformance tests say with five masks, for other numbers of them ---


@pytest.mark.parametrize("k", SIZES[:-1])
def test_answers_are_vanillas(target, k):
    prompts = loopy_prompts()
    for sampler in (Sampler(), Sampler(1.0, top_p=0.8)):
        expected = outputs(decode(target, EmptyDrafter(), prompts, 60, sampler))
        runs = [decode(target, space(k), prompts, 60, sampler, num_slots=num) for num in (1, 4)]
        assert outputs(runs[0]) == expected and facts(runs[1]) == facts(runs[0])
    for turn in runs[0]:
        assert turn.drafted == [0] + [k] * (len(turn.drafted) - 1)  # masks do not count


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


@pytest.mark.parametrize("num_slots", [1, 2])
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


def test_the_end_of_the_context():
    """Learned positions have none behind the model's last one."""
    prompt = [1] * 100
    (turn,) = decode(oracle(), space(5, 11), [prompt], 100)
    assert turn.output_ids == position_answer(prompt, 28) and sum(turn.accept_lengths) == 27
