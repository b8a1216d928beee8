"""The `.meta.json` beside an answer file: read it, and hold two of them to the same footing.

Its `shared` part is everything that must be equal for two files to be comparable. Nested parts are
named with dots: {"target": {"sha256": ...}} is `target.sha256`.
"""

import json
import re
from pathlib import Path

from model.common.errors import parse_json

SCHEMA = 1
ABSENT = "(absent)"
# Words in a field's name that say how the target was run, not what it was asked; these may change
# a speed and, in half precision, flip near-ties, but not what the exact answer is.
EXECUTION_WORDS = frozenset(
    "attention attn batch blas clocks code cuda cudnn device driver dtype engine gpu gpus harness"
    " host load numpy python runtime threads torch transformers version versions warmup".split()
)


class AnswerError(Exception):
    """Input that cannot be used. The message is one line that names the file, line or flag."""


class Incomparable(AnswerError):
    """Two files whose shared settings differ."""


# parts that a meta need not have, or has as null: objects, and some of its environment
OPTIONAL = ("environment", "method_args", "arguments", "run_s", "method_facts", "fitted_tree")
OPTIONAL += ("questions", "selection", "placement", "load", "step_reads")
MACHINE = {"bandwidth": dict, "turned_rows": str}
# flags of the run that say what it asked
ARGUMENTS = dict.fromkeys(
    "model_path dtype template system_prompt scale_to history bench_name question_file sharegpt_dir"
    " question_ids categories".split(),
    str,
) | dict.fromkeys(
    "question_begin question_end limit_per_category load_seed max_load_lines prompt_min_length"
    " prompt_max_length prompt_max_tokens".split(),
    int,
)
ARGUMENTS["template_args"] = dict
PLACEMENT = {"target": dict, "drafter": dict, "peak_bytes": dict, "strategy": str}


def meta_path(answer_path):
    """NAME.meta.json for NAME.jsonl."""
    answer_path = Path(answer_path)
    return answer_path.with_name(answer_path.name.removesuffix(".jsonl") + ".meta.json")


def read_meta(answer_path):
    """The meta of an answer file as a dict, or None where there is none beside it."""
    path = meta_path(answer_path)
    try:
        meta = parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AnswerError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise AnswerError(f"{path}: broken JSON: {error}") from None
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        found = meta.get("schema") if isinstance(meta, dict) else type(meta).__name__
        raise AnswerError(f"{path}: schema {found!r}, this tool reads schema {SCHEMA}")
    kinds = {"method": str, "model_id": str, "acceptance": str, "lossy": bool, "shared": dict}
    for name, kind in kinds.items():
        if not isinstance(meta.get(name), kind):
            raise AnswerError(f"{path}: {name} is missing or no {kind.__name__}")
    check_kinds(path, meta, dict.fromkeys(OPTIONAL, dict))
    check_kinds(path, meta.get("environment") or {}, MACHINE)
    check_kinds(path, meta.get("arguments") or {}, ARGUMENTS)
    run_s = meta.get("run_s") or {}
    check_kinds(path, run_s, dict.fromkeys(run_s, int | float))
    placement = meta.get("placement") or {}
    check_kinds(path, placement, PLACEMENT)
    for part in ("target", "drafter"):  # {device: what is there}
        held = placement.get(part) or {}
        check_kinds(path, held, dict.fromkeys(held, dict))
    for name, hashes in (meta.get("questions") or {}).items():
        if not isinstance(hashes, str) or len(hashes.split(" ")) != 2:
            raise AnswerError(f"{path}: questions: {name}: {hashes!r} is no pair of hashes")
    return meta


def check_kinds(path, fields, kinds):
    """Refuse fields of another type than that of `kinds`; they may be missing, or null."""
    for name, kind in kinds.items():
        if not isinstance(fields.get(name), kind | None):
            raise AnswerError(f"{path}: {name} is no {getattr(kind, '__name__', 'number')}")


def flatten(nested, prefix=""):
    """{"a": {"b": 1}} -> {"a.b": 1}; anything that is not a non-empty dict is a value."""
    flat = {}
    for name, value in nested.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{dotted}."))
        else:
            flat[dotted] = value
    return flat


