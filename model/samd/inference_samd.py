"""SAM-Decoding: copy what followed the longest match in the text or in a corpus' suffix automaton.

Source: Hu et al., SAM Decoding, arXiv 2411.10666, github.com/hyx1999/SAM-Decoding
Run:    python -m model.samd.inference_samd --model-path lmsys/vicuna-7b-v1.3 --auxiliary recycling
"""

from model.common.eval import main
from model.samd.flags import add_flags


def add_args(parser):
    """Flags that only this method has."""
    add_flags(parser)


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.samd.drafter import build_drafter

    return build_drafter(args, target)


if __name__ == "__main__":
    main("samd", __doc__, add_args, build)
