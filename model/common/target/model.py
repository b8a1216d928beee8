"""The target (and any draft model): transformers' own class behind one forward over tree rows.

The model class is unmodified; it is given a 4-D mask, explicit positions and where its rows go in
our cache. A prompt is never recorded as a graph. Where a model is spread over several devices, what
it is given and what it returns is on the one where its logits are made (placement.py).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter, Needs
from model.common.contract.sequence import padded
from model.common.errors import BadInput
from model.common.loop.ranking import top_ids
from model.common.target.attention import additive, attention_modules, mask_kinds, rows_mask
from model.common.target.cache import CachedModel
from model.common.target.longrope import LongRope, rope_boundary
from model.common.target.placement import output_device
from model.common.target.products import choose_products
from model.common.target.runtime import make_runtime

PREFILL_CHUNK = 2048  # rows per prompt forward


class Prefilled(NamedTuple):
    """logits [S, V] after each prompt; hidden {name: [S, P, H]}; topk [S, P, k] or None."""

    logits: Tensor
    hidden: dict
    topk: Tensor | None


class Target(CachedModel):
    """A causal language model that reads chains and trees of rows behind a cached prefix.

    twin  a twin.Twin where it is a small model at a large one's size
    rope  a longrope.LongRope where its rotary factors depend on a sequence's length
    """

    def __init__(self, model, runtime: str = "eager", twin=None):
        torch.backends.cuda.enable_cudnn_sdp(False)  # takes up to 0.4 s for every new shape
        layers = attention_modules(model)
        device = output_device(model)
        super().__init__(layers, device, model.dtype, make_runtime(runtime, device))
        self._describe(model, twin)
        choose_products(model, self.device)
        self.kinds = mask_kinds(self.config)
        for layer in decoder_layers(model, [module for module, *_ in layers]):
            layer.forward = self.runtime.compiled(layer.forward)
        self.step = self.runtime.captured(self._rows)

    reads_trees = True  # and several slots
    plain_states = True  # hidden states are rows of hidden_size numbers

    def _describe(self, model, twin) -> None:
        """What every kind of target has."""
        self.model, self.twin = model.eval(), twin
        self.config = model.config.get_text_config(decoder=True)
        self.vocab_size = self.config.vocab_size
        boundary = rope_boundary(self.config)
        self.rope = None if boundary is None else LongRope(model, boundary)

    def facts(self) -> dict:
        """What a report should say of how it is run, as Drafter.facts()."""
        return {}

    def forget(self) -> None:
        """Begin anew what facts() counts; called when a run begins."""

    @property
    def origin(self) -> Target:
        """The target that heads were trained for: itself, or the one that it is a twin of."""
        return self.twin.origin if self.twin else self

    def grown(self, module, config, make, kinds: dict, dtype=None):
        """(module, config) of a head at this target's size, given as loaded for `origin`.

        Both as they are where this is no twin. make(config): an empty head of a config; kinds:
        {pattern of a submodule's name: how it grows, see corner.KINDS}; dtype None = the target's.
        """
        if self.twin is None:
            return module, config
        return self.twin.head(module, config, make, kinds, (self.device, dtype or self.dtype))

    @property
    def context(self) -> int | None:
        """Positions the model was built for, None = unbounded."""
        names = ("max_position_embeddings", "max_seq_len")  # the second of MPT's ALiBi
        return next((n for n in (getattr(self.config, name, None) for name in names) if n), None)

    def limit_after(self, num_prompt: int) -> int:
        """Tokens that a sequence with such a prompt can have, as far as the context goes."""
        return self.context or sys.maxsize

    def fitting(self, num_prompt: int, limit: int) -> int:
        """New tokens, at most `limit`, that a prompt leaves room for; none is bad input."""
        context = self.context
        if context is not None:
            if num_prompt >= context:
                raise BadInput(
                    f"prompt of {num_prompt} tokens does not fit the context of {context}"
                )
            limit = min(limit, context - num_prompt)
        switch = self.rope and self.rope.boundary
        if switch and num_prompt <= switch < num_prompt + limit:
            raise BadInput(
                f"a prompt of {num_prompt} tokens and {limit} new ones cross token {switch}, where "
                f"longrope changes its factors: --max-new-tokens {switch - num_prompt} fits"
            )
        return limit

    def refuses(self, drafter: Drafter, num_slots: int) -> str | None:
        """Why it cannot run a drafter in B slots; None where it can."""
        if drafter.needs.hidden and not self.plain_states:
            return (
                f"model type {self.config.model_type}: its hidden states are no rows of "
                f"{self.config.hidden_size} numbers, which this method's heads read"
            )
        return None

    def reserve(self, num_slots: int, capacity: int) -> None:
        super().reserve(num_slots, capacity)
        if self.rope is not None:
            self.rope.reserve(num_slots)

    @torch.inference_mode()
    def prefill(self, slots: list[int], ids: Tensor, lengths: list[int], needs: Needs) -> Prefilled:
        """Read right-padded prompts ids [S, P] into these slots, which the cache has cleared."""
        longest, cache = ids.shape[1], self.cache
        owner = torch.tensor(slots, device=self.device)
        some = None if len(slots) == cache.num_slots else owner
        self.make_room(longest)
        if self.rope is not None:
            self.rope.start(slots, lengths)
        logits, pieces, best = None, [], []
        for begin in range(0, longest, PREFILL_CHUNK):
            chunk = ids[:, begin : begin + PREFILL_CHUNK]
            end = begin + chunk.shape[1]
            cache.rewind(torch.full_like(owner, begin), slots)
            last = [n - 1 - begin if begin < n <= end else 0 for n in lengths]
            last = torch.tensor(last, device=self.device)
            keep = None if needs.prompt_topk else last.unique()
            width = self.width(end)
            with self.runtime.prompts():
                scores, hidden = self._rows(width, chunk, None, None, 0, needs.hidden, some, keep)
            if needs.prompt_topk:
                best.append(top_ids(scores, needs.prompt_topk))
            picked = last if keep is None else torch.searchsorted(keep, last)
            scores = scores[torch.arange(len(slots), device=self.device), picked]
            here = torch.tensor([begin < n <= end for n in lengths], device=self.device)
            logits = scores if logits is None else torch.where(here.unsqueeze(1), scores, logits)
            pieces.append(hidden)
        cache.rewind(torch.tensor(lengths), slots)
        joined = {name: torch.cat([piece[name] for piece in pieces], 1) for name in needs.hidden}
        return Prefilled(logits, joined, torch.cat(best, 1) if best else None)

    def whole(self, ids: list[int]) -> Tensor:
        """The model's own logits [n, V] of a sequence, without a cache."""
        if self.rope is not None:
            self.rope.chosen = torch.tensor([len(ids) > self.rope.boundary], device=self.device)
        tokens = torch.tensor([ids], device=self.device)
        return self.model(tokens, use_cache=False).logits[0]

    @torch.inference_mode()
    def rehearse(self, drafter: Drafter, prompt: list[int]) -> list[list[int]]:
        """Show the runtime forwards of all shapes; prompts whose answers show a drafter's the same.

        Where shapes are static: every width of a draft at every attended width up to the cache's
        capacity, with the drafter's hidden states and, for a paired baseline, without. Under
        compile every width once: a graph may end at a number of rows (products.py).
        """
        runtime, cache, ends = self.runtime, self.cache, []
        max_nodes, hidden = drafter.max_nodes, {(), drafter.needs.hidden}
        if runtime.name == "eager":
            return []
        widths = {0, 1} | {runtime.num_nodes(nodes, max_nodes) for nodes in range(max_nodes + 1)}
        needed = 1
        while needed <= cache.capacity:
            for num_nodes in sorted(widths):
                root = torch.zeros(cache.num_slots, dtype=torch.long, device=self.device)
                draft = Draft(root.new_zeros(cache.num_slots, num_nodes))
                for names in hidden:
                    self.forward(root, draft, max(needed - num_nodes, 1), names)
            ends.append(needed)
            needed = self.width(needed) + 1 if runtime.static else cache.capacity + 1
        repeated = prompt * -(-cache.capacity // len(prompt))
        return [repeated[:end] for end in ends if runtime.static and end + 64 < cache.capacity]

    def padded(self, draft: Draft, drafter: Drafter) -> Draft:
        """The draft with ids that the target lacks made inert (a corpus may hold added tokens); at
        one of the shapes that a static runtime knows."""
        tokens = draft.tokens.masked_fill(draft.tokens >= self.vocab_size, -1)
        draft = replace(draft, tokens=tokens)
        if not self.runtime.static:
            return draft
        num_nodes = self.runtime.num_nodes(draft.tokens.shape[1], drafter.max_nodes)
        return padded(draft, num_nodes, drafter.max_depth if draft.tree else num_nodes)

    def forward(self, root: Tensor, draft: Draft, longest: int, hidden: tuple = ()):
        """Read root [B] and the draft's rows behind the committed ones.

        longest: host int, the longest running sequence's committed length, root included.
        Returns (logits [B, 1+n, V], hidden {name: [B, 1+n, H]}); with CUDA graphs they are
        overwritten by the next forward of the same shape.
        """
        tokens = torch.cat([root.unsqueeze(1), draft.tokens.clamp(min=0)], 1)
        tree = draft.layout if self.runtime.static else draft.tree  # so that one graph serves both
        if tree is None:
            return self.read(tokens, None, None, longest - 1, hidden=hidden)
        ancestors = tree.ancestors.expand(len(tokens), -1, -1)
        depths = tree.depths.expand(len(tokens), -1)
        return self.read(tokens, ancestors, depths, longest - 1, hidden=hidden)

    def read(
        self,
        tokens: Tensor,
        ancestors: Tensor | None,
        depths: Tensor | None,
        longest: int,
        offset: int = 0,
        hidden: tuple = (),
    ):
        """Logits and hidden states of rows [B, r] behind the committed ones.

        ancestors [.., r, w]: which of the w columns behind the committed ones each row reads;
        depths [.., r]: its position behind them; None, None = a chain
        longest  host int, the longest running sequence's rows in the cache
        offset   columns that earlier reads of the same tree have taken (models without sliding
                 attention); w is then at least offset + r
        """
        width = self.width(longest + offset + tokens.shape[1])
        return self.step(width, tokens, ancestors, depths, offset, hidden)

    def _rows(self, width, tokens, ancestors, depths, offset, hidden, slots=None, keep=None):
        """The forward itself. slots [S] or None = all; keep: rows whose logits are wanted."""
        length = self.cache.length if slots is None else self.cache.length[slots]
        columns = self.columns(tokens.shape[1], offset, slots)
        positions = columns if depths is None else length.unsqueeze(1) + depths
        if self.context is not None:  # rows beyond it cannot be committed
            positions = positions.clamp(max=self.context - 1)
        masks = {
            kind: additive(
                rows_mask(length, columns, positions, ancestors, width, window), self.dtype
            )
            for kind, window in self.kinds.items()
        }
        if self.rope is not None:
            self.rope.choose(slots)
        out = self.model(
            input_ids=tokens,
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=positions,
            use_cache=False,
            logits_to_keep=0 if keep is None else keep,
            output_hidden_states=bool(hidden),
            cache_columns=columns,
            cache_slots=slots,
        )
        places = {name: -1 if name == "last" else name for name in hidden}
        states = {name: out.hidden_states[i].to(self.device) for name, i in places.items()}
        return out.logits, states


def decoder_layers(model, attentions: list) -> list:
    """The modules that stand in a list of layers and contain the given attention modules."""
    wanted, layers = set(attentions), []
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList):
            layers += [layer for layer in module if not wanted.isdisjoint(layer.modules())]
    return layers
