"""Rows of real runs are stored, recomputed and printed; every forgery of them turns check red."""

import json
import shutil

import pytest
from board_runs import MINI, Board, answer, baseline_of, with_meta
from forgeries import FORGERIES, cut_answer, other_ids
from harness_runs import read, read_meta

from evaluation import equal, leaderboard
from evaluation.answers.meta import AnswerError
from evaluation.board import packing, page, store
from evaluation.speedup.drift import pairs_path

ROOT = store.FOLDER.parents[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: answer file} of runs with a pair a question, and a baseline as fast as pld's pairs."""
    folder = tmp_path_factory.mktemp("runs")
    made = {"pld": answer("pld", folder / "pld.jsonl")}
    flags = ("--acceptance", "typical", "--temperature", 0.7)
    made["medusa"] = answer("medusa", folder / "medusa.jsonl", *flags)
    return made | {"vanilla": baseline_of(made["pld"])}


@pytest.fixture(scope="module")
def honest(tmp_path_factory, runs):
    """A Board with pld against a baseline of its own, and medusa against its pairs."""
    board = Board(tmp_path_factory.mktemp("honest"))
    assert board.run("add", runs["pld"], runs["vanilla"]) == 0
    assert board.run("add", "--paired", runs["medusa"]) == 0
    return board


@pytest.fixture
def board(honest, tmp_path):
    """A copy of it, to be forged."""
    return honest.copied(tmp_path)


def test_the_projects_own_rows_are_sound(capsys):
    own = Board.__new__(Board)
    own.store, own.page = store.FOLDER, ROOT / page.NAME
    assert own.failures(capsys) == []


def test_honest_rows_are_recomputed(honest, runs, capsys):
    assert honest.failures(capsys) == []
    row = json.loads(honest.row("pld").read_text())
    assert row["verdict"] == {"verdict": "EXACT", "by": "ids", "evidence": None}
    assert row["numbers"]["drift"]["state"] == "measured" and row["numbers"]["questions"] == 16
    assert row["numbers"]["bench_questions"] == 76
    lossy = json.loads(honest.row("medusa").read_text())
    assert lossy["verdict"]["verdict"] == "LOSSY BY DESIGN" and lossy["numbers"]["lossy"]
    assert lossy["files"]["pairs"] == lossy["files"]["baseline"]
    assert lossy["numbers"]["drift"]["state"] == "none"


def test_a_stored_file_gives_back_its_bytes(honest, runs, tmp_path):
    row = json.loads(honest.row("pld").read_text())
    for side, path in (("method", runs["pld"]), ("pairs", pairs_path(runs["pld"]))):
        store.take(row["files"][side], honest.row("pld").parent, tmp_path / "back.jsonl")
        assert (tmp_path / "back.jsonl").read_bytes() == path.read_bytes()
        assert read_meta(tmp_path / "back.jsonl") == read_meta(path)


def test_unpacked_rows_are_the_runs_files(honest, runs, tmp_path, capsys):
    assert honest.run("unpack", "--output", tmp_path) == 0
    found = {path.name: path for path in tmp_path.glob("mini_bench/*/*/*.jsonl")}
    assert sorted(found) == sorted(path.split("/")[-1] for path in capsys.readouterr().out.split())
    assert found.keys() == {"mini-vanilla.jsonl"} | {
        f"mini-{name}{end}.jsonl" for name in ("pld", "medusa") for end in ("", "-paired-baseline")
    }
    for name in ("pld", "medusa"):
        unpacked = found[f"mini-{name}.jsonl"]
        for mine, path in ((unpacked, runs[name]), map(pairs_path, (unpacked, runs[name]))):
            assert mine.read_bytes() == path.read_bytes() and read_meta(mine) == read_meta(path)
    assert read(found["mini-vanilla.jsonl"]) == read(runs["vanilla"])
    assert honest.run("unpack", honest.row("pld"), "--output", tmp_path) == 0
    assert capsys.readouterr().out == ""  # all there
    pairs = pairs_path(unpacked)
    pairs.unlink()
    assert honest.run("unpack", "--output", tmp_path) == 0
    assert capsys.readouterr().out == f"{pairs}\n" and pairs.read_bytes() == path.read_bytes()
    pairs.write_text("of another run\n")
    with pytest.raises(AnswerError, match="there is another file of that name"):
        honest.run("unpack", "--output", tmp_path)
    assert pairs.read_text() == "of another run\n"


