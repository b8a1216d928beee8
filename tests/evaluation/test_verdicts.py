"""equal.py --model-path: the verdicts on planted differences, refusals, exit statuses."""

import pytest
from conftest import save_model
from harness_runs import answer, read, read_meta
from verdict_files import LIMIT, Planter

from evaluation import equal
from evaluation.answers.meta import AnswerError
from evaluation.judging.verdicts import BUG, CANNOT, EXACT, LOSSY, SUSPECT, TIES, worst

LOSSY_META = {"lossy": True, "acceptance": "typical (lossy)"}


@pytest.fixture(scope="module")
def small_dir(tmp_path_factory):
    """A target whose logits lie close together, so that bfloat16 ties are frequent."""
    return save_model(tmp_path_factory.mktemp("close"), scale=0.08)


@pytest.fixture(scope="module")
def planters(tmp_path_factory, small_dir, question_file):
    """{dtype: Planter} beside vanilla answers in that dtype."""
    folder = tmp_path_factory.mktemp("vanilla")
    made = {}
    for dtype in ("float32", "bfloat16"):
        base = folder / f"{dtype}.jsonl"
        flags = ("--dtype", dtype, "--model-id", f"vanilla-{dtype}")
        answer("vanilla", small_dir, question_file, base, *flags)
        made[dtype] = Planter(small_dir, question_file, base, dtype)
    return made


@pytest.fixture
def half(planters):
    return planters["bfloat16"]


@pytest.fixture
def single(planters):
    return planters["float32"]


def differing(judgement):
    return [q for q in judgement["questions"] if not q["equal"]]


def test_equal_files_are_exact_and_all_judges_them_too(half, capsys):
    status, (found,), out, _ = half.judge(capsys, half.base)
    assert (status, found["verdict"], found["questions"]) == (0, EXACT, [])
    status, (found,), out, _ = half.judge(capsys, half.base, flags=("--all",))
    assert (status, found["verdict"], len(found["questions"])) == (0, EXACT, 6)
    for question in found["questions"]:
        assert question["worst"]["gap"] <= question["worst"]["bound"] < 2
    assert "noise: bfloat16, single rows" in out


def test_a_flipped_near_tie_is_ties_only(half, tmp_path, capsys):
    path = half.planted(tmp_path / "m.jsonl", 0, 0.9)
    status, (found,), out, _ = half.judge(capsys, path)
    assert (status, found["verdict"]) == (0, TIES)
    (question,) = differing(found)
    assert question["verdict"] == TIES and question["worst"]["gap"] <= question["worst"]["bound"]
    assert question["parting"]["baseline_gap"] <= question["worst"]["bound"]
    assert "NOT EQUAL" in out and "TIES ONLY: " in out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_replaced_token_is_a_bug(planters, dtype, tmp_path, capsys):
    planter = planters[dtype]
    path = planter.planted(tmp_path / "m.jsonl", 10, 1e9)
    status, (found,), out, _ = planter.judge(capsys, path)
    assert (status, found["verdict"]) == (1, BUG)
    (question,) = differing(found)
    token = question["worst"]
    assert token["gap"] > 4 * token["bound"] and token["token"] != token["best"]
    assert question["parting"]["baseline_gap"] <= question["parting"]["bound"]
    assert "times the bound" in out


def test_a_gap_in_the_grey_zone_is_suspect(half, tmp_path, capsys):
    path = half.planted(tmp_path / "m.jsonl", 1.5, 3)
    status, (found,), _, _ = half.judge(capsys, path)
    assert (status, found["verdict"]) == (3, SUSPECT)


def without_end(planter):
    """A record of one turn that runs into the limit."""
    for number, record in enumerate(planter.records()):
        choice = record["choices"][0]
        if number and choice["finish_reason"] == ["length"]:
            return number
    pytest.fail("every answer stops by itself")


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda ids: ids[:10], "ends after 10 tokens without an end token"),
        (lambda ids: [*ids, 5], "25 tokens, but the limit is 24"),
        (lambda ids: [*ids[:12], 1, *ids[12:-1]], "11 tokens after the answer's end (token 12)"),
    ],
    ids=["short", "long", "after the end"],
)
def test_how_an_answer_ends(half, tmp_path, capsys, change, reason):
    records, number = half.records(), without_end(half)
    ids = records[number]["choices"][0]["output_ids"][0]
    assert len(ids) == LIMIT
    half.set_ids(records[number], change(ids))
    for meta in ({}, LOSSY_META):
        path = half.write(tmp_path / "m.jsonl", records, **meta)
        status, (found,), out, _ = half.judge(capsys, path)
        assert (status, found["verdict"]) == (1, BUG)
        assert reason in out


def test_a_missing_answer_is_a_bug_and_a_failed_baseline_is_not(half, tmp_path, capsys):
    records = half.records()
    path = half.write(tmp_path / "m.jsonl", records[:-1])
    status, (found,), out, _ = half.judge(capsys, path)
    assert (status, found["verdict"]) == (1, BUG) and "missing in this file" in out
    failed = {k: records[-1][k] for k in ("question_id", "category", "model_id")}
    broken = half.write(tmp_path / "b.jsonl", [*records[:-1], {**failed, "error": "out of memory"}])
    status, (found,), out, _ = half.judge(capsys, broken)
    assert status == 1 and "failed in this file only" in out
    status, (found,), _, _ = half.judge(capsys, half.base, base=broken)
    assert (status, found["verdict"]) == (0, TIES)


