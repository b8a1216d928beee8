"""Which questions a run pairs with the baseline, when, and what a resumed run does about it."""

import json

import pytest
from harness_runs import (
    COMMON,
    answer,
    ids_of,
    questions_of,
    read,
    read_meta,
    refusal,
    run,
    timeless,
    without,
    write,
)
from ray_stand_in import stand_in

from model.common import args as arguments
from model.common.contract.drafter import Draft
from model.common.contract.sequence import EmptyDrafter
from model.common.loop.decode import Loop
from model.common.pairs import BASELINE, METHOD, plan

PAIRS = "a-paired-baseline.jsonl"
UNPAIRED = COMMON[: COMMON.index("--paired")]


@pytest.fixture
def eight(question_file, tmp_path):
    """Eight questions, 11 .. 18."""
    questions = questions_of(question_file)
    more = [q | {"question_id": q["question_id"] + 6} for q in questions[:2]]
    return write(tmp_path / "eight.jsonl", questions + more)


@pytest.fixture
def ask(model_dir, question_file, tmp_path):
    """ask(flags): ids of the pairs that a run of pld into a.jsonl leaves, [] without a file."""

    def asked(*flags, method="pld", questions=question_file, **more):
        answer(method, model_dir, questions, tmp_path / "a.jsonl", *flags, **more)
        return pairs_in(tmp_path)

    return asked


def pairs_in(folder):
    """The questions in a folder's pairs' file."""
    path = folder / PAIRS
    return [record["question_id"] for record in read(path)] if path.exists() else []


def sides(work):
    """'m1 b1 m23' of a plan for questions 1, 2, ..."""
    letters = {METHOD: "m", BASELINE: "b"}
    return " ".join(letters[side] + "".join(map(str, group)) for side, group in work)


@pytest.mark.parametrize(
    "every, slots, wanted",
    [
        (0, 1, "m123456"),
        (1, 1, "m1 b1 b2 m2 m3 b3 b4 m4 m5 b5 b6 m6"),
        (2, 1, "m1 b1 m2 b3 m3 m4 m5 b5 m6"),
        (4, 1, "m1 b1 m234 b5 m5 m6"),
        (8, 1, "m1 b1 m23456"),
        (0, 2, "m123456"),
        (1, 2, "m12 b12 b34 m34 m56 b56"),
        (1, 4, "m1234 b1234 b56 m56"),
        (2, 2, "b1 m123456 b6"),
        (3, 1, "m1 b1 m23 b4 m4 m56"),
    ],
)
def test_a_plan_for_six_questions(every, slots, wanted):
    assert sides(plan([1, 2, 3, 4, 5, 6], every, slots)) == wanted


