"""SAM-Decoding: copy what followed the longest match in the text or in a corpus' suffix automaton.

Source: Hu et al., SAM Decoding, arXiv 2411.10666, github.com/hyx1999/SAM-Decoding
Run:    python -m model.samd.inference_samd --model-path lmsys/vicuna-7b-v1.3 --auxiliary recycling
"""

from model.common.args import add_state, at_least, between
from model.common.draft_flags import add_draft_vocab
from model.common.eval import main
from model.eagle2.flags import add_tree_args


def add_args(parser):
    """Flags that only this method has."""
    add_state(parser)
    add = parser.add_argument
    add("--static-path", help="directory that model.samd.build_sam wrote (default: none)")
    add(
        "--auxiliary",
        choices=("none", "recycling", "eagle2"),
        default="none",
        help="drafter for short matches; --state is recycling's",
    )
    add(
        "--prompt-seeds",
        action="store_true",
        help="the prompt's logits fill recycling's matrix before the first step (published)",
    )
    add("--eagle-path", help="head of --auxiliary eagle2: directory or hub id")
    add_tree_args(parser, total_token=63, draft_top_k=8, fits=False)
    add_draft_vocab(parser)
    add("--n-predicts", type=at_least(2), default=40, help="longest draft with its root (tokens)")
    add("--len-threshold", type=at_least(1), default=5, help="with it: shortest match to copy")
    add("--len-bias", type=at_least(0), default=5, help="with it: taken off matches in the corpus")
    add("--alpha", type=between(0.1, 100), default=4, help="without it: draft per matched token")


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.samd.drafter import build_drafter

    return build_drafter(args, target)


if __name__ == "__main__":
    main("samd", __doc__, add_args, build)
