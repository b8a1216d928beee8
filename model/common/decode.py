"""The one draft-verify-accept loop, for every method and for the baseline (which drafts nothing).

A step: the drafter proposes, the target reads root and draft in one forward, a rule accepts, the
cache keeps the accepted rows, one copy brings the committed ids to the host, the stop rules cut,
the drafter observes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from model.common import verify
from model.common.clock import Clock, now
from model.common.drafter import Draft, Drafter, LoopStep, Step
from model.common.errors import BadInput
from model.common.runtime import compilations
from model.common.sampling import Sampler


@dataclass
class Turn:
    """One decoded answer turn; per-step lists are as long as the number of steps (target forwards).

    accept_lengths  tokens committed by each step, bonus included, after the stop cut
    drafted         candidate nodes of each step (inert and probe rows not counted); depth their
                    bound
    wall_s          prefill + steps, the device synchronised at both ends
    recompiled      graphs compiled or captured within wall_s; 0 where the warm-up met every shape
    """

    output_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    prefill_s: float = 0.0
    wall_s: float = 0.0
    accept_lengths: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    phase_s: dict[str, list[float]] = field(default_factory=dict)
    recompiled: int = 0


@dataclass
class StopRules:
    """When an answer ends: one of eos_ids, a stop string in the decoded text, or max_new_tokens.

    decode: ids -> text, needed for stop strings only.
    """

    eos_ids: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()
    decode: object = None

    def cut(self, ids: list[int], new: int, limit: int) -> tuple[int, str]:
        """How many of the last `new` ids are kept, and why the answer ends there ("" if it goes
        on).

        >>> StopRules(frozenset({2})).cut([5, 7, 2, 9], new=3, limit=100)
        (2, 'stop')
        """
        first = len(ids) - new
        for position in range(first, len(ids)):
            if ids[position] in self.eos_ids:
                return position + 1 - first, "stop"
            if self.strings and self._has_string(ids[: position + 1]):
                return position + 1 - first, "stop"
            if position + 1 == limit:
                return position + 1 - first, "length"
        return new, ""

    def _has_string(self, ids: list[int]) -> bool:
        """Whether the text's tail holds a stop string; ids, since a string may span tokens."""
        reach = max(len(text) for text in self.strings) + 4  # a token has at least one byte
        tail = self.decode(ids[-reach:])
        return any(text in tail for text in self.strings)


class _Rows:
    """Host-side state of the B answers being written."""

    def __init__(self, prompts, limits, stop: StopRules):
        self.prompts, self.limits, self.stop = prompts, limits, stop
        self.max_lengths = [len(ids) + limit for ids, limit in zip(prompts, limits)]
        self.turns = [Turn() for _ in prompts]
        self.alive = [True] * len(prompts)
        self.compiled = compilations()

    def add(self, row: int, ids: list[int]) -> int:
        """Append committed ids, cut at the stop; returns how many were kept."""
        turn = self.turns[row]
        turn.output_ids.extend(ids)
        kept, reason = self.stop.cut(turn.output_ids, len(ids), self.limits[row])
        if kept < len(ids):
            del turn.output_ids[kept - len(ids) :]
        if reason:
            turn.finish_reason = reason
            self.alive[row] = False
        return kept

    def finish(self, running: list[bool], begin: float, device) -> None:
        """Wall time of the rows that have just ended; the last one waits for the device."""
        end = time.perf_counter() if any(self.alive) else now(device)
        for turn, before, after in zip(self.turns, running, self.alive):
            if before and not after:
                turn.wall_s = end - begin
                turn.recompiled = compilations() - self.compiled

    def longest(self) -> int:
        """Committed length of the longest unfinished sequence."""
        lengths = [
            len(prompt) + len(turn.output_ids)
            for prompt, turn, alive in zip(self.prompts, self.turns, self.alive)
            if alive
        ]
        return max(lengths, default=0)


def pad_right(sequences: list[list[int]], device) -> torch.Tensor:
    """[B, longest] long, padded with 0."""
    longest = max(len(ids) for ids in sequences)
    rows = [ids + [0] * (longest - len(ids)) for ids in sequences]
    return torch.tensor(rows, dtype=torch.long, device=device)


def check_lengths(target, prompts: list[list[int]], limits: list[int]) -> list[int]:
    """Limits cut to the target's context; a prompt that leaves no room is bad input."""
    context = target.context
    cut = []
    for ids, limit in zip(prompts, limits):
        if not ids:
            raise BadInput("empty prompt")
        if context is not None and len(ids) >= context:
            raise BadInput(f"prompt of {len(ids)} tokens does not fit the context of {context}")
        cut.append(limit if context is None else min(limit, context - len(ids)))
    return cut


