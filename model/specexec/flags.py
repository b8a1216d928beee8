"""Flags of the draft's shape: which mode reads which, their defaults, and the drafter they make."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from model.common.args import add_weights, at_least, between
from model.common.draft_flags import AUTO, PAYS, flags_read, or_auto
from model.common.errors import BadInput
from model.sps.inference_sps import DRAFTS as PATHS

NODES = 128  # of a draft, where no flag says otherwise
DRAFT = {"drafter_path": None, "drafter_device": None, "draft_scale_to": None}
DRAFT |= {"draft_temperature": 1.0}
GROWTH = {"max_budget": NODES, "max_branch_width": None}
GROWTH |= {"min_log_prob": float("-inf"), "decay": 0.95}
DRAWS = {"draws": "sample", "replacement": False}
READ_BY = {  # --gen-type -> its flags and their defaults; None: depends on others
    "specexec": {**DRAFT, "max_num_beams": None, "max_beam_len": 32, **GROWTH},
    "specinfer": {**DRAFT, "max_num_beams": 8, "max_beam_len": 16, **DRAWS},
    "zero": {},
}
MOST_NODES = 1024  # of one whose size is left to the harness


@dataclass(frozen=True)
class Shape:
    """Checked flags; counts in nodes, passes or candidates, probabilities as logarithms.

    num_beams     specexec: nodes read by a pass; specinfer: chains
    beam_len      passes of the draft model, hence most tokens of a path
    budget        nodes of a draft
    branch_width  successors of a node that are looked at
    best          specinfer: nothing is drawn
    """

    num_beams: int
    beam_len: int
    budget: int = 0
    branch_width: int = 0
    min_log_prob: float = float("-inf")
    decay: float = 0.95
    temperature: float = 1.0
    replacement: bool = False
    best: bool = False


def add_tree_flags(parser, listed=lambda kind: kind, fits: bool = True):
    """Declare the flags; listed turns the type of a sweepable one into that of a list of them.

    fits: the budget can be left to the harness.
    """
    add = parser.add_argument
    add(
        "--gen-type",
        choices=tuple(READ_BY),
        default="specexec",
        help="specexec: the best tree; specinfer: several chains; zero: no draft",
    )
    add_weights(
        parser, "--drafter-path", "draft model", PATHS, lambda args: args.gen_type != "zero"
    )
    add("--drafter-device", help="where the draft model sits (default: the target's)")
    count = listed(at_least(1))
    auto = f"; auto: what of {MOST_NODES} and of --max-beam-len {PAYS}"
    add(
        "--max-budget",
        type=or_auto(between_nodes) if fits else listed(between_nodes),
        help=f"specexec: nodes of a draft (default: {NODES}){auto if fits else ''}",
    )
    add(
        "--max-num-beams",
        type=count,
        help="nodes a pass of the draft model reads (default: 128, at most the budget); "
        "specinfer: chains (default: 8)",
    )
    add(
        "--max-beam-len",
        type=count,
        help="passes of the draft model, bound of a draft's depth (default: 32, specinfer: 16)",
    )
    add(
        "--draft-temperature",
        type=between(1e-2, 100),
        help="of the draft model's distributions (default: 1, whatever --temperature is)",
    )
    _add_growth(add, listed)
    _add_draws(add)


def _add_growth(add, listed):
    """SpecExec's own flags, but for the budget."""
    add(
        "--max-branch-width",
        type=listed(at_least(1)),
        help="specexec: successors of a node looked at (default: 32)",
    )
    add(
        "--min-log-prob",
        type=listed(between(-1e6, 0)),
        help="specexec: only nodes of a score above it, a sum of logarithms (default: all)",
    )
    add(
        "--decay",
        type=between(1e-3, 1),
        help="specexec: factor on a path's probability per token (default: 0.95)",
    )


def _add_draws(add):
    """SpecInfer's own flags."""
    add(
        "--draws",
        choices=("sample", "best"),
        help="specinfer: draw the chains at every temperature of the target, as published, or take "
        "the draft model's best ones (default: sample)",
    )
    add("--replacement", action="store_true", help="specinfer: drawn first tokens may repeat")


def between_nodes(text: str) -> int:
    """Argument type: a number of nodes, 1 to 2048; the target reads them all at once."""
    return int(between(1, 2048)(str(at_least(1)(text))))


def shape_of(args, num_ids: int) -> Shape | None:
    """The checked shape of a draft, None = there is none; num_ids: tokens both models know."""
    given = flags_read(args, "gen_type", READ_BY)
    if args.gen_type == "zero":
        return None
    beams, length = given["max_num_beams"], given["max_beam_len"]
    common = {"temperature": given["draft_temperature"]}
    if args.gen_type == "specinfer":
        if beams > num_ids:
            raise BadInput(f"--max-num-beams {beams}: both models know {num_ids} tokens")
        best = given["draws"] == "best"
        for name in ("draft_temperature", "replacement") if best else ():
            if getattr(args, name):
                raise BadInput(f"--{name.replace('_', '-')} says nothing to --draws best")
        common |= {"replacement": given["replacement"], "best": best}
        return Shape(beams, length, beams * length, **common)
    budget, width = given["max_budget"], given["max_branch_width"]
    budget = MOST_NODES if budget == AUTO else budget
    beams = beams or min(128, budget)
    if beams > budget:
        raise BadInput(f"--max-num-beams {beams} is more than the --max-budget of {budget} nodes")
    if width is not None and width > num_ids:
        raise BadInput(f"--max-branch-width {width}: both models know {num_ids} tokens")
    width = width or min(32, num_ids)
    return Shape(beams, length, budget, width, given["min_log_prob"], given["decay"], **common)


def load_draft(args, target):
    """The draft model's Target, None where nothing is drafted."""
    from model.common.target.draft_model import load_draft_model

    if args.gen_type == "zero":
        return None
    if args.gen_type == "specexec" and args.runtime == "cudagraph":
        args = copy.copy(args)
        args.runtime = "eager"  # hardly two passes are alike: each would be recorded anew
    return load_draft_model(args, target, trees=True)


def make_drafter(args, draft, target):
    """The drafter of --gen-type, of load_draft()'s model; the sweep makes several for one."""
    from model.common.contract.sequence import EmptyDrafter
    from model.specexec.drafter import SpecExecDrafter
    from model.specexec.reader import TreeReader
    from model.specexec.specinfer import SpecInferDrafter

    num_ids = min(target.vocab_size, draft.vocab_size) if draft else target.vocab_size
    shape = shape_of(args, num_ids)
    if shape is None:
        return EmptyDrafter()
    reader = TreeReader(draft, target)
    if args.gen_type == "specinfer":
        return SpecInferDrafter(reader, shape)
    return SpecExecDrafter(reader, shape, args.max_budget == AUTO)
