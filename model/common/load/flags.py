"""Flags of a load run: which prompts arrive, and when. Without one of LOADS a run has no load.

Numbers that may be "inf" stay texts, since JSON, in which a meta keeps them, has no infinity.
"""

from __future__ import annotations

import argparse

from model.common.argument_types import at_least, between
from model.common.errors import BadInput

LOADS = ("num_prompts", "rate", "concurrency", "trace")  # each of them asks for a load
PROMPTS = ("sharegpt_dir", "prompt_min_length", "prompt_max_length", "prompt_max_tokens")
PROMPTS += ("max_load_lines",)
FLAGS = (*LOADS, "duration", "burstiness", "load_seed", *PROMPTS)


def number_or_inf(text: str) -> str:
    """Argument type: a number above 0 or inf, as a short text."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text}: a number above 0 or inf is needed")
    return f"{value:.12g}"


def rates(text: str) -> list[str]:
    """Argument type: rates separated by commas, each of them once.

    >>> rates("0.5,1,2.0,inf")
    ['0.5', '1', '2', 'inf']
    """
    found = [number_or_inf(part) for part in text.split(",")]
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text}: a rate occurs twice")
    return found


def add_load(group) -> None:
    """All of FLAGS."""
    _add_arrivals(group)
    _add_prompts(group)


def _add_arrivals(group) -> None:
    group.add_argument(
        "--num-prompts",
        type=at_least(1),
        metavar="N",
        help="so many requests; with none of the next four, back to back: a slot's next one"
        " arrives when its last one has ended",
    )
    group.add_argument(
        "--rate",
        type=rates,
        metavar="R,R,...",
        help="requests a second that arrive whether or not others have been answered, for"
        " --duration or until there were --num-prompts; inf = all at once; several rates: a run"
        " and an answer file each, of the same prompts in the same order",
    )
    group.add_argument(
        "--concurrency",
        type=at_least(1),
        metavar="C",
        help="clients, each of which sends the next request when its last one has ended",
    )
    group.add_argument(
        "--trace",
        metavar="FILE",
        help="arrival times: a line a request, a number or arrival_s (seconds), timestamp"
        " (milliseconds), or the answer file of an earlier load run",
    )
    group.add_argument(
        "--duration", type=between(1e-3, 1e7), metavar="S", help="of arrivals at --rate (seconds)"
    )
    group.add_argument(
        "--burstiness",
        type=number_or_inf,
        metavar="SHAPE",
        help="of the gamma distribution of gaps at --rate: 1 = Poisson arrivals (the default),"
        " less = in bursts, inf = even",
    )
    group.add_argument(
        "--load-seed", type=at_least(0), help="of the order of prompts and of arrivals (default: 0)"
    )


def _add_prompts(group) -> None:
    group.add_argument(
        "--sharegpt-dir",
        metavar="DIR",
        help="prompts from ShareGPT's three jsonl files in this folder, not from a question file",
    )
    group.add_argument(
        "--prompt-min-length", type=at_least(1), help="shortest prompt that is asked (characters)"
    )
    group.add_argument(
        "--prompt-max-length", type=at_least(1), help="longest prompt that is asked (characters)"
    )
    group.add_argument(
        "--prompt-max-tokens",
        type=at_least(1),
        help="most tokens of a prompt, its template's among them; longer ones are not drawn",
    )
    group.add_argument(
        "--max-load-lines", type=at_least(1), help="lines read of each file of --sharegpt-dir"
    )


def is_load(args) -> bool:
    """Whether the command line, or the arguments of a meta, asks for a load."""
    return any(getattr(args, name, None) is not None for name in LOADS)


def check_load(args) -> None:
    """Refuse flags that do not fit each other, or a load."""
    given = [name for name in FLAGS if getattr(args, name) is not None]
    if args.duration is not None and args.rate is None:
        raise BadInput("--duration needs --rate: requests that arrive back to back have no rate")
    if args.burstiness is not None and args.rate is None:
        raise BadInput("--burstiness needs --rate, whose gaps it is of")
    if given and not is_load(args):
        needed = ", ".join(map(_flag, LOADS[:-1]))
        raise BadInput(f"{_flag(given[0])} is of a load run, which needs {needed} or --trace")
    if given:
        _check_schedule(args)
        _check_prompts(args)
        _check_run(args)


def _check_schedule(args) -> None:
    kinds = [name for name in ("rate", "concurrency", "trace") if getattr(args, name) is not None]
    if len(kinds) > 1:
        first, second = map(_flag, kinds[:2])
        raise BadInput(f"{first} and {second} exclude each other: each says when requests arrive")
    if args.concurrency is not None and args.num_prompts is None:
        raise BadInput("--concurrency needs --num-prompts, after which the run ends")
    if args.rate is None:
        return
    if (args.duration is None) == (args.num_prompts is None):
        what = "both end the arrivals of --rate" if args.duration else "one of them ends --rate"
        raise BadInput(f"--duration, --num-prompts: {what}, give one")
    if "inf" in args.rate and (args.duration is not None or args.burstiness is not None):
        raise BadInput("--rate inf has no --duration and no --burstiness: all arrive at once")


def _check_prompts(args) -> None:
    shortest, longest = args.prompt_min_length, args.prompt_max_length
    if shortest is not None and longest is not None and shortest > longest:
        raise BadInput(f"--prompt-min-length {shortest} is above --prompt-max-length {longest}")
    if args.max_load_lines is not None and args.sharegpt_dir is None:
        raise BadInput("--max-load-lines needs --sharegpt-dir, whose files it is of")
    if args.sharegpt_dir is not None and args.question_file is not None:
        raise BadInput("--sharegpt-dir and --question-file exclude each other")


def _check_run(args) -> None:
    """Refuse what questions have, but requests have not."""
    if args.num_choices > 1:
        raise BadInput("--num-choices: a request of a load run has one answer")
    if args.history:
        raise BadInput("--history: a request of a load run has one turn, and none before it")
    if args.paired:
        raise BadInput("--paired: a load's baseline is a run of its own, not decoded in between")
    if args.num_gpus_total > args.num_gpus_per_model:
        raise BadInput("--num-gpus-total: a load run has one target, --num-gpus-per-model's GPUs")
    if args.answer_file and len(args.rate or ()) > 1:
        raise BadInput("--rate of several rates chooses the files; it cannot go with --answer-file")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