def test_the_page_has_a_table_a_setting_and_says_what_is_lossy(honest):
    lines = honest.page.read_text().split("\n")
    tables = [line for line in lines if line.startswith("| method")]
    assert len(tables) == 2 and "check of the machinery" in honest.page.read_text()
    (lossy,) = [line for line in lines if "(lossy)" in line]
    assert lossy.startswith("| medusa") and "LOSSY BY DESIGN" in lossy
    assert sum("16 of 76 questions" in line for line in lines) == 2


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forgery_is_named(forgery, board, capsys):
    run, side, edit, _ = FORGERIES[forgery]
    board.forge(run, side, edit, careful=False)
    (line,) = board.failures(capsys)
    assert f"mini-{run}.row.json" in line and "is not the row's" in line


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_careful_forgery_is_named(forgery, board, capsys):
    """The forger has made every hash, number and verdict fit, and written the page anew."""
    run, side, edit, reason = FORGERIES[forgery]
    board.forge(run, side, edit, careful=True)
    (line,) = board.failures(capsys)
    assert f"mini-{run}.row.json" in line and reason in line


def test_a_baseline_that_drafts_is_none(board, runs, capsys):
    path = board.row("pld")
    row = json.loads(path.read_text())
    row["files"]["baseline"] = row["files"]["method"]
    board.fit(path, row)
    assert "its baseline is mini-pld (pld), not vanilla" in " ".join(board.failures(capsys))


def test_questions_left_out_on_both_sides_are_missed(board, capsys):
    """The forger drops the question that is slowest from both files, their metas and pairs."""

    def drop(records, meta):
        name = records[0]["question_id"]
        records[:] = [record for record in records if record["question_id"] != name]
        meta["questions"].pop(str(name))
        meta["num_questions"] -= 1

    for side in ("method", "baseline", "pairs"):
        board.forge("pld", side, drop, careful=True)
    (line,) = board.failures(capsys)
    assert "is not that of its questions" in line and "mini-pld" in line


def test_answers_cut_on_both_sides_are_found(board, capsys):
    """Ids agree, but the last token of the cut answer stands within others."""
    cut = []

    def cut_same(records, meta):
        record = max(records, key=lambda r: r["choices"][0]["new_tokens"][0])
        cut.append(record["question_id"])
        (choice,) = record["choices"]
        within = {t for r in records for ids in r["choices"][0]["output_ids"] for t in ids[:-1]}
        ends = [sum(choice["accept_lengths"][:k]) for k in range(2, choice["decoding_steps"][0])]
        assert within and ends
        choice["finish_reason"][0] = "stop"
        cut_answer([record], meta)

    for side in ("method", "baseline", "pairs"):
        board.forge("pld", side, cut_same, careful=True)
    assert any("cut answers: question" in line for line in board.failures(capsys))


def test_a_judges_report_beside_the_answers_is_found(runs, board, tmp_path, capsys):
    for source in (runs["pld"], pairs_path(runs["pld"])):
        for ending in (".jsonl", ".meta.json"):
            shutil.copy(source.with_suffix(ending), tmp_path)
    records, meta = read(runs["pld"]), read_meta(runs["pld"])
    other_ids(records, meta)
    path = with_meta(tmp_path / "pld.jsonl", records, meta)
    add = ("add", "--replace", path, runs["vanilla"])
    assert board.run(*add) == 1 and "nobody judged why" in capsys.readouterr().err
    report = tmp_path / "pld-report" / "equal.json"
    report.parent.mkdir()
    judge = [runs["vanilla"], path, "--model-path", MINI, "--device", "cpu", "--json", report]
    assert equal.main([str(part) for part in judge]) == 1
    assert board.run(*add) == 1 and "verdict BUG" in capsys.readouterr().err


def edit_row(board, name, edit, write=True):
    path = board.row(name)
    row = json.loads(path.read_text())
    edit(row)
    path.write_text(json.dumps(row))
    if write:
        board.run("write")


