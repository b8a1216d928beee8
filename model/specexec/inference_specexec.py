"""SpecExec: a draft model's most probable continuations, as one large tree, for offloaded targets.

Source: Svirschevski et al., arXiv 2406.02532; --gen-type specinfer: Miao et al., arXiv 2305.09781
Run:    python -m model.specexec.inference_specexec --model-path meta-llama/Llama-2-70b-chat-hf
        --drafter-path meta-llama/Llama-2-7b-chat-hf --max-budget 1024 --offload ram
"""

from model.common.args import add_offload
from model.common.draft_flags import add_draft_scale
from model.common.eval import main
from model.specexec.flags import add_tree_flags, load_draft, make_drafter


def add_args(parser):
    """Flags that only this method has."""
    add_tree_flags(parser)
    add_draft_scale(parser)
    add_offload(parser)


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    return make_drafter(args, load_draft(args, target), target)


if __name__ == "__main__":
    main("specexec", __doc__, add_args, build)
