"""SpS: a small draft model proposes a chain, the target verifies it.

Source: Leviathan, Kalman, Matias, arXiv 2211.17192; Chen et al., arXiv 2302.01318
Run:    python -m model.sps.inference_sps --model-path lmsys/vicuna-7b-v1.3 --drafter-path
        double7/vicuna-68m
"""

from model.common.args import add_weights, at_least, between, mini_weights
from model.common.draft_flags import add_draft_scale, flags_read
from model.common.eval import main

DRAFTS = {"mini": mini_weights("sps"), "vicuna-7b-v1.3": "double7/vicuna-68m"}
READ_BY = {"constant": {}, "heuristic": {}, "confidence": {"confidence": 0.4}}  # by --schedule


def add_args(parser):
    """Flags that only this method has."""
    add_weights(parser, "--drafter-path", "draft model", DRAFTS)
    parser.add_argument(
        "--drafter-device", help="where the draft model sits (default: the target's)"
    )
    add_draft_scale(parser)
    parser.add_argument(
        "--num-draft", type=at_least(1), default=5, help="draft length, the first one or the bound"
    )
    parser.add_argument(
        "--schedule",
        choices=tuple(READ_BY),
        default="heuristic",
        help="constant: num-draft; heuristic: +2 after a full accept, else -1, anew each turn; "
        "confidence: stop after a token below the threshold",
    )
    parser.add_argument(
        "--confidence",
        type=between(0, 1),
        help="threshold of the confidence schedule (default: 0.4)",
    )


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.common.target.draft_model import load_draft_model
    from model.sps.drafter import SpSDrafter

    confidence = flags_read(args, "schedule", READ_BY).get("confidence", 0.0)
    draft = load_draft_model(args, target)
    return SpSDrafter(draft, target, args.schedule, args.num_draft, confidence)


if __name__ == "__main__":
    main("sps", __doc__, add_args, build)
