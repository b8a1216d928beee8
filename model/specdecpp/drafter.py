"""SpecDec++'s chain: it ends when a refusal among the tokens read so far is likely enough."""

from __future__ import annotations

import torch

from model.common.contract.drafter import Drafter
from model.common.contract.sequence import EmptyDrafter
from model.common.draft_flags import flags_read
from model.common.errors import BadInput
from model.common.target.draft_model import load_draft_model
from model.specdecpp.flags import READ_BY
from model.specdecpp.heads import grown_head, load_head
from model.sps.drafter import SpSDrafter


class SpecDecPPDrafter(SpSDrafter):
    """A draft model's chain that an acceptance head ends, per slot.

    The state that candidate s is drawn from has read candidate s - 1, so with it the head scores
    candidates 1 .. s - 1. Whether the draft ends after candidate s is decided by these alone, and
    candidate s stays in the draft: the choice never looks at the token it admits.

    head       states [B, H] -> probability of acceptance [B] of the token read last, on the draft
               model's device (heads.AcceptanceHead.accepted)
    threshold  the draft ends where 1 - the product of these probabilities is above it
    bounds     candidates of a draft: at least, at most
    eos_ids    a slot's draft ends with one of these, whatever the bounds
    """

    def __init__(self, draft, target, head, threshold: float, bounds, eos_ids=()):
        self.fewest, most = bounds
        super().__init__(draft, target, "ada", most, 0.0)
        self.head, self.threshold = head, threshold
        self.eos_ids = torch.tensor(sorted(eos_ids), dtype=torch.long, device=draft.device)
        self.reads_per_step = most - self.fewest  # nothing is asked after the last candidate

    def propose(self):
        num_slots = len(self.draft.committed)
        self.survival = torch.ones(num_slots, device=self.draft.model.device)
        draft = super().propose()
        if draft.sound is not None:
            draft.sound = draft.sound & self.survival.isfinite().to(self.device)
        return draft

    def _read(self, node, token):
        if node == 0:
            return self.draft.catch_up()
        logits, hidden = self.draft.read(token.unsqueeze(1), ("last",))
        if node < self.num_draft - 1:
            self.survival = self.survival * self.head(hidden["last"])
        return logits

    def _goes_on(self, node, logits, token, law):
        goes_on = ~torch.isin(token, self.eos_ids)
        if self._is_asked(node):
            goes_on &= 1 - self.survival <= self.threshold
        return goes_on

    def _is_asked(self, node):
        return node + 1 >= self.fewest  # before, EOS alone can end a draft: on the device


def build_drafter(args, target) -> Drafter:
    """What the command line asks for; a head that does not fit is refused."""
    found = flags_read(args, "schedule", READ_BY)
    if args.schedule == "none":
        return EmptyDrafter()
    if args.schedule != "ada":
        draft = load_draft_model(args, target)
        return SpSDrafter(draft, target, args.schedule, found["num_draft"], 0.0)
    least, most = found["bound"]
    if least > most:
        raise BadInput(f"--bound {least} {most}: the first is above the second")
    draft = load_draft_model(args, target)
    origin = draft.origin
    head = load_head(found["head_path"], origin.config.hidden_size, origin.device)
    head = grown_head(head, draft)
    ends = getattr(target.model.generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, (list, tuple)) else [ends]
    eos_ids = [token for token in ends if token is not None]
    return SpecDecPPDrafter(
        draft, target, head.accepted, found["threshold"], (least, most), eos_ids
    )
