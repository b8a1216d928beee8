"""Types of flags: a text is turned into a value, or refused in one line that names it."""

from __future__ import annotations

import argparse

from model.common.errors import parse_json
from model.common.target.twin.shapes import read_shape

EXAMPLE_OF_JSON = '{"enable_thinking": false}'


def _number(convert, low, high, words):
    def parse(text):
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text}: {words}")
        return value

    return parse


def at_least(low: int):
    """Argument type: an integer from `low` on."""
    return _number(int, low, 2**62, f"an integer of at least {low} is needed")


def between(low: float, high: float):
    """Argument type: a number in [low, high]."""
    return _number(float, low, high, f"a number from {low:g} to {high:g} is needed")


def temperature(text: str) -> float:
    """Argument type: 0, or what float32 logits can be divided by."""
    if text and not text.strip("0."):
        return 0.0
    return _number(float, 1e-4, 100, "0 or a number from 0.0001 to 100 is needed")(text)


def row_range(text: str) -> tuple | None:
    """Argument type: auto (None), none, or row counts as products.rows_text() writes them."""
    from model.common.target.products import read_rows

    try:
        return None if text == "auto" else read_rows(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: auto, none, or as 1-64 or 1-32/11") from None


def add_template_args(group):
    """The flag of those who render chats by the tokenizer's template."""
    group.add_argument(
        "--template-args",
        type=json_object,
        metavar="JSON",
        help=f"variables of the tokenizer's chat template: {EXAMPLE_OF_JSON}",
    )


def json_object(text: str) -> dict:
    """Argument type: names and values as JSON."""
    try:
        value = parse_json(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text}: a JSON object is needed: {EXAMPLE_OF_JSON}")
    return value


def token_ids(text: str) -> list[int]:
    """Argument type: ids separated by commas."""
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError:
        ids = [-1]
    if min(ids) < 0:
        raise argparse.ArgumentTypeError(f"{text}: token ids separated by commas are needed")
    return ids


def some_text(text: str) -> str:
    """Argument type: a text that is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("an empty text stands everywhere")
    return text


def shape_name(text: str) -> str:
    """Argument type: the name or the numbers of a shape in shapes.py."""
    try:
        read_shape(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


STRATEGIES = "same, separate, auto or multi-gpu-ratio:A:B"


def gpu_strategy(text: str) -> str:
    """Argument type: a placement of target and drafter, as wanted_placement() reads it."""
    name, _, ratio = text.replace("_", "-").partition(":")
    shares = ratio.split(":")
    if name == "multi-gpu-ratio" and len(shares) == 2 and all(map(str.isdecimal, shares)):
        counts = [int(share) for share in shares]
        if min(counts) >= 1:
            return f"{name}:{counts[0]}:{counts[1]}"
    elif name in ("same", "separate", "auto") and not ratio:
        return name
    raise argparse.ArgumentTypeError(f"{text}: {STRATEGIES} is needed (A devices, then B devices)")


def shares_of(strategy: str | None, num_devices: int | None) -> tuple[int, int]:
    """(devices of the target, devices of the drafter) of a gpu_strategy().

    num_devices: that both are spread over where the strategy leaves it open; None = 0.

    >>> shares_of("separate", None), shares_of("multi-gpu-ratio:6:2", None), shares_of("auto", 4)
    ((1, 1), (6, 2), (4, 4))
    """
    if strategy in (None, "auto"):
        return num_devices or 0, num_devices or 0
    _, _, ratio = strategy.partition(":")
    target, drafter = map(int, ratio.split(":") if ratio else (1, 1))
    return target, drafter
