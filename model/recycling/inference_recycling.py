"""Token Recycling: a tree read from a matrix of best successors, which every step refills.

Source: Luo et al., arXiv 2408.08696, github.com/Luowaterbi/TokenRecycling (its runs: --state warm);
        github.com/smpanaro/token-recycling (its cold runs: --state cold --prompt-seeds)
Run:    python -m model.recycling.inference_recycling --model-path lmsys/vicuna-7b-v1.3
"""

from model.common.args import add_state, is_warm
from model.common.draft_flags import PAYS, wanted_tree
from model.common.eval import main


def add_args(parser):
    """Flags that only this method has."""
    add_state(parser)
    parser.add_argument(
        "--prompt-seeds",
        action="store_true",
        help="the prompt's logits fill the matrix before the first step",
    )
    parser.add_argument(
        "--tree",
        default="2.2.2",
        help="2.2.2 (80 nodes, depth 6) or a JSON file: a list of paths, each a list of ranks; "
        f"auto or auto:FILE: the part of 2.2.2 or FILE that {PAYS}",
    )
    parser.add_argument(
        "--unknown",
        choices=("zero", "none"),
        default="zero",
        help="successors of a token that was never read: token 0 (published), or no draft",
    )


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.recycling.drafter import USUAL, RecyclingDrafter, read_tree

    name, fits = wanted_tree(args.tree, USUAL)
    tree = read_tree(name, target.vocab_size)
    settings = is_warm(args), args.prompt_seeds, args.unknown, fits
    return RecyclingDrafter(tree, target.vocab_size, target.device, *settings)


if __name__ == "__main__":
    main("recycling", __doc__, add_args, build)
