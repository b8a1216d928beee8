"""Shapes of published Llama models, for --scale-to: what a step of the target has to read."""

from __future__ import annotations

import re
from typing import NamedTuple

VOCAB = 32000  # Llama-2's, and of the draft models made for it
HEAD_SIZES = (128, 64, 32, 16)  # of shapes that name no heads, in order of preference


class Shape(NamedTuple):
    """Hidden size, layers, MLP's inner size, vocabulary; heads None = as the model's own allow."""

    hidden: int
    layers: int
    inner: int
    vocab: int = VOCAB
    heads: int | None = None
    kv_heads: int | None = None


SHAPES = {
    "68m": Shape(768, 2, 3072, heads=12, kv_heads=12),  # vicuna-68m
    "160m": Shape(768, 12, 3072, heads=12, kv_heads=12),  # llama-160m
    "1b": Shape(2048, 22, 5632, heads=32, kv_heads=4),  # TinyLlama-1.1B
    "7b": Shape(4096, 32, 11008, heads=32, kv_heads=32),  # Llama-2-7B, Vicuna-7B
    "13b": Shape(5120, 40, 13824, heads=40, kv_heads=40),
    "33b": Shape(6656, 60, 17920, heads=52, kv_heads=52),  # Vicuna-33B
    "70b": Shape(8192, 80, 28672, heads=64, kv_heads=8),
}
DRAFTS = {"70b": "7b"}  # target -> draft model usual beside it
KNOWN = f"{', '.join(SHAPES)} or HIDDENxLAYERSxINNER[xVOCABULARY]"


def read_shape(name: str) -> Shape:
    """The shape of a name in SHAPES or of its numbers; ValueError: neither.

    >>> read_shape("512x12x1024").vocab, read_shape("512x12x1024x4096").vocab
    (32000, 4096)
    """
    if name in SHAPES:
        return SHAPES[name]
    if not re.fullmatch(r"[1-9]\d{0,6}(x[1-9]\d{0,6}){2,3}", name):
        raise ValueError(f"{name}: {KNOWN} is needed")
    return Shape(*map(int, name.split("x")))


def draft_shape(args, usual: str | None = None) -> str | None:
    """The shape's name of the draft model of a command, None = as it is.

    --draft-scale-to, else the method's usual one, else one of the family's models beside 70b and
    68m beside other targets.
    """
    scale_to = getattr(args, "scale_to", None)  # training tools have no such flag
    if scale_to is None:
        return None
    return args.draft_scale_to or usual or DRAFTS.get(scale_to, "68m")