def find_field(meta, *names):
    """The first value whose (last) name is one of `names`, in order of preference; else None."""
    if meta is None:
        return None
    for name in names:
        for part in ("shared", "environment", "method_args"):
            for dotted, value in flatten(meta.get(part) or {}).items():
                if dotted == name or dotted.endswith(f".{name}"):
                    return value
    return None


def is_execution_field(dotted):
    """Whether a shared field says how the target was run, not what it was asked.

    `batch_size`, `runtime`, `versions.torch` do; `target.sha256`, `temperature`, `template` do not.
    """
    return not EXECUTION_WORDS.isdisjoint(re.split(r"[._\-]", dotted.lower()))


def differing_fields(meta, base_meta):
    """[(dotted name, value, baseline's value)] of the shared fields that differ.

    A field that one side lacks differs from a value, not from None: it was not asked for.
    """
    ours, theirs = flatten(meta["shared"]), flatten(base_meta["shared"])
    names = list(theirs) + [name for name in ours if name not in theirs]
    pairs = ((name, ours.get(name, ABSENT), theirs.get(name, ABSENT)) for name in names)
    unset = (None, ABSENT)
    return [
        (name, value, base)
        for name, value, base in pairs
        if value != base and not (value in unset and base in unset)
    ]


def covers(allowed, dotted):
    """`target` and `target.sha256` both allow the field `target.sha256`."""
    return dotted == allowed or dotted.startswith(f"{allowed}.")


def check_shared(method, base, allow=(), harmless=lambda dotted: False):
    """Raise Incomparable for AnswerFiles whose shared fields differ; return what was let pass.

    A difference passes where `allow` names it, where `harmless(dotted)` holds, and where the
    method's history is the baseline's own file: then both saw the same prompts. Without a meta on
    both sides there is nothing to compare, and the reader has said so. Returns
    [{"field", "method", "baseline"}].
    """
    if method.meta is None or base.meta is None:
        return []
    known = [*flatten(method.meta["shared"]), *flatten(base.meta["shared"])]
    for name in allow:
        if not any(covers(name, dotted) for dotted in known):
            raise AnswerError(f"--allow {name}: no such field in the metas' shared part")
    passed, refused = [], []
    for dotted, value, base_value in differing_fields(method.meta, base.meta):
        difference = {"field": dotted, "method": value, "baseline": base_value}
        same_history = dotted == "history_sha256" and value == base.sha256
        named = any(covers(name, dotted) for name in allow)
        allowed = named or same_history or harmless(dotted)
        (passed if allowed else refused).append(difference)
    if refused:
        listed = "; ".join(describe(difference) for difference in refused)
        raise Incomparable(f"{method.path} and {base.path} are not comparable: {listed}")
    return passed


def describe(difference):
    """'temperature: 1.0, baseline 0.0' for one differing field."""
    value, base = (
        value if value == ABSENT else json.dumps(value, ensure_ascii=False)
        for value in (difference["method"], difference["baseline"])
    )
    return f"{difference['field']}: {value}, baseline {base}"


def placement_text(placement):
    """'separate: target on cuda:0 13.48 GB; drafter on cuda:1 0.14 GB; at most cuda:0 14.01 GB'

    Of a meta's `placement`: weights, and peaks of memory. None on one device, or where it is none.
    """
    placement = placement or {}
    parts = {name: placement.get(name) or {} for name in ("target", "drafter")}
    devices = list(dict.fromkeys(device for part in parts.values() for device in part))
    if len(devices) < 2:
        return None
    places = []
    for name, part in parts.items():
        held = ", ".join(
            f"{device} {in_gb(one.get('weight_bytes'))}" for device, one in part.items()
        )
        places.append(f"{name} on {held}" if held else f"{name} without weights")
    peaks = placement.get("peak_bytes") or {}
    peak = ", ".join(f"{device} {in_gb(peaks[device])}" for device in devices if device in peaks)
    return f"{placement.get('strategy')}: {'; '.join(places)}" + (
        f"; at most {peak}" if peak else ""
    )


def in_gb(num_bytes):
    """'13.48 GB', 1e9 bytes each."""
    return f"{num_bytes / 1e9:.2f} GB" if isinstance(num_bytes, (int, float)) else "? GB"
