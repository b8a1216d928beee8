"""The one draft-verify-accept loop, for every method and for the baseline (which drafts nothing).

A step: the drafter proposes, the target reads root and draft in one forward, a rule accepts, the
cache keeps the accepted rows, one copy brings the committed ids to the host, the stop rules cut,
the drafter observes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter, LoopStep, Step
from model.common.errors import BadInput
from model.common.loop import verify
from model.common.loop.clock import Clock, now
from model.common.loop.host_copy import host_copy
from model.common.loop.sampling import Sampler
from model.common.loop.turns import Rows, StopRules, Turn
from model.common.target.runtime import compilations


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
    rows = Rows(prompts, limits, stop)
    target.reserve(len(prompts), max(rows.max_lengths) + 1)
    begin = now(device)
    sampler.start(seeds, max(limits) + 1, device)
    root = _prefill(target, drafter, rows, sampler, num_idle)
    prefilled = now(device)
    for turn in rows.turns:
        turn.prefill_s = turn.wall_s = prefilled - begin
        turn.recompiled = compilations() - rows.compiled
    loop = _Loop(target, drafter, rows, sampler, typical, root)
    loop.run(begin)
    seconds = loop.clock.seconds()
    for turn in rows.turns:
        steps = len(turn.accept_lengths)
        turn.phase_s = {phase: times[:steps] for phase, times in seconds.items()}
    return rows.turns[: len(prompts) - num_idle]


def _prefill(target, drafter, rows: Rows, sampler, num_idle: int) -> torch.Tensor:
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
    rows.measure()
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


class _Loop:
    """The steps of B answers.

    Where target and drafter allow it (ahead), a step's ids are still on their way to the host while
    the next draft is made, or, where drafts are empty, while the target reads the next token. What
    was begun so behind an answer's end is thrown away; its time is the answer's.
    """

    def __init__(self, target, drafter: Drafter, rows: Rows, sampler, typical, root: Tensor):
        self.target, self.drafter, self.rows = target, drafter, rows
        self.sampler, self.typical, self.root = sampler, typical, root
        self.ahead = target.runs_ahead and drafter.ahead
        self.greedy = bool(target.acceptance) and sampler.greedy and typical is None
        self.clock = Clock(target.device)
        self.running: list[bool] = []  # rows.alive as the device knows it
        self.alive: Tensor | None = None  # the same [B], None = all
        self.pending = None  # (draft, host_copy()) of a step whose ids the host has not read

    def run(self, begin: float) -> None:
        """Steps until all answers have ended; begin: perf_counter() when their prefill began."""
        self.begin = begin
        self._drop_ended()
        while any(self.rows.alive):
            self._step()

    def _step(self) -> None:
        """One draft-verify-accept round."""
        target, drafter, clock = self.target, self.drafter, self.clock
        clock.mark("draft")
        draft = drafter.propose()
        if self.pending and draft.tokens.shape[1] and self._ended():
            return
        clock.mark("verify")
        began = self.alive
        asked = self._longest(), drafter.needs.hidden, self.greedy, began
        logits, hidden, *made = target.forward(self.root, draft, *asked)
        clock.mark("commit")
        if self.pending and self._ended():
            return
        accepted, following, host = self._accept(draft, logits, made)
        if made and self.alive is not began:  # rows were seen to end after the target's call
            accepted = accepted.only(self.alive)
            following = torch.where(self.alive, following, self.root)
        if not self.greedy:
            self.sampler.advance(accepted.count)
        self.pending = draft, host_copy(host)
        host_ids = None if self.ahead else self._read_ids()
        clock.mark("draft")
        step = (self.root, draft, logits, hidden, accepted, following, host_ids)
        drafter.observe(LoopStep(*step, self._longest()))
        clock.end_step()
        self.root = following
        if not self.ahead and self.rows.alive != self.running:
            self._drop_ended()

    def _ended(self) -> bool:
        """Read the pending ids; whether no answer goes on."""
        self.clock.mark("commit")
        self._read_ids()
        if self.rows.alive != self.running:
            self._drop_ended()
        return not any(self.rows.alive)

    def _longest(self) -> int:
        """A bound of rows.longest, which it is when no ids are pending."""
        longest = self.rows.longest
        return longest + 1 + self.pending[0].depth if self.pending else longest

    def _drop_ended(self) -> None:
        """Take over rows.alive, which has changed: ended rows stay at column 0 of the cache."""
        rows, target = self.rows, self.target
        if self.running:
            rows.finish(self.running, self.begin, target.device)
        self.running = rows.alive[:]
        self.alive = None
        if any(rows.alive) and not all(rows.alive):
            self.alive = torch.tensor(rows.alive, device=target.device)
            target.cache.length.mul_(self.alive)

    def _accept(self, draft: Draft, logits: Tensor, made: list[Tensor]):
        """Apply the rule and keep the accepted rows; (accepted, new roots [B], host's tensor).

        made: what the target's call has made of it, where it holds the `acceptance`.
        """
        target, sampler, alive = self.target, self.sampler, self.alive
        if made:
            return target.acceptance(made)
        accepted = verify.choose(sampler, draft, self.typical)(logits)
        following = accepted.last
        if alive is not None:
            accepted = accepted.only(alive)
            following = torch.where(alive, following, self.root)
        target.cache.commit(None if draft.is_chain else accepted.path, accepted.count)
        return accepted, following, accepted.for_host(verify.candidates_of(draft))

    def _read_ids(self) -> list[list[int]]:
        """The step's one copy to the host: committed ids per row, cut by the stop rules."""
        draft, host = self.pending
        self.pending = None
        rows, host_ids = self.rows, []
        for row, (committed, drafted, *ids) in enumerate(host.tolist()):
            ids = ids[:committed]
            host_ids.append(ids)
            if rows.alive[row]:
                turn = rows.turns[row]
                turn.accept_lengths.append(rows.add(row, ids))
                turn.drafted.append(drafted)
                turn.depth.append(draft.depth)
        rows.measure()
        return host_ids
