"""Flags of the dynamic tree, for all methods that draft one."""

from model.common.args import at_least
from model.common.draft_flags import PAYS, or_auto


def add_tree_args(parser, total_token: int = 60, draft_top_k: int = 10, fits: bool = True):
    """Flags of the dynamic tree; fits: the method can leave its size to the harness."""

    def add(flag, kind, default: int, text: str):
        parser.add_argument(flag, type=kind, default=default, help=text)

    text = "nodes of the dynamic tree, its root included"
    if fits:
        text += f"; auto: what of 64 and of --depth {PAYS}"
    kind = or_auto(at_least(2)) if fits else at_least(2)
    add("--total-token", kind, total_token, text)
    add("--depth", at_least(1), 5, "passes of the head beyond the first")
    add("--draft-top-k", at_least(1), draft_top_k, "candidates of a node, nodes of a pass")
