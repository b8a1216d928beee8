"""Where the loop's requests come from, and where its answers go."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from model.common.contract.drafter import Step
from model.common.errors import BadInput
from model.common.loop.turns import Turn


@dataclass
class Request:
    """One prompt to be answered.

    ids       of the prompt
    limit     most new tokens
    seed      of its uniforms (sampling.seed_of)
    continues it goes on with the question that its slot had before (a second turn)
    owner     whatever its source wants to find again with the answer
    """

    ids: list[int]
    limit: int
    seed: int = 0
    continues: bool = False
    owner: object = None


def check_length(target, ids: list[int], limit: int) -> int:
    """limit cut to the target's context; a prompt that leaves no room is bad input."""
    context = target.context
    if not ids:
        raise BadInput("empty prompt")
    if context is not None and len(ids) >= context:
        raise BadInput(f"prompt of {len(ids)} tokens does not fit the context of {context}")
    return limit if context is None else min(limit, context - len(ids))


class Source:
    """Where a loop's requests come from and its answers go."""

    def take(self, slot: int) -> Request | None:
        """The next request for a free slot; None = nothing for it now."""
        raise NotImplementedError

    def done(self, request: Request, turn: Turn) -> None:
        """An answer has ended."""
        raise NotImplementedError


class Prompts(Source):
    """A list of requests, answered in order; turns: their answers."""

    def __init__(self, requests: list[Request]):
        for place, request in enumerate(requests):
            request.owner = place
        self.waiting = deque(requests)
        self.turns: list[Turn | None] = [None] * len(requests)

    def take(self, slot):
        return self.waiting.popleft() if self.waiting else None

    def done(self, request, turn):
        self.turns[request.owner] = turn


def pad_right(sequences: list[list[int]], device) -> Tensor:
    """[S, longest] long, padded with 0."""
    longest = max(len(ids) for ids in sequences)
    rows = [ids + [0] * (longest - len(ids)) for ids in sequences]
    return torch.tensor(rows, dtype=torch.long, device=device)


def prompt_step(begun: list, ids: Tensor, root: Tensor, prefilled, longest: int) -> Step:
    """The Step of prompts that have been read.

    begun: their turns.Sequences; ids [S, P] right-padded, root [S] their own tokens; prefilled as
    Target.prefill() gives it; longest: of all sequences that go on.
    """
    count = torch.tensor([len(seq.request.ids) for seq in begun], device=ids.device)
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    path = place.masked_fill(place >= count.unsqueeze(1), -1)
    following = ids.roll(-1, 1).scatter(1, count.unsqueeze(1) - 1, root.unsqueeze(1))
    return Step(
        slots=[seq.slot for seq in begun],
        tokens=ids.masked_fill(path < 0, -1),
        path=path,
        count=count,
        new_tokens=following.masked_fill(path < 0, -1),
        next_token=root,
        host_ids=[seq.request.ids + seq.turn.output_ids for seq in begun],
        max_committed=longest,
        hidden=prefilled.hidden,
        topk=prefilled.topk,
        continues=[seq.request.continues for seq in begun],
        max_lengths=[seq.max_length for seq in begun],
    )
