"""From checked flags to a drafter; the sweep makes several for one draft model."""

from __future__ import annotations

from model.common.contract.drafter import Drafter, EmptyDrafter
from model.common.errors import BadInput
from model.common.target.model import Target
from model.sps.drafter import load_draft_model


def load_draft(args, target: Target) -> Target | None:
    """The draft model, None where nothing is drafted."""
    if args.gen_type == "zero":
        return None
    if args.drafter_path is None:
        raise BadInput(f"--gen-type {args.gen_type} needs --drafter-path")
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
