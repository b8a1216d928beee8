"""EAGLE: a head that guesses the target's next features drafts a static tree.

Source: Li et al., arXiv 2401.15077; github.com/SafeAILab/EAGLE
Run:    python -m model.eagle.inference_eagle --model-path lmsys/vicuna-7b-v1.3
        --eagle-path yuhuili/EAGLE-Vicuna-7B-v1.3
"""

from model.common.args import add_weights, mini_weights
from model.common.eval import main

HEADS = {"mini": mini_weights("eagle"), "vicuna-7b-v1.3": "yuhuili/EAGLE-Vicuna-7B-v1.3"}


def add_args(parser):
    """Flags that only this method has."""
    add_weights(parser, "--eagle-path", "EAGLE head", HEADS)
    parser.add_argument(
        "--tree", default="mc_sim_7b_63", help="a name in model/eagle/trees, or a JSON file"
    )


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from pathlib import Path

    from model.common.contract.static_tree import StaticTree, read_tree
    from model.common.errors import BadInput
    from model.eagle.drafter import StaticEagleDrafter
    from model.eagle.head import load_eagle

    paths = read_tree(args.tree, Path(__file__).parent / "trees", target.vocab_size)
    tree = StaticTree(paths, target.device)
    if not tree.is_sibling_closed:
        raise BadInput(f"--tree {args.tree}: a node's children must have the ranks 0, 1, 2, ...")
    return StaticEagleDrafter(load_eagle(args.eagle_path, target), tree)


if __name__ == "__main__":
    main("eagle", __doc__, add_args, build)
