"""The method's flags: which kind reads which, their defaults, and the drafter they make."""

from __future__ import annotations

from model.common.args import add_state, at_least, between, is_warm
from model.common.draft_flags import flags_read
from model.common.errors import BadInput

READ_BY = {  # kind -> its flags and their defaults; max_cached_requests goes with --state warm
    "suffix": {
        "draft": "chain",
        "max_depth": 64,
        "max_spec_factor": 1.0,
        "max_spec_offset": 0.0,
        "max_spec_tokens": 32,
        "min_token_prob": 0.1,
        "max_cached_requests": 10000,
    },
    "ngram-mod": {"n_match": 24, "n_min": 48, "n_max": 64},
}


def add_flags(parser):
    """Declare them."""
    add_state(parser)
    add = parser.add_argument
    add("--kind", choices=tuple(READ_BY), default="suffix", help="SuffixDecoding, or llama.cpp's")
    add("--draft", choices=("chain", "tree"), help="suffix: shape of a draft (default: chain)")
    add("--max-depth", type=at_least(2), help="suffix: longest string counted (default: 64 tokens)")
    add("--max-spec-factor", type=between(0, 100), help="suffix: draft per matched token (1)")
    add("--max-spec-offset", type=between(-1000, 1000), help="suffix: tokens added to that (0)")
    add("--max-spec-tokens", type=at_least(1), help="suffix: longest draft (default: 32 tokens)")
    add("--min-token-prob", type=between(0, 1), help="suffix: least chance of a token (0.1)")
    add(
        "--max-cached-requests",
        type=at_least(1),
        help="suffix, --state warm: answers kept, first in, first out (default: 10000)",
    )
    add("--n-match", type=at_least(1), help="ngram-mod: tokens hashed (default: 24)")
    add("--n-min", type=at_least(0), help="ngram-mod: shortest draft (default: 48 tokens)")
    add("--n-max", type=at_least(1), help="ngram-mod: longest draft (default: 64 tokens)")


def settings_of(args) -> dict:
    """The flags that --kind reads, defaults filled in; one of the other kind is refused."""
    found = flags_read(args, "kind", READ_BY)
    if args.max_cached_requests is not None and not is_warm(args):
        raise BadInput("--max-cached-requests needs --state warm")
    return found


def make_drafter(args):
    """The drafter of a command line. Raises BadInput: flags that exclude each other."""
    found, warm = settings_of(args), is_warm(args)
    if args.kind == "ngram-mod":
        from model.suffix.ngram_mod import NGramModDrafter, Settings

        if found["n_min"] > found["n_max"]:
            raise BadInput(f"--n-min {found['n_min']} is above --n-max {found['n_max']}")
        return NGramModDrafter(Settings(**found), warm)
    from model.suffix.drafter import SuffixDrafter
    from model.suffix.tree import Limits

    limits = Limits(
        found["max_depth"],
        found["max_spec_factor"],
        found["max_spec_offset"],
        found["min_token_prob"],
        found["max_spec_tokens"],
        found["draft"] == "tree",
    )
    if not limits.max_nodes:
        raise BadInput("--max-spec-factor and --max-spec-offset leave no match a drafted token")
    return SuffixDrafter(limits, found["max_cached_requests"] if warm else 0)