@pytest.mark.parametrize(
    "edit, reason",
    [
        (lambda row: row["numbers"]["bound"].update(label=None), "bound.label: None"),
        (lambda row: row["numbers"]["speedup"]["Overall"].update(value=3.0), "speedup.Overall"),
        (lambda row: row["numbers"]["speedup"]["Overall"].update(low=1.9), "speedup.Overall.low"),
        (lambda row: row["numbers"].update(method="eagle2"), "method: 'eagle2', from the files"),
        (lambda row: row["verdict"].update(verdict="TIES ONLY"), "verdict.verdict: 'TIES ONLY'"),
        (lambda row: row["numbers"].update(lossy=True), "lossy: True, from the files False"),
        (lambda row: row["files"].pop("pairs"), "drift unknown"),
    ],
)
def test_a_row_says_what_its_files_say(edit, reason, board, capsys):
    edit_row(board, "pld", edit)
    first, *others = board.failures(capsys)
    assert "mini-pld.row.json" in first and reason in first
    assert all("no row names it" in line for line in others)


VLLM = '--speculative-config {"method": "mtp", "rejection_sample_method": "synthetic"}'


def test_rules_on_metas(board, capsys):
    """Synthetic acceptance, an unknown bound, load runs, hand-picked questions."""
    cases = {
        "synthetic acceptance: method_args.rejection": lambda meta: meta["method_args"].update(
            rejection_sample_method="synthetic"
        ),
        "synthetic acceptance: method_args.speculation": lambda meta: meta["method_args"].update(
            speculation=VLLM
        ),
        "a load run": lambda meta: meta.update(load={"kind": "poisson"}),
        "hand-picked questions": lambda meta: meta["selection"].update(question_ids="1,2"),
    }
    for reason, edit in cases.items():
        board.forge("medusa", "method", lambda records, meta, edit=edit: edit(meta), careful=True)
        assert reason in " ".join(board.failures(capsys))
    board.forge("pld", "baseline", lambda records, meta: meta.pop("step_reads"), careful=True)
    assert "whether its baseline is launch-bound is not known" in " ".join(board.failures(capsys))


def test_what_belongs_to_no_row_and_a_page_by_hand(board, capsys):
    stray = board.row("pld").with_name("more.zip")
    stray.write_bytes(b"")
    board.page.write_text(board.page.read_text().replace("EXACT", "exact"))
    first, second = board.failures(capsys)
    assert f"{stray}: no row names it" in first and "leaderboard.py write" in second
    stray.unlink()
    edit_row(board, "pld", lambda row: row["numbers"].pop("bound"), write=False)
    assert any("a row has no numbers to print" in line for line in board.failures(capsys))
    row = json.loads(board.row("pld").read_text())
    board.row("pld").write_text(json.dumps(row | {"files": row["files"] | {"method": "x"}}))
    assert any("files.method is no object" in line for line in board.failures(capsys))
    board.row("pld").write_text("{}")
    assert any("no row of schema 1" in line for line in board.failures(capsys))
    with pytest.raises(AnswerError, match="mini-pld.row.json: no row of schema 1"):
        board.run("write")


def test_a_store_of_ones_own_has_a_page_of_its_own(runs, tmp_path):
    before = (ROOT / page.NAME).read_bytes()
    store_flags = ("--store", str(tmp_path))
    assert leaderboard.main(["add", "--paired", str(runs["pld"]), *store_flags]) == 0
    written = (tmp_path / page.NAME).read_bytes()
    assert b"| pld" in written and b"smollm2" not in written
    assert (ROOT / page.NAME).read_bytes() == before
    assert leaderboard.main(["check", *store_flags]) == 0
    assert leaderboard.main(["add", "--paired", str(runs["pld"]), *store_flags]) == 1  # is there
    assert (tmp_path / page.NAME).read_bytes() == written


def test_damaged_archives_are_named(board, capsys):
    row = json.loads(board.row("pld").read_text())
    archive = board.row("pld").parent / row["files"]["method"]["archives"][0]
    content = archive.read_bytes()
    for damaged in (content[:-40], b"", content[:200] + b"x" * 50 + content[250:]):
        archive.write_bytes(damaged)
        (line,) = board.failures(capsys)
        assert archive.name in line
    archive.write_bytes(content + bytes(packing.MOST_BYTES))
    assert "bytes or more" in board.failures(capsys)[0]
    archive.unlink()
    assert "No such file" in board.failures(capsys)[0]


