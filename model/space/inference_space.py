"""SPACE: a target fine-tuned with mask tokens drafts and verifies in one forward.

Its baseline is vanilla on the same fine-tuned model.

Source: Yi, Lin, Li, Ning, Yu, Xiao, arXiv 2402.11809, github.com/cteant/SPACE
Run:    python -m model.space.inference_space --model-path AntMan/vicuna-v1.3-7b-space
        --mask-id 32002
"""

from model.common.args import at_least, target_name
from model.common.eval import main

PUBLISHED_MASKS = {"vicuna-v1.3-7b-space": [32002]}  # its config.json names none


def add_args(parser):
    """Flags that only this method has."""
    parser.add_argument(
        "--mask-id",
        type=at_least(0),
        nargs="+",
        help="mask token, or one for each place (default: what the model's config.json names)",
    )
    parser.add_argument(
        "--mask-num",
        type=at_least(1),
        help="masks per group, candidates per step (default: as the model was trained, else 5)",
    )


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.space.drafter import SpaceDrafter, read_masks

    mask_ids = args.mask_id or PUBLISHED_MASKS.get(target_name(args.model_path))
    masks = read_masks(target.model.config, mask_ids, args.mask_num)
    return SpaceDrafter(masks, target.device)


if __name__ == "__main__":
    main("space", __doc__, add_args, build)
