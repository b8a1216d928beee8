"""SD2: a sorted draft, one model with exits, that goes only as deep as it has to; tree or chain.

Source: Kavehzadeh et al., S2D (chain), arXiv 2407.01955; SD2 (tree), github.com/parsareal/SD2
Run:    python -m model.sd2.inference_sd2 --model-path lmsys/vicuna-7b-v1.3
        --drafter-path parsakaveh/SD2-SoFT-Draft --exits 6,9,12 --thresholds .5,.5,0
"""

from model.common.eval import main
from model.sd2.flags import add_draft_flags


def add_args(parser):
    """Flags that only this method has."""
    add_draft_flags(parser)


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.sd2.build import make_drafter

    return make_drafter(args, target)


if __name__ == "__main__":
    main("sd2", __doc__, add_args, build)