def test_every_plan_asks_the_method_all_and_costs_its_share():
    assert plan([], 8, 1) == []
    for number in range(1, 40):
        for every in range(6):
            for slots in (1, 2, 5):
                work, asked = plan(list(range(number)), every, slots), {METHOD: [], BASELINE: []}
                for side, group in work:
                    assert group
                    asked[side] += group
                assert sorted(asked[METHOD]) == list(range(number))
                assert len(set(asked[BASELINE])) == len(asked[BASELINE])
                if slots == 1 and every:
                    assert sorted(asked[BASELINE]) == list(range(0, number, every))
                elif every > 1 and number >= 2 * slots * every:
                    assert asked[BASELINE] == [*range(slots), *range(number - slots, number)]
                    assert [side for side, _ in work] == [BASELINE, METHOD, BASELINE]
                assert len(asked[BASELINE]) <= (number // every + slots if every else 0)


def test_by_default_methods_pair_and_vanilla_does_not(model_dir, question_file, tmp_path):
    for method, wanted in (("pld", [11]), ("vanilla", [])):
        where = ["--model-path", model_dir, "--question-file", question_file, *UNPAIRED]
        folder = tmp_path / method
        flags = ["--answer-file", folder / "a.jsonl", "--max-new-tokens", 4]
        assert run(method, *where, *flags) == 0
        assert pairs_in(folder) == wanted
        assert read_meta(folder / "a.jsonl")["arguments"]["paired"] == (8 if wanted else 0)


def test_pairs_are_the_baselines_answers(ask, tmp_path):
    assert ask("--paired", 2) == [11, 13, 15]
    own, pairs = read(tmp_path / "a.jsonl"), read(tmp_path / PAIRS)
    assert ids_of(pairs) == {i: ids for i, ids in ids_of(own).items() if i in (11, 13, 15)}
    assert all(set(r["choices"][0]["accept_lengths"]) == {1} for r in pairs)
    metas = [read_meta(tmp_path / name) for name in ("a.jsonl", PAIRS)]
    assert metas[0]["shared"] == metas[1]["shared"] and "pairs_of" not in metas[0]
    assert metas[1]["pairs_of"] == metas[0]["model_id"] and metas[1]["method"] == "vanilla"
    for question_id in (11, 13, 15):  # now before, now after its answer, and nothing between
        begun = {r["question_id"]: r["choices"][0]["begin_s"][0] for r in own}
        beside = next(r for r in pairs if r["question_id"] == question_id)
        pair = beside["choices"][0]["begin_s"][0]
        assert (pair > begun[question_id]) is (question_id != 13)
        low, high = sorted((pair, begun[question_id]))
        assert not [one for one in begun.values() if low < one < high]


def test_what_is_asked_is_what_is_paired(ask, model_dir, eight, tmp_path):
    """Choices of questions, several answers, slots."""
    flags = ["--paired", 2, "--overwrite"]
    assert ask(*flags, "--question-begin", 1) == [12, 14, 16]
    assert ask(*flags, "--question-ids", "12,13,16") == [12, 16]
    assert ask(*flags, "--num-choices", 2) == [11, 13, 15]
    assert {len(record["choices"]) for record in read(tmp_path / PAIRS)} == {2}
    assert ask(*flags, "--batch-size", 2, questions=eight) == [11, 12, 17, 18]
    slots = {record["choices"][0]["slot"][0] for record in read(tmp_path / PAIRS)}
    assert slots == {0, 1}
    assert ask(*flags, "--batch-size", 3) == [11, 16]
    assert ask("--paired", 0, "--overwrite") == []


def test_pairs_change_no_answer(ask, tmp_path):
    """Also of a method that carries a state from question to question."""
    for flags in ([], ["--state", "warm", "--prompt-seeds"]):
        found = []
        for every in (0, 1, 2):
            method = "recycling" if flags else "pld"
            ask("--paired", every, *flags, "--overwrite", method=method)
            found.append(timeless(read(tmp_path / "a.jsonl")))
        assert found[0] == found[1] == found[2]


def test_a_resumed_run_pairs_what_is_left(ask, tmp_path):
    """Three of six are answered: 11 and 13 have pairs, of 14, 15, 16 the first and the last."""

    class Interrupted(EmptyDrafter):
        def start(self, *arguments):
            if len(read(tmp_path / "a.jsonl")) == 3:
                raise KeyboardInterrupt
            super().start(*arguments)

    assert ask("--paired", 2, build=lambda args, target: Interrupted(), code=130) == [11, 13]
    first = read(tmp_path / PAIRS)
    assert ask("--paired", 2) == [11, 13, 14, 16]
    assert read(tmp_path / PAIRS)[:2] == first
    before = (tmp_path / PAIRS).read_bytes()
    assert ask("--paired", 2) == [11, 13, 14, 16] and (tmp_path / PAIRS).read_bytes() == before


def test_a_wider_choice_pairs_what_is_new(ask, tmp_path):
    assert ask("--paired", 2, "--question-end", 2) == [11]
    assert ask("--paired", 2) == [11, 13, 15]
    assert len(read(tmp_path / "a.jsonl")) == 6


@pytest.mark.parametrize("recorded, good", [(2, 2), (True, 1), (False, 0)])
def test_another_share_is_another_run(
    ask, model_dir, question_file, tmp_path, capfd, recorded, good
):
    """Pairs cannot be decoded afterwards. Older metas say true or false."""
    ask("--paired", good)
    for name in ("a.meta.json", "a-paired-baseline.meta.json"):
        if (tmp_path / name).exists():
            meta = json.loads((tmp_path / name).read_text())
            meta["arguments"]["paired"] = recorded
            (tmp_path / name).write_text(json.dumps(meta))
    before = pairs_in(tmp_path)
    where = ["--model-path", model_dir, "--question-file", question_file, *UNPAIRED]
    flags = ["--answer-file", tmp_path / "a.jsonl", "--max-new-tokens", 24]
    for other, value in ((["--paired", 3], 3), ([], 8)):
        capfd.readouterr()
        line = refusal(capfd, run("pld", *where, *flags, *other))
        assert f"answers of another run (paired: {good} / {value}); --overwrite" in line
    assert ask("--paired", good) == before


def test_pairs_of_answers_that_are_gone_are_not_kept(ask, tmp_path):
    """They tell of another time: deleted answers, or overwritten ones."""
    ask("--paired", 2)
    old = read(tmp_path / PAIRS)
    (tmp_path / "a.jsonl").unlink()
    assert ask("--paired", 2) == [11, 13, 15]
    new = read(tmp_path / PAIRS)
    assert timeless(new) == timeless(old)
    assert not {r["tstamp"] for r in new} & {r["tstamp"] for r in old}
    assert ask("--paired", 0, "--overwrite") == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "a.meta.json"]


