"""The method's flags: which auxiliary drafter reads which, and their defaults."""

from __future__ import annotations

from model.common.args import add_state, at_least, between
from model.common.draft_flags import add_draft_vocab, flags_read
from model.common.errors import BadInput

CHOICE = {"len_threshold": 5, "len_bias": 5}  # between copies and an auxiliary drafter
HEAD = {"eagle_path": None, "draft_vocab": None, "token_counts_path": None}
READ_BY = {  # auxiliary -> its flags and their defaults; len_bias goes with --static-path
    "none": {"alpha": 4.0},
    "recycling": {**CHOICE, "prompt_seeds": False},
    "eagle2": {**CHOICE, **HEAD, "total_token": 63, "depth": 5, "draft_top_k": 8},
}


def add_flags(parser):
    """Declare them."""
    add_state(parser)
    add = parser.add_argument
    add("--static-path", help="directory that model.samd.build_sam wrote (default: none)")
    add(
        "--auxiliary",
        choices=tuple(READ_BY),
        default="none",
        help="drafter for short matches; --state is recycling's",
    )
    add(
        "--prompt-seeds",
        action="store_true",
        default=None,
        help="the prompt's logits fill recycling's matrix before the first step (published)",
    )
    add("--eagle-path", help="head of --auxiliary eagle2: directory or hub id")
    add("--total-token", type=at_least(2), help="eagle2: nodes of a tree, its root included (63)")
    add("--depth", type=at_least(1), help="eagle2: passes of the head beyond the first (5)")
    add("--draft-top-k", type=at_least(1), help="eagle2: candidates of a node, nodes of a pass (8)")
    add_draft_vocab(parser)
    add("--n-predicts", type=at_least(2), default=40, help="longest draft with its root (tokens)")
    add("--len-threshold", type=at_least(1), help="with an auxiliary: shortest match to copy (5)")
    add("--len-bias", type=at_least(0), help="with both: taken off matches in the corpus (5)")
    add("--alpha", type=between(0.1, 100), help="without one: draft per matched token (4)")


def settings_of(args) -> dict:
    """The flags that --auxiliary reads, defaults filled in; one of another kind is refused."""
    found = flags_read(args, "auxiliary", READ_BY)
    if args.len_bias is not None and not args.static_path:
        raise BadInput("--len-bias needs --static-path, whose matches it is taken off")
    return found
