"""Verdicts of leaderboard rows that need the target: a judge's report is held to the files."""

import copy
import json

import pytest
from conftest import save_model
from harness_runs import answer, read, read_meta, write
from verdict_files import Planter

from evaluation import audit_sampling, leaderboard
from evaluation.answers.meta import AnswerError
from evaluation.answers.reader import read_answers
from evaluation.audit_sampling import NEUTRAL
from evaluation.board import rules, verdicts
from evaluation.board.verdicts import decide, find_evidence, problems
from evaluation.judging.verdicts import BUG, EXACT, LOSSY, SUSPECT, TIES


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


def one(found):
    """The judgement of the question that differs."""
    (question,) = [q for q in found["questions"] if not q["equal"]]
    return question


def milder(found, verdict=TIES):
    """A kinder verdict on the question and on the file."""
    one(found)["verdict"] = found["verdict"] = verdict


def unread(found):
    milder(found)
    one(found)["worst"] = None


def looser(found):
    """The bound is a hundred times as wide, so that the gap is within it."""
    milder(found)
    one(found)["worst"]["bound"] *= 100


def coarser(found):
    """Consistent in all numbers: the noise is of another precision, and counts more."""
    looser(found)
    found["noise"] |= {"dtype": "float16", "factor": 100 * found["noise"]["factor"]}


EDITS = {  # of the report's result and its judgement, and the line that names it
    "milder": (lambda result, found: found.update(verdict=TIES), "own evidence, BUG"),
    "milder throughout": (lambda result, found: milder(found), "TIES ONLY, but its gap is"),
    "exact": (lambda result, found: milder(found, EXACT), "EXACT, but its ids differ"),
    "by design": (lambda result, found: milder(found, LOSSY), "its meta says that the method is"),
    "a lossy file": (lambda result, found: result.update(lossy=True), "judge took it for lossy"),
    "other files": (lambda result, found: result.update(sha256="0" * 64), "on another file"),
    "other meta": (lambda result, found: result.update(meta_sha256="0" * 64), "another meta"),
    "an old report": (lambda result, found: result.pop("meta_sha256"), "judge again"),
    "no questions": (
        lambda result, found: found.update(verdict=EXACT, questions=[]),
        "given on other differing questions",
    ),
    "another token": (
        lambda result, found: one(found)["worst"].update(token=one(found)["worst"]["token"] + 1),
        "the judged token is not in the answer",
    ),
    "unread": (lambda result, found: unread(found), "none of its tokens was judged"),
    "looser": (lambda result, found: looser(found), "its bound is"),
    "coarser": (lambda result, found: coarser(found), "its noise was measured in float16"),
    "coarser bound": (lambda result, found: coarser(found), "x the noise, at least"),
    "another multiple": (lambda result, found: found.update(multiple=1e9), "its BUG begins at"),
    "another place": (
        lambda result, found: one(found)["parting"].update(position=10**6),
        "the judged answers part elsewhere",
    ),
    "no place": (lambda result, found: one(found).update(parting=None), "part elsewhere"),
    "broken": (lambda result, found: one(found).pop("worst"), "evidence is broken: KeyError"),
    "no choice": (
        lambda result, found: one(found)["worst"].update(choice=9),
        "evidence is broken: KeyError",
    ),
    "no size": (
        lambda result, found: one(found)["worst"].update(ulps=0.0),
        "evidence is broken: ZeroDivisionError",
    ),
}


def test_edited_evidence_is_named(judged):
    method, base, evidence = judged(8, 1e9)
    for name, (edit, reason) in EDITS.items():
        edited = copy.deepcopy(evidence)
        edit(edited["result"], edited["result"]["judgement"])
        found = problems(method, base, decide(method, base, edited))
        assert reason in " ".join(found), name


def test_a_report_is_of_the_metas_very_bytes(judged, planter, capsys):
    """A meta that is lossy while the judge looks, and is not in the row."""
    method, _, honest = judged(8, 1e9)
    report, meta = planter.base.with_name("report.json"), method.path.with_suffix(".meta.json")
    kept, first = meta.read_bytes(), report.with_name("first.json")
    report.rename(first)
    word = {"lossy": True, "acceptance": "typical (lossy)"}
    meta.write_text(json.dumps(read_meta(method.path) | word))
    planter.judge(capsys, method.path)
    meta.write_bytes(kept)
    method, base = read_answers(method.path), read_answers(planter.base)
    verdict = decide(method, base, find_evidence([report], method))
    assert verdict["verdict"] == LOSSY and list(rules.verdict_problems(verdict)) == []
    (line,) = problems(method, base, verdict)
    assert line == "its verdict was given with another meta: judge again"
    assert find_evidence([report, first], method) == honest


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


