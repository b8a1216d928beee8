"""The one draft-verify-accept loop, for every method and for the baseline (which drafts nothing).

A step: the drafter proposes, the target reads root and draft in one forward, a rule accepts, the
cache keeps the accepted rows, one copy brings the committed ids to the host, the stop rules cut,
the drafter observes. The loop has B slots; a waiting prompt enters a slot whose answer has ended
while the others go on. Where no slot is running, the loop waits for the next prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter, Step
from model.common.loop import verify
from model.common.loop.clock import Clock, HostTime
from model.common.loop.penalties import PenalisedSlots
from model.common.loop.ranking import best_id, finite_rows
from model.common.loop.sampling import Sampler
from model.common.loop.source import Prompts, Request, Source, pad_right, prompt_step, readable
from model.common.loop.turns import TARGET_FAULT, Sequence, StopRules, Turn
from model.common.target.runtime import compilations


class Loop:
    """B slots of a target, a drafter and a sampler.

    capacity  tokens of the longest sequence, as far as it is known; caches grow beyond it. Each
              slot of the target's has room for a draft behind them: 1,024 nodes take 0.5 GB of
              a Llama of 7B in 16 bits
    typical   (epsilon, delta) of the lossy rule, whose first tokens are the best ones; None = the
              exact rule that fits sampler and draft
    devices   of the drafter, whose work is finished, too, where times are read
    root      [B] last committed token of every slot
    running   [B] bool, None = all slots
    """

    def __init__(
        self,
        target,
        drafter: Drafter,
        sampler: Sampler,
        stop: StopRules,
        num_slots: int,
        capacity: int,
        typical: tuple[float, float] | None = None,
        devices=(),
    ):
        self.target, self.drafter, self.sampler = target, drafter, sampler
        self.stop, self.typical, self.devices = stop, typical, devices
        self.slots: list[Sequence | None] = [None] * num_slots
        self.penalised = PenalisedSlots(sampler.penalties, num_slots)
        with torch.inference_mode():
            target.reserve(num_slots, capacity + 1 + drafter.max_nodes)
            sampler.reserve(num_slots, target.device)
            drafter.reserve(num_slots, capacity + 1, sampler)
            self.root = torch.zeros(num_slots, dtype=torch.long, device=target.device)
        self.running: Tensor | None = None

    @torch.inference_mode()
    def run(self, source: Source) -> None:
        """Answer all that the source gives."""
        self.host = source.host or HostTime()
        self.clock = Clock(self.target.device, self.host, self.devices)
        while True:
            if self._admit(source):
                self._step(source)
            elif not source.wait():
                return

    def _read_clock(self) -> float:
        """The host's time, all queued work finished; answers in the slots learn when steps ended.

        Called before a slot changes hands: they took part in all steps since the last call.
        """
        time, steps = self.clock.read()
        for sequence in filter(None, self.slots):
            sequence.add_times(steps)
        return time

    def _admit(self, source: Source) -> bool:
        """Let waiting prompts into free slots; whether any slot is running then."""
        while True:
            free = [slot for slot, sequence in enumerate(self.slots) if sequence is None]
            taken = [(slot, source.take(slot)) for slot in free]
            taken = [(slot, request) for slot, request in taken if request is not None]
            if taken:
                self._begin(taken, source)
            if not taken or all(self.slots):
                return any(self.slots)

    def _begin(self, taken: list[tuple[int, Request]], source: Source) -> None:
        """Read the prompts, commit their first tokens, tell the drafter."""
        self._read_clock()
        target, begin = self.target, self.host.now()
        begun = [
            Sequence(request, slot, limit, self.stop, begin, compilations())
            for slot, request, limit in readable(target, taken, source, self.stop.decode)
        ]
        if not begun:
            return
        for sequence in begun:
            source.begun(sequence.request, sequence.slot, begin)
        slots = [seq.slot for seq in begun]
        self.sampler.begin(
            slots, [seq.request.seed for seq in begun], [seq.limit + 1 for seq in begun]
        )
        lengths = [len(seq.request.ids) for seq in begun]
        ids = pad_right([seq.request.ids for seq in begun], target.device)
        prefilled = target.prefill(slots, ids, lengths, self.drafter.needs)
        scores = self.penalised.begin(slots, ids, lengths, prefilled.logits)
        root = self.sampler.first_tokens(slots, scores)
        if self.typical is not None:  # it draws nothing at any temperature
            root = best_id(scores)
        self.root[slots] = root
        self.penalised.add(root.unsqueeze(1), slots)
        firsts = torch.stack([root, finite_rows(prefilled.logits).long()], 1).tolist()
        first_s = self.host.now() - begin  # tolist() has waited for them
        for sequence, (token, finite) in zip(begun, firsts):
            if not finite:
                sequence.fail(TARGET_FAULT, target.dtype)
            sequence.add([token])
            self.slots[sequence.slot] = sequence
        ended = [seq.slot for seq in begun if seq.ended]
        if len(ended) < len(begun):
            self.drafter.start(prompt_step(begun, ids, root, prefilled, self._longest()))
            self.drafter.end(ended)
        prefill_s = self._read_clock() - begin
        for turn in (sequence.turn for sequence in begun):
            turn.begin_s, turn.first_s, turn.prefill_s = begin + self.host.unix, first_s, prefill_s
        self._finish(ended, source)
        self._note_running()

    def _step(self, source: Source) -> None:
        """One draft-verify-accept round."""
        target, drafter, clock = self.target, self.drafter, self.clock
        clock.mark("draft")
        draft = target.padded(drafter.propose(), drafter)
        clock.mark("verify")
        logits, hidden = target.forward(self.root, draft, self._longest(), drafter.needs.hidden)
        clock.mark("commit")
        scores = self.penalised.rows(logits, draft)
        accepted = verify.choose(self.sampler, draft, self.typical)(scores)
        following = accepted.last
        if self.running is not None:
            accepted = accepted.only(self.running)
            following = torch.where(self.running, following, self.root)
        target.cache.keep(None if draft.is_chain else accepted.path, accepted.count)
        self.sampler.advance(accepted.count)
        self.penalised.add(accepted.tokens)
        host_ids, ended = self._read_ids(draft, accepted, finite_rows(logits))
        clock.mark("draft")
        step = Step(
            slots=list(range(len(self.slots))),
            tokens=torch.cat([self.root.unsqueeze(1), draft.tokens], 1),
            path=accepted.path,
            count=accepted.count,
            new_tokens=accepted.tokens,
            next_token=following,
            host_ids=host_ids,
            max_committed=self._longest(),
            logits=logits,
            hidden=hidden,
        )
        drafter.observe(step)
        if ended:
            drafter.end(ended)
        clock.end_step()
        self.root = following
        self._finish(ended, source)

    def _read_ids(self, draft: Draft, accepted, finite) -> tuple[list[list[int]], list[int]]:
        """The step's one copy to the host: (ids that each slot committed, slots that ended)."""
        depths, dtype = draft.layout.depths, self.target.dtype
        rows = accepted.for_host(draft.candidates, depths, finite, draft.sound).tolist()
        pairs = zip(self.slots, rows)
        host_ids = [seq.take_step(row, dtype) if seq else [] for seq, row in pairs]
        return host_ids, [seq.slot for seq in self.slots if seq and seq.ended]

    def _finish(self, ended: list[int], source: Source) -> None:
        """Free the slots of answers that have ended and hand these over."""
        if not ended:
            return
        end = self._read_clock()
        self.target.cache.clear(ended)
        for slot in ended:
            sequence, self.slots[slot] = self.slots[slot], None
            if sequence.error:
                source.failed(sequence.request, slot, sequence.error)
                continue
            sequence.finish(end, compilations())
            source.done(sequence.request, sequence.turn)
        self._note_running()

    def _note_running(self) -> None:
        """Which slots are running, on the device."""
        running = [sequence is not None for sequence in self.slots]
        self.running = None if all(running) else torch.tensor(running, device=self.target.device)

    def _longest(self) -> int:
        """Committed length of the longest sequence that goes on, root included; 0 = none."""
        lengths = [seq.length for seq in self.slots if seq is not None and not seq.ended]
        return max(lengths, default=0)


def generate(
    target,
    drafter: Drafter,
    prompts: list[list[int]],
    sampler: Sampler,
    seeds: list[int],
    stop: StopRules,
    max_new_tokens: int,
    typical: tuple[float, float] | None = None,
    num_slots: int | None = None,
) -> list[Turn]:
    """Answers to prompts (token ids); num_slots None = one each. BadInput: one has failed."""
    requests = [Request(ids, max_new_tokens, seed) for ids, seed in zip(prompts, seeds)]
    source = Prompts(requests)
    capacity = max((len(ids) for ids in prompts), default=0) + max_new_tokens
    loop = Loop(target, drafter, sampler, stop, num_slots or len(prompts), capacity, typical)
    loop.run(source)
    return source.answers()
