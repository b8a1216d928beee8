"""Flags of drafts that several methods have: a tree left to the harness, fewer ids to draft."""

from __future__ import annotations

import argparse

from model.common.args import at_least, shape_name
from model.common.errors import BadInput

AUTO = "auto"
PAYS = "pays on this machine, measured before the first question"  # for help texts


def or_auto(kind):
    """Argument type: what `kind` reads, or the word auto."""

    def parse(text):
        try:
            return text if text == AUTO else kind(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error}, or {AUTO}") from error

    return parse


def wanted_tree(text: str, usual: str) -> tuple[str, bool]:
    """(name or file of a tree, whether it is to be cut to what pays) of a --tree flag.

    >>> wanted_tree("auto", "2.2.2"), wanted_tree("auto:t.json", "2.2.2"), wanted_tree("t.json", "")
    (('2.2.2', True), ('t.json', True), ('t.json', False))
    """
    first, _, rest = text.partition(":")
    return (rest or usual, True) if first == AUTO else (text, False)


def flags_read(args, choice: str, read_by: dict[str, dict]) -> dict:
    """The flags that the value of one flag reads, defaults filled in. Raises BadInput: another one
    of them was given, which would say nothing.

    choice: the name of that flag; read_by: {its value: {flag: default}}, where no flag has a
    default of its own but None, or False of a switch
    """
    value = getattr(args, choice)
    every = sorted({name for flags in read_by.values() for name in flags})
    given = {name: getattr(args, name) for name in every}
    given = {name: own for name, own in given.items() if own is not None and own is not False}
    for name in given:
        if name not in read_by[value]:
            flag, own = (f"--{one.replace('_', '-')}" for one in (name, choice))
            raise BadInput(f"{flag} says nothing to {own} {value}")
    return read_by[value] | given


def auto_tree(args) -> str | None:
    """The flag and value that leave the draft's tree to the harness, None = none does."""
    for name in ("total_token", "max_budget", "tree"):
        value = getattr(args, name, None)
        if isinstance(value, str) and value.partition(":")[0] == AUTO:
            return f"--{name.replace('_', '-')} {value}"
    return None


def check_workers(args) -> None:
    """Refuse a tree that is left to the harness where several workers would choose."""
    flag = auto_tree(args)
    if flag and args.num_gpus_total > args.num_gpus_per_model:
        raise BadInput(f"{flag} needs one worker: several would draft several trees")


def add_draft_vocab(parser) -> None:
    """--draft-vocab, for heads over all of the target's ids."""
    parser.add_argument(
        "--draft-vocab",
        type=at_least(1),
        metavar="N",
        help="draft the N most frequent ids alone, so that the rows of the others are not read "
        "(default: all)",
    )
    parser.add_argument(
        "--token-counts-path",
        metavar="FILE",
        help="how often each id stands in answers, as model.common.training.token_counts writes it "
        "(default: token_counts.safetensors beside the head)",
    )


def add_draft_scale(parser, usual: str = "7b beside 70b, else 68m") -> None:
    """--draft-scale-to, for methods with a draft model; `usual` as in shapes.draft_shape()."""
    parser.add_argument(
        "--draft-scale-to",
        type=shape_name,
        metavar="SHAPE",
        help=f"beside --scale-to: of the draft model's twin (default: {usual})",
    )
