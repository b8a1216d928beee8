"""DSpark's head: DFlash's backbone, a bias by the token before, a guess of what is accepted.

Source: Cheng et al., arXiv 2607.05147; github.com/deepseek-ai/DeepSpec
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.common.errors import BadInput
from model.dflash.backbone import BlockModule
from model.dflash.config import ARCHITECTURES, FROM_ANCHOR, read_design
from model.dflash.head import BlockHead, finish_head, layer_config, open_head, resized

KINDS = ("vanilla", "gated", "rnn")


class Markov(NamedTuple):
    """What a config says beside DFlash's design.

    rank        of the transition between tokens, 0 = none
    kind        of KINDS
    confidence  whether there is a confidence head, and whether it reads the token before
    """

    rank: int = 0
    kind: str = "vanilla"
    confidence: bool = False
    with_token: bool = False


def read_markov(fields: dict, place: str) -> Markov:
    """The parts that flat fields say."""
    rank, kind = fields.get("markov_rank", 0), fields.get("markov_head_type", "vanilla")
    if type(rank) is not int or rank < 0:
        raise BadInput(f"{place}: markov_rank {rank!r}, an integer of at least 0 is needed")
    if kind not in KINDS:
        raise BadInput(f"{place}: markov_head_type {kind!r}, one of {', '.join(KINDS)} is needed")
    confidence = bool(fields.get("enable_confidence_head"))
    with_token = confidence and bool(fields.get("confidence_head_with_markov"))
    if with_token and not rank:
        raise BadInput(f"{place}: confidence_head_with_markov, but markov_rank 0")
    return Markov(rank, kind, confidence, with_token)


class MarkovHead(nn.Module):
    """What is added to a slot's logits, given the token before it.

    vanilla  W2 W1[before]
    gated    the same with W1[before] gated by the slot's state
    rnn      from a state that is carried through the block, which begins as 0
    """

    def __init__(self, markov: Markov, width: int, vocab: int, num_outputs: int):
        super().__init__()
        rank, self.kind = markov.rank, markov.kind
        self.markov_w1 = nn.Embedding(vocab, rank)
        self.markov_w2 = nn.Linear(rank, num_outputs, bias=False)
        if self.kind == "gated":
            self.gate_proj = nn.Linear(width + rank, rank)
        if self.kind == "rnn":
            self.joint_proj = nn.Linear(2 * rank + width, 3 * rank)

    def forward(self, before: Tensor, states: Tensor, memory: Tensor | None):
        """(bias [.., V_d], memory for the next slot) of tokens [..] and states [.., H]."""
        rows = self.markov_w1(before)
        if self.kind == "gated":
            rows = rows * torch.sigmoid(self.gate_proj(torch.cat([states, rows], -1)))
        if self.kind == "rnn":
            memory = torch.zeros_like(rows) if memory is None else memory
            joint = self.joint_proj(torch.cat([memory, rows, states], -1))
            gate, new, out = joint.chunk(3, -1)
            gate, rows = torch.sigmoid(gate), torch.tanh(out)
            memory = gate * memory + (1 - gate) * torch.tanh(new)
        return self.markov_w2(rows), memory


class ConfidenceHead(nn.Module):
    """The logit of a slot's acceptance, given that all before it were accepted."""

    def __init__(self, num_inputs: int):
        super().__init__()
        self.proj = nn.Linear(num_inputs, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """[.., N] -> [..]."""
        return self.proj(rows).squeeze(-1)


class DSparkModule(BlockModule):
    """The published tensors."""

    def __init__(self, config, design, target_width, owns=(), markov: Markov | None = None):
        super().__init__(config, design, target_width, owns)
        self.markov = markov or Markov()
        width, vocab = config.hidden_size, config.vocab_size
        if self.markov.rank:
            num_outputs = design.draft_vocab or vocab
            self.markov_head = MarkovHead(self.markov, width, vocab, num_outputs)
        if self.markov.confidence:
            more = self.markov.rank if self.markov.with_token else 0
            self.confidence_head = ConfidenceHead(width + more)

    def corrected(self, logits: Tensor, before: Tensor, states: Tensor, memory):
        """(logits [.., V_d] given the token before [..], memory) of a slot."""
        if not self.markov.rank:
            return logits, memory
        bias, memory = self.markov_head(before, states, memory)
        return logits + bias.to(logits.dtype), memory

    def confidence(self, before: Tensor, states: Tensor) -> Tensor:
        """Logits [..] of acceptance, of the tokens before [..] and states [.., H] of slots."""
        rows = states
        if self.markov.with_token:
            rows = torch.cat([states, self.markov_head.markov_w1(before)], -1)
        return self.confidence_head(rows)


def load_dspark(path: str, target, block_size: int | None = None) -> BlockHead:
    """A head of DeepSpec, SpecForge or speculators; block_size: another than its config's."""
    checkpoint, fields, place = open_head(path, target)
    for name, of_dflash in (
        ("architectures", ARCHITECTURES.difference(FROM_ANCHOR)),
        ("speculators_model_type", ("dflash", "dflash2")),
    ):
        if fields.get(name) in of_dflash:
            raise BadInput(f"{place}: {name} {fields[name]}: a head of method dflash")
    design = read_design(fields, place, target)
    if design.conv or design.selector:
        raise BadInput(f"{place}: DFlash2's convolutions and selector: a head of method dflash")
    markov = read_markov(fields, place)
    config = layer_config(fields, place, target)
    make = partial(DSparkModule, markov=markov)
    return finish_head(checkpoint, target, config, make, resized(design, target, block_size))
