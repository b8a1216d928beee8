"""model.py: rows of trees read what plain sequences would, in five families."""

import copy

import pytest
import torch
from conftest import FAMILIES, make_prompts
from oracle import (
    Chain,
    RandomTree,
    Scripted,
    StaticTree,
    answers,
    decode,
    lively,
    new_target,
    outputs,
)
from recording import Around
from slow_trees import random_parents, slow_lines

from model.common.contract.drafter import Draft, Needs
from model.common.contract.sequence import EmptyDrafter
from model.common.contract.trees import Tree
from model.common.errors import BadInput
from model.common.loop.decode import Loop
from model.common.loop.sampling import Sampler
from model.common.loop.source import Prompts, Request, pad_right
from model.common.loop.turns import StopRules
from model.common.target import model as target_module
from model.common.target.model import Target

HIDDEN = ("last", 0, 2)
PROMPTS = make_prompts(4)
LENGTHS = [len(ids) for ids in PROMPTS]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def plain(family):
    """transformers' model with its own attention, read as it comes."""
    return lively(family, torch.float32, "eager")


@torch.inference_mode()
def read(model, ids):
    """(logits [n, V], hidden states) of a plain sequence without a cache."""
    out = model(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    states = {"last": out.hidden_states[-1][0]}
    states.update({layer: state[0] for layer, state in enumerate(out.hidden_states[:-1])})
    return out.logits[0], states


def prefill(target, prompts, needs=None, capacity=120):
    """Read prompts, one a slot."""
    target.reserve(len(prompts), capacity)
    return into(target, list(range(len(prompts))), prompts, needs)


def into(target, slots, prompts, needs=None):
    """Read prompts into some slots."""
    lengths = [len(ids) for ids in prompts]
    ids = pad_right(prompts, torch.device("cpu"))
    return target.prefill(slots, ids, lengths, needs or Needs())


def columns(cache, slot, length):
    """Keys and values of a slot's first columns, [2, layers, H, length, D]."""
    return torch.stack([part[:, slot, :, :length] for part in cache.storage[0]])


def close(found, wanted, atol):
    torch.testing.assert_close(found, wanted, atol=atol, rtol=1e-4)


def test_prefill_is_transformers(family, plain):
    target = new_target(family)
    found = prefill(target, PROMPTS, Needs(hidden=HIDDEN, prompt_topk=5))
    assert target.cache.length.tolist() == LENGTHS
    for row, ids in enumerate(PROMPTS):
        logits, states = read(plain, ids)
        close(found.logits[row], logits[-1], 1e-4)
        for name in HIDDEN:
            close(found.hidden[name][row, : len(ids)], states[name], 1e-4)
        order = logits.argsort(-1, descending=True)[:, :5]
        assert torch.equal(found.topk[row, : len(ids)], order)


@pytest.mark.parametrize("chunk", [1, 7, 33])
def test_chunked_prefill_is_unchunked(family, monkeypatch, chunk):
    needs = Needs(hidden=HIDDEN, prompt_topk=4)
    whole, parts = new_target(family), new_target(family)
    wanted, wanted_plain = prefill(whole, PROMPTS, needs), prefill(new_target(family), PROMPTS)
    monkeypatch.setattr(target_module, "PREFILL_CHUNK", chunk)
    found, found_plain = prefill(parts, PROMPTS, needs), prefill(new_target(family), PROMPTS)
    close(found.logits, wanted.logits, 1e-4)
    close(found_plain.logits, wanted_plain.logits, 1e-4)
    assert found_plain.topk is None and found_plain.hidden == {}
    for row, length in enumerate(LENGTHS):
        for name in HIDDEN:
            close(found.hidden[name][row, :length], wanted.hidden[name][row, :length], 1e-4)
        assert torch.equal(found.topk[row, :length], wanted.topk[row, :length])
        close(columns(parts.cache, row, length), columns(whole.cache, row, length), 1e-5)


@pytest.mark.parametrize("chunk", [7, 2048])
def test_prompts_enter_some_slots_while_others_go_on(family, monkeypatch, chunk):
    """Slots 2 and 0 are read anew, the second longer than what stood there; 1 and 3 stay."""
    needs = Needs(hidden=HIDDEN, prompt_topk=2)
    target, fresh = new_target(family), Target(copy.deepcopy(lively(family, torch.float32)))
    prefill(target, PROMPTS)
    before = [columns(target.cache, slot, LENGTHS[slot]) for slot in (1, 3)]
    monkeypatch.setattr(target_module, "PREFILL_CHUNK", chunk)
    found = into(target, [2, 0], [PROMPTS[3], PROMPTS[1]], needs)
    assert target.cache.length.tolist() == [19, 19, 11, 11]
    for slot, kept in zip((1, 3), before):
        assert torch.equal(columns(target.cache, slot, LENGTHS[slot]), kept)
    wanted = prefill(fresh, [PROMPTS[3], PROMPTS[1]], needs)
    close(found.logits, wanted.logits, 1e-4)
    for place, (slot, length) in enumerate(((2, 11), (0, 19))):
        own = columns(target.cache, slot, length)
        close(own, columns(fresh.cache, place, length), 1e-5)
        close(found.hidden["last"][place, :length], wanted.hidden["last"][place, :length], 1e-4)
        assert torch.equal(found.topk[place, :length], wanted.topk[place, :length])


def trees(kind, batch):
    """Parents of a draft of 9 nodes: one tree for all rows, or another for each."""
    if kind == "chain":
        return None
    own = [random_parents(9, seed) for seed in range(batch)]
    return own[0] if kind == "static" else own


@pytest.mark.parametrize("kind", ["chain", "static", "dynamic"])
@pytest.mark.parametrize("rows", [[2], [0, 1, 2, 3]], ids=str)
@torch.inference_mode()
def test_tree_rows_read_like_plain_sequences(family, plain, kind, rows):
    """Logits and hidden states of every row are those of its line, read from the prompt on."""
    prompts = [PROMPTS[row] for row in rows]
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 97, (len(rows), 9), generator=generator)
    root = torch.randint(0, 97, (len(rows),), generator=generator)
    parents = trees(kind, len(rows))
    draft = Draft(tokens, None if parents is None else Tree(torch.tensor(parents), 9))
    target = new_target(family)
    prefill(target, prompts)
    logits, hidden = target.forward(root, draft, max(map(len, prompts)) + 1, HIDDEN)
    for row, prompt in enumerate(prompts):
        own = list(range(-1, 8)) if parents is None else parents
        own = own[row] if isinstance(own[0], list) else own
        ids = [int(root[row]), *tokens[row].tolist()]
        for node, line in enumerate(slow_lines(own)):
            scores, states = read(plain, prompt + [ids[at] for at in line])
            close(logits[row, node], scores[-1], 1e-4)
            for name in HIDDEN:
                close(hidden[name][row, node], states[name][-1], 1e-4)


