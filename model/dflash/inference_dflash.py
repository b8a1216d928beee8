"""DFlash: a small transformer over the target's states drafts a block of tokens at once.

Source: Chen et al., arXiv 2602.06036; github.com/z-lab/dflash (and DFlash2); the tree: Ringel,
        Romano, arXiv 2604.12989
Run:    python -m model.dflash.inference_dflash --model-path Qwen/Qwen3-4B --dtype bfloat16
        --template-args '{"enable_thinking": false}' --dflash-path z-lab/Qwen3-4B-DFlash-b16
        (a tree: --draft tree --total-token 64)
By the open recipes heads of Qwen3 learn answers without thinking; its states may overflow float16.
"""

from model.common.args import add_weights, at_least, mini_weights, smollm2_weights
from model.common.draft_flags import AUTO, PAYS, or_auto
from model.common.eval import main

HEADS = {
    "mini": mini_weights("dflash"),
    "smollm2": smollm2_weights("dflash"),
    "qwen3-4b": "z-lab/Qwen3-4B-DFlash-b16",
    "qwen3-8b": "z-lab/Qwen3-8B-DFlash-b16",
}
MOST_ROWS = 64  # of a tree that is cut to what pays


def add_args(parser):
    """Flags that only this method has."""
    add_weights(parser, "--dflash-path", "DFlash or DFlash2 head", HEADS)
    add = parser.add_argument
    add("--block-size", type=at_least(1), help="root and masks of a block (default: the head's)")
    add("--draft", choices=("chain", "tree"), default="chain", help="tree: DDTree")
    text = f"nodes of the tree, its root included (default: 64); auto: what of 64 {PAYS}"
    add("--total-token", type=or_auto(at_least(2)), help=text)


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.common.errors import BadInput
    from model.dflash.drafter import DFlashDrafter
    from model.dflash.head import load_head

    if args.draft == "chain" and args.total_token is not None:
        raise BadInput("--total-token says nothing without --draft tree")
    head = load_head(args.dflash_path, target, args.block_size)
    if args.draft == "chain":
        return DFlashDrafter(head)
    fits = args.total_token == AUTO
    num_rows = MOST_ROWS if fits or args.total_token is None else args.total_token
    return DFlashDrafter(head, num_rows - 1, fits)


if __name__ == "__main__":
    main("dflash", __doc__, add_args, build)
