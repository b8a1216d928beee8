"""SuffixDecoding: draft what most often followed the end of the text, in it or in earlier answers.

Source: Oliaro, Jia, Campos, Qiao, arXiv 2411.04975; github.com/snowflakedb/ArcticInference;
        --kind ngram-mod: github.com/ggml-org/llama.cpp, common/ngram-mod.cpp (PR 19164)
Run:    python -m model.suffix.inference_suffix --model-path lmsys/vicuna-7b-v1.3 --state warm
"""

from model.common.eval import main
from model.suffix.flags import add_flags


def add_args(parser):
    """Flags that only this method has."""
    add_flags(parser)


def build(args, target):
    """The drafter for a loaded target; called once, outside every timed region."""
    from model.suffix.flags import make_drafter

    return make_drafter(args)


if __name__ == "__main__":
    main("suffix", __doc__, add_args, build)
