"""Load runs end to end on tiny models: ids of B = 1, records, metas, files, refusals."""

import json

import pytest
import torch
from answer_samples import run_tool
from harness_runs import (
    COMMON,
    answer,
    ids_of,
    messages,
    questions_of,
    read,
    read_meta,
    refused,
    run,
    write,
)
from tiny_methods import TINY_FLAGS

from model.common.contract.sequence import EmptyDrafter
from model.common.loop.turns import StopRules

LOADS = {
    "rate": ["--rate", 40, "--num-prompts", 12],
    "crowded": ["--rate", 1000, "--num-prompts", 12],
    "all at once": ["--rate", "inf", "--num-prompts", 12],
    "bursts": ["--rate", 30, "--duration", 0.4, "--burstiness", 0.1],
    "clients": ["--concurrency", 6, "--num-prompts", 12],
    "back to back": ["--num-prompts", 12],
}
FOUR = ["--batch-size", 4, "--dtype", "float64"]


@pytest.fixture(scope="module")
def asked(question_file, tmp_path_factory):
    """A question file whose questions of one turn are the prompts of question_file, twice."""
    questions = []
    for question in questions_of(question_file):
        turns, name = question["turns"], question["question_id"]
        for number, turn in enumerate(turns, 1):
            for again in ("", "@2"):
                turn_id = f"{name}#{number}{again}" if len(turns) > 1 else name
                turn_id = f"{name}@2" if len(turns) == 1 and again else turn_id
                questions.append(question | {"question_id": turn_id, "turns": [turn]})
    return write(tmp_path_factory.mktemp("asked") / "q.jsonl", questions)


@pytest.mark.parametrize("method", ["vanilla", "pld", "sps", "eagle2"])
@pytest.mark.parametrize("load", ["crowded", "clients"])
def test_ids_are_those_of_one_slot(
    method, load, model_dir, draft_dir, question_file, asked, tmp_path
):
    """Also of sampled answers, whose uniforms are the prompt's wherever it is answered."""
    paths = {"target": model_dir, "draft": draft_dir}
    own = TINY_FLAGS.get(method, lambda paths: [])(paths)
    if load == "clients":
        own += ["--temperature", 1]
    given = method, model_dir
    one = answer(*given, asked, tmp_path / "one.jsonl", *own, "--dtype", "float64")
    several = answer(
        *given, question_file, tmp_path / "load.jsonl", *own, *FOUR, *LOADS[load], "--warmup", 1
    )
    known = ids_of(one)
    assert len(several) == 12 and all(known[name] == ids for name, ids in ids_of(several).items())
    turns = [record["choices"][0] for record in several]
    assert {choice["slot"][0] for choice in turns} == {0, 1, 2, 3}
    assert any("@2" in str(name) for name in ids_of(several))


@pytest.mark.parametrize("load", LOADS)
def test_records_and_meta(load, model_dir, question_file, tmp_path):
    path = tmp_path / "a.jsonl"
    records = answer("pld", model_dir, question_file, path, "--batch-size", 2, *LOADS[load])
    meta = read_meta(path)
    said = meta["load"]
    assert len(records) == said["num_requests"] == meta["num_questions"]
    arrivals = [record["request"]["arrival_s"] for record in records]
    for record in records:
        assert list(record["request"]) == ["arrival_s", "sent_s"] and "failed_s" not in record
        times, choice = record["request"], record["choices"][0]
        assert times["arrival_s"] <= times["sent_s"] <= choice["begin_s"][0]
        assert choice["begin_s"][0] + choice["wall_time"][0] <= record["tstamp"] + 0.1
    if said["kind"] == "rate":
        offsets = [arrival - said["began_s"] for arrival in arrivals]
        assert offsets == pytest.approx(said["arrivals"], abs=2e-6)
    else:
        ends = [r["choices"][0]["begin_s"][0] + r["choices"][0]["wall_time"][0] for r in records]
        clients = said["concurrency"]
        assert clients == (6 if load == "clients" else 2)
        assert arrivals[:clients] == [said["began_s"]] * clients
        assert arrivals[clients:] == pytest.approx(sorted(ends)[:-clients], abs=2e-6)
    assert meta["shared"]["load"] and meta["model_id"].rpartition("-float32")[2]
    assert not {"rate", "duration", "num_prompts", "load_seed"} & set(meta["method_args"])
    seconds = meta["run_s"]
    assert set(seconds) == {"decode", "harness", "idle", "client"}
    assert seconds["client"] > 0
    if load != "crowded":  # whose first request may have come before the loop could sleep
        assert (seconds["idle"] > 0) == (load in ("rate", "bursts"))
    json.dumps(meta, allow_nan=False)


