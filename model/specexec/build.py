"""From checked flags to a drafter; the sweep makes several for one draft model."""

from __future__ import annotations

import copy

from model.common.contract.drafter import Drafter
from model.common.contract.sequence import EmptyDrafter
from model.common.target.draft_model import load_draft_model
from model.common.target.model import Target


def load_draft(args, target: Target) -> Target | None:
    """The draft model, None where nothing is drafted."""
    if args.gen_type == "zero":
        return None
    if args.gen_type == "specexec" and args.runtime == "cudagraph":
        args = copy.copy(args)
        args.runtime = "eager"  # hardly two passes are alike: each would be recorded anew
    return load_draft_model(args, target)


def make_drafter(args, draft: Target | None, target: Target) -> Drafter:
    """The mode's drafter."""
    from model.specexec.drafter import SpecExecDrafter
    from model.specexec.flags import shape_of
    from model.specexec.reader import TreeReader
    from model.specexec.specinfer import SpecInferDrafter

    num_ids = min(target.vocab_size, draft.vocab_size) if draft else target.vocab_size
    shape = shape_of(args, num_ids)
    if shape is None:
        return EmptyDrafter()
    kind = SpecInferDrafter if args.gen_type == "specinfer" else SpecExecDrafter
    return kind(TreeReader(draft, target), shape)
