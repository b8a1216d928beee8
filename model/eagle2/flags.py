"""Flags of the dynamic tree, for all methods that draft one."""

from model.common.args import at_least
from model.common.draft_flags import PAYS, or_auto


def add_tree_args(parser):
    """Flags of the dynamic tree."""

    def add(flag, kind, default: int, text: str):
        parser.add_argument(flag, type=kind, default=default, help=text)

    text = f"nodes of the dynamic tree, its root included; auto: what of 64 and of --depth {PAYS}"
    add("--total-token", or_auto(at_least(2)), 60, text)
    add("--depth", at_least(1), 5, "passes of the head beyond the first")
    add("--draft-top-k", at_least(1), 10, "candidates of a node, nodes of a pass")
