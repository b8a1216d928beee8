"""eval.sh: which rows it runs, and what it says of them at the end; methods are stood in for."""

import json

import eval_sh
import pytest
from answer_samples import base_lines, meta, write

QUICK = "pld sps lookahead recycling medusa eagle2 eagle3 specexec".split()
ANSWERS = "data/mini_bench/model_answer"


@pytest.fixture
def folder(tmp_path):
    return eval_sh.make(tmp_path / "project")


def asked(folder):
    """{row: flags} of the methods' commands, in order."""
    lines = (folder / "asked.jsonl").read_text().splitlines()
    return dict(json.loads(line) for line in lines)


def cells(done):
    """{row: its cells} of the tables."""
    found = {}
    for line in filter(None, done.stdout.splitlines()):
        name, *rest = [part.strip() for part in line.split("  ") if part.strip()]
        found[name] = rest
    return found


def planned(**rows):
    """PLAN of the stand-in; _ in a name is -."""
    return json.dumps({name.replace("_", "-"): plan for name, plan in rows.items()})


def test_without_arguments_eight_methods_on_part_of_the_bench(folder):
    done = eval_sh.run(folder)
    assert done.returncode == 0, done.stderr
    flags = asked(folder)
    assert list(flags) == ["vanilla", *QUICK]
    for row, given in flags.items():
        assert given[given.index("--limit-per-category") + 1] == "4"
        assert given[given.index("--model-id") + 1] == f"target-quick-{row}-float32-temperature-0"
    report = f"{ANSWERS}/target-quick-float32-temperature-0-report"
    first, header, *rows, price, details, more, page = filter(None, done.stdout.splitlines())
    assert first.startswith("target | ") and "2 questions" in first
    assert header.split()[:3] == ["method", "accepted", "speedup"]
    assert [row.split()[0] for row in rows] == ["vanilla", *QUICK]
    assert price.startswith("! price below 1")  # in the made answers
    assert details == f"details: {report}/ (details.txt, *.json, *.log)"
    assert more.endswith("./eval.sh all")
    assert page.startswith(f"page: {report}/report.html (")
    assert "<html" in (folder / report / "report.html").read_text(encoding="utf-8")
    assert "{" not in done.stdout and max(map(len, done.stdout.splitlines())) <= 120
    for name in ("speed", "equal"):
        document = json.loads((folder / report / f"{name}.json").read_text())
        assert document["tool"] == name and len(document["results"]) == 8
    text = (folder / report / "details.txt").read_text()
    assert "time identity: " in text and "break-even" in text and text.count("\nEQUAL: ") == 8
    assert "details: " not in text and '{"tool"' not in text


def test_all_and_named_rows(folder):
    """Another bench means all, too; a row that is named twice runs once."""
    done = eval_sh.run(folder, "pld", "pld", "sps")
    assert list(asked(folder)) == ["vanilla", "pld", "sps"] and "eval.sh all" not in done.stdout
    given = asked(folder)["pld"]
    assert "--limit-per-category" not in given and "target-pld-float32-temperature-0" in given
    for number, (rows, more) in enumerate([(["all", "vanilla-hf"], {}), ([], {"BENCH": "other"})]):
        (folder / "asked.jsonl").unlink()
        (folder / "data" / "other").mkdir(exist_ok=True)
        for index in ("rest", "samd"):
            for bench in ("mini_bench", "other"):
                manifest = folder / "data" / bench / "index" / "target" / index / "manifest.json"
                manifest.parent.mkdir(parents=True, exist_ok=True)
                manifest.write_text("{}")
        done = eval_sh.run(folder, *rows, **more)
        assert done.returncode == 0, done.stderr
        ran = list(asked(folder))
        assert len(ran) == len(set(ran)) and ran[0] == "vanilla"
        assert {*QUICK, "rest", "samd", "space", "vanilla-space", "sd2-chain"} < set(ran)
        assert ("vanilla-hf" in ran) == (number == 0)
        assert "eval.sh all" not in done.stdout
        assert done.stdout.count("method  ") == 2 and cells(done)["space"][4] == "equal"


def test_a_corpus_is_asked_for(folder):
    """Ours is of the mini bench: with another target rest is left out, samd has the text alone."""
    other = {"TARGET": "elsewhere/target", "DTYPE": "float32"}
    done = eval_sh.run(folder, "all", **other)
    assert done.returncode == 0, done.stderr
    flags = asked(folder)
    assert "rest" not in flags and cells(done)["rest"][4] == "not run"
    assert "--static-path" not in flags["samd"] and "--auxiliary" in flags["samd"]
    said = "eval.sh: no index in data/mini_bench/index/target/rest, and CORPUS names no jsonl"
    assert said in done.stderr and "eval.sh: rest is left out" in done.stderr
    assert "eval.sh: samd copies from the text alone: CORPUS names no corpus" in done.stderr
    assert not (folder / "data" / "mini_bench" / "index").exists()
    assert eval_sh.run(folder, "rest", "pld", **other).returncode == 2
    for name in ("rest", "samd"):  # indices that are there are used
        manifest = folder / "data" / "mini_bench" / "index" / "target" / name / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text("{}")
    assert eval_sh.run(folder, "rest", "samd", **other).returncode == 0
    for row, flag in (("rest", "--datastore-path"), ("samd", "--static-path")):
        given = asked(folder)[row]
        assert given[given.index(flag) + 1] == f"data/mini_bench/index/target/{row}"


