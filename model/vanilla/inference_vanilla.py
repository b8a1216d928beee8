"""Vanilla: autoregressive decoding, the baseline. The same loop as every method, with an empty
draft.

--engine hf times transformers' own generate() instead, as Spec-Bench's baseline does.

Run:    python -m model.vanilla.inference_vanilla --model-path lmsys/vicuna-7b-v1.3
"""

from model.common.eval import main


def add_args(parser):
    """Flags that only this method has."""
    parser.add_argument(
        "--engine",
        choices=("loop", "hf"),
        default="loop",
        help="our loop or transformers' generate",
    )


def build(args, target):
    """The drafter for a loaded target: it never guesses."""
    from model.common.contract.sequence import EmptyDrafter

    return EmptyDrafter()


def engine(args):
    """transformers' generate in place of the loop, when asked for."""
    if args.engine == "loop":
        return None
    from model.vanilla.hf_engine import check, run

    check(args)
    return run


if __name__ == "__main__":
    main("vanilla", __doc__, add_args, build, engine)