def test_a_lossy_file_is_lossy_by_design(half, tmp_path, capsys):
    """The typical rule runs at temperatures above 0 alone; there are no gaps then."""
    path = half.planted(tmp_path / "m.jsonl", 10, 1e9, **LOSSY_META)
    status, (found,), out, _ = half.judge(capsys, path)
    assert (status, found["verdict"]) == (0, LOSSY) and "LOSSY BY DESIGN" in out
    token = differing(found)[0]["worst"]
    assert token["gap"] > 4 * token["bound"]
    shared = {**read_meta(half.base)["shared"], "temperature": 0.7}
    base = half.write(tmp_path / "b.jsonl", half.records(), shared=shared)
    bug = read(half.planted(tmp_path / "m.jsonl", 10, 1e9))
    path = half.write(tmp_path / "m.jsonl", bug, shared=shared, **LOSSY_META)
    status, (found,), _, _ = half.judge(capsys, path, base=base)
    assert (status, found["verdict"], found["noise"]) == (0, LOSSY, None)
    half.set_ids(bug[1], bug[1]["choices"][0]["output_ids"][0][:5])
    path = half.write(tmp_path / "m.jsonl", bug, shared=shared, **LOSSY_META)
    status, (found,), _, _ = half.judge(capsys, path, base=base)
    assert (status, found["verdict"]) == (1, BUG)


def test_the_gravest_file_rules_the_exit_status(half, tmp_path, capsys):
    bug = half.planted(tmp_path / "bug.jsonl", 10, 1e9)
    grey = half.planted(tmp_path / "grey.jsonl", 1.5, 3)
    tie = half.planted(tmp_path / "tie.jsonl", 0, 0.9)
    assert half.judge(capsys, tie, grey)[0] == 3
    status, found, _, _ = half.judge(capsys, tie, bug, grey)
    assert status == 1 and [f["verdict"] for f in found] == [TIES, BUG, SUSPECT]
    (tmp_path / "grey.jsonl").write_text("{}\n")
    status, found, _, err = half.judge(capsys, bug, grey)
    assert status == 2 and len(found) == 1 and "question_id is missing" in err


def test_the_baseline_can_be_the_one_that_is_off(half, tmp_path, capsys):
    bug = half.planted(tmp_path / "base.jsonl", 10, 1e9)
    status, (found,), out, _ = half.judge(capsys, half.base, base=bug)
    assert (status, found["verdict"]) == (0, TIES)
    assert "the difference is the baseline's there" in out
    status, (found,), out, _ = half.judge(capsys, bug, base=bug, flags=("--all",))
    assert (status, found["verdict"]) == (1, BUG) and "the baseline has the same ids" in out


def refused(planter, capsys, path, *parts, flags=()):
    status, found, _, err = planter.judge(capsys, path, flags=flags)
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert status == 2 and found in ([None], []) and len(lines) == 1, err
    for part in parts:
        assert part in lines[0]


def shortened(planter):
    """The baseline's records, one answer of which ends early."""
    records = planter.records()
    planter.set_ids(records[1], records[1]["choices"][0]["output_ids"][0][:5])
    return records


def test_another_target_is_refused(half, tmp_path, capsys):
    path = half.write(tmp_path / "m.jsonl", shortened(half))
    other = save_model(tmp_path / "other", seed=3, scale=0.08)
    here = half.model_dir
    try:
        half.model_dir = other
        refused(half, capsys, path, "weights_sha256 is ", other)
    finally:
        half.model_dir = here


def test_other_prompts_are_refused(half, tmp_path, capsys):
    changed = shortened(half)
    changed[1]["choices"][0]["prompt_tokens"] = [7]
    path = half.write(tmp_path / "m.jsonl", changed)
    refused(half, capsys, path, "prompt_tokens is 7, the prompt rebuilt from", "question 12 turn 0")
    meta = read_meta(half.base)
    shared = {**meta["shared"], "prompts_sha256": "0" * 64}
    path = half.write(tmp_path / "m.jsonl", changed, shared=shared)
    flags = ("--allow", "prompts_sha256")
    refused(half, capsys, path, "prompt_tokens is 7", flags=flags)
    base = half.write(tmp_path / "b.jsonl", half.records(), shared=shared)
    status, _, _, err = half.judge(capsys, path, base=base)
    assert status == 2 and "prompts_sha256 is 000000000000..., that of the prompts rebuilt" in err
    refused(
        half, capsys, path, "--dtype float16, but its meta", flags=(*flags, "--dtype", "float16")
    )


def test_sampled_answers_are_not_judged_by_gaps(half, tmp_path, capsys):
    meta = read_meta(half.base)
    shared = {**meta["shared"], "temperature": 0.7}
    base = half.write(tmp_path / "b.jsonl", half.records(), shared=shared)
    path = half.write(tmp_path / "m.jsonl", shortened(half), shared=shared)
    status, _, _, err = half.judge(capsys, path, base=base)
    assert status == 2 and "evaluation/audit_sampling.py" in err
    status, (found,), _, _ = half.judge(capsys, base, base=base)
    assert (status, found["verdict"]) == (0, EXACT)


def test_flags_that_need_a_target_are_refused_without_one(half, capsys):
    for flags in (["--all"], ["--proof"], ["--dtype", "float32"], ["--template", "plain"]):
        with pytest.raises(AnswerError, match="needs --model-path"):
            equal.main([str(half.base), str(half.base), *flags])


def test_verdicts_are_ordered():
    assert worst([EXACT, TIES, LOSSY]) == TIES
    assert worst([SUSPECT, CANNOT, TIES]) == CANNOT and worst([CANNOT, BUG]) == BUG
    assert worst([]) == EXACT