def test_a_failing_pair_is_one_failed_question(ask, monkeypatch, tmp_path, capfd):
    """It is lost, since decoded later it would tell of another time; the answer stands."""

    class Own(EmptyDrafter):
        pass

    begun = []

    def start(self, prompt):
        begun.append(type(self))
        if begun.count(EmptyDrafter) == 2 and type(self) is EmptyDrafter:
            raise RuntimeError("no luck")
        self.draft = Draft(prompt.tokens.new_empty(1, 0))

    monkeypatch.setattr(EmptyDrafter, "start", start)
    flags = ["--paired", 2, "--question-begin", 1]
    ask(*flags, build=lambda args, target: Own(), code=1)
    assert [r.get("error") for r in read(tmp_path / PAIRS)] == [None, "RuntimeError: no luck", None]
    assert not [r for r in read(tmp_path / "a.jsonl") if "error" in r]
    assert ask(*flags, build=lambda args, target: Own()) == [12, 16]


@pytest.mark.parametrize("every, wanted", [(0, "mmm"), (1, "mbmbmb"), (2, "mbmm"), (8, "mbmm")])
def test_the_warm_up_has_its_share(ask, monkeypatch, every, wanted):
    """Three decodings of the first question; the baseline's are three or, of a share, one."""

    class Own(EmptyDrafter):
        pass

    decoded, runs = [], Loop.run

    def logged(self, source):
        decoded.append("m" if isinstance(self.drafter, Own) else "b")
        runs(self, source)

    monkeypatch.setattr(Loop, "run", logged)
    flags = ["--paired", every, "--warmup", 3, "--question-end", 1]
    ask(*flags, build=lambda args, target: Own())
    assert "".join(decoded) == wanted + ("mb" if every else "m")


def test_every_run_of_several_has_pairs(model_dir, question_file, tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "ROOT", tmp_path)
    bench = tmp_path / "data" / "tiny_bench"
    bench.mkdir(parents=True)
    write(bench / "question.jsonl", questions_of(question_file))
    flags = ["--model-path", model_dir, "--bench-name", "tiny_bench", "--max-new-tokens", 4]
    flags += [*COMMON, "--num-runs", 2, "--model-id", "a", "--paired", 4]
    assert run("pld", *flags) == 0
    runs = [bench / "model_answer" / f"run_{number}" for number in (1, 2)]
    assert [pairs_in(folder) for folder in runs] == [[11, 15], [11, 15]]
    files = [without(timeless(read(folder / PAIRS)), "answer_id") for folder in runs]
    assert files[0] == files[1]


def test_workers_pair_their_own_questions(ask, monkeypatch, tmp_path):
    """Two workers have 11, 12, 13 and 14, 15, 16; one that is started again has what is left."""
    ray = stand_in(monkeypatch)
    two = ["--num-gpus-total", 2, "--device", "auto", "--paired", 2]
    assert ask(*two) == [11, 13, 14, 16]
    assert len(list(tmp_path.iterdir())) == 4
    assert ask(*two) == [11, 13, 14, 16] and len(ray.workers) == 2
    write(tmp_path / "a.jsonl", read(tmp_path / "a.jsonl")[:4])
    write(tmp_path / PAIRS, read(tmp_path / PAIRS)[:3])
    assert ask(*two) == [11, 13, 14, 15, 16]  # a worker each for 15 and 16


def test_vanilla_beside_itself(ask, tmp_path):
    """Asked for, an A/A comparison of the harness."""
    assert ask("--paired", 1, method="vanilla") == [11, 12, 13, 14, 15, 16]
    own, pairs = (ids_of(read(tmp_path / name)) for name in ("a.jsonl", PAIRS))
    assert own == pairs


@pytest.mark.parametrize("value", ["-1", "x", "1.5"])
def test_a_share_is_a_whole_number(model_dir, question_file, tmp_path, capfd, value):
    where = ["--model-path", model_dir, "--question-file", question_file, *UNPAIRED]
    line = refusal(capfd, run("pld", *where, "--paired", value))
    assert "--paired" in line and value in line
