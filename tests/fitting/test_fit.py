"""Trees left to the harness: cut, recorded, drafted again by a resumed run; answers stay exact."""

import json
from pathlib import Path

import pytest
from answer_samples import run_tool
from harness_runs import (
    answer,
    ids_of,
    read,
    read_meta,
    refusal,
    refused,
    run,
    where,
    write,
)
from recording import Recording
from tiny_methods import MINI, TINY_FLAGS, build, decode, mini_bench, tiny_target

from model.common.contract.static_tree import check_tree
from model.common.errors import BadInput
from model.common.fitting import fit
from model.common.fitting.fit import Watched, fit_tree
from model.common.loop.sampling import Sampler
from model.common.loop.source import Prompts, Request
from model.common.loop.turns import StopRules
from model.common.target.loading import load_target

AUTO = {  # flags that leave a method's tree to the harness
    "eagle": ["--tree", "auto"],
    "eagle2": ["--total-token", "auto"],
    "eagle3": ["--total-token", "auto"],
    "hydra": ["--tree", "auto"],
    "medusa": ["--tree", "auto"],
    "recycling": ["--tree", "auto"],
    "specexec": ["--max-budget", "auto", "--max-beam-len", "6"],
}
STATIC = ("eagle", "hydra", "medusa", "recycling")
FLAT = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0, 16: 1.0, 32: 1.0, 64: 1.0, 128: 1.0}
DEAR = {rows: float(rows) for rows in FLAT}


def own_flags(method, model, draft):
    """What a method cannot do without on a tiny target."""
    paths = {"target": model, "draft": draft}
    flags = TINY_FLAGS[method](paths) if method in TINY_FLAGS else []
    return [flag for flag in flags if flag not in ("--max-budget", "24")]


def plant(monkeypatch, price):
    """A price of verification, beside which the drafter takes no time."""
    monkeypatch.setattr(fit, "price_of_rows", lambda *given: dict(price))
    monkeypatch.setattr(fit, "_beside", lambda *given: lambda nodes, depth: 0.0)


# --- harness ---


@pytest.mark.parametrize("method", AUTO)
@pytest.mark.parametrize("price", [FLAT, DEAR], ids=["flat", "dear"])
def test_answers_are_vanillas(
    method, price, model_dir, draft_dir, question_file, tmp_path, monkeypatch
):
    """The tree that was chosen is recorded and is what every step drafts."""
    plant(monkeypatch, price)
    model = tiny_target(method, model_dir)
    expected = answer("vanilla", model, question_file, tmp_path / "vanilla.jsonl")
    out = tmp_path / f"{method}.jsonl"
    flags = [*own_flags(method, model, draft_dir), *AUTO[method], "--batch-size", 2]
    records = answer(method, model, question_file, out, *flags, "--paired", 0)
    assert ids_of(records) == ids_of(expected)
    meta = read_meta(out)
    tree, facts = meta["fitted_tree"], meta["method_facts"]
    assert (facts["auto_nodes"], facts["auto_depth"]) == (tree["num_nodes"], tree["depth"])
    assert set(tree["questions"]) <= {r["question_id"] for r in records} and tree["steps"] > 0
    drafted = [n for r in records for c in r["choices"] for turn in c["drafted"] for n in turn]
    assert max(drafted) <= tree["num_nodes"] <= tree["whole"][0]
    depths = [n for r in records for c in r["choices"] for turn in c["depth"] for n in turn]
    assert max(depths) <= tree["depth"] <= tree["whole"][1]
    if method in STATIC:
        paths = check_tree(tree["paths"], "auto", 97 * 97)
        assert len(paths) == tree["num_nodes"] and max(map(len, paths)) == tree["depth"]
        assert set(drafted) == {len(paths)} or method == "recycling"
    if price is DEAR or tree["expected"] > 1.1:  # a random head may be right nowhere
        assert (tree["num_nodes"] == 1) is (price is DEAR)


@pytest.mark.parametrize("method", ["recycling", "eagle2", "specexec"])
def test_sampled_answers_are_vanillas(method, model_dir, draft_dir, question_file, tmp_path):
    """Point guesses: id for id, whatever tree was measured to pay."""
    sampled = ["--temperature", 1, "--seed", 3]
    expected = answer("vanilla", model_dir, question_file, tmp_path / "v.jsonl", *sampled)
    flags = [*own_flags(method, model_dir, draft_dir), *AUTO[method], *sampled]
    records = answer(method, model_dir, question_file, tmp_path / "a.jsonl", *flags)
    assert ids_of(records) == ids_of(expected)
    tree = read_meta(tmp_path / "a.jsonl")["fitted_tree"]
    price = tree["price_s"]  # of more than two rows where two do not cost too much
    assert {"1", "2"} <= set(price) and min(price.values()) > 0
    assert tree["plain_tokens_per_s"] == pytest.approx(1 / price["1"], rel=0.01)


