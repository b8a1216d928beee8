"""Hydra: heads that also read the tokens drafted before them, so that every node has its own law.

Source: Ankner et al., arXiv 2402.05109, github.com/zankner/Hydra
Run:    python -m model.hydra.inference_hydra --model-path lmsys/vicuna-7b-v1.3 --hydra-path
        ankner/hydra-vicuna-7b-v1.3
"""

from model.common.args import add_weights, mini_weights
from model.common.draft_flags import add_draft_vocab
from model.common.eval import main
from model.medusa.flags import add_tree_flags

HEADS = {"mini": mini_weights("hydra"), "vicuna-7b-v1.3": "ankner/hydra-vicuna-7b-v1.3"}


def add_args(parser):
    """Flags that only this method has."""
    add_weights(parser, "--hydra-path", "heads", HEADS)
    add_tree_flags(parser)
    add_draft_vocab(parser)


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.common.heads.vocabulary import draft_ids
    from model.hydra.drafter import HydraDrafter
    from model.hydra.heads import load_heads
    from model.medusa.flags import read_tree_flags

    ids = draft_ids(args, args.hydra_path, target)
    paths, fits = read_tree_flags(args, args.draft_vocab or target.vocab_size)
    heads = load_heads(args.hydra_path, target, max(map(len, paths)), ids)
    return HydraDrafter(heads, paths, target, fits)


if __name__ == "__main__":
    main("hydra", __doc__, add_args, build)
