"""equal.py --model-path where a fault of the target hits the judge's own readings too."""

import pytest
from conformance import defects
from conftest import save_model
from harness_runs import answer, ids_of, read
from verdict_files import Planter

from evaluation.judging.verdicts import BUG, CANNOT
from model.common.target import model as target_code


@pytest.fixture(scope="module")
def sharp_dir(tmp_path_factory):
    """A target whose attention looks closely, so that positions matter."""
    return save_model(tmp_path_factory.mktemp("sharp"), scale=0.3)


@pytest.fixture(autouse=True)
def no_check_at_load(monkeypatch):
    """A fault that shows in short prompts is refused there; these stand for those that do not."""
    monkeypatch.setattr("model.common.target.self_check.check", lambda target: None)


def judged(folder, model_dir, question_file, capsys, dtype, *flags):
    """(differing ids, exit status, judgement, stdout) of recycling's answers beside vanilla's."""
    paths = [folder / f"{method}.jsonl" for method in ("vanilla", "recycling")]
    for path in paths:
        answer(path.stem, model_dir, question_file, path, "--dtype", dtype, "--model-id", path.stem)
    capsys.readouterr()
    base, other = (ids_of(read(path)) for path in paths)
    planter = Planter.__new__(Planter)
    planter.base, planter.model_dir = paths[0], model_dir
    status, (found,), out, _ = planter.judge(capsys, paths[1], flags=flags)
    return [i for i in base if base[i] != other[i]], status, found, out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("defect", [defects.call_maximum, defects.column_bias])
def test_wrong_answers_of_a_planted_defect_are_not_excused(
    defect, dtype, tmp_path, sharp_dir, question_file, capsys, monkeypatch
):
    defect(monkeypatch)
    monkeypatch.setattr(defects, "BOUNDARY", 48)  # within the answers, behind the prompts
    differing, status, found, out = judged(tmp_path, sharp_dir, question_file, capsys, dtype)
    verdicts = {q["question_id"]: q["verdict"] for q in found["questions"]}
    assert differing and set(differing) == set(verdicts)
    assert set(verdicts.values()) <= {BUG, CANNOT} and found["verdict"] == CANNOT and status == 3
    odd = found["noise"]["odd"]
    assert odd["change"] > odd["limit"] and "question" in odd["where"]
    assert f"the target's own readings of one prefix differ by {odd['change']:.3g} logits" in out


def test_a_fault_that_all_of_our_readings_share_shows_against_transformers_forward(
    tmp_path, sharp_dir, question_file, capsys, monkeypatch
):
    rows_mask = target_code.rows_mask

    def without_the_first(length, columns, *more):
        allowed = rows_mask(length, columns, *more)
        allowed[:, :, 0] = columns == 0
        return allowed

    monkeypatch.setattr(target_code, "rows_mask", without_the_first)
    given = tmp_path, sharp_dir, question_file, capsys, "float32", "--all"
    differing, status, found, out = judged(*given)
    assert not differing and (status, found["verdict"]) == (3, CANNOT)
    assert "transformers' own forward against a prefill" in out
    assert found["noise"]["maximum"] < 1e-4  # the readings agree with each other
