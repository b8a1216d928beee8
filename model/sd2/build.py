"""From flags to a drafter; what does not fit the draft model or the target is refused."""

from __future__ import annotations

from model.common.contract.drafter import Drafter
from model.common.errors import BadInput
from model.common.heads.checkpoint import read_config
from model.common.target.draft_model import load_draft_model
from model.common.target.loading import check_directory
from model.common.target.model import Target
from model.sd2.chain import SortedChainDrafter
from model.sd2.exits import SortedDraft
from model.sd2.flags import USUAL, resolve, shape_of
from model.sd2.tree import SortedTreeDrafter


def make_drafter(args, target: Target) -> Drafter:
    """The drafter of the command line."""
    shape = shape_of(args)
    draft = load_sorted(args, target)
    length = shape["num_draft"] if args.draft == "chain" else 1 + shape["depth"]
    if length >= draft.context:
        flag = "--num-draft" if args.draft == "chain" else "--depth"
        raise BadInput(
            f"{flag}: a draft {length} deep, the draft model's context is {draft.context}"
        )
    if args.draft == "chain":
        return SortedChainDrafter(draft, target, **shape)
    num_ids, width = min(draft.vocab_size, target.vocab_size), shape["draft_top_k"]
    if width > num_ids:
        raise BadInput(f"--draft-top-k {width}: both models know {num_ids} tokens")
    return SortedTreeDrafter(draft, num_ids, shape["total_token"] - 1, shape["depth"], width)


def load_sorted(args, target: Target) -> SortedDraft:
    """The draft model with its exits; refused before it is loaded where they do not fit."""
    check_directory(args.drafter_path)
    config = read_config(args.drafter_path)
    if config.get("model_type") != "llama":
        raise BadInput(
            f"--drafter-path {args.drafter_path}: of type {config.get('model_type')}, llama is "
            "needed"
        )
    exits, thresholds = resolve(args, config)
    loaded = load_draft_model(args, target, USUAL, trees=True)
    if loaded.twin:
        exits = [loaded.twin.depth_of(layers) for layers in exits]
    return SortedDraft(loaded, exits, thresholds)