@pytest.mark.parametrize("rows", [[2], [0, 1, 2, 3]], ids=str)
@torch.inference_mode()
def test_a_tree_may_be_read_in_parts(rows):
    """Level by level, as drafters do: each read stands behind the rows of the reads before it."""
    model = lively("llama", torch.float32)
    prompts = [PROMPTS[row] for row in rows]
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, 97, (len(rows), 10), generator=generator)
    tree = Tree(torch.tensor([random_parents(9, seed) for seed in range(len(rows))]), 9)
    target, longest = new_target(), max(map(len, prompts))
    prefill(target, prompts)
    whole, states = target.read(tokens, tree.ancestors, tree.depths, longest, hidden=HIDDEN)
    prefill(new_target(), prompts)
    target = Target(model)
    prefill(target, prompts)
    for first, last in ((0, 1), (1, 4), (4, 10)):
        known = tree.ancestors[:, first:last, :last]
        given = tokens[:, first:last], known, tree.depths[:, first:last], longest
        logits, hidden = target.read(*given, offset=first, hidden=HIDDEN)
        close(logits, whole[:, first:last], 1e-4)
        for name in HIDDEN:
            close(hidden[name], states[name][:, first:last], 1e-4)
    assert target.cache.length.tolist() == [len(ids) for ids in prompts]  # nothing is committed


class Poison(Chain):
    """Leaves NaN in the cache where its sequence was, as an overflow would."""

    target = None

    def end(self, slots):
        super().end(slots)
        for part in self.target.cache.storage[0]:
            part[:, slots] = float("nan")


def test_nan_of_the_sequence_before_does_not_leak():
    """Into the next sequence of a slot, nor out of a slot that stays idle."""
    target, known = new_target(), answers("llama")
    drafter = Poison(known)
    drafter.target = target
    for num_slots in (1, 2, 4, 4):  # the last run finds the cache of the one before
        turns = decode(target, drafter, PROMPTS, num_slots=num_slots)
        assert outputs(turns) == [ids[:24] for ids in known]


