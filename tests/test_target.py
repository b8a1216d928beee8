"""target.py and kv_cache.py: rows of trees read what plain sequences would, in five families."""

import pytest
import torch
from conftest import FAMILIES, make_prompts
from oracle import (
    RandomTree,
    Scripted,
    StaticTree,
    answers,
    decode,
    lively,
    new_target,
    outputs,
)
from test_tree import random_parents, slow_lines

from model.common.contract.drafter import Draft, EmptyDrafter, Needs
from model.common.errors import BadInput
from model.common.loop.decode import pad_right
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
    lengths = [len(ids) for ids in prompts]
    ids = pad_right(prompts, torch.device("cpu"))
    return target.prefill(ids, lengths, capacity, needs or Needs())


def columns(cache, row, length):
    """Keys and values of a sequence's first columns, [layers, 2, H, length, D]."""
    return cache.storage[0][:, :, row, :, :length]


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
    draft = Draft.chain(tokens) if parents is None else Draft(tokens, torch.tensor(parents), 9)
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


class Watched:
    """A drafter that compares the cache after every step with a prefill of what is committed."""

    def __init__(self, inner, target, prompts):
        self.inner, self.target, self.prompts = inner, target, prompts
        self.needs, self.fresh = inner.needs, Target(target.model)
        self.compared = 0

    def start(self, prefill, max_lengths, sampler):
        self.committed = [list(ids) for ids in prefill.host_ids]
        self.inner.start(prefill, max_lengths, sampler)

    def propose(self):
        return self.inner.propose()

    def observe(self, step):
        for ids, new in zip(self.committed, step.host_ids):
            ids.extend(new)
        prefill(self.fresh, [ids[:-1] for ids in self.committed])
        for row, new in enumerate(step.host_ids):
            if new and self.target.cache.length[row] > 0:
                length = len(self.committed[row]) - 1
                assert self.target.cache.length[row] == length
                found = columns(self.target.cache, row, length)
                close(found, columns(self.fresh.cache, row, length), 1e-5)
                self.compared += 1
        self.inner.observe(step)


@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("scripted", [StaticTree, RandomTree])
def test_cache_after_commits_is_a_prefills(family, scripted, rows):
    known, prompts = [answers(family)[row] for row in rows], [PROMPTS[row] for row in rows]
    target = new_target(family)
    drafter = Watched(scripted(known), target, prompts)
    turns = decode(target, drafter, prompts, 16)
    assert outputs(turns) == [ids[:16] for ids in known]
    assert drafter.compared >= 3 * len(rows)


@torch.inference_mode()
def test_nan_of_the_question_before_does_not_leak():
    """A masked NaN would still be multiplied; stale columns hold whatever the last one left."""
    target = new_target()
    wanted = outputs(decode(target, EmptyDrafter(), PROMPTS))
    target.cache.storage[0].fill_(float("nan"))
    assert outputs(decode(target, EmptyDrafter(), PROMPTS)) == wanted
    target.cache.storage[0].fill_(float("nan"))
    target.cache.reset()
    assert (target.cache.storage[0] == 0).all() and (target.cache.length == 0).all()


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
    assert target.cache.batch == 3 and target.cache.capacity == 256


class Long(RandomTree):
    """A draft that no reserve was made for, in the first step only."""

    num_nodes = 12

    def propose(self):
        draft = super().propose()
        if self.steps:
            return draft
        more = torch.zeros(len(draft.tokens), 400, dtype=torch.long)
        parents = torch.full((len(draft.tokens), 400), -1)
        tokens = torch.cat([draft.tokens, more], 1)
        return Draft(tokens, torch.cat([draft.parents, parents], 1), draft.depth)


@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3]], ids=str)
def test_cache_grows_for_a_long_draft(rows):
    known, prompts = [answers("llama")[row] for row in rows], [PROMPTS[row] for row in rows]
    target = new_target()
    turns = decode(target, Long(known), prompts)
    assert outputs(turns) == [ids[:24] for ids in known]
    assert target.cache.capacity == 512 and target.cache.storage[0].shape[4] == 512


class Ending(Scripted):
    """A wrong token, then the right branch in the last rows."""

    parents = torch.tensor([-1, -1, 1, 2, 3])

    def propose(self):
        tokens = [[5, *self.ahead(row, 4)] for row in self.rows()]
        return Draft(torch.tensor(tokens), self.parents, 4)


@pytest.mark.parametrize("batch", [1, 2])
def test_drafts_fill_the_last_columns(batch):
    """250 + 5 tokens, all in one step: its last row stands in column 255 of 256, and is moved."""
    prompts = [(PROMPTS[3] * 30)[row : 250 + row] for row in range(batch)]
    plain = outputs(decode(new_target(), EmptyDrafter(), prompts, 20))
    target = new_target()
    turns = decode(target, Ending(plain, 99), prompts, 5)
    assert outputs(turns) == [ids[:5] for ids in plain]
    assert target.cache.capacity == 256
    assert [turn.accept_lengths for turn in turns] == [[4]] * batch
    target.reserve(batch, 256)
    turns = decode(target, Ending(plain, 99), prompts, 12)  # and beyond: the cache grows
    assert outputs(turns) == [ids[:12] for ids in plain]


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
