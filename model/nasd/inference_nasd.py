"""NASD: draft by n-grams counted in the text and in the target's runners-up (top-k 1: ANPD).

Source: romsto, Ngram Assisted Speculative Decoding (2024), github.com/romsto/Speculative-Decoding;
        Ou, Chen, Tian, Adaptive N-gram Parallel Decoding, arXiv 2404.08698
Run:    python -m model.nasd.inference_nasd --model-path lmsys/vicuna-7b-v1.3
"""

from model.common.args import add_state, at_least, is_warm
from model.common.eval import main


def add_args(parser):
    """Flags that only this method has."""
    add_state(parser)
    parser.add_argument("--n", type=at_least(2), default=4, help="longest n-gram (tokens)")
    parser.add_argument(
        "--min-context", type=at_least(1), default=1, help="shortest context asked (tokens)"
    )
    parser.add_argument("--num-draft", type=at_least(1), default=5, help="draft length (tokens)")
    parser.add_argument(
        "--filler-top-k",
        type=at_least(1),
        default=3,
        help="target's best tokens counted in the place of each committed one; 1: none (ANPD)",
    )


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.nasd.drafter import NASDDrafter

    numbers = (args.n, args.min_context, args.num_draft, args.filler_top_k)
    return NASDDrafter(*numbers, warm=is_warm(args))


if __name__ == "__main__":
    main("nasd", __doc__, add_args, build)