def test_a_crash_is_no_row_and_leaves_an_older_file_out(folder):
    """Python's own exit status is 1 too, with which a run ends whose questions failed."""
    old = folder / ANSWERS / "target-sps-float32-temperature-0.jsonl"
    write(old, base_lines(), meta("target-sps-float32-temperature-0", "sps"))
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1\n    no\nNameError: no\n'
    plan = planned(sps={"status": 1, "write": False, "stderr": trace})
    done = eval_sh.run(folder, "sps", "pld", PLAN=plan)
    assert done.returncode == 2
    assert "eval.sh: sps is left out" in done.stderr and "NameError: no" in done.stderr
    assert cells(done)["sps"] == ["-", "-", "-", "-", "not run", "-"]
    assert cells(done)["pld"][4] == "equal"
    assert "  sps: NameError: no\n  sps: not run: it crashed (exit status 70)\n" in done.stdout
    for plan in ({"status": 70, "write": True}, {"status": 137, "write": True}):
        done = eval_sh.run(folder, "sps", "pld", PLAN=planned(sps=plan))
        assert done.returncode == 2 and cells(done)["sps"][4] == "not run"


def test_questions_that_failed_are_said(folder):
    said = "warning: slow\nquestion 2: out of memory\ninference_sps.py: 1 question failed\n"
    plan = planned(
        sps={"status": 1, "failed": True, "stderr": said}, pld={"stderr": "warning: slow\n"}
    )
    done = eval_sh.run(folder, "sps", "pld", PLAN=plan)
    assert done.returncode == 1
    assert cells(done)["sps"][4] == "equal, 1 failed" and cells(done)["pld"][4] == "equal"
    said = done.stdout.split("\n\n")[0].splitlines()
    assert said == [
        "messages:",
        "  sps, pld: warning: slow",
        "  sps: question 2: out of memory",
        "  sps: inference_sps.py: 1 question failed",
    ]


def test_what_is_left_out(folder):
    """Of all methods some have no weights; one that was named has to run; vanilla always has."""
    plan = planned(medusa={"status": 2, "write": False, "stderr": "medusa: no head is known\n"})
    done = eval_sh.run(folder, PLAN=plan)
    assert done.returncode == 0 and cells(done)["medusa"][4] == "not run"
    assert "  medusa: medusa: no head is known\n  medusa: not run: left out\n" in done.stdout
    done = eval_sh.run(folder, "medusa", "pld", PLAN=plan)
    assert done.returncode == 2 and cells(done)["pld"][4] == "equal"
    done = eval_sh.run(folder, "rest", "pld")  # there is no model here to build its index for
    assert done.returncode == 2 and cells(done)["rest"][4] == "not run"
    assert "rest" not in asked(folder)
    done = eval_sh.run(folder, "pld", PLAN=planned(vanilla={"status": 2}))
    assert done.returncode == 2 and done.stdout == ""
    done = eval_sh.run(folder, "pld", "sps", PLAN=planned(pld={"status": 130}))
    assert done.returncode == 130 and done.stdout == ""


def test_files_that_cannot_be_compared_are_bad_input(folder):
    done = eval_sh.run(folder, "pld", PLAN=planned(pld={"shared": {"temperature": 1.0}}))
    assert done.returncode == 2 and "not comparable: temperature" in done.stderr
    assert "no table" in done.stdout and "details: " in done.stdout


def test_a_run_that_is_refused_leaves_the_last_report(folder):
    report = folder / ANSWERS / "target-float32-temperature-0-report"
    plan = planned(vanilla={"status": 2, "write": False, "stderr": "vanilla: no\n"})
    assert eval_sh.run(folder, "pld", PLAN=plan).returncode == 2
    assert not report.exists()
    assert eval_sh.run(folder, "pld").returncode == 0
    before = {path.name: path.read_bytes() for path in report.iterdir()}
    assert "report.html" in before and "details.txt" in before
    assert eval_sh.run(folder, "pld", PLAN=plan).returncode == 2
    assert {path.name: path.read_bytes() for path in report.iterdir()} == before
    assert [path.name for path in report.parent.glob("[!.]*report*")] == [report.name]


def test_help(folder):
    for flags, said in ((["--help"], "TARGET"), (["serve", "-h"], "AUTO_RATE")):
        done = eval_sh.run(folder, *flags)
        assert (
            done.returncode == 0 and said in done.stdout and not (folder / "asked.jsonl").exists()
        )
