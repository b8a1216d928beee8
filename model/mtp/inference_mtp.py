"""MTP: the multi-token-prediction head of the target's own training drafts a chain.

Source: DeepSeek-V3, arXiv 2412.19437; FastMTP, arXiv 2509.18362 (one head, used again and again)
Run:    python -m model.mtp.inference_mtp --model-path XiaomiMiMo/MiMo-7B-RL --trust-remote-code
        --num-draft 1
The head is looked for in the target's own checkpoint, where its loader passes it over.
"""

from model.common.args import add_weights, at_least, mini_weights, target_name
from model.common.draft_flags import add_draft_vocab
from model.common.eval import main

HEADS = {"mini": mini_weights("mtp")}
STATES = ("normed", "plain")


def add_args(parser):
    """Flags that only this method has."""
    add_weights(
        parser,
        "--mtp-path",
        "MTP head, where it is not part of the target",
        HEADS,
        lambda args: target_name(args.model_path) in HEADS,
    )
    add = parser.add_argument
    text = "draft length (tokens); native heads were trained for 1, FastMTP's for 3"
    add("--num-draft", type=at_least(1), default=3, help=text)
    add(
        "--target-state",
        choices=STATES,
        help="what the head reads of the target: behind its final norm, or before it (default: "
        "plain for MiMo's layout, as its authors, else normed)",
    )
    add(
        "--chained-state",
        choices=STATES,
        default="normed",
        help="what the head reads of itself: its output behind its own norm, or before it",
    )
    add_draft_vocab(parser)


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.common.heads.vocabulary import draft_ids
    from model.mtp.drafter import MtpDrafter
    from model.mtp.head import load_mtp
    from model.mtp.layouts import head_path

    path, own = head_path(args)
    ids = draft_ids(args, path, target)
    head = load_mtp(path, target, ids, args.target_state, args.chained_state, own)
    return MtpDrafter(head, args.num_draft)


if __name__ == "__main__":
    main("mtp", __doc__, add_args, build)