@torch.inference_mode()
def generate(
    target,
    drafter: Drafter,
    prompts: list[list[int]],
    sampler: Sampler,
    seeds: list[int],
    stop: StopRules,
    max_new_tokens: int,
    typical: tuple[float, float] | None = None,
) -> list[Turn]:
    """Decode B prompts (token ids) together. seeds: one per prompt (sampling.seed_of).

    typical: (epsilon, delta) of the lossy rule; None = the exact rule that fits sampler and draft.
    """
    device = target.device
    num_idle = target.idle_rows(len(prompts))
    limits = check_lengths(target, prompts, [max_new_tokens] * len(prompts)) + [1] * num_idle
    prompts = prompts + [[0]] * num_idle  # ends with the prefill's token
    seeds = seeds + [0] * num_idle
    rows = _Rows(prompts, limits, stop)
    target.reserve(len(prompts), max(rows.max_lengths) + 1)
    begin = now(device)
    sampler.start(seeds, max(limits) + 1, device)
    root = _prefill(target, drafter, rows, sampler, num_idle)
    prefilled = now(device)
    for turn in rows.turns:
        turn.prefill_s = turn.wall_s = prefilled - begin
        turn.recompiled = compilations() - rows.compiled
    clock = Clock(device)
    alive, running = _running(target, rows), rows.alive[:]
    while any(rows.alive):
        root = _step(target, drafter, rows, sampler, clock, root, alive, typical)
        if rows.alive != running:
            rows.finish(running, begin, device)
            alive, running = _running(target, rows), rows.alive[:]
    seconds = clock.seconds()
    for turn in rows.turns:
        steps = len(turn.accept_lengths)
        turn.phase_s = {phase: times[:steps] for phase, times in seconds.items()}
    return rows.turns[: len(prompts) - num_idle]


def _running(target, rows: _Rows) -> torch.Tensor | None:
    """Which rows go on, [B] bool; None = all. A finished row stays at column 0 of the cache."""
    if all(rows.alive):
        return None
    alive = torch.tensor(rows.alive, device=target.device)
    target.cache.length.mul_(alive)
    return alive


def _prefill(target, drafter, rows: _Rows, sampler, num_idle: int) -> torch.Tensor:
    """Read the prompts, commit their first tokens, start the drafter; returns the roots [B].

    The last num_idle rows only fill the batch up: a Step whose path is all -1, with nothing to
    learn.
    """
    lengths = [len(ids) for ids in rows.prompts]
    ids = pad_right(rows.prompts, target.device)
    prefilled = target.prefill(ids, lengths, max(rows.max_lengths) + 1, drafter.needs)
    root = sampler.first_token(prefilled.logits)
    count = torch.ones_like(root)
    sampler.advance(count)
    host = root.tolist()
    for row, token in enumerate(host):
        rows.add(row, [token])
    if any(rows.alive):
        length = torch.tensor(lengths, device=target.device)
        if num_idle:
            length[-num_idle:] = 0
        place = torch.arange(ids.shape[1], device=target.device).expand_as(ids)
        path = place.masked_fill(place >= length.unsqueeze(1), -1)
        last = (length - 1).clamp(min=0).unsqueeze(1)
        following = ids.roll(-1, 1).scatter(1, last, root.unsqueeze(1))
        step = Step(
            tokens=ids.masked_fill(path < 0, -1),
            logits=None,
            hidden=prefilled.hidden,
            path=path,
            count=length,
            next_token=root,
            new_tokens=following.masked_fill(path < 0, -1),
            host_ids=[prompt + [token] for prompt, token in zip(rows.prompts, host)],
            max_committed=max(lengths) + 1,
            prompt_topk=prefilled.topk,
        )
        drafter.start(step, rows.max_lengths, sampler)
    return root


def _step(target, drafter, rows: _Rows, sampler, clock, root, alive, typical) -> torch.Tensor:
    """One draft-verify-accept round; returns the new roots [B]. alive [B] bool or None = all."""
    clock.mark("draft")
    draft = drafter.propose()
    clock.mark("verify")
    logits, hidden = target.forward(root, draft, rows.longest(), drafter.needs.hidden)
    clock.mark("commit")
    accepted, following, host = _accept(target, sampler, draft, typical, logits, root, alive)
    sampler.advance(accepted.count)
    host_ids = _record(rows, draft, host)
    clock.mark("draft")
    drafter.observe(
        LoopStep(root, draft, logits, hidden, accepted, following, host_ids, rows.longest())
    )
    clock.end_step()
    return following


def _accept(target, sampler, draft: Draft, typical, logits, root, alive):
    """Apply the rule and keep the accepted rows; (accepted, new roots [B], what the host reads)."""
    if target.acceptance and sampler.greedy and typical is None and not draft.is_chain:
        done = target.acceptance(logits, draft, root, alive, target.cache)
        if done is not None:
            return done
    accepted = verify.choose(sampler, draft, typical)(logits)
    following = accepted.last
    if alive is not None:
        accepted = accepted.only(alive)
        following = torch.where(alive, following, root)
    target.cache.commit(None if draft.is_chain else accepted.path, accepted.count)
    return accepted, following, accepted.for_host(verify.candidates_of(draft))


def _record(rows: _Rows, draft: Draft, host: torch.Tensor) -> list[list[int]]:
    """The step's one copy to the host: committed ids per row, cut by the stop rules."""
    width = host.shape[1] - draft.tokens.shape[1] - 1
    host_ids = []
    for row, (committed, *ids) in enumerate(host.tolist()):
        nodes = ids[width:]
        ids = ids[:committed]
        host_ids.append(ids)
        if rows.alive[row]:
            turn = rows.turns[row]
            turn.accept_lengths.append(rows.add(row, ids))
            turn.drafted.append(len(nodes) - nodes.count(-1))
            turn.depth.append(draft.depth)
    return host_ids
