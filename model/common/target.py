"""The target (and any draft model): transformers' own class behind one forward over tree rows.

The model class is unmodified; it is given a 4-D mask, explicit positions and our cache. The runtime
decides how a step's forward is run: eager, torch.compile, or captured in CUDA graphs. A prefill is
always eager.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.common import tree
from model.common.acceptance import StaticGreedy, with_best
from model.common.attention import mask_kinds
from model.common.cached import CachedModel
from model.common.drafter import Draft, Needs
from model.common.ranking import top_ids

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
        self.acceptance = StaticGreedy(self, runtime) if self.static_shapes else None
        self.seen: dict = {}  # shapes of the steps so far -> arguments, for warm()
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
                None,
                chunk,
                None,
                None,
                end,
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
        greedy: the same call begins the `acceptance`, for the rows alive [B] bool, None = all.
        Returns (logits [B, 1+n, V], hidden {name: [B, 1+n, H]}), and behind them what the
        acceptance goes on with; with CUDA graphs they are overwritten by the next forward of the
        same shape.
        """
        self.greedy, then, extras = greedy, None, ()
        if greedy:
            then, extras = self.acceptance.within(draft, root, alive)
        known = depths = None
        if not draft.is_chain:
            _, known, depths = tree.layout(draft)
        needed = max_committed + draft.tokens.shape[1]
        place = known, depths, needed, hidden
        return self.read(draft.tokens, *place, root=root, then=then, extras=extras)

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
    ):
        """Forward of rows [B, r] with ancestors and depths (None = a chain) in `needed` columns.

        In inference mode, which is the caller's: entering it costs as much as the rest of this.
        offset: columns between the committed ones and these rows, written by earlier reads of the
        same tree (models without sliding attention); known is then [.., r, w], w at least offset +
        r. Where shapes are static it may be a tensor [], so that one graph serves all of them.
        root: [B], read before the tokens, of which -1 is an inert row.
        then: what is made of the output in the same compiled or captured call,
        then(logits, states, root, tokens, *extras) -> tensors; None = the output itself.
        """
        if self.runtime.static_shapes:
            view, start = self.columns(needed, None)
            behind = isinstance(offset, Tensor) or offset
            shape = (tokens.shape, known is None or known.shape, hidden, behind, root is None, then)
            self.seen.setdefault(
                shape, ((root, tokens, known, depths), hidden, offset, then, extras)
            )
        else:
            committed = needed - tokens.shape[1] - offset - (root is not None)
            view, start = self.columns(needed, committed)
        place = view, "all", hidden, start, offset
        return self.runtime(root, tokens, known, depths, *place, then, *extras)

    @torch.inference_mode()
    def warm(self, capacity: int, shapes=(), hidden: tuple = ()) -> None:
        """Compile or capture every shape seen so far, and `shapes`, in all buckets that they need.

        capacity: the longest sequence; shapes: Drafter.shapes(). Without this a compilation would
        fall into a timed step.
        """
        batch = self.cache.batch
        widest = max((num_nodes for num_nodes, _ in shapes), default=0)
        capacity += 1 + max(widest, *(rows[1].shape[1] for rows, *_ in self.seen.values()), 0)
        self.make_room(capacity)  # a cache that grew later would have to be compiled for again
        for num_nodes, parents in shapes:
            tokens = torch.zeros(batch, num_nodes, dtype=torch.long, device=self.device)
            draft = Draft.chain(tokens) if parents is None else Draft(tokens, parents, num_nodes)
            self.cache.length.zero_()
            self.forward(tokens.new_zeros(batch), draft, 1, hidden, self.greedy)
        for rows, wanted, offset, then, extras in list(self.seen.values()):
            if rows[1].shape[0] != batch:
                continue
            for view in self.views(capacity):
                self.cache.length.zero_()
                place = view, "all", wanted, None, offset
                out = self.runtime(*rows, *place, then, *extras)
            if then is with_best:
                self.acceptance.warm(out[-1])

    def _rows(
        self,
        root,
        nodes,
        known,
        depths,
        view,
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
        tokens = nodes
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
