"""A draft model with exits: its layers in blocks, read one block at a time.

A row that leaves after block j has keys and values in the layers of blocks 0 .. j only. Its hidden
state is parked, and runs through the next block together with the first row behind it that goes
there. Parked states lie by absolute column, so that what a rejection leaves is a number: how many
columns every block has read.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from model.common.target.attention import additive, rows_mask
from model.common.target.cache import CachedModel
from model.common.target.model import Target

CHUNK = 64  # rows that a block reads at a time, at most, when it catches up
PROMPT_CHUNK = 2048  # rows of a prompt


class SortedDraft(CachedModel):
    """A Llama cut after its last exit, with B slots in its cache.

    Columns are a slot's rows in the order in which block 0 has read them: the committed tokens,
    then a draft's. Those of a tree, from `base` [B] on, read what `lines` [B, w, w] says, a row of
    w columns each: itself and its ancestors among them.

    model        the draft model's Target, of which only the layers and the runtime are used
    exits        layers after which a row may leave, rising
    thresholds   a row leaves where its largest probability is above the exit's
    done         [block][slot] host ints: columns that a block has read, never more than the block
                 before; 0 for an idle slot
    parked       [blocks - 1, B, capacity, H] states behind a block, by column
    rows_read    [block] rows that it has read, prompts not counted
    """

    def __init__(self, model: Target, exits: list[int], thresholds: list[float]):
        layers = model.layers[: exits[-1]]
        super().__init__(layers, model.device, model.dtype, model.runtime)
        self.decoder, self.lm_head = model.model.model, model.model.lm_head
        self.decoder.layers = self.decoder.layers[: exits[-1]]  # no more are needed
        self.blocks = [self.decoder.layers[a:b] for a, b in zip([0, *exits], exits)]
        self.exits, self.thresholds = exits, thresholds
        self.config, self.vocab_size = model.config, model.vocab_size
        self.context, self.limit_after = model.context, model.limit_after
        self.step = self.runtime.captured(self._rows)
        self.forget()

    def forget(self) -> None:
        """Begin the counts anew."""
        self.rows_read = [0] * len(self.exits)

    @property
    def reads_per_row(self) -> int:
        """Device reads that one row may need: exits at which something is to be decided."""
        reads = 0
        for threshold in self.thresholds[:-1]:
            if threshold <= 0:  # always left here
                break
            reads += threshold < 1
        return reads

    def reserve(self, num_slots: int, capacity: int) -> None:
        """Have an empty cache of at least this size, and room for what is parked beside it."""
        super().reserve(num_slots, capacity)
        self.done = [[0] * num_slots for _ in self.blocks]
        shape = (len(self.blocks) - 1, num_slots, self.cache.capacity, self.config.hidden_size)
        self.parked = torch.zeros(shape, dtype=self.dtype, device=self.device)

    def make_room(self, needed: int) -> None:
        """Grow the cache, and what is parked beside it, to at least `needed` columns."""
        super().make_room(needed)
        missing = self.cache.capacity - self.parked.shape[2]
        if missing > 0:
            self.parked = pad(self.parked, (0, 0, 0, missing))

    @torch.inference_mode()
    def prefill(self, slots: list[int], ids: Tensor, lengths: list[int], needs=None) -> None:
        """Read right-padded prompts ids [S, P] into these slots through all blocks.

        Of each so many rows stay; the other slots go on. Signature as Target.prefill()'s.
        """
        longest = ids.shape[1]
        owner = torch.tensor(slots, device=self.device)
        some = None if len(slots) == self.cache.num_slots else owner
        self.make_room(longest)
        self.cache.clear(slots)
        self.parked[:, slots] = 0
        for begin in range(0, longest, PROMPT_CHUNK):
            rows = ids[:, begin : begin + PROMPT_CHUNK]
            starts = torch.full_like(owner, begin)
            width, pick = self.width(begin + rows.shape[1]), ids.new_zeros(len(slots), 1)
            with self.runtime.prompts():
                for block in range(len(self.blocks)):
                    rows, _ = self._rows(rows, starts, None, None, pick, block, width, some)
        for done in self.done:
            for slot, length in zip(slots, lengths):
                done[slot] = length

    @torch.inference_mode()
    def read(
        self, tokens: Tensor, live: list[bool], num_scored: int = 1, tree: tuple | None = None
    ):
        """Read the next rows [B, r] of every live slot, as deep as it goes.

        The deeper blocks catch up first on what was parked before these rows. A slot leaves as
        soon as the largest probability of its last num_scored rows is above the exit's threshold.
        tree: (base, lines) where the rows are a tree's, None = they continue the sequence.
        Returns (logits [B, num_scored, V] of the exit, the exit's number for every slot, 0 where it
        is not live).
        """
        going, chosen, left = list(live), None, [0] * len(live)
        for block in range(len(self.blocks)):
            logits = self._advance(block, going, tokens, num_scored, tree or (None, None))
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
        """Which slots are not sure enough; asked before any token is drawn."""
        if threshold <= 0:
            return [False] * len(going)
        if threshold >= 1:
            return going
        scores = logits.float()
        best = (scores.amax(-1) - scores.logsumexp(-1)).exp().amax(-1)  # [B]
        sure = (best > threshold).tolist()
        return [goes and not enough for goes, enough in zip(going, sure)]

    def _advance(self, block: int, going: list[bool], tokens, num_scored: int, tree) -> Tensor:
        """Bring block `block` of the slots `going` up to the block before it.

        Logits [B, num_scored, V] of the last rows. The other slots' rows are there for the shape:
        what they write lies behind what they have read, where nothing reads it.
        """
        if block == 0:
            counts = [tokens.shape[1] * goes for goes in going]
            return self._read_chunk(0, tokens, counts, num_scored, tree)
        limit = max(CHUNK, num_scored)
        while True:
            pairs = zip(self.done[block - 1], self.done[block], going)
            counts = [(before - own) * goes for before, own, goes in pairs]
            if max(counts) <= limit:
                return self._read_chunk(block, None, counts, num_scored, tree)
            counts = [min(limit, max(count - limit, 0)) for count in counts]
            self._read_chunk(block, None, counts, num_scored, tree)

    def _read_chunk(self, block: int, tokens, counts: list[int], num_scored: int, tree) -> Tensor:
        """Let a block read the next counts[b] rows of every slot; logits of the last ones."""
        done, num_rows = self.done[block], max(*counts, num_scored)
        if tokens is not None:
            num_rows = tokens.shape[1]
        else:
            num_rows = self.runtime.num_nodes(num_rows, max(CHUNK, num_scored))
        width = self.width(max(done) + num_rows)
        starts = torch.tensor(done, device=self.device)
        columns = starts.unsqueeze(1) + torch.arange(num_rows, device=self.device)
        index = columns.unsqueeze(-1).expand(-1, -1, self.parked.shape[-1])
        rows = self.parked[block - 1].gather(1, index) if tokens is None else tokens
        last = torch.tensor(counts, device=self.device).unsqueeze(1)
        pick = last + torch.arange(-num_scored, 0, device=self.device)
        states, logits = self.step(rows, starts, *tree, pick.clamp(min=0), block, width)
        if block + 1 < len(self.blocks):
            self.parked[block].scatter_(1, index, states)
        self.rows_read[block] += sum(counts)
        self.done[block] = [own + count for own, count in zip(done, counts)]
        return logits

    def _rows(self, rows, starts, base, lines, pick, block: int, width: int, slots=None):
        """One block's layers on rows in the columns from starts [S] on.

        rows: ids [S, r] for block 0, states [S, r, H] for the others; pick [S, m]: rows to score;
        slots [S] whose they are, None = all B. Returns (states [S, r, H], logits [S, m, V]).
        """
        columns = starts.unsqueeze(1) + torch.arange(rows.shape[1], device=self.device)
        allowed, positions = self._layout(columns, base, lines, width)
        mask = additive(allowed, self.dtype)
        states = self.decoder.embed_tokens(rows) if rows.dim() == 2 else rows
        rotary = self.decoder.rotary_emb(states, position_ids=positions)
        for layer in self.blocks[block]:
            states = layer(
                states,
                attention_mask=mask,
                position_ids=positions,
                position_embeddings=rotary,
                use_cache=False,
                cache_columns=columns,
                cache_slots=slots,
            )
        states = states.to(self.device)  # of a draft on several devices
        index = pick.unsqueeze(-1).expand(-1, -1, states.shape[-1])
        return states, self.lm_head(self.decoder.norm(states.gather(1, index)))

    def _layout(self, columns: Tensor, base, lines, width: int) -> tuple[Tensor, Tensor]:
        """(columns that rows may read [S, r, width], their positions [S, r])."""
        causal = rows_mask(columns[:, 0], columns, columns, None, width)
        if lines is None:
            return causal, columns.clamp(max=self.context - 1)
        size = lines.shape[-1]
        node = columns - base.unsqueeze(1)
        index = node.clamp(0, size - 1).unsqueeze(-1)
        own = lines.gather(1, index.expand(-1, -1, size))  # [B, r, w]
        inside = node >= 0
        allowed = rows_mask(base, columns, columns, own, width)
        allowed = torch.where(inside.unsqueeze(-1), allowed, causal)
        positions = torch.where(inside, base.unsqueeze(1) - 1 + own.sum(-1), columns)
        return allowed, positions.clamp(max=self.context - 1)

    def keep(self, committed: list[int], before: list[int], width: int = 1) -> None:
        """Forget what was refused: of `committed` tokens all but the last two stay read.

        before: committed tokens when the draft was made; its rows lie behind them, `width` a level,
        and those that stay have been moved to the first column of their level's number. Example:
        10 tokens before, three levels of 4 rows are read, which are columns 10 .. 21, and 13 tokens
        now: 13 rows would be left, of which 11 stay. An idle slot has 0 committed tokens.
        """
        for block, done in enumerate(self.done):
            levels = [
                own if own < old else old + (own - old) // width for own, old in zip(done, before)
            ]
            self.done[block] = [min(own, max(new - 2, 0)) for own, new in zip(levels, committed)]

    @torch.inference_mode()
    def move(self, base: Tensor, columns: Tensor) -> None:
        """Move accepted tree rows behind the committed ones: in all blocks, and what is parked.

        columns [B, m]: counted from base [B], -1 = none. What a block has not read of them is moved
        as well, and read by nothing.
        """
        base = base.unsqueeze(1)
        target = base + torch.arange(columns.shape[1], device=self.device)
        source = torch.where(columns >= 0, base + columns, target)
        self.cache.move(source, target)
        index = source.unsqueeze(-1).expand(-1, -1, self.parked.shape[-1])
        for states in self.parked:
            moved = states.gather(1, index)
            states.scatter_(1, target.unsqueeze(-1).expand_as(moved), moved)

    def facts(self) -> dict:
        """Where rows leave; rows times layers: read, and left out against reading every row through
        all layers."""
        sizes = [len(block) for block in self.blocks]
        read = sum(rows * size for rows, size in zip(self.rows_read, sizes))
        full = self.rows_read[0] * sum(sizes)
        return {
            "draft_exits": self.exits,
            "draft_thresholds": self.thresholds,
            "draft_layer_forwards": read,
            "draft_layer_forwards_saved": full - read,
        }
