"""A draft model that reads a tree pass by pass, and keeps what was accepted between steps.

Every pass writes its rows behind those of the passes before; a step's end moves the accepted ones
behind the committed ones. Example: 10 tokens are committed, passes read the nodes 0, 1 into columns
10, 11 and 4 into column 12. If nodes 0, 4 and an unread one are accepted, column 12 goes to 11.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from model.common.contract.drafter import Step
from model.common.target.attention import mask_kinds
from model.common.target.draft_model import DraftModel, tell_shorter
from model.common.target.model import Target


class TreeReader:
    """Rows of draft trees behind B committed sequences.

    num_columns  rows of this step's tree that were read
    ancestors    [B, num_columns, num_columns] bool: which of them each one reads
    """

    def __init__(self, model: Target, target: Target):
        windows = [window for window in mask_kinds(model.config).values() if window is not None]
        self.draft = DraftModel(model, min(windows, default=None))
        tell_shorter("sliding attention", self.draft.window, target)
        self.device, self.vocab_size = target.device, target.vocab_size
        model.kinds = dict.fromkeys(model.kinds)  # the same as far as drafts go
        self.num_columns = 0

    @property
    def draft_device(self) -> torch.device:
        """Where the draft model sits."""
        return self.draft.model.device

    @property
    def room(self) -> list[int]:
        """Tokens that each answer may still draft, host ints; 0 for an idle slot."""
        return self.draft.room

    def reserve(self, num_slots: int, capacity: int, num_columns: int) -> None:
        """Room for B slots; num_columns: rows that a tree takes, as a rule."""
        self.draft.reserve(num_slots, capacity + num_columns)

    def start(self, prompt: Step) -> None:
        """Read the prompts of the slots that begin."""
        self.draft.start(prompt)

    def catch_up(self) -> Tensor:
        """Read the last two committed tokens and forget the last tree; logits [B, V] after them."""
        logits = self.draft.catch_up()
        self.num_columns = 0
        self.ancestors = torch.zeros(len(logits), 0, 0, dtype=torch.bool, device=logits.device)
        return logits[:, : self.vocab_size]

    def read(self, tokens: Tensor, parents: Tensor, levels: Tensor) -> Tensor:
        """Logits [B, r, V] after a pass's nodes, which take the next r columns.

        tokens [B, r]; parents [B, r]: columns of their parents, -1 = the root; levels [B, r]: 0 for
        the root's children.
        """
        num_rows, offset = tokens.shape[1], self.num_columns
        above = pad(self.ancestors, (0, 0, 1, 0)).gather(  # the root reads none of them
            1, (parents + 1).unsqueeze(-1).expand(-1, -1, offset)
        )
        own = torch.eye(num_rows, dtype=torch.bool, device=tokens.device)
        own = own.expand(len(tokens), num_rows, num_rows)
        known = torch.cat([above, own], 2)  # [B, r, offset + r]
        self.ancestors = torch.cat([pad(self.ancestors, (0, num_rows)), known], 1)
        self.num_columns += num_rows
        tokens = tokens.clamp(0, self.draft.last_id)
        logits, _ = self.draft.model.read(tokens, known, levels, self.draft.longest, offset)
        return logits[..., : self.vocab_size]

    def observe(self, step: Step, columns: Tensor) -> None:
        """Keep the accepted rows but the last; columns [1 or B, n]: of the draft's nodes."""
        inner = step.path[:, 1:-1]  # a node with an accepted child has been read
        inner = inner[:, : self.num_columns].to(self.draft_device)
        if inner.shape[1]:
            kept = (step.count.to(self.draft_device) - 2).clamp(min=0)
            place = columns.expand(len(inner), -1).gather(1, (inner - 1).clamp(min=0))
            ahead = torch.arange(inner.shape[1], device=self.draft_device)
            place = place.masked_fill(ahead >= kept.unsqueeze(1), -1)
            self.draft.model.cache.keep(place, kept)
        self.draft.observe(step)

    def end(self, slots: list[int]) -> None:
        """These slots are idle from now on."""
        self.draft.end(slots)
