"""REST: draft a tree out of what followed the last tokens in a corpus.

Source: He et al., arXiv 2311.08252; github.com/FasterDecoding/REST
Run:    python -m model.rest.build_datastore --model-path lmsys/vicuna-7b-v1.3
        --input sharegpt.jsonl --output datastore_chat
        python -m model.rest.inference_rest --model-path lmsys/vicuna-7b-v1.3
        --datastore-path datastore_chat
"""

from model.common.args import at_least
from model.common.eval import main


def add_args(parser):
    """Flags that only this method has."""
    parser.add_argument(
        "--datastore-path", required=True, help="directory that model.rest.build_datastore wrote"
    )
    parser.add_argument("--num-draft", type=at_least(1), default=64, help="nodes of a tree at most")
    parser.add_argument(
        "--max-token-span", type=at_least(1), default=16, help="longest suffix looked up (tokens)"
    )
    parser.add_argument(
        "--min-token-span", type=at_least(1), default=2, help="shortest suffix looked up (tokens)"
    )
    parser.add_argument(
        "--max-depth", type=at_least(1), default=10, help="longest continuation drafted (tokens)"
    )


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.rest.drafter import make_drafter

    return make_drafter(args)


if __name__ == "__main__":
    main("rest", __doc__, add_args, build)
