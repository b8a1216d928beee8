"""Medusa: heads on the target's last hidden state guess the next tokens, a fixed tree joins them.

Source: Cai et al., arXiv 2401.10774, github.com/FasterDecoding/Medusa
Run:    python -m model.medusa.inference_medusa --model-path lmsys/vicuna-7b-v1.3 --medusa-path
        FasterDecoding/medusa-vicuna-7b-v1.3
"""

from model.common.args import add_weights, at_least, mini_weights
from model.common.draft_flags import add_draft_vocab
from model.common.eval import main
from model.medusa.flags import add_tree_flags

HEADS = {
    "mini": mini_weights("medusa"),
    "vicuna-7b-v1.3": "FasterDecoding/medusa-vicuna-7b-v1.3",
}


def add_args(parser):
    """Flags that only this method has."""
    add_weights(parser, "--medusa-path", "heads, or a model that contains them (Medusa-2)", HEADS)
    parser.add_argument(
        "--medusa-num-heads",
        type=at_least(1),
        help="heads to evaluate (default: as many as the tree is deep)",
    )
    add_tree_flags(parser)
    add_draft_vocab(parser)


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.common.errors import BadInput
    from model.common.heads.vocabulary import draft_ids
    from model.medusa.drafter import MedusaDrafter
    from model.medusa.flags import read_tree_flags
    from model.medusa.heads import load_heads

    ids = draft_ids(args, args.medusa_path, target)
    paths, fits = read_tree_flags(args, args.draft_vocab or target.vocab_size)
    depth = max(map(len, paths))
    num_heads = args.medusa_num_heads or depth
    if num_heads < depth:
        raise BadInput(
            f"--tree {args.tree}: its depth of {depth} needs {depth} heads, "
            f"--medusa-num-heads is {num_heads}"
        )
    return MedusaDrafter(load_heads(args.medusa_path, target, num_heads, ids), paths, target, fits)


if __name__ == "__main__":
    main("medusa", __doc__, add_args, build)