def test_without_a_load_nothing_is_recorded(model_dir, question_file, tmp_path):
    path = tmp_path / "a.jsonl"
    records, meta = answer("pld", model_dir, question_file, path), read_meta(path)
    assert not any("request" in record for record in records)
    assert "load" not in meta and "load" not in meta["shared"]
    assert set(meta["run_s"]) == {"decode", "harness"}


def sweep(model, questions, folder, *flags):
    """Exit code of pld's command with a name in a folder in place of an answer file."""
    where = ["--model-path", model, "--question-file", questions, "--model-id", folder / "m"]
    return run("pld", *where, *COMMON, "--max-new-tokens", 8, *flags)


def test_a_sweep_asks_the_same_prompts(model_dir, question_file, tmp_path):
    """A file a rate; fewer requests of a lower rate are the first ones of a higher one."""
    assert sweep(model_dir, question_file, tmp_path, "--rate", "10,40", "--duration", 0.4) == 0
    slow, fast = (read(tmp_path / f"m-rate-{rate}.jsonl") for rate in (10, 40))
    assert 0 < len(slow) < len(fast)
    order = [record["question_id"] for record in fast]
    assert [record["question_id"] for record in slow] == order[: len(slow)]
    metas = [read_meta(tmp_path / f"m-rate-{rate}.jsonl") for rate in (10, 40)]
    assert [meta["load"]["rate"] for meta in metas] == ["10", "40"]
    assert [meta["arguments"]["rate"] for meta in metas] == [["10"], ["40"]]
    assert metas[0]["shared"]["load"] != metas[1]["shared"]["load"]
    assert {record["model_id"] for record in slow} == {f"{tmp_path}/m-rate-10"}
    assert [record["request"] for record in slow] != [r["request"] for r in fast[: len(slow)]]


def test_a_load_run_is_not_continued(capfd, paths):
    """A whole file is left as it is, failed requests too; one that lacks some is refused."""
    flags, path = ["--rate", 50, "--num-prompts", 7], paths["tmp"] / "a.jsonl"
    answer("pld", paths["model"], paths["questions"], path, *flags, "--max-new-tokens", 4)
    lines, began = path.read_text().splitlines(), read_meta(path)["load"]["began_s"]
    broken = json.loads(lines[2]) | {"choices": [], "error": "planted", "failed_s": 1.0}
    kept = "\n".join([*lines[:2], json.dumps(broken), *lines[3:]]) + "\n"
    path.write_text(kept)
    answer("pld", paths["model"], paths["questions"], path, *flags, "--max-new-tokens", 4)
    assert path.read_text() == kept and read_meta(path)["load"]["began_s"] == began
    path.write_text("\n".join(lines[:4]) + "\n")
    capfd.readouterr()
    line = refused(capfd, paths, *flags)
    assert f"{path}: a load run cannot be resumed; use --overwrite" in line
    assert len(read(path)) == 4
    line = refused(capfd, paths, "--rate", 51, "--num-prompts", 7)
    assert "load" in line and "--overwrite" in line  # another schedule is another run
    done = answer(
        "pld",
        paths["model"],
        paths["questions"],
        path,
        *flags,
        "--overwrite",
        "--max-new-tokens",
        4,
    )
    assert len(done) == 7


def test_failed_requests_stay_in_their_place(model_dir, question_file, tmp_path):
    """A prompt beyond the context fails alone; a step that breaks takes those in its slots."""
    questions = [*questions_of(question_file)[1:], {"question_id": 99, "turns": ["x" * 600]}]
    path = write(tmp_path / "q.jsonl", questions)
    flags = ["--batch-size", 2, "--concurrency", 3, "--num-prompts", 12]

    class Breaking(EmptyDrafter):
        left = 5

        def propose(self):
            Breaking.left -= 1
            if Breaking.left == 0:
                raise RuntimeError("planted")
            return super().propose()

    out = tmp_path / "a.jsonl"
    records = answer(
        "pld", model_dir, path, out, *flags, build=lambda args, target: Breaking(), code=1
    )
    assert len(records) == 12
    errors = {r["question_id"]: r["error"] for r in records if "error" in r}
    assert {name for name in errors if str(name).startswith("99")} == {"99@2", 99}
    assert sum("planted" in error for error in errors.values()) == 2
    for record in records:
        assert ("failed_s" in record) == ("error" in record)
        if "error" in record:
            assert record["failed_s"] >= record["request"]["sent_s"] and not record["choices"]
    shown = run_tool("evaluation/serving.py", out, "--json", tmp_path / "report.json")
    assert shown.returncode == 0 and (tmp_path / "report.json").exists(), shown.stderr
    audited = run_tool("evaluation/audit_answers.py", "--file-path", out, "--base-path", out)
    assert "Traceback" not in audited.stderr and audited.returncode in (0, 1)


