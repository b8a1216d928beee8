"""The verdict of a leaderboard row: from the ids where they say it, else from a judge's report.

EXACT            every id is the baseline's: recomputed from the two files
LOSSY BY DESIGN  ids differ, and the meta says that the acceptance rule may change them
NOT JUDGED       ids differ, and nobody asked the target why
TIES ONLY ...    by `equal.py --model-path TARGET`: its report on these files is kept as evidence
CONSISTENT ...   of sampled answers, by audit_sampling.py, likewise

What a judge found takes its target to find again. Without it, its report is held to the answers, to
the meta's bytes and settings, and to itself: which questions differ and where, the tokens that it
names, and that its numbers give its bounds and its verdict.
"""

import json
import math
from types import SimpleNamespace

from evaluation.answers.differences import file_verdicts
from evaluation.answers.meta import AnswerError, find_field
from evaluation.audit_sampling import NEUTRAL, VERDICTS
from evaluation.cli import read_report
from evaluation.judging import verdicts

NOT_JUDGED = "NOT JUDGED"
CONSISTENT, REJECTED, _ = VERDICTS  # of audit_sampling.py
REFUSED = (verdicts.BUG, verdicts.CANNOT, NOT_JUDGED, REJECTED)
IDS, META, TARGET, AUDIT = "ids", "meta", "target", "audit"  # what a verdict is known by
JUDGED = {"equal": TARGET, "audit_sampling": AUDIT}  # tool -> by
ALPHA = 0.01  # audit_sampling.py's own; a smaller one rejects less
CLOSE = 1e-6  # relative: by how much two ways to the same number may differ


def decide(method, base, evidence=None):
    """{"verdict", "by", "evidence"} of a method's AnswerFile against its baseline's."""
    if not differing(method, base):
        return {"verdict": verdicts.EXACT, "by": IDS, "evidence": None}
    if evidence is not None:
        found = evidence["result"]
        verdict = (found["judgement"] if evidence["tool"] == "equal" else found)["verdict"]
        return {"verdict": verdict, "by": JUDGED[evidence["tool"]], "evidence": evidence}
    if method.lossy:
        return {"verdict": verdicts.LOSSY, "by": META, "evidence": None}
    return {"verdict": NOT_JUDGED, "by": None, "evidence": None}


def differing(method, base):
    """{question id: its Differences} where answers are not the baseline's."""
    found = file_verdicts(base, method)
    return {one.question_id: one.differences for one in found if not one.equal}


def find_evidence(paths, method):
    """What one of the reports says of a method's file; None if none does.

    Reports name the files that they judged by sha256, and their metas: one of this meta comes
    first. The baseline may be another run's: which questions differ from it has to be the same.
    """
    found = [evidence for path in paths for evidence in evidence_in(path, method)]
    found.sort(key=lambda one: one["result"].get("meta_sha256") != method.meta_sha256)
    return found[0] if found else None


def evidence_in(path, method):
    """What a report says of a method's file, {"tool", "result"} each.

    Of an audit also its "alpha" and of how many "files" it was.
    """
    document = read_report(path) or {}
    tool, results = document.get("tool"), document.get("results", ())
    audit = tool == "audit_sampling"
    more = {"alpha": document["alpha"], "files": len(results)} if audit else {}
    for result in results if tool in JUDGED else ():
        if (audit or "judgement" in result) and result.get("sha256") == method.sha256:
            evidence = {"tool": tool, **more, "result": without_lists(result)}
            yield json.loads(json.dumps(evidence))


def without_lists(result):
    """A result of a report without what equal.py found beside the judgement: it is recomputed."""
    return {name: value for name, value in result.items() if name not in ("differences", "file")}


def problems(method, base, verdict):
    """Why a verdict's evidence is none, a line each; [] for a verdict that needs none."""
    evidence = verdict["evidence"]
    if evidence is None:
        return []
    try:
        other = other_file(method, evidence["result"])
        return [other] if other else list(evidence_problems(method, base, evidence))
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, ArithmeticError) as error:
        return [f"its verdict's evidence is broken: {error!r}"]


def other_file(method, result):
    """A line where a report's result is not of this answer file and this meta, else None."""
    if result["sha256"] != method.sha256:
        return "its verdict was given on another file"
    if "meta_sha256" not in result:
        return "its judge's report does not say which meta was judged: judge again"
    if result["meta_sha256"] != method.meta_sha256:
        return "its verdict was given with another meta: judge again"
    return None


def evidence_problems(method, base, evidence):
    """Where a report on a method's file does not fit it, or not its own numbers."""
    audit, lossy = evidence["tool"] == "audit_sampling", evidence["result"]["lossy"]
    if lossy != method.lossy:
        yield f"its judge took it for {'lossy' if lossy else 'exact'}, its meta does not"
    sampled = (find_field(method.meta, "temperature") or 0) > 0
    if not method.lossy and sampled != audit:
        yield "sampled answers are judged by audit_sampling.py, greedy ones by equal.py"
    yield from (audit_problems if audit else equal_problems)(method, base, evidence)


