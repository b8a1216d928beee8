"""head.py: k layers behind what B slots have committed read what plain sequences would."""

import pytest
import torch
from replays import Replays
from slow_trees import random_parents, slow_lines
from torch import nn

from model.common.contract.trees import Tree
from model.common.errors import BadInput
from model.common.heads import head as head_module
from model.common.heads.head import CachedHead, CausalRows, RowAttention, llama_config
from model.common.target.runtime import CudaGraphs, Runtime

CPU, HIDDEN = torch.device("cpu"), 32
FIELDS = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
}
LENGTHS = [7, 3, 12]


class Stack(nn.Module):
    """Attention layers with residuals, over embedded tokens and states of their own."""

    def __init__(self, config, num_layers):
        super().__init__()
        self.embedding = nn.Embedding(97, HIDDEN)
        self.layers = nn.ModuleList([RowAttention(config) for _ in range(num_layers)])

    def forward(self, inputs, rotary, mask, place):
        tokens, states = inputs
        rows = self.embedding(tokens) + states
        for layer in self.layers:
            rows = rows + layer(rows, rotary, mask, place)
        return rows


@pytest.fixture(params=[1, 3], ids=["one layer", "three layers"])
def module(request):
    torch.manual_seed(0)
    return Stack(llama_config(FIELDS), request.param).double()


@pytest.fixture(params=["eager", "cudagraph"])
def head(module, request):
    runtime = Runtime(CPU) if request.param == "eager" else CudaGraphs(CPU, Replays())
    return CachedHead(module, llama_config(FIELDS), CPU, torch.float64, runtime)


def rows_of(lengths, seed=1):
    """(tokens, states) of right-padded sequences."""
    generator, longest = torch.Generator().manual_seed(seed), max(lengths)
    tokens = torch.randint(0, 97, (len(lengths), longest), generator=generator)
    states = torch.randn(len(lengths), longest, HIDDEN, generator=generator, dtype=torch.float64)
    return tokens, states


@torch.inference_mode()
def plain(module, tokens, states):
    """States [n, H] of one sequence, read in one go without a cache."""
    rows = states[None]
    causal = CausalRows(llama_config(FIELDS), CPU)
    return module((tokens[None], rows), causal.rotary(rows), causal.mask(rows), None)[0]


def begun(head, lengths=LENGTHS, kept=None):
    """The head with prompts in its slots; (tokens, states) and what read_prompt() gave."""
    inputs = rows_of(lengths)
    head.reserve(len(lengths), 40)
    last = head.read_prompt(list(range(len(lengths))), inputs, torch.tensor(kept or lengths))
    return inputs, last


@pytest.mark.parametrize("chunk", [5, 2048])
@torch.inference_mode()
def test_prompts_are_read_into_their_slots(head, module, monkeypatch, chunk):
    monkeypatch.setattr(head_module, "PROMPT_CHUNK", chunk)
    kept = [7, 2, 11]
    (tokens, states), last = begun(head, kept=kept)
    for slot, length in enumerate(kept):
        wanted = plain(module, tokens[slot, :length], states[slot, :length])
        torch.testing.assert_close(last[slot], wanted[-1])
    assert head.cache.length.tolist() == kept
    other = rows_of([4, 9], seed=5)  # slots 2 and 0 begin anew, 1 goes on
    last = head.read_prompt([2, 0], other, torch.tensor([4, 9]))
    assert head.cache.length.tolist() == [9, 2, 4]
    for place, (slot, length) in enumerate(((2, 4), (0, 9))):
        own = [part[place, :length] for part in other]
        torch.testing.assert_close(last[place], plain(module, *own)[-1])
        tokens[slot, :length], states[slot, :length] = own
    more = rows_of([1, 1, 1], seed=6)
    found = head.read(more, 9)
    for slot, length in enumerate([9, 2, 4]):
        line = [
            torch.cat([part[slot, :length], new[slot]]) for part, new in zip((tokens, states), more)
        ]
        torch.testing.assert_close(found[slot, 0], plain(module, *line)[-1])


