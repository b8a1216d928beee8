"""The flags of equal.py --model-path."""

from evaluation.answers.meta import AnswerError

DTYPES = ("float32", "float16", "bfloat16", "float64")
NEED_TARGET = (
    "all proof question_file bench_name template dtype max_new_tokens history device num_threads"
    " trust_remote_code"
).split()


def at_least(low):
    """Argument type: an integer from `low` on."""

    def whole(text):
        value = int(text)
        if value < low:
            raise ValueError
        return value

    whole.__name__ = f"integer of at least {low}"
    return whole


def add_flags(parser):
    """Declare them on equal.py's parser."""
    group = parser.add_argument_group("verdicts by the target's own logits")
    group.add_argument("--model-path", help="the target; without it only ids or texts are compared")
    group.add_argument("--all", action="store_true", help="judge equal questions too")
    group.add_argument(
        "--control",
        type=at_least(0),
        default=24,
        metavar="N",
        help="questions whose baseline answers are read again in the method's steps where a file"
        " differs by ties alone, 0 = none (default: 24)",
    )
    group.add_argument(
        "--proof",
        action="store_true",
        help="answer the differing questions again, by the method's recorded command and by"
        " vanilla: a decoding each and the loading of both",
    )
    group.add_argument(
        "--proof-dtype", choices=("float32", "float64"), default="float32", help="float64: on a CPU"
    )
    group.add_argument(
        "--noise-tokens",
        type=at_least(1),
        default=64,
        help="positions that the noise is measured at, five readings each (default: 64)",
    )
    group.add_argument("--seed", type=int, default=0, help="of what is sampled for noise, control")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--num-threads", type=at_least(1), help="CPU threads (default: PyTorch's)")
    group.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run code that comes with the checkpoint on this machine",
    )
    group = parser.add_argument_group("what a file without a meta was asked (else from its meta)")
    group.add_argument("--question-file", help="its questions")
    group.add_argument("--bench-name", help="or the folder under data/ that has them")
    group.add_argument(
        "--template", help="FastChat template, plain, or tokenizer for the tokenizer's own"
    )
    group.add_argument("--dtype", choices=DTYPES, help="precision it was decoded in")
    group.add_argument("--max-new-tokens", type=at_least(1), help="per turn (tokens)")
    group.add_argument("--history", help="answer file whose answers stand in later turns' prompts")


def check_flags(args):
    """Refuse flags that are nothing without --model-path."""
    if args.model_path is None:
        for name in NEED_TARGET:
            value = getattr(args, name)
            if value not in (None, False) and not (name == "device" and value == "auto"):
                raise AnswerError(f"--{name.replace('_', '-')} needs --model-path")
