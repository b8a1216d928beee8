"""A block drafter with its cache, and its loader for every published spelling."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from model.common.errors import BadInput
from model.common.heads.checkpoint import Checkpoint, is_copy
from model.common.heads.head import PROMPT_CHUNK, llama_config
from model.common.heads.vocabulary import DraftIds
from model.common.target.attention import additive, rows_mask
from model.common.target.cache import CachedModel
from model.common.target.products import choose_products
from model.dflash.backbone import BlockModule
from model.dflash.config import check_block, flat_fields, read_design
from model.eagle.head import borrowed
from model.eagle3.head import UNUSED, check_vocabulary

FILES = ("model.safetensors", "pytorch_model.bin")
NAMES = {  # Meta's, and ours
    "encoder.fc.weight": "fc.weight",
    "encoder.output_norm_enc.weight": "hidden_norm.weight",
}
MASK_FILE = "mask_embedding.pt"


class BlockHead(CachedModel):
    """The module with its cache, which holds one row for each committed token but the root.

    A block's rows stand behind those of the slots and are never kept: the next ones written there
    are of the target's states.
    needs  decoder layers of the target, whose inputs it reads
    """

    def __init__(self, module: BlockModule, config, target):
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        layers = [
            (layer.self_attn, config.num_key_value_heads, config.head_dim, config.head_dim)
            + (target.dtype, target.device)
            for layer in module.layers
        ]
        super().__init__(layers, target.device, target.dtype, target.runtime)
        choose_products(module, self.device)
        self.module, self.config, self.design = module, config, module.design
        self.needs, self.vocab_size = self.design.states, target.vocab_size
        self.draft_ids = DraftIds()
        if self.design.draft_vocab:
            offsets = module.d2t
            self.draft_ids = DraftIds(offsets + torch.arange(len(offsets), device=offsets.device))
        self.rotary = LlamaRotaryEmbedding(config).to(self.device)
        self.forward = self.runtime.compiled(module.forward)
        self.write = self.runtime.compiled(module.inject)
        self.inject = self.runtime.captured(self._inject)
        self.block = self.runtime.captured(self._block)

    @property
    def num_ids(self) -> int:
        """Ids that it can draft."""
        return self.design.draft_vocab or self.vocab_size

    def facts(self) -> dict:
        """How it is wired, for Drafter.facts()."""
        design = self.design
        wiring = [name for name in ("conv", "selector") if getattr(design, name)]
        wiring += ["anchor predicts"] if design.from_anchor else []
        facts = {"block_size": design.block_size, "fused_layers": list(self.needs)}
        return {**facts, "wiring": " ".join(wiring) or "plain", **self.draft_ids.facts()}

    def states_of(self, hidden: dict) -> Tensor:
        """The target's states side by side, [S, r, K H_t]."""
        return torch.cat([hidden[layer].to(self.device) for layer in self.needs], -1)

    def read_prompt(self, slots: list[int], states: Tensor, lengths: Tensor) -> None:
        """Have the tokens of right-padded prompts, states [S, P, K H_t], in emptied slots."""
        owner = torch.tensor(slots, device=self.device)
        some = None if len(slots) == self.cache.num_slots else owner
        self.make_room(states.shape[1])
        self.cache.clear(slots)
        for begin in range(0, states.shape[1], PROMPT_CHUNK):
            self.cache.rewind(torch.full_like(owner, begin), slots)
            with self.runtime.prompts():
                self._inject(states[:, begin : begin + PROMPT_CHUNK], some)
        self.cache.rewind(lengths, slots)

    def read(self, states: Tensor, count: Tensor, longest: int) -> None:
        """Have further tokens, states [B, m, K H_t]; of each slot the first count [B] stay.

        longest: host int, tokens of the longest running slot
        """
        self.make_room(longest + states.shape[1])
        self.inject(states, None)
        self.cache.advance(count)

    def draft(self, root: Tensor, longest: int) -> Tensor:
        """States [B, n, H] of the rows that draft, of a block behind each slot's root [B]."""
        out = self.block(self.width(longest + self.design.block_size), root)
        return out[:, self.design.block_size - self.design.num_drafts :]

    def _inject(self, states: Tensor, slots: Tensor | None) -> Tensor:
        columns = self.columns(states.shape[1], slots=slots)
        rotary = self.rotary(states, columns)
        return self.write(states, rotary, (columns, slots))

    def _block(self, width: int, root: Tensor) -> Tensor:
        size, length, kinds = self.design.block_size, self.cache.length, {}
        columns = self.columns(size)
        for window, causal in set(zip(self.design.windows, self.design.causal)):
            inside = torch.ones(1, size, size, dtype=torch.bool, device=self.device)
            inside = inside.tril() if causal else inside
            allowed = rows_mask(length, columns, columns, inside, width, window)
            kinds[window, causal] = additive(allowed, self.dtype)
        masks = tuple(kinds[kind] for kind in zip(self.design.windows, self.design.causal))
        rows = self.module.embed(root.to(self.device))
        return self.forward(rows, self.rotary(rows, columns), masks, (columns, None))