def test_cache_is_kept_grown_and_replaced():
    target = new_target()
    target.reserve(2, 100)
    first = target.cache
    assert first.capacity == 256
    target.reserve(2, 256)
    assert target.cache is first
    target.reserve(2, 257)
    assert target.cache is not first and target.cache.capacity == 512
    target.reserve(2, 30)
    assert target.cache.capacity == 512
    target.reserve(3, 30)
    assert target.cache.num_slots == 3 and target.cache.capacity == 256


class Long(RandomTree):
    """A draft that no reserve was made for, in the first step only."""

    def propose(self):
        draft = super().propose()
        if max(self.steps):
            return draft
        more = torch.zeros(len(draft.tokens), 400, dtype=torch.long)
        parents = torch.cat([draft.tree.parents, more - 1], 1)
        return Draft(torch.cat([draft.tokens, more], 1), Tree(parents, draft.depth))


@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3]], ids=str)
def test_cache_grows_for_a_long_draft(rows):
    known, prompts = [answers("llama")[row] for row in rows], [PROMPTS[row] for row in rows]
    target = new_target()
    turns = decode(target, Long(known), prompts)
    assert outputs(turns) == [ids[:24] for ids in known]
    assert target.cache.capacity == 512 and target.cache.storage[0][0].shape[3] == 513


class Ending(Scripted):
    """A wrong token, then the right branch in the last rows."""

    parents = [-1, -1, 1, 2, 3]
    max_nodes, max_depth = 5, 4

    def propose(self):
        return self.static([[5, *self.ahead(slot, 4)] for slot in self.slots()])


@pytest.mark.parametrize("batch", [1, 2])
def test_drafts_fill_the_last_columns(batch):
    """250 + 5 tokens, all in one step: its last row stands in column 255 of 256, and is moved.

    The drafter drafts more than it says, so that there is no room behind them.
    """
    prompts = [(PROMPTS[3] * 30)[row : 250 + row] for row in range(batch)]
    plain = outputs(decode(new_target(), EmptyDrafter(), prompts, 20))
    target, drafter = new_target(), Around(Ending(plain, 99))
    drafter.max_nodes = 0
    turns = decode(target, drafter, prompts, 5)
    assert outputs(turns) == [ids[:5] for ids in plain]
    assert target.cache.capacity == 256
    assert [turn.accept_lengths for turn in turns] == [[4]] * batch
    target.reserve(batch, 256)
    turns = decode(target, Ending(plain, 99), prompts, 12)  # and beyond
    assert outputs(turns) == [ids[:12] for ids in plain]


@pytest.mark.parametrize("kind", [Chain, StaticTree])
def test_a_run_has_room_for_its_last_drafts(kind):
    """231 + 24 tokens and the draft behind them, which is refused: no cache grows within a step."""
    prompt = (PROMPTS[3] * 30)[:231]
    plain = outputs(decode(new_target(), EmptyDrafter(), [prompt], 24))
    target, drafter, source = new_target(), kind(plain, 0), Prompts([Request(prompt, 24)])
    drafter.prompts = [prompt]
    loop = Loop(target, drafter, Sampler(), StopRules(), 1, len(prompt) + 24)
    cache, capacity = target.cache, target.cache.capacity
    loop.run(source)
    assert outputs(source.answers()) == plain
    assert target.cache is cache and cache.capacity == capacity == 512


def test_finished_row_with_the_longest_prompt_stays_inside_the_cache():
    """Its prompt ends the cache and its first token ends the answer; the other drafts on."""
    prompts = [(PROMPTS[3] * 30)[:251], PROMPTS[0]]
    ((end,),) = outputs(decode(new_target(), EmptyDrafter(), prompts[:1], 1))
    known = answers("llama")[0]
    assert end not in known[:4]
    drafter = RandomTree([known, known])
    turns = decode(new_target(), drafter, prompts, 4, stop=StopRules(frozenset({end})))
    assert outputs(turns) == [[end], known[:4]]


def test_context_is_a_bound():
    target = new_target()  # 512 positions
    prompt = (PROMPTS[3] * 60)[:510]
    (turn,) = decode(target, EmptyDrafter(), [prompt], 24)
    assert len(turn.output_ids) == 2 and turn.finish_reason == "length"
    known = [turn.output_ids + [1] * 20]
    turns = decode(target, StaticTree(known), [prompt], 24)
    assert outputs(turns) == [turn.output_ids]
    for length in (512, 513):
        with pytest.raises(BadInput, match=f"{length} tokens does not fit the context of 512"):
            decode(target, EmptyDrafter(), [PROMPTS[0], (PROMPTS[3] * 60)[:length]])
    with pytest.raises(BadInput, match="empty prompt"):
        decode(target, EmptyDrafter(), [[]])
