"""Lookahead: n-grams from the target's own Jacobi iterations, verified beside the iteration.

Source: Fu, Bailis, Stoica, Zhang, arXiv 2402.02057, github.com/hao-ai-lab/LookaheadDecoding
Run:    python -m model.lookahead.inference_lookahead --model-path lmsys/vicuna-7b-v1.3
"""

from model.common.args import at_least
from model.common.eval import main


def add_args(parser):
    """Flags that only this method has."""
    parser.add_argument(
        "--level", type=at_least(2), default=5, help="length of an n-gram, first token included"
    )
    parser.add_argument(
        "--window", type=at_least(1), default=7, help="positions iterated at a time (tokens)"
    )
    parser.add_argument(
        "--guess", type=at_least(1), default=7, help="n-grams kept per first token and verified"
    )
    parser.add_argument(
        "--prompt-ngrams",
        action="store_true",
        help="pool the n-grams of the prompt and of the answer so far, too",
    )


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.lookahead.drafter import LookaheadDrafter

    return LookaheadDrafter(
        args.window, args.level, args.guess, target.device, args.seed, args.prompt_ngrams
    )


if __name__ == "__main__":
    main("lookahead", __doc__, add_args, build)
