"""Verdicts of leaderboard rows that need the target: a judge's report is held to the files."""

import copy
import json

import pytest
from conftest import save_model
from harness_runs import answer, read, write
from verdict_files import Planter

from evaluation import leaderboard
from evaluation.answers.meta import AnswerError
from evaluation.answers.reader import read_answers
from evaluation.board import rules, verdicts
from evaluation.board.verdicts import decide, find_evidence, problems
from evaluation.judging.verdicts import BUG, SUSPECT, TIES


@pytest.fixture(scope="module")
def planter(tmp_path_factory, question_file):
    """Beside vanilla's answers in bfloat16, of a target whose logits lie close together."""
    model = save_model(tmp_path_factory.mktemp("close"), scale=0.08)
    base = tmp_path_factory.mktemp("vanilla") / "vanilla.jsonl"
    answer("vanilla", model, question_file, base, "--dtype", "bfloat16", "--model-id", "vanilla")
    return Planter(model, question_file, base, "bfloat16")


@pytest.fixture
def judged(planter, tmp_path, capsys):
    """judged(low, high) -> (method, base, evidence) of an answer at so many bounds of noise."""

    def judge(low, high):
        path = planter.planted(tmp_path / "m.jsonl", low, high)
        planter.judge(capsys, path)
        sides = read_answers(path), read_answers(planter.base)
        return *sides, find_evidence([planter.base.with_name("report.json")], sides[0])

    return judge


def test_ids_say_whether_a_file_is_exact_and_a_judge_why_it_is_not(judged):
    method, base, evidence = judged(0, 0.9)
    assert decide(base, base) == {"verdict": "EXACT", "by": "ids", "evidence": None}
    unknown = decide(method, base)
    assert (unknown["verdict"], unknown["by"]) == ("NOT JUDGED", None)
    assert "nobody judged why" in " ".join(rules.verdict_problems(unknown))
    verdict = decide(method, base, evidence)
    assert (verdict["verdict"], verdict["by"]) == (TIES, "target")
    assert problems(method, base, verdict) == [] == list(rules.verdict_problems(verdict))
    assert json.loads(json.dumps(verdict)) == verdict and "differences" not in evidence["result"]


def test_a_bug_is_no_row(judged):
    method, base, evidence = judged(8, 1e9)
    verdict = decide(method, base, evidence)
    assert verdict["verdict"] == BUG and problems(method, base, verdict) == []
    assert list(rules.verdict_problems(verdict)) == ["verdict BUG"]


def changed(evidence, edit):
    """A verdict whose evidence somebody has edited."""
    edited = copy.deepcopy(evidence)
    edit(edited, edited["result"]["judgement"])
    verdict = edited["result"]["judgement"]["verdict"]
    return {"verdict": verdict, "by": "target", "evidence": edited}


def test_edited_evidence_is_named(judged):
    method, base, evidence = judged(8, 1e9)

    def milder(all_of_it, found):
        found["verdict"] = TIES

    def milder_throughout(all_of_it, found):
        found.update(verdict=TIES)
        for question in found["questions"]:
            question["verdict"] = TIES

    def of_other_files(all_of_it, found):
        all_of_it["result"]["sha256"] = "0" * 64

    def fewer_questions(all_of_it, found):
        found.update(verdict="EXACT", questions=[])

    def another_token(all_of_it, found):
        (worst,) = [q["worst"] for q in found["questions"] if not q["equal"]]
        worst["token"] += 1

    def broken(all_of_it, found):
        found["questions"][0].pop("worst")

    for edit, reason in (
        (milder, "its verdict TIES ONLY is not that of its own evidence, BUG"),
        (milder_throughout, "TIES ONLY, but its gap is"),
        (of_other_files, "given on another file"),
        (fewer_questions, "given on other differing questions"),
        (another_token, "the judged token is not in the answer"),
        (broken, "evidence is broken: KeyError"),
    ):
        assert reason in " ".join(problems(method, base, changed(evidence, edit)))


def test_evidence_is_of_these_very_files(judged, planter, tmp_path):
    method, base, evidence = judged(0, 0.9)
    records = read(method.path)
    records[0]["tstamp"] = 0.0
    write(tmp_path / "m.jsonl", records)
    report = planter.base.with_name("report.json")
    assert find_evidence([report], read_answers(tmp_path / "m.jsonl")) is None
    assert find_evidence([tmp_path / "none.json", tmp_path / "m.jsonl"], method) is None
    verdict = decide(method, base, evidence)
    assert "other differing questions" in problems(method, method, verdict)[0]


def test_an_audit_of_sampled_answers_counts_their_tokens(judged):
    method, base, _ = judged(0, 0.9)
    tokens = sum(sum(c.new_tokens) for q in method.questions.values() for c in q.choices)
    found = {"sha256": method.sha256, "verdict": "CONSISTENT", "tokens": tokens, "lossy": False}
    found |= {"impossible": {"tokens": 0}, "p_holm": 0.4}
    evidence = {"tool": "audit_sampling", "alpha": 0.01, "result": found}
    verdict = decide(method, base, evidence)
    assert (verdict["by"], verdict["verdict"]) == ("audit", "CONSISTENT")
    assert problems(method, base, verdict) == []
    for edit in ({"impossible": {"tokens": 2}}, {"p_holm": 0.001}, {"p_holm": 0.0}):
        bad = verdict | {"evidence": evidence | {"result": found | edit}}
        assert "not that of its own evidence, REJECTED" in problems(method, base, bad)[0]
    other = verdict | {"evidence": evidence | {"result": found | {"tokens": 1}}}
    assert "audit was of 1 tokens" in problems(method, base, other)[0]


def test_a_judgement_is_a_judges_report(tmp_path):
    (tmp_path / "speed.json").write_text('{"tool": "speed"}')
    with pytest.raises(AnswerError, match="no report of equal.py or audit_sampling.py"):
        verdicts.check_report(tmp_path / "speed.json")
    argv = ["add", "--judgement", str(tmp_path / "none"), "m", "b", "--store", str(tmp_path)]
    with pytest.raises(AnswerError, match="none: no report"):
        leaderboard.main([*argv, "--page", str(tmp_path / "page.md")])


def test_a_suspicion_is_printed_and_no_reason_to_refuse(judged):
    method, base, evidence = judged(1.5, 3.5)
    verdict = decide(method, base, evidence)
    assert verdict["verdict"] == SUSPECT and problems(method, base, verdict) == []
    assert list(rules.verdict_problems(verdict)) == []
