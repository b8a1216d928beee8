"""PLD: draft by copying what followed an earlier occurrence of the current suffix.

Source: A. Saxena, Prompt Lookup Decoding (2023), github.com/apoorvumang/prompt-lookup-decoding
Run:    python -m model.pld.inference_pld --model-path lmsys/vicuna-7b-v1.3
"""

from model.common.args import at_least
from model.common.eval import main


def add_args(parser):
    """Flags that only this method has."""
    parser.add_argument(
        "--max-ngram", type=at_least(1), default=3, help="longest suffix looked up (tokens)"
    )
    parser.add_argument("--num-draft", type=at_least(1), default=10, help="draft length (tokens)")
    parser.add_argument(
        "--match",
        choices=("first", "last"),
        default="first",
        help="which earlier occurrence counts",
    )
    parser.add_argument(
        "--short",
        choices=("refuse", "clamp"),
        default="refuse",
        help="occurrence with fewer than num-draft tokens after it: look on, or copy those",
    )


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.common.contract.sequence import PerSequence
    from model.pld.drafter import PLDDrafter

    settings = (args.max_ngram, args.num_draft, args.match, args.short == "clamp")
    return PerSequence(lambda: PLDDrafter(*settings), args.num_draft)


if __name__ == "__main__":
    main("pld", __doc__, add_args, build)