@torch.inference_mode()
def test_chains_and_trees_read_their_own_lines(head, module):
    """In one read, and level by level with offsets; then a path of the rows is kept."""
    prompt, _ = begun(head)
    new = rows_of([10] * 3, seed=2)
    parents = [random_parents(9, seed) for seed in range(3)]
    tree = Tree(torch.tensor(parents), 9)

    def line_of(slot, line):
        length = LENGTHS[slot]
        return plain(
            module,
            *(torch.cat([old[slot, :length], own[slot, line]]) for old, own in zip(prompt, new)),
        )

    chain = head.read(new, 12)
    whole = head.read(new, 12, 0, tree.ancestors, tree.depths).clone()
    for slot, own in enumerate(parents):
        torch.testing.assert_close(chain[slot], line_of(slot, list(range(10)))[-10:])
        for node, line in enumerate(slow_lines(own)):
            torch.testing.assert_close(whole[slot, node], line_of(slot, line)[-1])
    for first, last in ((0, 1), (1, 4), (4, 10)):
        part = tuple(tensor[:, first:last] for tensor in new)
        known, depths = tree.ancestors[:, first:last, :last], tree.depths[:, first:last]
        torch.testing.assert_close(head.read(part, 12, first, known, depths), whole[:, first:last])
    assert head.cache.length.tolist() == LENGTHS
    lines = [max(slow_lines(own), key=len) for own in parents]
    width = max(map(len, lines))
    path = torch.tensor([line + [-1] * (width - len(line)) for line in lines])
    head.cache.keep(path, (path >= 0).sum(1))
    after = rows_of([1] * 3, seed=3)
    found = head.read(after, 12 + width)
    for slot, line in enumerate(lines):
        length, parts = LENGTHS[slot], zip(prompt, new, after)
        rows = [
            torch.cat([old[slot, :length], own[slot, line], one[slot]]) for old, own, one in parts
        ]
        torch.testing.assert_close(found[slot, 0], plain(module, *rows)[-1])


@torch.inference_mode()
def test_rows_of_a_block_read_each_other(head, module):
    """torch.ones(1, r, r), as a drafter of whole blocks asks for; against a mask written out."""
    prompt, _ = begun(head)
    new = rows_of([4] * 3, seed=2)
    found = head.read(new, 12, 0, torch.ones(1, 4, 4, dtype=torch.bool), torch.arange(4))
    for slot, length in enumerate(LENGTHS):
        tokens, states = (
            torch.cat([old[slot, :length], own[slot]])[None] for old, own in zip(prompt, new)
        )
        causal = CausalRows(llama_config(FIELDS), CPU)
        mask = causal.mask(states)
        mask[..., length:, length:] = 0
        wanted = module((tokens, states), causal.rotary(states), mask, None)[0]
        torch.testing.assert_close(found[slot], wanted[length:])


def test_layers_have_caches_of_their_own(head, module):
    """As many as there are attention modules, in one storage."""
    head.reserve(2, 40)
    (pair,) = head.cache.storage
    assert head.cache.capacity == 256 and pair[0].shape[:3] == (len(module.layers), 2, 2)
    assert [layer.kv[1].data_ptr() for layer in module.layers] == [v.data_ptr() for v in pair[1]]


def test_a_config_without_a_size_is_refused():
    for name in ("hidden_size", "vocab_size"):
        with pytest.raises(BadInput, match=f"head/config.json: no {name}"):
            llama_config({**FIELDS, name: None}, "head/config.json")
    scaled = {"type": "linear", "factor": 2.0}
    assert llama_config({**FIELDS, "rope_scaling": scaled}).rope_parameters["rope_type"] == "linear"
    assert llama_config(FIELDS).rope_parameters["rope_theta"] == 10000.0
