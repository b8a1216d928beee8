"""A draft model's chain, drafted token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter
from model.common.loop.ranking import finite_rows
from model.common.loop.sampling import DRAFT, draw
from model.common.target.draft_model import DraftModel
from model.common.target.model import Target

GROWTH = 64  # nodes by which a heuristic draft can grow: 32 full accepts in a row


class SpSDrafter(Drafter):
    """Draft length per slot: constant, heuristic (+2 / -1, reset each turn) or by confidence.

    No draft is longer than what the answer can still take, or than max_nodes.

    draft       the draft model's Target, on any device
    confidence  that schedule ends a slot's draft after the first token whose draft probability is
                below it; the token stays in the draft, so the choice to go on never looks at the
                token it admits
    """

    def __init__(
        self, draft: Target, target: Target, schedule: str, num_draft: int, confidence: float
    ):
        self.draft, self.schedule = DraftModel(draft), schedule
        self.num_draft, self.confidence = num_draft, confidence
        self.vocab_size, self.device = target.vocab_size, target.device
        self.max_nodes = num_draft + (GROWTH if schedule == "heuristic" else 0)
        self.reads_per_step = num_draft - 1 if schedule == "confidence" else 0

    def reserve(self, num_slots, capacity, sampler):
        self.sampler = sampler
        self.draft.reserve(num_slots, capacity + self.max_nodes)
        self.planned = [self.num_draft] * num_slots  # draft lengths, as far as there is room

    def start(self, prompt):
        self.draft.start(prompt)
        for slot in prompt.slots:
            self.planned[slot] = self.num_draft

    def propose(self):
        pairs = zip(self.planned, self.draft.room)
        self.lengths = [min(*pair, self.max_nodes) for pair in pairs]
        limits = torch.tensor(self.lengths, device=self.draft.model.device)
        longest, token = max(self.lengths), None
        alive = None  # [B] slots that draft on within their limits, None = all
        chain, laws, finite = [], [], []
        for node in range(longest):
            logits = to_width(self._read(node, token), self.vocab_size)
            finite.append(finite_rows(logits))
            token, law = self._choose(logits, node)
            chain.append(token if alive is None else token.masked_fill(~alive, -1))
            laws.append(law)
            goes_on = self._goes_on(node, logits, token, law) if node + 1 < longest else None
            if goes_on is not None:
                goes_on = goes_on & (limits > node + 1)
                alive = goes_on if alive is None else alive & goes_on
                if self._is_asked(node) and not alive.any():
                    break
        return self._as_draft(chain, laws, finite, limits)

    def _read(self, node: int, token: Tensor | None) -> Tensor:
        """The draft model's logits [B, V] after the node before, token [B], None = the root."""
        if node == 0:
            return self.draft.catch_up()
        return self.draft.read(token.unsqueeze(1))[0]

    def _choose(self, logits: Tensor, node: int) -> tuple[Tensor, Tensor | None]:
        """(token [B], the law [B, V] that it is drawn from; greedy: None)."""
        if self.sampler.greedy:
            return logits.argmax(-1), None
        law = self.sampler.warp(logits)
        uniform = self.sampler.uniform(1, DRAFT, first=node).squeeze(1)
        return draw(law, uniform.to(law.device)), law

    def _goes_on(self, node: int, logits: Tensor, token: Tensor, law: Tensor | None):
        """Slots [B] bool that draft on after this node, which stays in the draft; None = all."""
        if self.schedule != "confidence":
            return None
        law = logits.float().softmax(-1) if law is None else law
        return law.gather(1, token.unsqueeze(1)).squeeze(1) >= self.confidence

    def _is_asked(self, node: int) -> bool:
        """Whether the host asks after this node if any slot drafts on, to end the draft if not."""
        return True

    def _as_draft(self, chain: list, laws: list, finite: list, limits: Tensor) -> Draft:
        """The draft of its nodes' tokens [B], laws [B, V] and whether their logits were finite [B],
        cut to each slot's limit [B]."""
        if not chain:
            shape = len(self.lengths), 0
            return Draft(torch.empty(shape, dtype=torch.long, device=self.device))
        tokens = torch.stack(chain, 1)
        if min(self.lengths) < len(chain):
            nodes = torch.arange(len(chain), device=tokens.device)
            tokens = tokens.masked_fill(nodes >= limits.unsqueeze(1), -1)
        probs = None if laws[0] is None else torch.stack(laws, 1).to(self.device)
        sound = (torch.stack(finite, 1) | (tokens < 0)).all(1)
        return Draft(tokens.to(self.device), None, probs, sound=sound.to(self.device))

    def observe(self, step):
        self.draft.observe(step)
        if self.schedule != "heuristic":
            return
        for slot, ids in enumerate(step.host_ids):
            if ids:
                full = len(ids) - 1 == self.lengths[slot]
                planned = self.planned[slot]
                self.planned[slot] = planned + 2 if full else max(1, planned - 1)

    def end(self, slots):
        self.draft.end(slots)


def to_width(logits: Tensor, width: int) -> Tensor:
    """Cut or pad with -inf to the target's vocabulary (padded vocabularies differ)."""
    missing = width - logits.shape[-1]
    if missing <= 0:
        return logits[..., :width]
    return torch.nn.functional.pad(logits, (0, missing), value=float("-inf"))
