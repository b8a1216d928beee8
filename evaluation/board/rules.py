"""What makes a comparison no leaderboard row, a line each; every rule looks at the files alone."""

import json
import math
import re

from evaluation.answers import differences
from evaluation.answers.meta import AnswerError, find_field
from evaluation.board.verdicts import NOT_JUDGED, REFUSED
from evaluation.speedup import drift

# vLLM's and SGLang's settings: the name of one, and a value, alone or within a setting as JSON
SYNTHETIC = re.compile(r"synthetic|simulate_acc", re.IGNORECASE)
SYNTHETIC_VALUE = re.compile(r"^synthetic$|[\"']synthetic|simulate_acc", re.IGNORECASE)


MOST_REST = 0.25  # of a step's time outside its phases; ours have a few per cent


def require_metas(method, base):
    """Refuse files of other writers: nothing says what they were made of."""
    for side in (method, base):
        kinds = {"questions": dict, "selection": dict, "started": str}
        meta = side.meta or {}
        known = {name for name, kind in kinds.items() if isinstance(meta.get(name), kind)}
        if known != kinds.keys():
            raise AnswerError(f"{side.path}: no meta that says what was asked: no leaderboard row")


def problems(method, base, result):
    """Every reason that a method's and a baseline's AnswerFile, and speed.py's result, give."""
    checks = (lossy_without_the_word, another_method, no_baseline, not_whole)
    checks += (drifted, unbounded, odd_phases, other_texts, synthetic, load_runs)
    return [line for check in checks for line in check(method, base, result)]


def verdict_problems(verdict):
    """A verdict that is no row's."""
    if verdict["verdict"] == NOT_JUDGED:
        yield (
            "answers differ from the baseline's, and nobody judged why: equal.py BASE FILE"
            " --model-path TARGET --json REPORT (JUDGE=1 ./eval.sh)"
        )
    elif verdict["verdict"] in REFUSED:
        yield f"verdict {verdict['verdict']}"


def lossy_without_the_word(method, base, result):
    """A rule that may change the output, in a meta that does not say so."""
    meta = method.meta
    asked = [(meta.get(part) or {}).get("acceptance") for part in ("method_args", "arguments")]
    lossy = "typical" in asked or re.search("lossy|typical", meta["acceptance"])
    if lossy and not meta["lossy"]:
        yield "lossy without the word: its acceptance rule may change the output"
    if meta["lossy"] and "lossy" not in meta["acceptance"]:
        yield f"lossy without the word: acceptance {meta['acceptance']!r}"


def another_method(method, base, result):
    """A method's name whose flags the run does not know: it was another method's run."""
    own, known = own_flags(method.meta["method"]), method.meta.get("method_args") or {}
    if own is None:
        yield f"no method {method.meta['method']!r} in this project"
    elif own and sum(flag in known for flag in own) < len(own) / 2:
        yield f"not a run of {method.meta['method']}: it does not know its flags"
    if method.meta["method"] == "vanilla" and method.path.resolve() == base.path.resolve():
        yield "the baseline itself"
    if method.is_share:
        yield f"the pairs of {method.meta['pairs_of']}, no run of its own"


def own_flags(method):
    """Names of the flags that a method's command has of its own; None: there is no such method."""
    import argparse
    import importlib

    if not re.fullmatch("[a-z0-9_]+", method):
        return None
    try:
        script = importlib.import_module(f"model.{method}.inference_{method}")
    except ModuleNotFoundError:
        return None
    parser = argparse.ArgumentParser(add_help=False)
    script.add_args(parser)
    return [action.dest for action in parser._actions]


def no_baseline(method, base, result):
    """A baseline that drafts, is another run's pairs, or is lossy."""
    accepted = result["time_identity"] and result["time_identity"]["base_tokens_per_step"]
    if base.meta["method"] != "vanilla" or base.lossy:
        yield f"its baseline is {base.label} ({base.meta['method']}), not vanilla"
    elif accepted is None or not math.isclose(accepted, 1, rel_tol=1e-12):
        yield f"its baseline commits {accepted} tokens a step, a plain one 1.000"
    beside = drift.pairs_path(method.path).resolve() == base.path.resolve()
    if base.is_share and not (beside and base.meta["pairs_of"] == method.model_id):
        yield f"its baseline is the pairs of {base.meta['pairs_of']}, not those beside it"


def not_whole(method, base, result):
    """Questions that one side lacks or that failed: they are left out of the means."""
    for name, ids in result["left_out"].items():
        if ids:
            yield f"{len(ids)} questions {name.replace('_', ' ')}"
    if base.is_share and len(base.questions) < len(method.questions):
        yield "its pairs are a share of its questions: no baseline"


def drifted(method, base, result):
    """A machine that moved between the two files, or of which nobody knows that it stood."""
    found = result["drift"]
    if found["marked"]:
        moved = drift.moved_text(found)
        yield (
            f"drifted: the baseline beside it ran at {moved} of its file's speed (add --paired, of"
            " PAIRED=1 ./eval.sh, compares with the one beside it)"
        )
    elif found["state"] == "unknown":
        yield f"drift unknown: {found['reason']}"


def unbounded(method, base, result):
    """A baseline of which nothing says whether it is launch-bound."""
    if not base.meta.get("step_reads"):
        yield "no bound recorded: whether its baseline is launch-bound is not known"


def odd_phases(method, base, result):
    """Phases that do not fill the steps, or a verification that costs less than a row."""
    price, shares = result["profile"]["price"], result["profile"]["shares"]
    if price is not None and price < drift.CHEAP:
        yield f"price of verification {price:.2f}, below 1"
    if shares and shares["rest"] > MOST_REST:
        yield f"{100 * shares['rest']:.0f} % of its steps are in none of their phases"


def other_texts(method, base, result):
    """Texts that differ where ids are the same: one of them is not what the ids say."""
    if count := differences.other_texts(method, base):
        yield f"{count} answers have the baseline's ids and another text"


def synthetic(method, base, result):
    """Acceptance that was set, not earned. A twin's is the small model's, and its label says so."""
    for side in (method, base):
        parts = {name: value for name, value in side.meta.items() if name != "questions"}
        for name, value in settings(parts):
            named = SYNTHETIC.search(name) and value not in (None, False, "", 0, [], {})
            if named or (isinstance(value, str) and SYNTHETIC_VALUE.search(value)):
                yield f"synthetic acceptance: {name} {json.dumps(value)[:80]}"
        if find_field(side.meta, "scale_to") and not side.twin:
            yield f"{side.path.name}: a twin that is not labelled"


def settings(value, name=""):
    """(dotted name, value) of all leaves of a nested document."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from settings(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for part in value:
            yield from settings(part, name)
    else:
        yield name, value


def load_runs(method, base, result):
    """Requests that came by a schedule: their figures are evaluation/serving.py's."""
    if method.meta.get("load") or base.meta.get("load"):
        yield "a load run: its figures are those of evaluation/serving.py"
