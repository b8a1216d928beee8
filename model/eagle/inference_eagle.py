"""EAGLE: a head that guesses the target's next features drafts a static tree.

Source: Li et al., arXiv 2401.15077; github.com/SafeAILab/EAGLE
Run:    python -m model.eagle.inference_eagle --model-path lmsys/vicuna-7b-v1.3
        --eagle-path yuhuili/EAGLE-Vicuna-7B-v1.3
"""

from model.common.args import add_weights, mini_weights, smollm2_weights
from model.common.draft_flags import PAYS, add_draft_vocab, wanted_tree
from model.common.eval import main

USUAL = "mc_sim_7b_63"
HEADS = {
    "mini": mini_weights("eagle"),
    "smollm2": smollm2_weights("eagle"),
    "vicuna-7b-v1.3": "yuhuili/EAGLE-Vicuna-7B-v1.3",
}


def add_args(parser):
    """Flags that only this method has."""
    add_weights(parser, "--eagle-path", "EAGLE head", HEADS)
    parser.add_argument(
        "--tree",
        default=USUAL,
        help="a name in model/eagle/trees, or a JSON file; auto or auto:TREE: the part of "
        f"{USUAL} or TREE that {PAYS}",
    )
    add_draft_vocab(parser)


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from pathlib import Path

    from model.common.contract.static_tree import StaticTree, read_tree
    from model.common.errors import BadInput
    from model.common.heads.vocabulary import draft_ids
    from model.eagle.drafter import StaticEagleDrafter
    from model.eagle.head import load_eagle

    ids = draft_ids(args, args.eagle_path, target)
    name, fits = wanted_tree(args.tree, USUAL)
    num_ids = args.draft_vocab or target.vocab_size
    tree = StaticTree(read_tree(name, Path(__file__).parent / "trees", num_ids), target.device)
    if not tree.is_sibling_closed:
        raise BadInput(f"--tree {args.tree}: a node's children must have the ranks 0, 1, 2, ...")
    return StaticEagleDrafter(load_eagle(args.eagle_path, target, ids), tree, fits)


if __name__ == "__main__":
    main("eagle", __doc__, add_args, build)
