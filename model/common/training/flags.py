"""Flags that all trainers of draft heads share, and what of them a checkpoint depends on."""

from __future__ import annotations

import argparse
import shlex
import sys

from model.common.args import DTYPES, Parser, at_least, between
from model.common.argument_types import add_template_args
from model.common.errors import BadInput

# flags that change neither the weights nor the order of the data
FREE = {"data", "output", "device", "num_threads", "log_every", "save_every_s", "eval_every"}
FREE |= {"features", "features_folder", "fresh"}


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The docstring as it stands, and every flag's default."""


def make_parser(prog: str, doc: str, add_args, defaults: dict | None = None) -> Parser:
    """The parser of a method's train.py.

    add_args(group)  adds the flags that only it has
    defaults         {dest: value}, the method's published recipe
    """
    parser = Parser(prog=prog, description=doc, formatter_class=Help)
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
    add = group.add_argument
    add("--model-path", required=True, help="frozen target: directory or hub id")
    add("--data", required=True, help="conversations in ShareGPT form, .json(l)")
    add("--output", required=True, help="directory of the head, made if missing")
    add("--template", help="FastChat template or plain; none: the tokenizer's")
    add_template_args(group)
    add("--max-length", type=at_least(2), default=2048, help="cut rows here, tokens")
    add("--held-out", type=between(0, 0.9), default=0.02, help="share of data to test on")
    add("--dtype", choices=DTYPES, default="float16", help="target's precision")
    add(
        "--features",
        choices=("compute", "cache"),
        default="compute",
        help="cache: write the target's hidden states to OUTPUT/.features, read in later epochs",
    )
    add("--features-folder", help="of cache: kept, and shared by the heads of a target")
    add(
        "--feature-dtype",
        choices=DTYPES[1:],
        help="round hidden states to it: half the room in 16 bits; none: --dtype",
    )


def _add_recipe(group):
    add, any_size = group.add_argument, between(0, 1e9)
    add("--num-tokens", type=at_least(1), help="tokens to train on, no padding; none: one epoch")
    add("--batch-tokens", type=at_least(1), default=8192, help="padded tokens of a batch, at most")
    add("--accumulate", type=at_least(1), default=1, help="batches per step, per process")
    add("--learning-rate", type=between(0, 10), default=1e-3, help="peak")
    add("--weight-decay", type=between(0, 10), default=0.0, help="of AdamW, on matrices only")
    add("--betas", type=between(0, 0.9999999), nargs=2, default=[0.9, 0.999], help="of AdamW")
    add("--warmup", type=between(0, 1), default=0.1, help="share of the budget")
    add("--schedule", choices=("cosine", "linear", "constant"), default="cosine", help="after it")
    add("--min-rate", type=between(0, 1), default=0.0, help="where it ends, share of the peak")
    add("--clip-norm", type=any_size, default=0.0, help="gradient norm, at most; 0 = any")
    add("--clip-value", type=any_size, default=0.0, help="gradient entry, at most; 0 = any")
    add("--seed", type=at_least(0), default=0, help="of weights, order of the data, noise")
    kinds = ("no", "bf16", "fp16")
    add("--mixed-precision", choices=kinds, default="no", help="of the head")


def _add_run(group):
    add = group.add_argument
    add("--device", choices=("auto", "cpu"), default="auto", help="auto: as accelerate finds it")
    add("--num-threads", type=at_least(1), help="CPU threads; none: PyTorch's")
    add("--log-every", type=at_least(1), default=50, help="steps per progress line")
    add("--save-every-s", type=between(0, 1e9), default=180.0, help="seconds per checkpoint")
    add("--eval-every", type=at_least(1), default=500, help="steps per held-out evaluation")
    add("--fresh", action="store_true", help="train anew despite what OUTPUT holds")


def check(args) -> None:
    """Refuse flags that exclude each other."""
    if args.clip_norm and args.clip_value:
        raise BadInput("--clip-norm and --clip-value exclude each other")
    if args.features_folder and args.features != "cache":
        raise BadInput("--features-folder needs --features cache")


def settings(args, **facts) -> dict:
    """What must be equal for a checkpoint to be continued: flags and facts, by name."""
    return {key: value for key, value in vars(args).items() if key not in FREE} | facts


def command_line(prog: str, argv: list[str] | None) -> str:
    """The command as it was given."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = f"python -m {spec.name}" if spec and argv is None else prog
    return f"{name} {shlex.join(sys.argv[1:] if argv is None else argv)}"
