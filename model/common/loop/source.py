"""Where the loop's requests come from, and where its answers go."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from model.common.contract.drafter import Step
from model.common.errors import BadInput
from model.common.loop.clock import HostTime
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


def check_prompt(target, request: Request, decode=None) -> int:
    """The request's limit cut to the target's context. Raises BadInput: a prompt that the target
    cannot read.

    decode: ids -> text, to name a token.
    """
    ids = request.ids
    if not ids:
        raise BadInput("empty prompt")
    if (token := max(ids)) >= target.vocab_size:
        name = f" ({decode([token])!r})" if decode else ""
        size = target.vocab_size
        raise BadInput(f"token {token}{name} is beyond the target's vocabulary of {size}")
    return target.fitting(len(ids), request.limit)


class Source:
    """Where a loop's requests come from and its answers go.

    host  the time that its requests arrive in; None = the loop takes one of its own
    """

    host: HostTime | None = None

    def take(self, slot: int) -> Request | None:
        """The next request for a free slot; None = nothing for it now."""
        raise NotImplementedError

    def wait(self) -> bool:
        """Asked where no slot is running and nothing was taken: wait until there may be a request,
        or say that none will come."""
        return False

    def begun(self, request: Request, slot: int, begin: float) -> None:
        """A request's prompt is about to be read in its slot; begin: by the host's time."""

    def done(self, request: Request, turn: Turn) -> None:
        """An answer has ended."""
        raise NotImplementedError

    def failed(self, request: Request, slot: int, reason: str) -> None:
        """A request has no answer; its slot is free, and the others go on unless this raises."""
        raise BadInput(reason)


class Prompts(Source):
    """A list of requests, answered in order.

    turns    their answers, None where one failed; reasons: {place: why}
    """

    def __init__(self, requests: list[Request]):
        for place, request in enumerate(requests):
            request.owner = place
        self.waiting = deque(requests)
        self.turns: list[Turn | None] = [None] * len(requests)
        self.reasons: dict[int, str] = {}

    def take(self, slot):
        return self.waiting.popleft() if self.waiting else None

    def done(self, request, turn):
        self.turns[request.owner] = turn

    def failed(self, request, slot, reason):
        self.reasons[request.owner] = reason

    def answers(self) -> list[Turn]:
        """All turns. Raises BadInput where one has failed."""
        for reason in self.reasons.values():
            raise BadInput(reason)
        return self.turns


def readable(target, taken: list[tuple[int, Request]], source: Source, decode) -> list[tuple]:
    """(slot, request, limit) of those that the target can answer; the source is told the others.

    decode: as for check_prompt().
    """
    found = []
    for slot, request in taken:
        try:
            found.append((slot, request, check_prompt(target, request, decode)))
        except BadInput as error:
            source.failed(request, slot, str(error))
    return found


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