def test_a_resumed_run_drafts_the_recorded_tree(
    model_dir, question_file, tmp_path, monkeypatch, capfd
):
    """Also where the machine would choose another one now; so do further runs of one command."""
    out = tmp_path / "a.jsonl"
    plant(monkeypatch, FLAT)
    whole = answer("recycling", model_dir, question_file, out, "--tree", "auto")
    before = read_meta(out)["fitted_tree"]
    write(out, whole[:2])
    plant(monkeypatch, DEAR)
    again = answer("recycling", model_dir, question_file, out, "--tree", "auto")
    assert read_meta(out)["fitted_tree"] == before and before["num_nodes"] > 1
    steps = [[c["accept_lengths"] for c in r["choices"]] for r in whole]
    assert [[c["accept_lengths"] for c in r["choices"]] for r in again] == steps
    assert capfd.readouterr().err.count(f"tree: {before['num_nodes']} of 80 nodes") == 2
    answer("recycling", model_dir, question_file, out, "--tree", "auto", "--overwrite")
    assert read_meta(out)["fitted_tree"]["num_nodes"] == 1


def test_all_runs_of_a_command_draft_one_tree(model_dir, question_file, tmp_path, monkeypatch):
    from model.common import args as arguments

    monkeypatch.setattr(arguments, "ROOT", tmp_path)
    plant(monkeypatch, FLAT)
    flags = [*where({"model": model_dir, "questions": question_file, "tmp": tmp_path})]
    place = flags.index("--answer-file")
    del flags[place : place + 2]
    flags += ["--tree", "auto", "--model-id", "x", "--num-runs"]
    assert run("recycling", *flags, 1) == 0
    plant(monkeypatch, DEAR)
    assert run("recycling", *flags, 2) == 0
    files = [tmp_path / f"data/mini_bench/model_answer/run_{n}/x.jsonl" for n in (1, 2)]
    trees = [read_meta(file)["fitted_tree"] for file in files]
    assert trees[0] == trees[1] and trees[0]["num_nodes"] > 1


def test_answers_of_two_trees_are_refused(model_dir, question_file, tmp_path, monkeypatch, capfd):
    """Files of --num-runs, of which one was put there from elsewhere."""
    tree = {"num_nodes": 3, "depth": 2}
    files = [
        type("File", (), {"path": tmp_path / name, "meta": {"fitted_tree": tree | more}})
        for name, more in (("a", {}), ("b", {"expected": 2.0}), ("c", {"depth": 1}))
    ]
    assert fit.recorded_tree(files[:2]) == tree
    with pytest.raises(BadInput, match="c: its answers are of another tree than those of .*a"):
        fit.recorded_tree(files)


def test_merged_parts_are_of_one_tree(model_dir, question_file, tmp_path, monkeypatch):
    parts = []
    for price, flags in ((FLAT, ["--question-end", 3]), (DEAR, ["--question-begin", 3])):
        plant(monkeypatch, price)
        parts.append(tmp_path / f"{len(parts)}.jsonl")
        flags = [*flags, "--tree", "auto", "--model-id", "x", "--paired", 0]
        answer("recycling", model_dir, question_file, parts[-1], *flags)
    merge = "evaluation/merge.py"
    done = run_tool(merge, *parts, "--output", tmp_path / "both.jsonl")
    assert done.returncode == 2 and "fitted_tree" in done.stderr
    meta = read_meta(parts[1]) | {"fitted_tree": read_meta(parts[0])["fitted_tree"]}
    parts[1].with_suffix(".meta.json").write_text(json.dumps(meta))
    done = run_tool(merge, *parts, "--output", tmp_path / "both.jsonl")
    assert done.returncode == 0, done.stderr


# --- choices on real drafts ---


@pytest.fixture(scope="module")
def mini():
    return load_target(str(MINI / "target"), "float32", "cpu", "eager")


