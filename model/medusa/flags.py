"""Flags of methods that verify a fixed tree of head ranks: the tree and the acceptance rule.

Source: Cai et al., arXiv 2401.10774
"""

from pathlib import Path

from model.common.args import between
from model.common.draft_flags import PAYS, wanted_tree
from model.common.errors import BadInput

TREES, USUAL = Path(__file__).parent / "trees", "mc_sim_7b_63"
THRESHOLD, ALPHA = 0.09, 0.3  # of the typical rule


def add_tree_flags(parser):
    """--tree, --acceptance and the two numbers of the typical rule."""
    parser.add_argument(
        "--tree",
        default=USUAL,
        help="name of a published tree, or a JSON file: a list of paths, each a list of ranks; "
        f"auto or auto:TREE: the part of {USUAL} or TREE that {PAYS}",
    )
    parser.add_argument(
        "--acceptance",
        choices=("exact", "typical"),
        default="exact",
        help="exact: the target's own greedy or sampled answer; typical: whatever it finds likely "
        "enough, which is lossy and needs a temperature above 0",
    )
    parser.add_argument(
        "--posterior-threshold",
        type=between(0, 1),
        default=THRESHOLD,
        help="typical acceptance: highest probability that is asked for",
    )
    parser.add_argument(
        "--posterior-alpha",
        type=between(0, 100),
        default=ALPHA,
        help="typical acceptance: factor of exp(-entropy), from which a token is likely enough",
    )


def read_tree_flags(args, num_ids: int) -> tuple[list[tuple[int, ...]], bool]:
    """(the tree's paths, whether it is to be cut); refuses flags that the acceptance rule does not
    read, and the typical rule where it is not what it says.

    num_ids: that heads score; the tree's ranks are below.

    At temperature 0 the paper accepts greedily, which is the exact rule; top-p, top-k and min-p are
    unknown to the typical one, and its own two numbers to the exact one.
    """
    from model.common.contract.static_tree import read_tree

    if args.acceptance == "typical":
        if args.temperature == 0:
            raise BadInput("--acceptance typical needs --temperature above 0; at 0 it is exact")
        if args.top_p < 1 or args.top_k or args.min_p:
            raise BadInput("--acceptance typical and --top-p, --top-k, --min-p exclude each other")
    elif (args.posterior_threshold, args.posterior_alpha) != (THRESHOLD, ALPHA):
        raise BadInput("--posterior-threshold and --posterior-alpha need --acceptance typical")
    name, fits = wanted_tree(args.tree, USUAL)
    return read_tree(name, TREES, num_ids), fits