def audited(method):
    """(verdict, evidence) of an audit that found nothing, made up for a file."""
    tokens = sum(sum(c.new_tokens) for q in method.questions.values() for c in q.choices)
    found = {"sha256": method.sha256, "meta_sha256": method.meta_sha256, "lossy": False}
    found |= {"verdict": "CONSISTENT", "tokens": tokens, "dtype": "bfloat16"}
    found |= {"settings": {"temperature": 0.7, **NEUTRAL}, "impossible": {"tokens": 0}}
    tests = {"surprisal": {"p": 0.3}, "pit-mass": {"p": 0.5}, "pit-id": {"p": 0.4}}
    return {
        "tool": "audit_sampling",
        "alpha": 0.01,
        "files": 2,
        "result": found | {"tests": tests, "p_holm": 0.9},
    }


SMALL = {"surprisal": {"p": 1e-9}, "pit-mass": {"p": 0.5}, "pit-id": {"p": 0.4}}


@pytest.mark.parametrize(
    "edit, reason",
    [
        ({"impossible": {"tokens": 2}}, "not that of its own evidence, REJECTED"),
        ({"tests": SMALL, "p_holm": 6e-9}, "not that of its own evidence, REJECTED"),
        ({"tests": SMALL, "p_holm": 0.4}, "its corrected p is 0.4, its smallest p 1e-09"),
        ({"p_holm": 0.2}, "its corrected p is 0.2, its smallest p 0.3"),
        ({"tokens": 1}, "audit was of 1 tokens"),
        ({"dtype": "float32"}, "its audit was in float32, its answers are of bfloat16"),
        ({"settings": {"temperature": 0.7, **NEUTRAL, "top_p": 0.5}}, "its audit was of top_p 0.5"),
        ({"settings": {"temperature": 1, **NEUTRAL}}, "its audit was of temperature 1"),
        ({"settings": NEUTRAL}, "evidence is broken: KeyError('temperature')"),
        ({"lossy": True, "verdict": LOSSY, "p_holm": None}, "its judge took it for lossy"),
        ({"verdict": LOSSY}, "its verdict LOSSY BY DESIGN is not that of its own evidence"),
    ],
)
def test_an_audit_of_sampled_answers_is_held_to_its_file(edit, reason, judged):
    method, base, _ = judged(0, 0.9)
    method.meta["shared"]["temperature"] = 0.7
    evidence = audited(method)
    verdict = decide(method, base, evidence)
    assert (verdict["by"], verdict["verdict"]) == ("audit", "CONSISTENT")
    assert problems(method, base, verdict) == []
    verdict = decide(method, base, evidence | {"result": evidence["result"] | edit})
    assert reason in " ".join(problems(method, base, verdict))


def test_each_judge_has_its_kind_of_answers(judged):
    method, base, of_greedy = judged(0, 0.9)
    of_sampled = audited(method)
    of_sampled["result"]["settings"]["temperature"] = 0
    line = "sampled answers are judged by audit_sampling.py, greedy ones by equal.py"
    assert problems(method, base, decide(method, base, of_sampled)) == [line]
    method.meta["shared"]["temperature"] = 0.7
    assert problems(method, base, decide(method, base, of_greedy)) == [line]


@pytest.mark.parametrize("alpha", [None, "1e-30"])
def test_a_real_audit_fits_its_file_and_cannot_be_a_lenient_one(alpha, planter, tmp_path):
    path, report = tmp_path / "m.jsonl", tmp_path / "audit.json"
    flags = ("--temperature", 0.7, "--dtype", "bfloat16", "--model-id", "m")
    answer("pld", planter.model_dir, planter.question_file, path, *flags)
    argv = [path, "--device", "cpu", "--num-threads", 1, "--json", report]
    audit_sampling.main([str(part) for part in argv + (["--alpha", alpha] if alpha else [])])
    method, base = read_answers(path), read_answers(planter.base)
    evidence = find_evidence([report], method)
    assert evidence["tool"] == "audit_sampling" and evidence["files"] == 1
    found = problems(method, base, decide(method, base, evidence))
    assert found == ["its audit rejects p-values up to 1e-30 alone, not up to 0.01"] * bool(alpha)


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
