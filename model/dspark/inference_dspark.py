"""DSpark: a block whose slots are chosen one after the other, cut where its own confidence ends.

Source: Cheng et al., arXiv 2607.05147; github.com/deepseek-ai/DeepSpec
Run:    python -m model.dspark.inference_dspark --model-path Qwen/Qwen3-4B --dtype bfloat16
        --template-args '{"enable_thinking": false}'
        --dspark-path deepseek-ai/dspark_qwen3_4b_block7      (shorter drafts: --confidence 0.6)
DeepSpec's heads of Qwen3 learned answers without thinking; its states may overflow float16.
"""

from model.common.args import add_weights, at_least, between, mini_weights
from model.common.eval import main
from model.dspark.scheduler import read_rates

HEADS = {
    "mini": mini_weights("dspark"),
    "qwen3-4b": "deepseek-ai/dspark_qwen3_4b_block7",
    "qwen3-8b": "deepseek-ai/dspark_qwen3_8b_block7",
    "qwen3-14b": "deepseek-ai/dspark_qwen3_14b_block7",
}


def add_args(parser):
    """Flags that only this method has."""
    add_weights(parser, "--dspark-path", "DSpark head", HEADS)
    add = parser.add_argument
    add("--block-size", type=at_least(1), help="rows of a block (default: the head's)")
    text = "a draft ends before the first token less sure than this; 0: whole blocks"
    add("--confidence", type=between(0, 1), default=0.0, help=text)
    text = "mask: what is behind the end is read and cannot be taken; host: it is not read"
    add("--cut", choices=("mask", "host"), help=f"{text} (default: mask)")
    text = "steps a time of 1, 2, ... rows in all, separated by commas: the scheduler cuts by them"
    add("--step-rates", type=read_rates, metavar="RATE,RATE,...", help=text)


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.common.errors import BadInput
    from model.dspark.drafter import DSparkDrafter
    from model.dspark.head import load_dspark

    if args.step_rates and args.confidence:
        raise BadInput("--step-rates and --confidence exclude each other")
    if args.cut and not args.confidence:
        raise BadInput(f"--cut {args.cut} says nothing without --confidence")
    head = load_dspark(args.dspark_path, target, args.block_size)
    return DSparkDrafter(head, args.confidence, args.cut or "mask", args.step_rates)


if __name__ == "__main__":
    main("dspark", __doc__, add_args, build)