def test_the_tools_read_load_runs(model_dir, draft_dir, question_file, tmp_path):
    """Verdicts by the target itself too, which rebuilds the prompts of single turns."""
    base, own = tmp_path / "base.jsonl", tmp_path / "own.jsonl"
    load = ["--rate", 50, "--num-prompts", 9, "--dtype", "float64"]
    answer("vanilla", model_dir, question_file, base, *load)
    answer("pld", model_dir, question_file, own, *load, "--batch-size", 4)
    assert run_tool("evaluation/equal.py", base, own).returncode == 0
    records = read(own)
    ids = records[0]["choices"][0]["output_ids"][0]
    ids[3] = (ids[3] + 1) % 90
    write(own, records)
    judge = ["--model-path", model_dir, "--num-threads", 1]
    judged = run_tool("evaluation/equal.py", base, own, *judge)
    assert judged.returncode == 1 and str(records[0]["question_id"]) in judged.stdout
    speeds = run_tool("evaluation/speed.py", "--file-path", own, "--base-path", base)
    assert speeds.returncode == 2 and "batch_size" in speeds.stderr


def test_sampled_load_runs_are_audited(model_dir, question_file, tmp_path):
    base, own = tmp_path / "base.jsonl", tmp_path / "own.jsonl"
    load = ["--rate", 50, "--num-prompts", 9, "--temperature", 1, "--batch-size", 4]
    answer("vanilla", model_dir, question_file, base, *load)
    answer("pld", model_dir, question_file, own, *load)
    audited = run_tool("evaluation/audit_sampling.py", base, own)
    assert audited.returncode == 0, audited.stdout + audited.stderr


def test_a_folder_of_sharegpt(capfd, model_dir, tmp_path):
    folder = tmp_path / "sharegpt"
    folder.mkdir()
    turns = [{"from": "human", "value": f"Tell me about {i}."} for i in range(6)]
    lines = [
        json.dumps({"conversations": [turn, {"from": "gpt", "value": "No."}]}) for turn in turns
    ]
    (folder / "sharegpt_V3_format.jsonl").write_text("\n".join([*lines, "{"]) + "\n")
    out = tmp_path / "a.jsonl"
    where = ["--model-path", model_dir, "--sharegpt-dir", folder, "--answer-file", out]
    flags = [*COMMON, "--max-new-tokens", 8, "--num-prompts", 6, "--dtype", "float64"]
    assert run("vanilla", *where, *flags) == 0
    records = read(out)
    assert sorted(r["question_id"] for r in records) == [
        f"sharegpt_V3_format:{i}" for i in range(1, 7)
    ]
    assert any("1 lines left out" in line for line in messages(capfd))
    judge = ["--model-path", model_dir, "--num-threads", 1]
    judged = run_tool("evaluation/equal.py", out, out, *judge)
    assert judged.returncode == 0, judged.stdout + judged.stderr


@pytest.mark.parametrize("runs", [2])
def test_runs_are_repeated_with_the_same_load(
    model_dir, question_file, tmp_path, monkeypatch, runs
):
    monkeypatch.setattr("model.common.args.ROOT", tmp_path)
    flags = ["--rate", "30,60", "--num-prompts", 5, "--num-runs", runs, "--max-new-tokens", 4]
    where = ["--model-path", model_dir, "--question-file", question_file, "--model-id", "m"]
    assert run("pld", *where, *COMMON, *flags) == 0
    folder = tmp_path / "data" / "mini_bench" / "model_answer"
    for rate in (30, 60):
        first, second = (folder / f"run_{n}" / f"m-rate-{rate}.jsonl" for n in (1, 2))
        assert ids_of(read(first)) == ids_of(read(second))
        arrivals = [read_meta(path)["load"]["arrivals"] for path in (first, second)]
        assert arrivals[0] == arrivals[1]


def test_stop_rules_and_threads_are_as_without_a_load(model_dir, question_file, tmp_path):
    """An answer that its prompt's own token ends makes room at once, in a closed loop too."""
    flags = ["--max-new-tokens", 1, "--num-prompts", 30, "--batch-size", 3]
    records = answer("pld", model_dir, question_file, tmp_path / "a.jsonl", *flags)
    assert len(records) == 30
    assert {tuple(r["choices"][0]["new_tokens"]) for r in records} == {(1,)}
    assert torch.get_num_threads() == 1 and StopRules().cut([1], 1, 1) == (1, "length")
