"""Flags that all trainers of draft heads share, and what of them a checkpoint depends on."""

from __future__ import annotations

import argparse
import shlex
import sys

from model.common.args import DTYPES, Parser, at_least, between
from model.common.errors import BadInput

# flags that change neither the weights nor the order of the data
FREE = {"data", "output", "device", "num_threads", "log_every", "save_every_s", "eval_every"}
FREE |= {"features", "fresh"}


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The docstring as it stands, and every flag's default."""


def make_parser(prog: str, doc: str, add_args, defaults: dict | None = None) -> Parser:
    """The parser of a method's train.py.

    add_args(group)  adds the flags that only it has
    defaults         {dest: value}, the method's published recipe
    """
    parser = Parser(prog=prog, description=doc, formatter_class=_Help)
    add_args(parser.add_argument_group("the method's own"))
    _add_data(parser.add_argument_group("target and data"))
    _add_recipe(parser.add_argument_group("recipe"))
    _add_run(parser.add_argument_group("run"))
    known = {action.dest for action in parser._actions}
    if unknown := set(defaults or ()) - known:
        raise ValueError(f"defaults of no flag: {', '.join(sorted(unknown))}")
    parser.set_defaults(**(defaults or {}))
    return parser


def _add_data(group):
    group.add_argument("--model-path", required=True, help="frozen target: directory or hub id")
    group.add_argument("--data", required=True, help="conversations in ShareGPT form, .json(l)")
    group.add_argument("--output", required=True, help="directory of the head, made if missing")
    group.add_argument("--template", help="FastChat template or plain; none: the tokenizer's")
    group.add_argument("--max-length", type=at_least(2), default=2048, help="cut rows here, tokens")
    group.add_argument(
        "--held-out", type=between(0, 0.9), default=0.02, help="share of conversations to test on"
    )
    group.add_argument("--dtype", choices=DTYPES, default="float16", help="target's precision")
    group.add_argument(
        "--features",
        choices=("compute", "cache"),
        default="compute",
        help="cache: write the target's hidden states to OUTPUT/.features, read in later epochs",
    )


def _add_recipe(group):
    group.add_argument(
        "--num-tokens", type=at_least(1), help="tokens to train on, no padding; none: one epoch"
    )
    group.add_argument(
        "--batch-tokens", type=at_least(1), default=8192, help="padded tokens of a batch, at most"
    )
    group.add_argument(
        "--accumulate", type=at_least(1), default=1, help="batches per optimizer step, per process"
    )
    group.add_argument("--learning-rate", type=between(0, 10), default=1e-3, help="peak")
    group.add_argument(
        "--weight-decay", type=between(0, 10), default=0.0, help="of AdamW, on matrices only"
    )
    group.add_argument(
        "--betas", type=between(0, 0.9999999), nargs=2, default=[0.9, 0.999], help="of AdamW"
    )
    group.add_argument("--warmup", type=between(0, 1), default=0.1, help="share of the budget")
    group.add_argument(
        "--schedule", choices=("cosine", "linear", "constant"), default="cosine", help="after it"
    )
    group.add_argument(
        "--min-rate", type=between(0, 1), default=0.0, help="where it ends, share of the peak"
    )
    group.add_argument(
        "--clip-norm", type=between(0, 1e9), default=0.0, help="gradient norm, at most; 0 = any"
    )
    group.add_argument(
        "--clip-value", type=between(0, 1e9), default=0.0, help="gradient entry, at most; 0 = any"
    )
    group.add_argument(
        "--seed", type=at_least(0), default=0, help="of weights, order of the data, noise"
    )
    group.add_argument(
        "--mixed-precision", choices=("no", "bf16", "fp16"), default="no", help="of the head"
    )


def _add_run(group):
    group.add_argument(
        "--device", choices=("auto", "cpu"), default="auto", help="auto: as accelerate finds it"
    )
    group.add_argument("--num-threads", type=at_least(1), help="CPU threads; none: PyTorch's")
    group.add_argument("--log-every", type=at_least(1), default=50, help="steps per progress line")
    group.add_argument(
        "--save-every-s", type=between(0, 1e9), default=180.0, help="seconds per checkpoint"
    )
    group.add_argument(
        "--eval-every", type=at_least(1), default=500, help="steps per held-out evaluation"
    )
    group.add_argument("--fresh", action="store_true", help="train anew despite what OUTPUT holds")


def check(args) -> None:
    """Refuse flags that exclude each other."""
    if args.clip_norm and args.clip_value:
        raise BadInput("--clip-norm and --clip-value exclude each other")


def settings(args, **facts) -> dict:
    """What must be equal for a checkpoint to be continued: flags and facts, by name."""
    return {key: value for key, value in vars(args).items() if key not in FREE} | facts


def command_line(prog: str, argv: list[str] | None) -> str:
    """The command as it was given."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = f"python -m {spec.name}" if spec and argv is None else prog
    return f"{name} {shlex.join(sys.argv[1:] if argv is None else argv)}"