def equal_problems(method, base, evidence):
    """Where a judgement of equal.py does not fit the files, or not its own numbers."""
    found, differences = evidence["result"]["judgement"], differing(method, base)
    questions, noise = found["questions"], found["noise"]
    if {q["question_id"] for q in questions if not q["equal"]} != differences.keys():
        yield "its verdict was given on other differing questions"
    if found["multiple"] != verdicts.MULTIPLE:
        yield f"its BUG begins at {found['multiple']} times the bound, not {verdicts.MULTIPLE:g}"
    if noise is not None:
        yield from noise_problems(method, noise)
    for question in questions:
        name = question["question_id"]
        for line in question_problems(method, question, noise, differences.get(name, [])):
            yield f"question {name}: {line}"
    kept = [SimpleNamespace(verdict=question["verdict"]) for question in questions]
    noise = SimpleNamespace(**(noise or {"odd": None}))
    again, _ = verdicts.file_verdict(kept, noise, found["control"], found["proof"])
    if again != found["verdict"]:
        yield f"its verdict {found['verdict']} is not that of its own evidence, {again}"


def noise_problems(method, noise):
    """Where the noise of a judgement is of another precision, or bounds by another rule."""
    dtype = find_field(method.meta, "dtype")
    if noise["dtype"] != dtype:
        yield f"its noise was measured in {noise['dtype']}, its answers are of {dtype}"
    if (noise["factor"], noise["floor_ulps"]) != (verdicts.FACTOR, verdicts.FLOOR_ULPS):
        yield f"its bound is {noise['factor']} x the noise, at least {noise['floor_ulps']} ulps"


def question_problems(method, question, noise, differences):
    """Where the judgement of a question does not fit its Differences, or not its own numbers."""
    verdict, worst, parting = question["verdict"], question["worst"], question["parting"]
    if verdict == verdicts.LOSSY and not method.lossy:
        yield f"{verdict}, but its meta says that the method is exact"
    if verdict == verdicts.EXACT and not question["equal"]:
        yield f"{verdict}, but its ids differ"
    if worst is None:
        if not (method.lossy or question["equal"] or verdict == verdicts.BUG):
            yield "none of its tokens was judged"
        return
    choices = method.questions[question["question_id"]].choices
    ids = {choice.index: choice.output_ids for choice in choices}[worst["choice"]]
    if ids[worst["turn"]][worst["position"]] != worst["token"]:
        yield "the judged token is not in the answer"
    if worst["gap"]:
        ulp = worst["gap"] / worst["ulps"]
        bound = max(verdicts.FACTOR * noise["maximum"], verdicts.FLOOR_ULPS * ulp)
        if not math.isclose(worst["bound"], bound, rel_tol=CLOSE):
            yield f"its bound is {worst['bound']:.3g}, that of the noise {bound:.3g}"
    ratio = verdicts.Worst(**worst).ratio
    limits = {verdicts.EXACT: 1, verdicts.TIES: 1, verdicts.SUSPECT: verdicts.MULTIPLE}
    if not ratio <= limits.get(verdict, math.inf):
        yield f"{verdict}, but its gap is {ratio:.3g} times the bound"
    if (parting and (parting["turn"], parting["position"])) not in partings(differences):
        yield "the judged answers part elsewhere"


def partings(differences):
    """{(turn, position)} where answers of one prompt go on with two tokens; {None} if nowhere."""
    places = {
        (one.turn, one.position)
        for one in differences
        if one.kind == "tokens" and None not in (one.base, one.other) and not one.after_difference
    }
    return places or {None}


def audit_problems(method, base, evidence):
    """Where an audit of sampled answers does not fit the file, or not its own numbers."""
    found, alpha = evidence["result"], evidence["alpha"]
    tokens = sum(sum(c.new_tokens) for q in method.questions.values() for c in q.choices)
    if found["tokens"] != tokens:
        yield f"its audit was of {found['tokens']} tokens, the answers have {tokens}"
    if not alpha >= ALPHA:
        yield f"its audit rejects p-values up to {alpha:g} alone, not up to {ALPHA:g}"
    for name in ("temperature", *NEUTRAL):
        said = find_field(method.meta, name)
        said = NEUTRAL.get(name) if said is None else said
        if found["settings"][name] != said:
            yield f"its audit was of {name} {found['settings'][name]}, its meta says {said}"
    dtype = find_field(method.meta, "dtype")
    if found["dtype"] != dtype:
        yield f"its audit was in {found['dtype']}, its answers are of {dtype}"
    if found["lossy"]:
        again = verdicts.LOSSY
    else:
        yield from corrected_problems(found, evidence["files"])
        bad = found["impossible"]["tokens"] or not found["p_holm"] > alpha
        again = REJECTED if bad else CONSISTENT
    if found["verdict"] != again:
        yield f"its verdict {found['verdict']} is not that of its own evidence, {again}"


def corrected_problems(found, num_files):
    """Where a corrected p-value cannot be Holm's of the file's own, among so many files."""
    smallest = min(test["p"] for test in found["tests"].values())
    most = min(1.0, smallest * len(found["tests"]) * num_files)
    if not smallest * (1 - CLOSE) <= found["p_holm"] <= most * (1 + CLOSE):
        yield f"its corrected p is {found['p_holm']:.3g}, its smallest p {smallest:.3g}"


def check_report(path):
    """Refuse a --judgement that is no report of a judge."""
    document = read_report(path)
    if not document or document["tool"] not in JUDGED:
        raise AnswerError(f"--judgement {path}: no report of equal.py or audit_sampling.py")
