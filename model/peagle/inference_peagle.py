"""P-EAGLE: EAGLE-3's head drafts all tokens of a chain in one pass, from learned mask rows.

Source: Hui et al., arXiv 2602.01469; vLLM (parallel_drafting), vllm-project/speculators
Run:    python -m model.peagle.inference_peagle --model-path Qwen/Qwen3-8B
        --eagle-path RedHatAI/Qwen3-8B-speculator.peagle
"""

from model.common.args import add_weights, at_least, mini_weights
from model.common.eval import main
from model.eagle3.flags import add_layer_ids

HEADS = {
    "mini": mini_weights("peagle"),
    "qwen3-8b": "RedHatAI/Qwen3-8B-speculator.peagle",
    "gpt-oss-20b": "amazon/GPT-OSS-20B-P-EAGLE",
    "gpt-oss-120b": "amazon/gpt-oss-120b-p-eagle",
}


def add_args(parser):
    """Flags that only this method has."""
    add_weights(parser, "--eagle-path", "P-EAGLE head", HEADS)
    add = parser.add_argument
    add("--num-draft", type=at_least(1), default=5, help="draft length (tokens), as published")
    add(
        "--mask-id",
        type=at_least(0),
        help="token that mask rows read (default: as the head's config says; SpecForge's say none)",
    )
    add_layer_ids(parser)


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.peagle.drafter import PEagleDrafter
    from model.peagle.head import load_peagle

    given = args.layer_ids, args.mask_id, args.num_draft
    head = load_peagle(args.eagle_path, target, *given)
    return PEagleDrafter(head, args.num_draft)


if __name__ == "__main__":
    main("peagle", __doc__, add_args, build)
