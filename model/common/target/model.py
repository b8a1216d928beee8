"""The target (and any draft model): transformers' own class behind one forward over tree rows.

The model class is unmodified; it is given a 4-D mask, explicit positions and our cache. The runtime
decides how a step's forward is run: eager, torch.compile, or captured in CUDA graphs. A prefill is
always eager.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.common.contract import trees as tree
from model.common.contract.drafter import Draft, Needs
from model.common.loop.acceptance import StaticGreedy
from model.common.loop.ranking import top_ids
from model.common.target.attention import mask_kinds
from model.common.target.cached import CachedModel

PREFILL_CHUNK = 2048  # rows per prefill forward


class Prefilled(NamedTuple):
    """logits [B, V] after each prompt; hidden {name: [B, P, H]}; topk [B, P, k] or None."""

    logits: Tensor
    hidden: dict
    topk: Tensor | None


class Target(CachedModel):
    """A causal language model that reads chains and trees of rows after a cached prefix.

    twin: a twin.Twin where it is a small model at a large one's size.
    """

    def __init__(self, model, runtime: str = "eager", twin=None):
        torch.backends.cuda.enable_cudnn_sdp(False)  # takes up to 0.4 s for every new shape
        self.model, self.twin = model.eval(), twin
        self.config = model.config.get_text_config()
        devices = [model.device] * self.config.num_hidden_layers
        if getattr(model, "hf_device_map", None):
            devices = [next(layer.parameters()).device for layer in model.get_decoder().layers]
        super().__init__(devices, model.dtype, runtime)
        self.vocab_size = self.config.vocab_size
        self.kinds = mask_kinds(self.config)
        self.static_batch = 1  # sequences per step where shapes are static
        self.runs_ahead = self.static_shapes and self.device.type == "cuda"  # see decode._Loop
        self.acceptance = StaticGreedy(self) if self.static_shapes else None
        self.greedy = False  # whether steps so far had the acceptance in their calls

    def facts(self) -> dict:
        """What a report should say of how it is run, as Drafter.facts()."""
        return {}

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
        return getattr(self.config, "max_position_embeddings", None)

    def idle_rows(self, batch: int) -> int:
        """Rows to fill a batch up with, so that a static runtime sees one batch size."""
        return max(self.static_batch - batch, 0) if self.static_shapes else 0

    @torch.inference_mode()
    def prefill(self, ids: Tensor, lengths: list[int], capacity: int, needs: Needs) -> Prefilled:
        """Read right-padded prompts ids [B, P] into an emptied cache of `capacity` columns."""
        batch, longest = ids.shape
        self.reserve(batch, max(capacity, longest))
        cache = self.cache
        cache.reset()
        logits = ids.new_empty(0)
        pieces, best = [], []
        for begin in range(0, longest, PREFILL_CHUNK):
            chunk = ids[:, begin : begin + PREFILL_CHUNK]
            end = begin + chunk.shape[1]
            cache.length.fill_(begin)
            last = [n - 1 - begin if begin < n <= end else 0 for n in lengths]
            rows = "all" if needs.prompt_topk else torch.tensor(last, device=self.device)
            scores, hidden = self._rows(
                end,
                None,
                chunk,
                None,
                None,
                None,
                rows if needs.prompt_topk else rows.unique(),
                needs.hidden,
            )
            if needs.prompt_topk:
                best.append(top_ids(scores, needs.prompt_topk))
                picked = torch.tensor(last, device=self.device)
            else:
                picked = torch.searchsorted(rows.unique(), rows)
            scores = scores[torch.arange(batch, device=self.device), picked]
            here = torch.tensor([begin < n <= end for n in lengths], device=self.device)
            logits = scores if begin == 0 else torch.where(here.unsqueeze(1), scores, logits)
            pieces.append(hidden)
        cache.length.copy_(torch.tensor(lengths))
        joined = {name: torch.cat([piece[name] for piece in pieces], 1) for name in needs.hidden}
        return Prefilled(logits, joined, torch.cat(best, 1) if best else None)

    def forward(
        self,
        root: Tensor,
        draft: Draft,
        max_committed: int,
        hidden: tuple = (),
        greedy: bool = False,
        alive: Tensor | None = None,
    ):
        """Read root [B] and the draft's rows after the cached prefix.

        max_committed: host int, the longest sequence's length with its root.
        greedy: the same call holds the `acceptance`, for the rows alive [B] bool, None = all.
        Returns (logits [B, 1+n, V], hidden {name: [B, 1+n, H]}), and behind them what the
        acceptance is called with; with CUDA graphs they are overwritten by the next forward of the
        same shape.
        """
        self.greedy, then, extras, moves = greedy, None, (), None
        layout = None if draft.is_chain else tree.layout(draft)
        if greedy:
            then, extras = self.acceptance.within(draft, layout, root, alive)
            if layout:
                moves = self.cache.due(draft.depth)
        _, known, depths = layout or (None, None, None)
        place = known, depths, max_committed + draft.tokens.shape[1], hidden
        return self.read(draft.tokens, *place, 0, root, then, extras, moves)

    def read(
        self,
        tokens: Tensor,
        known,
        depths,
        needed: int,
        hidden: tuple = (),
        offset: int | Tensor = 0,
        root: Tensor | None = None,
        then=None,
        extras: tuple = (),
        moves: Tensor | None = None,
    ):
        """Forward of rows [B, r] with ancestors and depths (None = a chain) in `needed` columns.

        In inference mode, which is the caller's: entering it costs as much as the rest of this.
        offset: columns between the committed ones and these rows, written by earlier reads of the
        same tree (models without sliding attention); known is then [.., r, w], w at least offset +
        r. Where shapes are static it may be a tensor [], so that one graph serves all of them.
        root: [B], read before the tokens, of which -1 is an inert row.
        then: what is made of the output in the same compiled or captured call,
        then(logits, states, root, tokens, *extras) -> tensors; None = the output itself.
        moves: of the cache, made by the same call.
        """
        if self.cache.pending is not None:
            self.cache.settle()
        committed = None
        if not self.runtime.static_shapes:
            committed = needed - tokens.shape[1] - offset - (root is not None)
        view, start = self.columns(needed, committed)
        rows = root, tokens, known, depths, moves
        return self.runtime(view, *rows, "all", hidden, start, offset, then, *extras)

    def reader(self, num_columns: int, then):
        """A function that reads the next rows of chains, where shapes are static:
        read(tokens [B, r], *extras).

        As read() does, with one view for all, of so many columns.
        """
        runtime, (view, start) = self.runtime, self.columns(num_columns, None)

        def read(tokens, *extras):
            return runtime(view, None, tokens, None, None, None, "all", (), start, 0, then, *extras)

        return read

    @torch.inference_mode()
    def warm(self, capacity: int, shapes=(), hidden: tuple = ()) -> None:
        """Compile or capture every shape seen so far, and `shapes`, in all buckets that they need.

        capacity: the longest sequence; shapes: Drafter.shapes(). Without this a compilation would
        fall into a timed step.
        """
        batch = self.cache.batch
        kinds = self._kinds(batch)
        widths = [first[2].shape[1] for first in kinds] + [shape.num_nodes for shape in shapes]
        capacity += 1 + max(widths, default=0)
        self.make_room(capacity)  # a cache that grew later would have to be compiled for again
        self.cache.pending = None
        met = {
            _shape_of(nodes, known, moves)
            for _, root, nodes, known, _, moves, *_ in kinds
            if root is not None
        }
        for shape in shapes:
            draft = shape.draft(batch, self.device)
            known = None if draft.is_chain else tree.layout(draft)[1]
            moves = None if known is None or not self.greedy else self.cache.due(draft.depth)
            if _shape_of(draft.tokens, known, moves) not in met:
                self.cache.length.zero_()
                self.forward(draft.tokens.new_zeros(batch), draft, 1, hidden, self.greedy)
        for first in self._kinds(batch):
            _, root, nodes, known, depths, moves, *others = first
            if moves is not None:  # those of the first call may be of a longer cache
                moves = self.cache.due(moves.shape[2])
            for view in self.views(capacity):
                self.cache.length.zero_()
                self.runtime(view, root, nodes, known, depths, moves, *others)

    def _kinds(self, batch: int) -> list[tuple]:
        """Arguments of one call of every kind of step of so many sequences, whatever its view."""
        kinds = {key[1:]: first for key, first in self.runtime.firsts.items()}
        return [first for first in kinds.values() if first[2].shape[0] == batch]

    def _rows(
        self,
        view,
        root,
        nodes,
        known,
        depths,
        moves,
        keep,
        hidden,
        start=None,
        offset=0,
        then=None,
        *extras,
    ):
        """The forward itself. keep: "all" rows' logits, or a tensor of row indices.

        start: the committed length where the host knows it (one sequence, eager), else None.
        """
        self.cache.moves, tokens = moves, nodes
        if root is not None:
            tokens = torch.cat([root.unsqueeze(1), tokens.clamp(min=0)], 1)
        positions = self.place(tokens.shape[1], view, start, offset)
        if depths is not None:
            positions = self.cache.length.unsqueeze(1) + depths
        if self.context is not None and (start is None or start + tokens.shape[1] > self.context):
            positions = positions.clamp(max=self.context - 1)  # rows that cannot be committed
        masks = {
            kind: self.mask(positions, known, window, start) for kind, window in self.kinds.items()
        }
        out = self.model(
            input_ids=tokens,
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=0 if isinstance(keep, str) else keep,
            output_hidden_states=bool(hidden),
        )
        states = {name: out.hidden_states[-1 if name == "last" else name] for name in hidden}
        if then is None:
            return out.logits, states
        return then(out.logits, states, root, nodes, *extras)


def _shape_of(tokens: Tensor, known: Tensor | None, moves: Tensor | None) -> tuple:
    """What two drafts of one kind have in common: how many nodes, whose tree, how deep."""
    return tokens.shape, known is None or known.dim(), moves is None or moves.shape
