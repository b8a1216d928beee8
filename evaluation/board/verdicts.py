"""The verdict of a leaderboard row: from the ids where they say it, else from a judge's report.

EXACT            every id is the baseline's: recomputed from the two files
LOSSY BY DESIGN  ids differ, and the meta says that the acceptance rule may change them
NOT JUDGED       ids differ, and nobody asked the target why
TIES ONLY ...    by `equal.py --model-path TARGET`: its report on these files is kept as evidence
CONSISTENT ...   of sampled answers, by audit_sampling.py, likewise

What a judge found takes its target to find again. Without it, its report is held to the files and
to itself: which questions differ, the tokens that it names, and that its numbers give its verdict.
"""

import json
from types import SimpleNamespace

from evaluation.answers.differences import file_verdicts
from evaluation.answers.meta import AnswerError
from evaluation.cli import read_report
from evaluation.judging import verdicts

NOT_JUDGED = "NOT JUDGED"
REJECTED = "REJECTED"  # of audit_sampling.py
REFUSED = (verdicts.BUG, verdicts.CANNOT, NOT_JUDGED, REJECTED)
IDS, META, TARGET, AUDIT = "ids", "meta", "target", "audit"  # what a verdict is known by
JUDGED = {"equal": TARGET, "audit_sampling": AUDIT}  # tool -> by


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
    """{question ids} whose answers are not the baseline's."""
    return {found.question_id for found in file_verdicts(base, method) if not found.equal}


def find_evidence(paths, method):
    """What one of the reports says of a method's file; None if none does.

    Reports name the files that they judged by sha256. The baseline may be another run's: which
    questions differ from it has to be the same.
    """
    for path in paths:
        document = read_report(path) or {}
        tool = document.get("tool")
        if tool not in JUDGED:
            continue
        for result in document.get("results", ()):
            judged = "judgement" in result or tool == "audit_sampling"
            if judged and result.get("sha256") == method.sha256:
                alpha = {"alpha": document["alpha"]} if tool == "audit_sampling" else {}
                evidence = {"tool": tool, **alpha, "result": without_lists(result)}
                return json.loads(json.dumps(evidence))
    return None


def without_lists(result):
    """A result of a report without what equal.py found beside the judgement: it is recomputed."""
    return {name: value for name, value in result.items() if name not in ("differences", "file")}


def problems(method, base, verdict):
    """Why a verdict's evidence is none, a line each; [] for a verdict that needs none."""
    evidence = verdict["evidence"]
    if evidence is None:
        return []
    try:
        check = equal_problems if evidence["tool"] == "equal" else audit_problems
        if evidence["result"]["sha256"] != method.sha256:
            return ["its verdict was given on another file"]
        return list(check(method, base, evidence))
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        return [f"its verdict's evidence is broken: {error!r}"]


def equal_problems(method, base, evidence):
    """Where a judgement of equal.py does not fit the files, or not its own numbers."""
    found = evidence["result"]["judgement"]
    questions = found["questions"]
    judged = {question["question_id"] for question in questions if not question["equal"]}
    if judged != differing(method, base):
        yield "its verdict was given on other differing questions"
    for question in questions:
        where = f"question {question['question_id']}"
        worst, verdict = question["worst"], question["verdict"]
        if worst is None:
            continue
        choices = method.questions[question["question_id"]].choices
        ids = next(c.output_ids for c in choices if c.index == worst["choice"])
        if ids[worst["turn"]][worst["position"]] != worst["token"]:
            yield f"{where}: the judged token is not in the answer"
        ratio = verdicts.Worst(**worst).ratio
        limits = {verdicts.EXACT: 1, verdicts.TIES: 1, verdicts.SUSPECT: found["multiple"]}
        if ratio > limits.get(verdict, ratio):
            yield f"{where}: {verdict}, but its gap is {ratio:.3g} times the bound"
    kept = [SimpleNamespace(verdict=question["verdict"]) for question in questions]
    noise = SimpleNamespace(**(found["noise"] or {"odd": None}))
    again, _ = verdicts.file_verdict(kept, noise, found["control"], found["proof"])
    if again != found["verdict"]:
        yield f"its verdict {found['verdict']} is not that of its own evidence, {again}"


def audit_problems(method, base, evidence):
    """Where an audit of sampled answers does not fit the file, or not its own numbers."""
    found = evidence["result"]
    tokens = sum(sum(c.new_tokens) for q in method.questions.values() for c in q.choices)
    if found["tokens"] != tokens:
        yield f"its audit was of {found['tokens']} tokens, the answers have {tokens}"
    bad = not found["lossy"] and (
        found["impossible"]["tokens"] or found["p_holm"] <= evidence["alpha"]
    )
    if bad and found["verdict"] != REJECTED:
        yield f"its verdict {found['verdict']} is not that of its own evidence, {REJECTED}"


def check_report(path):
    """Refuse a --judgement that is no report of a judge."""
    document = read_report(path)
    if not document or document["tool"] not in JUDGED:
        raise AnswerError(f"--judgement {path}: no report of equal.py or audit_sampling.py")
