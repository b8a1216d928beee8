"""EAGLE-3: a head over three layers of the target drafts EAGLE-2's tree, or a chain.

Source: Li et al., arXiv 2503.01840; github.com/SafeAILab/EAGLE
Run:    python -m model.eagle3.inference_eagle3 --model-path lmsys/vicuna-13b-v1.3
        --eagle-path yuhuili/EAGLE3-Vicuna1.3-13B
        (a chain: --draft-top-k 1 --depth 5 --total-token 7)
"""

from model.common.args import add_weights, mini_weights, smollm2_weights
from model.common.draft_flags import AUTO, add_draft_vocab
from model.common.eval import main
from model.eagle2.flags import add_tree_args
from model.eagle3.flags import add_layer_ids

HEADS = {
    "mini": mini_weights("eagle3"),
    "smollm2": smollm2_weights("eagle3"),
    "vicuna-13b-v1.3": "yuhuili/EAGLE3-Vicuna1.3-13B",
}


def add_args(parser):
    """Flags that only this method has."""
    add_weights(parser, "--eagle-path", "EAGLE-3 head", HEADS)
    add_tree_args(parser)
    add_draft_vocab(parser)
    add_layer_ids(parser)
    parser.add_argument(
        "--norm-output",
        choices=("config", "on", "off"),
        default="config",
        help="draft on from the normed output (EAGLE-3.1), or from the plain one (config: as its "
        "norm_output says, which heads of SpecForge before September 2026 mean otherwise)",
    )


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.common.heads.vocabulary import draft_ids
    from model.eagle2.drafter import DynamicEagleDrafter, check_size
    from model.eagle3.head import load_eagle3

    ids = draft_ids(args, args.eagle_path, target)
    head = load_eagle3(args.eagle_path, target, args.layer_ids, args.norm_output, ids)
    num_nodes = check_size(args.total_token, args.depth, args.draft_top_k, head.num_ids)
    fits = args.total_token == AUTO
    return DynamicEagleDrafter(head, num_nodes, args.depth, args.draft_top_k, fits)


if __name__ == "__main__":
    main("eagle3", __doc__, add_args, build)
