"""The method's flags: which schedule reads which, and their defaults."""

from __future__ import annotations

from model.common.args import add_weights, at_least, between, mini_weights
from model.common.draft_flags import add_draft_scale

TARGET = "llama-2-70b-chat-hf"  # of the published head
DRAFTS = {"mini": mini_weights("sps"), TARGET: "meta-llama/Llama-2-7b-chat-hf"}
HEADS = {"mini": mini_weights("specdecpp"), TARGET: "hacky/acchead-llama2-chat-7bx70b"}
DRAFT = {"drafter_path": None, "drafter_device": None, "draft_scale_to": None}
READ_BY = {  # schedule -> its flags and their defaults
    "constant": {**DRAFT, "num_draft": 5},
    "heuristic": {**DRAFT, "num_draft": 5},
    "ada": {**DRAFT, "head_path": None, "threshold": 0.7, "bound": [2, 20]},
    "none": {},
}


def add_flags(parser):
    """Declare them."""
    add = parser.add_argument
    add_weights(parser, "--drafter-path", "draft model", DRAFTS, lambda a: a.schedule != "none")
    add("--drafter-device", help="of the draft model (default: the target's)")
    add_draft_scale(parser)
    add_weights(
        parser, "--head-path", "acceptance head of ada", HEADS, lambda a: a.schedule == "ada"
    )
    add(
        "--schedule",
        choices=tuple(READ_BY),
        default="ada",
        help="constant and heuristic: as sps; ada: the head's rule; none: no draft at all",
    )
    add(
        "--num-draft", type=at_least(1), help="constant, heuristic: draft length, the first one (5)"
    )
    add(
        "--threshold",
        type=between(0, 1),
        help="ada ends the draft where the probability of a refusal in it is above this "
        "(default: 0.7)",
    )
    add(
        "--bound",
        type=at_least(1),
        nargs=2,
        metavar=("MIN", "MAX"),
        help="tokens of ada's draft (default: 2 20)",
    )