@pytest.mark.parametrize("method", ["eagle2", "medusa"])
def test_what_is_expected_comes_true(method, mini, monkeypatch):
    """Mean accepted tokens of the chosen tree on the very questions it was fitted on."""
    plant(monkeypatch, {1: 1.0, 2: 1.05, 4: 1.15, 8: 1.3, 16: 1.7, 32: 2.5, 64: 4.0})
    prompter, stop, questions = mini_bench()
    prompts = {
        q["question_id"]: prompter.render(q["turns"][:1], [])
        for q in questions[:: len(questions) // 6]
    }
    drafter = build(method, str(MINI / "target"), mini, AUTO[method])

    def loop(drafter, source):
        from model.common.loop.decode import Loop

        Loop(mini, drafter, Sampler(), stop, 1, 400).run(source)

    whole = drafter.max_nodes
    tree = fit_tree(drafter, mini, prompts, 1, loop)
    assert 2 < tree["num_nodes"] == drafter.max_nodes < whole
    source = Prompts([Request(prompts[name], fit.TOKENS) for name in tree["questions"]])
    loop(drafter, source)
    lengths = [length for turn in source.answers() for length in turn.accept_lengths]
    assert sum(lengths) / len(lengths) == pytest.approx(tree["expected"], rel=0.15)


@pytest.mark.parametrize("method", AUTO)
def test_a_resized_drafter_is_one_of_that_size(method, model_dir, draft_dir):
    """Its drafts are those of a drafter that was built so, in slots that are filled again."""
    model = tiny_target(method, model_dir)
    target = load_target(model, "float32", "cpu", "eager")
    flags = own_flags(method, model, draft_dir)
    resized = build(method, model, target, [*flags, *AUTO[method]])
    paths = resized.paths and [path for path in resized.paths[:12] if len(path) < 3]
    num_nodes, depth = len(paths) if paths else 9, 2 if paths else 3
    drafts = []
    for _ in range(2):  # the second time from the same drafter, after it was used
        resized.resize(num_nodes, depth, paths)
        drafts.append(drafts_of(target, resized))
    size = {
        "specexec": ["--max-budget", 9, "--max-beam-len", 3],
        "eagle2": ["--total-token", 10, "--depth", 2],
        "eagle3": ["--total-token", 10, "--depth", 2],
    }
    file = Path(draft_dir).parent / f"{method}-tree.json"
    if paths:
        file.write_text(json.dumps([list(path) for path in paths]))
    given = map(str, size.get(method, ["--tree", file]))
    built = build(method, model, target, [*flags, *given])
    assert not built.fits_tree and resized.fits_tree
    assert drafts[0] == drafts[1] == drafts_of(target, built)


def drafts_of(target, drafter):
    """(tokens, parents) of all drafts of three answers in two slots."""
    recording = Recording(drafter)
    decode(target, recording, [[5, 6, 7], [8, 9], [11, 12, 13, 14]], StopRules(), 16, batch=2)
    return [(one.slot, one.tokens, one.parents) for one in recording.drafts]


def test_what_is_watched(mini):
    """Accepted nodes are the committed ones: one more is committed than accepted."""
    prompter, stop, questions = mini_bench()
    prompts = [prompter.render(q["turns"][:1], []) for q in questions[:3]]
    for method in ("eagle2", "medusa"):
        watched = Watched(build(method, str(MINI / "target"), mini, AUTO[method]))
        _, lengths = decode(mini, watched, prompts, stop, 24)
        steps = [length for turn in lengths for length in turn]
        accepted = [1 + sum(one.accepted) for one in watched.seen]
        assert len(accepted) == len(steps) and max(accepted) > 2
        last = {sum(map(len, lengths[:n])) - 1 for n in (1, 2, 3)}  # cut at the limit
        assert all(a == s for i, (a, s) in enumerate(zip(accepted, steps)) if i not in last)
        for one in watched.seen:
            assert all(one.accepted[p] or p < 0 for p, a in zip(one.parents, one.accepted) if a)
            scores = one.scores
            assert all(p < 0 or scores[n] <= scores[p] for n, p in enumerate(one.parents) if scores)


# --- bad input ---


@pytest.mark.parametrize(
    "method, flags, words",
    [
        ("eagle2", ["--total-token", "some"], ["--total-token", "some", "or auto"]),
        ("eagle2", ["--total-token", 1], ["--total-token", "at least 2", "or auto"]),
        ("eagle2", ["--total-token", "auto", "--draft-top-k", 500], ["--draft-top-k 500"]),
        ("samd", ["--total-token", "auto"], ["--total-token", "auto"]),
        ("recycling", ["--tree", "auto:nowhere.json"], ["nowhere.json", "2.2.2"]),
        ("medusa", ["--tree", "auto:nothing"], ["--tree nothing"]),
        ("specexec", ["--max-budget", "auto", "--gen-type", "specinfer"], ["--max-budget"]),
        ("specexec", ["--max-budget", "most"], ["--max-budget", "or auto"]),
    ],
)
def test_bad_flags(capfd, paths, method, flags, words, model_dir, draft_dir):
    own = own_flags(method, model_dir, draft_dir)
    line = refused(capfd, paths, *own, *flags, method=method)
    assert all(word in line for word in words), line


def test_several_workers_would_choose_several_trees(capfd, paths):
    flags = ["--tree", "auto", "--num-gpus-total", 2, "--device", "auto"]
    code = run("recycling", *where(paths), *flags)
    assert "--tree auto needs one worker" in refusal(capfd, code)


def test_the_sweep_takes_numbers(capfd, model_dir, draft_dir, tmp_path):
    from model.specexec.sweep import main

    flags = ["--model-path", model_dir, "--drafter-path", draft_dir, "--max-budget", "auto"]
    with pytest.raises(SystemExit) as ended:
        main([*flags, "--output", str(tmp_path)])
    assert "--max-budget" in refusal(capfd, ended.value.code)


def test_nothing_to_fit_on(capfd, paths, monkeypatch):
    """A target whose answers end at once says so; so does one that cannot run."""
    plant(monkeypatch, FLAT)
    monkeypatch.setattr(fit, "TOKENS", 1)
    assert "their answers end at once" in refused(
        capfd, paths, "--tree", "auto", method="recycling"
    )

    def broken(*given):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(fit, "price_of_rows", broken)
    line = refused(capfd, paths, "--tree", "auto", method="recycling")
    assert "out of memory" in line and "give its size" in line
    assert not read(paths["tmp"] / "a.jsonl")