def test_add_refuses_what_check_would(runs, board, tmp_path, capsys):
    assert board.run("add", runs["pld"], runs["vanilla"]) == 1
    assert "a row of that name is there (--replace)" in capsys.readouterr().err
    before = set(board.store.rglob("*"))
    assert board.run("add", "--replace", runs["pld"], runs["vanilla"]) == 0
    assert set(board.store.rglob("*")) == before
    alone = shutil.copy(runs["pld"], tmp_path / "alone.jsonl")
    shutil.copy(runs["pld"].with_suffix(".meta.json"), tmp_path / "alone.meta.json")
    assert board.run("add", alone, runs["vanilla"]) == 1
    assert "drift unknown" in capsys.readouterr().err
    (tmp_path / "alone.meta.json").unlink()
    assert board.run("add", alone, runs["vanilla"]) == 2
    assert "no meta that says what was asked" in capsys.readouterr().err
    assert board.run("add", "--replace", tmp_path / "none.jsonl", runs["pld"], runs["vanilla"]) == 2
    captured = capsys.readouterr()
    assert "none.jsonl: No such file" in captured.err and "mini-pld.row.json" in captured.out


@pytest.mark.parametrize(
    "argv, words",
    [
        (("add", "one.jsonl"), "name a method's answer file and the baseline's"),
        (("check", "--replace"), "takes all rows"),
        (("write", "one.jsonl"), "takes all rows"),
        (("bogus",), "invalid choice"),
        (("check", "--output", "folder"), "unpack and --output FOLDER go together"),
        (("unpack", "none.row.json", "--output", "folder"), "none.row.json: no row"),
    ],
)
def test_bad_commands_end_in_one_line(argv, words, board, capsys):
    with pytest.raises(SystemExit) as ended:
        board.run(*argv)
    assert ended.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, words",
    [
        ("README.md", "another file than a leaderboard's page"),
        ("tests", "tests: no file"),
        ("none/page.md", "no such folder"),
    ],
)
def test_a_page_is_written_over_a_page_alone(name, words, board, capsys):
    with pytest.raises(SystemExit) as ended:
        leaderboard.main(["write", "--store", str(board.store), "--page", str(ROOT / name)])
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_a_replaced_rows_files_go(runs, board, tmp_path):
    """But not those that another row needs."""
    path = tmp_path / "pld.jsonl"
    meta = read_meta(runs["pld"])
    meta["method_facts"] = {"note": 1}
    for source in (runs["pld"], pairs_path(runs["pld"])):
        for ending in (".jsonl", ".meta.json"):
            shutil.copy(source.with_suffix(ending), tmp_path)
    path.with_suffix(".meta.json").write_text(json.dumps(meta))
    count = len(list(board.store.rglob("*")))
    assert board.run("add", "--replace", path, runs["vanilla"]) == 0
    assert len(list(board.store.rglob("*"))) == count
    assert board.run("check") == 0


def test_long_files_come_in_parts_below_the_limit(runs):
    content = runs["pld"].read_bytes()
    archives = packing.pack(content, most_bytes=4000)
    assert len(archives) > 1 and max(map(len, archives)) < 4000
    assert packing.unpack(archives) == content
    assert len(packing.pack(content)) == 1


def test_a_twin_is_labelled(honest):
    row = json.loads(honest.row("pld").read_text())
    row["numbers"]["scale_to"] = "7b"
    text = page.text([row])
    assert "## twin of target at 7b on" in text and "the acceptance of the small one" in text
    meta = {"shared": {"target": "mini", "scale_to": "7b", "bench_name": "b", "device": "A (8 GB)"}}
    assert store.folder_of(meta, store.FOLDER) == store.FOLDER / "b" / "mini-twin-7b" / "A-8-GB"


def test_energy_and_compiling_are_printed(honest):
    row = json.loads(honest.row("pld").read_text())
    assert "J/token" not in page.text([row])
    row["numbers"] |= {"joules_per_token": 0.4123, "base_joules_per_token": 0.8}
    row["numbers"] |= {"recompiled_turns": 2, "runtime_ran": "compile"}
    text = page.text([row])
    assert "| 0.412 (0.8) |" in text and "(compiling within 2 turns) (ran compile)" in text