def load_head(path: str, target, block_size: int | None = None) -> BlockHead:
    """A DFlash or DFlash2 drafter; block_size: another than its config's."""
    checkpoint, fields, place = open_head(path, target)
    if fields.get("markov_rank"):
        raise BadInput(f"{place}: markov_rank {fields['markov_rank']}: a head of method dspark")
    if fields.get("enable_confidence_head"):
        raise BadInput(f"{place}: enable_confidence_head: a head of method dspark")
    if fields.get("speculators_model_type") == "dspark":
        raise BadInput(f"{place}: speculators_model_type dspark: a head of method dspark")
    design = resized(read_design(fields, place, target), target, block_size)
    config = layer_config(fields, place, target)
    return finish_head(checkpoint, target, config, BlockModule, design)


def resized(design, target, block_size: int | None):
    """The design with blocks of another size, None = its own."""
    if block_size is None:
        return design
    if block_size < 2 and not design.from_anchor:
        raise BadInput("--block-size 1: the root alone drafts nothing")
    check_block(block_size, "--block-size", target)
    return design._replace(block_size=block_size)


def open_head(path: str, target) -> tuple[Checkpoint, dict, str]:
    """(checkpoint with our names, flat fields of its config, the config's place)."""
    if target.twin is not None:
        raise BadInput("--scale-to: a twin has no norms of queries and keys, as this head has")
    checkpoint, place = Checkpoint(path, FILES), f"{path}/config.json"
    if has_mask_file(path):
        raise BadInput(f"{path}/{MASK_FILE}: a mask embedding of its own is not supported")
    checkpoint.strip("model.")
    for old, new in NAMES.items():
        checkpoint.rename(old, new)
    checkpoint.drop(*UNUSED)
    return checkpoint, flat_fields(checkpoint.config, place), place


def has_mask_file(path: str) -> bool:
    """Whether a directory or hub id has an embedding of its own for the masks."""
    from transformers.utils import cached_file

    found = cached_file(path, MASK_FILE, _raise_exceptions_for_missing_entries=False)
    return found is not None


def layer_config(fields: dict, place: str, target):
    """LlamaConfig of the layers, which have to be as wide as the target."""
    fields = {"vocab_size": target.vocab_size, **fields}
    config = llama_config(fields, place)
    config.o_bias = bool(fields.get("attention_bias"))
    read = fields.get("target_hidden_size", config.hidden_size)
    for name, found, wanted in (
        ("hidden_size", config.hidden_size, target.config.hidden_size),
        ("target_hidden_size", read, target.config.hidden_size),
        ("vocab_size", config.vocab_size, target.vocab_size),
    ):
        if found != wanted:
            raise BadInput(f"{place}: {name} {found}, the target's is {wanted}")
    return config


def finish_head(checkpoint: Checkpoint, target, config, make, design) -> BlockHead:
    """The head of a checkpoint's tensors.

    make(config, design, target_width, owns): its empty module. Copies of the target's embedding
    and LM head are dropped; others are used, and one line says so.
    """
    owns = []
    for name, end in (("embed_tokens.weight", "input"), ("lm_head.weight", "output")):
        weight = checkpoint.tensors.get(name)
        if weight is None:
            continue
        module = getattr(target.model, f"get_{end}_embeddings")()
        if end == "output" and design.draft_vocab:
            owns.append("output")
        elif is_copy(weight, module):
            checkpoint.drop(name)
        else:
            print(f"{checkpoint.file}: {name} is not the target's; it is used", file=sys.stderr)
            owns.append("embedding" if end == "input" else "output")
    if design.draft_vocab and "output" not in owns:
        raise BadInput(f"{checkpoint.file}: no tensor lm_head.weight for draft_vocab_size")
    with torch.device("meta"):
        module = make(config, design, target.config.hidden_size, tuple(owns))
    check_vocabulary(module, checkpoint, config.vocab_size)
    checkpoint.load_into(module, target.dtype, target.device)
    module.borrow(
        None if "embedding" in owns else borrowed(target, "input"),
        None if "output" in owns else borrowed(target, "output"),
    )
    return BlockHead(module.eval(), config, target)
