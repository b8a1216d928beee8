"""EAGLE-2: EAGLE's head drafts a tree whose shape follows its own confidence.

Source: Li et al., arXiv 2406.16858; github.com/SafeAILab/EAGLE
Run:    python -m model.eagle2.inference_eagle2 --model-path lmsys/vicuna-7b-v1.3
        --eagle-path yuhuili/EAGLE-Vicuna-7B-v1.3
"""

from model.common.args import add_weights
from model.common.draft_flags import AUTO, add_draft_vocab
from model.common.eval import main
from model.eagle.inference_eagle import HEADS
from model.eagle2.flags import add_tree_args


def add_args(parser):
    """Flags that only this method has."""
    add_weights(parser, "--eagle-path", "EAGLE head", HEADS)
    add_tree_args(parser)
    add_draft_vocab(parser)


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.common.heads.vocabulary import draft_ids
    from model.eagle.head import load_eagle
    from model.eagle2.drafter import DynamicEagleDrafter, check_size

    ids = draft_ids(args, args.eagle_path, target)
    num_ids = args.draft_vocab or target.vocab_size
    num_nodes = check_size(args.total_token, args.depth, args.draft_top_k, num_ids)
    head = load_eagle(args.eagle_path, target, ids)
    fits = args.total_token == AUTO
    return DynamicEagleDrafter(head, num_nodes, args.depth, args.draft_top_k, fits)


if __name__ == "__main__":
    main("eagle2", __doc__, add_args, build)
