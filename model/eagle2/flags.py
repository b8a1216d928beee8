"""Flags of the dynamic tree, for all methods that draft one."""

from model.common.args import at_least


def add_tree_args(parser, total_token: int = 60, draft_top_k: int = 10):
    """Flags of the dynamic tree."""

    def add(flag, least: int, default: int, text: str):
        parser.add_argument(flag, type=at_least(least), default=default, help=text)

    add("--total-token", 2, total_token, "nodes of the dynamic tree, its root included")
    add("--depth", 1, 5, "passes of the head beyond the first")
    add("--draft-top-k", 1, draft_top_k, "candidates of a node, nodes of a pass")
