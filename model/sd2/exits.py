"""A draft model with exits: its layers in blocks, read one block at a time.

A row that leaves after block j has keys and values in the layers of blocks 0 .. j only. Its hidden
state is parked, and runs through the next block together with the first row behind it that goes
there. Parked states lie by absolute column, so that what a rejection leaves is a number: how many
columns every block has read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.target.attention import additive
from model.common.target.cached import CachedModel

CHUNK = 64  # rows that a block reads at a time, at most, when it catches up
PROMPT_CHUNK = 2048  # rows of a prompt


class SortedDraft(CachedModel):
    """A Llama cut after its last exit, and B sequences in its cache.

    Columns are a sequence's rows in the order in which block 0 has read them: the committed tokens,
    then a draft's. Those of a tree, from `base` [B] on, read what `lines` [B, w, w] says.

    exits        layers after which a row may leave, rising
    thresholds   a row leaves where its largest probability is above the exit's
    done         [block][sequence] host ints: columns that a block has read, never more than the
                 block before
    rows_read    [block] rows that it has read, prompts not counted
    """

    def __init__(self, model, exits: list[int], thresholds: list[float], runtime: str):
        self.decoder, self.lm_head = model.model, model.lm_head
        self.decoder.layers = self.decoder.layers[: exits[-1]]  # no more are needed
        self.exits, self.thresholds = exits, thresholds
        self.config = model.config
        super().__init__([model.device] * exits[-1], model.dtype, runtime)
        self.vocab_size = self.config.vocab_size
        self.blocks = [self.decoder.layers[a:b] for a, b in zip([0, *exits], exits)]
        self.parked = torch.empty(0)  # [blocks - 1, B, capacity, H]
        self.forget()

    def forget(self) -> None:
        """Begin the counts anew."""
        self.rows_read = [0] * len(self.exits)

    @property
    def context(self) -> int:
        """Positions that the model was built for."""
        return self.config.max_position_embeddings

    @property
    def reads_per_row(self) -> int:
        """Device reads that one row may need: exits at which something is to be decided."""
        reads = 0
        for threshold in self.thresholds[:-1]:
            if threshold <= 0:  # always left here
                break
            reads += threshold < 1
        return reads

    @torch.inference_mode()
    def prefill(self, ids: Tensor, lengths: list[int], capacity: int, needs=None) -> None:
        """Read right-padded prompts ids [B, P] through all blocks, into an emptied cache."""
        batch, longest = ids.shape
        self.reserve(batch, max(capacity, longest))
        self.cache.reset()
        self.parked = torch.zeros(0)
        self._make_room(longest)
        self.base, self.lines = None, None
        for begin in range(0, longest, PROMPT_CHUNK):
            rows = ids[:, begin : begin + PROMPT_CHUNK]
            starts = torch.full((batch,), begin, device=self.device)
            view, pick = self.view(begin + rows.shape[1]), ids.new_zeros(batch, 1)
            for block in range(len(self.blocks)):
                rows, _ = self._rows(rows, starts, None, None, pick, block, view)
        self.cache.length.copy_(torch.tensor(lengths))
        self.done = [lengths[:] for _ in self.blocks]

    def _make_room(self, needed: int) -> None:
        """Have columns up to `needed` in the cache and beside it."""
        self.make_room(needed)
        batch, capacity = self.cache.batch, self.cache.capacity
        if self.parked.dim() == 4 and self.parked.shape[2] == capacity:
            return
        hidden_size = self.config.hidden_size
        old, shape = self.parked, (len(self.blocks) - 1, batch, capacity, hidden_size)
        self.parked = torch.zeros(shape, dtype=self.dtype, device=self.device)
        if old.dim() == 4:
            self.parked[:, :, : old.shape[2]] = old

    @torch.inference_mode()
    def read(self, tokens: Tensor, live: list[bool], num_scored: int = 1):
        """Read the next rows [B, r] of every live sequence, as deep as it goes.

        The deeper blocks catch up first on what was parked before these rows. A sequence leaves as
        soon as the largest probability of its last num_scored rows is above the exit's threshold.
        Returns (logits [B, num_scored, V] of the exit, the exit's number for every sequence, 0
        where it is not live).
        """
        going, chosen, left = list(live), None, [0] * len(live)
        for block in range(len(self.blocks)):
            logits = self._advance(block, going, tokens, num_scored)
            if chosen is None or all(going):
                chosen = logits
            else:
                mask = torch.tensor(going, device=self.device).view(-1, 1, 1)
                chosen = torch.where(mask, logits, chosen)
            left = [block if goes else before for goes, before in zip(going, left)]
            if block + 1 == len(self.blocks) or not any(going):
                break
            going = self._goes_on(logits, self.thresholds[block], going)
            if not any(going):
                break
        return chosen, left

    def _goes_on(self, logits: Tensor, threshold: float, going: list[bool]) -> list[bool]:
        """Which sequences are not sure enough; asked before any token is drawn."""
        if threshold <= 0:
            return [False] * len(going)
        if threshold >= 1:
            return going
        scores = logits.float()
        best = (scores.amax(-1) - scores.logsumexp(-1)).exp().amax(-1)  # [B]
        sure = (best > threshold).tolist()
        return [goes and not enough for goes, enough in zip(going, sure)]

    def _advance(self, block: int, going: list[bool], tokens: Tensor, num_scored: int) -> Tensor:
        """Bring block `block` of the sequences `going` up to the block before it.

        Logits [B, num_scored, V] of the last rows. The other sequences' rows are there for the
        shape: what they write lies behind what they have read, where nothing reads it.
        """
        if block == 0:
            counts = [tokens.shape[1] * goes for goes in going]
            return self._read_chunk(0, tokens, counts, num_scored)
        limit = max(CHUNK, num_scored)
        while True:
            pairs = zip(self.done[block - 1], self.done[block], going)
            counts = [(before - own) * goes for before, own, goes in pairs]
            if max(counts) <= limit:
                return self._read_chunk(block, None, counts, num_scored)
            counts = [min(limit, max(count - limit, 0)) for count in counts]
            self._read_chunk(block, None, counts, num_scored)

    def _read_chunk(self, block: int, tokens, counts: list[int], num_scored: int) -> Tensor:
        """Let a block read the next counts[b] rows of every sequence; logits of the last ones."""
        done, num_rows = self.done[block], max(*counts, num_scored)
        if tokens is not None:
            num_rows = tokens.shape[1]
        elif self.static_shapes:
            num_rows = _bucket(num_rows)
        needed = max(done) + num_rows
        self._make_room(needed)
        starts = torch.tensor(done, device=self.device)
        rows = tokens
        if rows is None:
            columns = starts.unsqueeze(1) + torch.arange(num_rows, device=self.device)
            index = columns.unsqueeze(-1).expand(-1, -1, self.parked.shape[-1])
            rows = self.parked[block - 1].gather(1, index)
        last = torch.tensor(counts, device=self.device).unsqueeze(1)
        pick = last + torch.arange(-num_scored, 0, device=self.device)
        states, logits = self.runtime(
            rows, starts, self.base, self.lines, pick.clamp(min=0), block, self.view(needed)
        )
        if block + 1 < len(self.blocks):
            columns = starts.unsqueeze(1) + torch.arange(num_rows, device=self.device)
            index = columns.unsqueeze(-1).expand(-1, -1, states.shape[-1])
            self.parked[block].scatter_(1, index, states)
        self.rows_read[block] += sum(counts)
        self.done[block] = [own + count for own, count in zip(done, counts)]
        return logits

    def _rows(self, rows, starts, base, lines, pick, block: int, view: int):
        """One block's layers on rows in the columns from starts [B] on.

        rows: ids [B, r] for block 0, states [B, r, H] for the others; pick [B, m]: rows to score.
        Returns (states [B, r, H], logits [B, m, V]).
        """
        num_rows, cache = rows.shape[1], self.cache
        slots = starts.unsqueeze(1) + torch.arange(num_rows, device=self.device)
        cache.slots, cache.view = slots, view
        allowed, positions = self._layout(slots, base, lines, view)
        mask = additive(allowed, self.dtype)
        states = self.decoder.embed_tokens(rows) if rows.dim() == 2 else rows
        rotary = self.decoder.rotary_emb(states, position_ids=positions)
        for layer in self.blocks[block]:
            states = layer(
                states,
                attention_mask=mask,
                position_ids=positions,
                position_embeddings=rotary,
                past_key_values=cache,
                use_cache=True,
            )
        index = pick.unsqueeze(-1).expand(-1, -1, states.shape[-1])
        return states, self.lm_head(self.decoder.norm(states.gather(1, index)))

    def _layout(self, slots: Tensor, base, lines, view: int) -> tuple[Tensor, Tensor]:
        """(columns that rows may read [B, r, view], their positions [B, r])."""
        columns = torch.arange(view, device=self.device)
        causal = columns <= slots.unsqueeze(-1)
        if lines is None:
            return causal, slots.clamp(max=self.context - 1)
        width = lines.shape[-1]
        node, other = slots - base.unsqueeze(1), columns - base.unsqueeze(1)
        index = node.clamp(0, width - 1).unsqueeze(-1)
        own = lines.gather(1, index.expand(-1, -1, width))  # [B, r, w]
        inside = ((other >= 0) & (other < width)).unsqueeze(1)
        index = other.clamp(0, width - 1).unsqueeze(1)
        above = own.gather(2, index.expand(-1, slots.shape[1], -1)) & inside
        before = columns < base.view(-1, 1, 1)
        allowed = torch.where((node >= 0).unsqueeze(-1), before | above, causal)
        positions = torch.where(node >= 0, base.unsqueeze(1) - 1 + own.sum(-1), slots)
        return allowed, positions.clamp(max=self.context - 1)

    def keep(self, committed: list[int], before: list[int], width: int = 1) -> None:
        """Forget what was refused: of `committed` tokens all but the last two stay read.

        before: committed tokens when the draft was made; its rows lie behind them, `width` a level,
        and those that stay have been moved to the first column of their level's number.
        A finished sequence has 2 committed tokens: it begins at column 0.
        """
        for block, done in enumerate(self.done):
            levels = [
                own if own < old else old + (own - old) // width for own, old in zip(done, before)
            ]
            self.done[block] = [min(own, new - 2) for own, new in zip(levels, committed)]

    @torch.inference_mode()
    def move(self, columns: Tensor) -> None:
        """Move accepted tree rows behind the committed ones: in all blocks, and what is parked.

        columns [B, m]: counted from base, -1 = none. What a block has not read of them is moved as
        well, and read by nothing.
        """
        self.cache.length.copy_(self.base)
        self.cache.commit(columns, torch.zeros_like(self.base))
        target = self.base.unsqueeze(1) + torch.arange(columns.shape[1], device=self.device)
        source = torch.where(columns >= 0, self.base.unsqueeze(1) + columns, target)
        index = source.unsqueeze(-1).expand(-1, -1, self.parked.shape[-1])
        for states in self.parked:
            moved = states.gather(1, index)
            states.scatter_(1, target.unsqueeze(-1).expand_as(moved), moved)

    @torch.inference_mode()
    def warm(self, capacity: int, shapes: list[tuple[int, int]], lines=None) -> None:
        """Compile or capture every block for reads of (rows, scored rows), and for catching up."""
        self._make_room(capacity)
        starts = torch.zeros_like(self.cache.length)
        base = None if lines is None else torch.ones_like(starts)  # one column that all may read
        for num_rows, num_scored in shapes:
            widest = max(CHUNK, num_scored)
            deeper = sorted({_bucket(rows) for rows in range(1, widest + 1)})
            for block in range(len(self.blocks)):
                for rows in deeper if block else [num_rows]:
                    self._warm_block(block, rows, num_scored, starts, base, lines, capacity)

    def _warm_block(self, block, num_rows, num_scored, starts, base, lines, capacity) -> None:
        """One block's forward of num_rows, in every view that holds them."""
        shape = (len(starts), num_rows)
        rows = starts.new_zeros(shape)
        if block:
            rows = self.parked.new_zeros(*shape, self.config.hidden_size)
        pick = starts.new_zeros(len(starts), num_scored)
        for view in self.views(capacity):
            if num_rows >= num_scored and view >= num_rows:
                self.runtime(rows, starts, base, lines, pick, block, view)

    def facts(self) -> dict:
        """Rows times layers: read, and left out against reading every row through all layers."""
        sizes = [len(block) for block in self.blocks]
        read = sum(rows * size for rows, size in zip(self.rows_read, sizes))
        full = self.rows_read[0] * sum(sizes)
        return {"draft_layer_forwards": read, "draft_layer_forwards_saved": full - read}


def _bucket(num_rows: int) -> int:
    """Rows of a block that catches up under a static runtime: 4, 16, 64, ..."""
    width = 4
    while width < num_rows:
        width *= 4
    return width
