"""The method's flags: exits and thresholds, and the draft's shape; what is refused."""

from __future__ import annotations

import argparse

from model.common.args import add_weights, at_least, mini_weights
from model.common.draft_flags import add_draft_scale, flags_read
from model.common.errors import BadInput

EXITS_FIELD, THRESHOLDS_FIELD = "sd2_exits", "sd2_thresholds"  # of a draft's config.json
THRESHOLD = 0.5  # of every exit but the last, where nothing else is known
USUAL = "4096x12x11008"  # size of the draft's twin: the published one is 12 layers of Vicuna-7B
PUBLISHED = "parsakaveh/SD2-SoFT-Draft"
PUBLISHED_EXITS = [6, 9, 12]  # its config.json names none
DRAFTS = {"mini": mini_weights("sd2"), "vicuna-7b-v1.3": PUBLISHED}
READ_BY = {  # the draft's shape -> its flags and their defaults
    "tree": {"total_token": 60, "depth": 4, "draft_top_k": 10},
    "chain": {"schedule": "heuristic", "num_draft": 5, "guess": "sample"},
}


def add_draft_flags(parser):
    """Declare the method's flags."""
    add = parser.add_argument
    add_weights(parser, "--drafter-path", "draft model with exits", DRAFTS)
    add("--drafter-device", help="where the draft model sits (default: the target's)")
    add_draft_scale(parser, USUAL)
    add("--exits", type=exit_list, help="layers to leave after (default: sd2_exits of config.json)")
    add(
        "--thresholds",
        type=threshold_list,
        help="leave an exit above this probability (default: sd2_thresholds of config.json, for "
        "other exits .5 each and 0)",
    )
    add("--draft", choices=tuple(READ_BY), default="tree", help="shape of a draft")
    add("--total-token", type=at_least(2), help="tree: rows, the root included (default: 60)")
    add("--depth", type=at_least(1), help="tree: passes beyond the first (default: 4)")
    add("--draft-top-k", type=at_least(1), help="tree: nodes of a pass, their children (10)")
    add("--num-draft", type=at_least(1), help="chain: draft length, the first one (default: 5)")
    add(
        "--schedule",
        choices=("constant", "heuristic"),
        help="chain: num-draft, or from it +2 after a full accept, else -1 (default: heuristic)",
    )
    add(
        "--guess",
        choices=("sample", "argmax"),
        help="chain, sampling: draw from the draft model and reject, or match its best token with "
        "the target's draw (default: sample)",
    )


def shape_of(args) -> dict:
    """The flags that --draft reads, defaults filled in; one of another shape is refused."""
    return flags_read(args, "draft", READ_BY)


def checked_exits(exits) -> list[int]:
    """The exits; ValueError where they are no layer counts, not sorted, or doubled."""
    if not isinstance(exits, list) or not exits or any(type(e) is not int for e in exits):
        raise ValueError("no list of layer counts")
    if exits[0] < 1 or any(low >= high for low, high in zip(exits, exits[1:])):
        raise ValueError("not rising from 1 on")
    return exits


def checked_thresholds(thresholds) -> list[float]:
    """The thresholds as floats; ValueError where one is no probability."""
    if not isinstance(thresholds, list) or not thresholds:
        raise ValueError("no list of numbers")
    if any(type(t) not in (int, float) or not 0 <= t <= 1 for t in thresholds):
        raise ValueError("not from 0 to 1")
    return [float(threshold) for threshold in thresholds]


def _list_of(convert, checked, words: str):
    """Argument type: values separated by commas."""

    def parse(text):
        try:
            return checked([convert(part) for part in text.split(",")])
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text}: {words}") from error

    return parse


exit_list = _list_of(
    int, checked_exits, "layer counts from 1 on that rise are needed, such as 6,9,12"
)
threshold_list = _list_of(
    float, checked_thresholds, "numbers from 0 to 1 are needed, such as .5,.5,0"
)


def default_thresholds(exits: list[int]) -> list[float]:
    """The published ones: 0.5 everywhere, and 0 at the last exit, where nothing is decided."""
    return [THRESHOLD] * (len(exits) - 1) + [0.0]


def resolve(args, config: dict) -> tuple[list[int], list[float]]:
    """(exits, thresholds) of the flags, else of the draft's config.

    The config's thresholds belong to the config's exits; other exits without --thresholds get the
    published ones. Raises BadInput: none known, deeper than the draft, counts that differ.
    config: the parsed config.json
    """
    path = f"{args.drafter_path}/config.json"
    stored = _of_config(config, EXITS_FIELD, checked_exits, path)
    if stored is None and args.drafter_path == PUBLISHED:
        stored = PUBLISHED_EXITS
    exits = args.exits or stored
    if exits is None:
        raise BadInput(
            f"{path}: no {EXITS_FIELD}; --exits says where this draft was trained to end"
        )
    origin = "--exits" if args.exits else f"{path}: {EXITS_FIELD}"
    num_layers = config.get("num_hidden_layers") or 0
    if exits[-1] > num_layers:
        raise BadInput(f"{origin} {_shown(exits)}: the draft model has {num_layers} layers")
    thresholds, origin = args.thresholds, "--thresholds"
    if thresholds is None and exits == stored:
        thresholds = _of_config(config, THRESHOLDS_FIELD, checked_thresholds, path)
        origin = f"{path}: {THRESHOLDS_FIELD}"
    if thresholds is None:
        thresholds = default_thresholds(exits)
    if len(thresholds) != len(exits):
        raise BadInput(
            f"{origin} {_shown(thresholds)}: {len(thresholds)} for {len(exits)} exits, "
            f"{_shown(exits)}"
        )
    return exits, thresholds


def _of_config(config: dict, field: str, checked, path: str):
    """A field of the config, None where it is missing."""
    value = config.get(field)
    if value is None:
        return None
    try:
        return checked(value)
    except ValueError as error:
        raise BadInput(f"{path}: {field} is {value!r}: {error}") from error


def _shown(values: list) -> str:
    return ",".join(f"{value:g}" for value in values)
