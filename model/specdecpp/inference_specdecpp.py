"""SpecDec++: a draft model proposes a chain, a head on its states says when to stop.

Source: Huang, Guo, Wang, arXiv 2405.19715
Run:    python -m model.specdecpp.inference_specdecpp --model-path meta-llama/Llama-2-70b-chat-hf
        --drafter-path meta-llama/Llama-2-7b-chat-hf --head-path hacky/acchead-llama2-chat-7bx70b
"""

from model.common.args import add_weights, at_least, between, mini_weights
from model.common.draft_flags import add_draft_scale
from model.common.eval import main

TARGET = "llama-2-70b-chat-hf"  # of the published head
DRAFTS = {"mini": mini_weights("sps"), TARGET: "meta-llama/Llama-2-7b-chat-hf"}
HEADS = {"mini": mini_weights("specdecpp"), TARGET: "hacky/acchead-llama2-chat-7bx70b"}


def add_args(parser):
    """Flags that only this method has."""
    add = parser.add_argument
    add_weights(parser, "--drafter-path", "draft model", DRAFTS, lambda a: a.schedule != "none")
    add("--drafter-device", help="of the draft model (default: the target's)")
    add_draft_scale(parser)
    add_weights(
        parser, "--head-path", "acceptance head of ada", HEADS, lambda a: a.schedule == "ada"
    )
    add(
        "--schedule",
        choices=("constant", "heuristic", "ada", "none"),
        default="ada",
        help="constant and heuristic: as sps; ada: the head's rule; none: no draft at all",
    )
    add("--num-draft", type=at_least(1), default=5, help="draft length, constant or the first one")
    add(
        "--threshold",
        type=between(0, 1),
        default=0.7,
        help="ada ends the draft where the probability of a refusal in it is above this",
    )
    add(
        "--bound",
        type=at_least(1),
        nargs=2,
        default=[2, 20],
        metavar=("MIN", "MAX"),
        help="tokens of ada's draft (default: 2 20)",
    )


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.specdecpp.drafter import build_drafter

    return build_drafter(args, target)


if __name__ == "__main__":
    main("specdecpp", __doc__, add_args, build)
