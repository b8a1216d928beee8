"""SpecDec++: a draft model proposes a chain, a head on its states says when to stop.

Source: Huang, Guo, Wang, arXiv 2405.19715
Run:    python -m model.specdecpp.inference_specdecpp --model-path meta-llama/Llama-2-70b-chat-hf
        --drafter-path meta-llama/Llama-2-7b-chat-hf --head-path hacky/acchead-llama2-chat-7bx70b
"""

from model.common.eval import main
from model.specdecpp.flags import add_flags


def add_args(parser):
    """Flags that only this method has."""
    add_flags(parser)


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.specdecpp.drafter import build_drafter

    return build_drafter(args, target)


if __name__ == "__main__":
    main("specdecpp", __doc__, add_args, build)
