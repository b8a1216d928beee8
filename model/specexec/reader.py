"""A draft model that reads a tree pass by pass, and keeps what was accepted between steps.

Its cache trails the committed sequence by two tokens (see Tails): a step begins by reading them,
then every pass writes its rows behind those of the passes before. Accepted rows are moved behind
the committed ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Needs, Step
from model.common.errors import BadInput
from model.common.target.attention import mask_kinds
from model.common.target.model import Target
from model.common.target.tails import Tails


class TreeReader:
    """Rows of draft trees behind B committed sequences.

    Where shapes are static, rows know all columns that a tree takes, and their place among them is
    data: one graph serves every pass of as many rows.

    num_ids  tokens that both models know
    room     tokens that each answer may still draft, host ints; 0 for a finished one
    lines    [B, columns, w]: which columns each one that was read reads
    """

    def __init__(self, draft: Target, target: Target):
        self.draft, self.device, self.vocab_size = draft, target.device, target.vocab_size
        self.num_ids = min(draft.vocab_size, target.vocab_size)
        self.static_shapes = draft.static_shapes
        windows = [window for window in mask_kinds(draft.config).values() if window is not None]
        self.window = min(windows, default=None)
        draft.kinds = dict.fromkeys(draft.kinds)  # longer answers than the window are refused

    def start(self, prefill: Step, max_lengths: list[int], num_columns: int) -> None:
        """Read the prompts; num_columns: rows that a tree takes."""
        if self.window is not None and max(max_lengths) > self.window:
            raise BadInput(
                f"the draft model's sliding attention of {self.window} tokens is shorter than "
                f"prompt and answer, {max(max_lengths)}"
            )
        ids = prefill.tokens.clamp(0, self.draft.vocab_size - 1).to(self.draft.device)
        lengths = [len(row) - 1 for row in prefill.host_ids]
        self.draft.prefill(ids, lengths, max(max_lengths) + num_columns + 2, Needs())
        self.tails = Tails(prefill.host_ids, self.draft)
        self.committed = prefill.max_committed
        self.room = [most - length - 2 for most, length in zip(max_lengths, lengths)]
        self.room = [max(left, 0) for left in self.room]
        size = num_columns if self.static_shapes else 0
        self.lines = torch.zeros(len(lengths), size, size, dtype=torch.bool, device=ids.device)

    def rooms(self) -> Tensor:
        """room on the draft model's device, [B]."""
        return torch.tensor(self.room, device=self.draft.device)

    def catch_up(self) -> Tensor:
        """Read the last two committed tokens and forget the last tree; logits [B, V] after them."""
        cache = self.draft.cache
        unread = self.tails.rewind(self.committed)
        logits, _ = self.draft.read(unread, None, None, self.committed)
        cache.length.add_(2)
        self.num_columns = 0
        return logits[:, -1, : self.vocab_size]

    def read(self, tokens: Tensor, parents: Tensor, levels: Tensor) -> Tensor:
        """Logits [B, r, V] after a pass's nodes, which take the next r columns.

        tokens [B, r]; parents [B, r]: columns of their parents, -1 = the root; levels [B, r]: 0 for
        the root's children.
        """
        num_rows, offset = tokens.shape[1], self.num_columns
        known = self._enter(parents)
        self.num_columns += num_rows
        context = self.draft.context
        if context is not None and self.committed + offset + num_rows > context:
            levels = torch.minimum(levels, context - 1 - self.draft.cache.length.unsqueeze(1))
        needed = self.committed + offset + num_rows
        tokens = self._known_ids(tokens)
        logits, _ = self.draft.read(tokens, known, levels, needed, (), self._offset(offset))
        return logits[..., : self.vocab_size]

    @torch.inference_mode()
    def rehearse(self, num_rows: int) -> None:
        """Show the runtime the shapes of a pass of so many rows, to be compiled ahead."""
        tokens = torch.zeros(len(self.room), num_rows, dtype=torch.long, device=self.draft.device)
        self.draft.cache.length.zero_()
        known = self.lines[:, :num_rows]
        self.draft.read(tokens, known, tokens.clone(), num_rows, (), self._offset(0))

    def _offset(self, offset: int) -> int | Tensor:
        """As Target.read() wants it."""
        return torch.tensor(offset, device=self.draft.device) if self.static_shapes else offset

    def _enter(self, parents: Tensor) -> Tensor:
        """The next rows' lines, known [B, r, w]: what their parents read, and themselves."""
        num_rows, begin = parents.shape[1], self.num_columns
        end = begin + num_rows
        if not self.static_shapes:  # from the first pass on they grow with every one
            known = self.lines[:, :begin, :begin]
            self.lines = torch.nn.functional.pad(known, (0, num_rows, 0, num_rows))
        own = self.lines[:, begin:end]
        if begin:
            index = parents.clamp(min=0).unsqueeze(-1).expand(-1, -1, self.lines.shape[2])
            own.copy_(self.lines.gather(1, index) & (parents >= 0).unsqueeze(-1))
        else:
            own.zero_()
        own.diagonal(begin, 1, 2).fill_(True)
        return own

    def _known_ids(self, tokens: Tensor) -> Tensor:
        """Ids that the draft model lacks, of a padded target, are read as its last one."""
        return tokens.clamp(0, self.draft.vocab_size - 1)

    def observe(self, step: Step, columns: Tensor) -> None:
        """Keep the accepted rows but the last; columns [B, n]: of the draft's nodes."""
        device = self.draft.device
        count, path = step.count.to(device), step.path.to(device)
        inner = path[:, 1:-1]  # a node with an accepted child has been read
        if inner.shape[1]:
            place = columns.expand(len(path), -1).gather(1, (inner - 1).clamp(min=0))
            ahead = torch.arange(inner.shape[1], device=device)
            place = place.masked_fill(ahead >= (count - 2).unsqueeze(1), -1)
            self.draft.cache.commit(place, torch.zeros_like(count))
        self.tails.observe(step.host_ids)
        self.committed = step.max_committed
        for row, ids in enumerate(step.host_ids):
            self.room[row] = max(self.room[row] - len(ids), 0) if ids else 0
