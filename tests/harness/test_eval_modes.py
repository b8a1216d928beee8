"""./eval.sh serve and ./eval.sh engine: what their settings become, and what they print."""

import json

import eval_sh
import pytest
from replay_server import replaying

ANSWERS = "data/mini_bench/model_answer"
REPORT = f"{ANSWERS}/target-float32-temperature-0-load-report"


@pytest.fixture
def folder(tmp_path):
    return eval_sh.make(tmp_path / "project")


def asked(folder):
    """{row: flags} of the methods' commands, in order."""
    lines = (folder / "asked.jsonl").read_text().splitlines()
    return dict(json.loads(line) for line in lines)


def has(flags, text):
    """Whether a command's flags have these in a row."""
    return f" {text} " in f" {' '.join(flags)} "


def test_serve_by_itself(folder):
    done = eval_sh.run(folder, "serve")
    assert done.returncode == 0, done.stderr
    flags = asked(folder)
    assert list(flags) == ["vanilla", "sps"]
    for given in flags.values():
        assert has(given, "--rate 1 --duration 300 --prompt-max-tokens 512")
        assert has(given, "--energy if-any --energy-interval 1.0") and has(given, "--batch-size 1")
        assert has(given, "--max-new-tokens 100") and "--paired" not in given
    assert has(flags["sps"], "--schedule constant --num-draft 4")
    rows = {line.split()[0]: line for line in filter(str.strip, done.stdout.splitlines())}
    assert rows["sps-float32-temperature-0-rate-1"].split()[1] == "12"
    assert rows["written:"].split()[1] == f"{REPORT}/benchmark_results.json,"
    parts = json.loads((folder / REPORT / "benchmark_results.json").read_text())
    assert set(parts) == {"speculative", "target_ar"}
    assert (folder / REPORT / "benchmark_results_target.json").is_file()
    assert done.stdout.splitlines()[-1].startswith(f"page: {REPORT}/report.html (")
    assert "TTFT (ms)" in (folder / REPORT / "details.txt").read_text()


def test_the_published_names(folder):
    """Every name of the suite becomes a flag; a rate of several is no file of the suite."""
    settings = {
        "TARGET_MODEL": "data/mini_models/target",
        "DRAFTER_MODEL": "drafter",
        "AUTO_RATE": "1,2",
        "AUTO_DURATION": "60",
        "ENABLE_BATCH": "TRUE",
        "GENERATION_LENGTH": "32",
        "MAX_BATCH_LENGTH": "256",
        "GAMMA_VALUE": "7",
        "SHAREGPT_DIR": "talks",
        "MAX_LOAD_LINES": "",
        "PROMPT_MAX_LENGTH": "90",
        "ENABLE_GPU_MONITOR": "false",
        "GPU_STRATEGY": "multi_gpu_ratio",
        "TARGET_GPU_RATIO": "3",
        "DRAFTER_GPU_RATIO": "1",
        "SLO": "ttft=5",
    }
    done = eval_sh.run(folder, "serve", **settings)
    flags = asked(folder)
    for given in flags.values():
        assert has(given, "--rate 1,2 --duration 60 --prompt-max-tokens 256 --sharegpt-dir talks")
        assert has(given, "--max-load-lines 10000 --prompt-min-length 10 --prompt-max-length 90")
        assert has(given, "--gpu-strategy multi-gpu-ratio:3:1") and has(given, "--batch-size 4")
        assert has(given, "--max-new-tokens 32") and "--energy" not in given
    assert has(flags["sps"], "--schedule constant --num-draft 7 --drafter-path drafter")
    assert "knee" in done.stdout and "good" in done.stdout and "written: " not in done.stdout
    differ = f"answers differ from the baseline's: {REPORT}/details.txt"
    assert (differ in done.stdout) == (done.returncode == 1)


def rows_of(done):
    """{first word: [lines]} of what was printed."""
    found = {}
    for line in filter(str.strip, done.stdout.splitlines()):
        found.setdefault(line.split()[0], []).append(line)
    return found


def compared(folder, report):
    """[(run, base)] of a serving report, without what the names share."""
    document = json.loads((folder / REPORT / report).read_text())
    ending = "-float32-temperature-0-clients-1"
    pairs = [(pair["run"], pair["base"]) for pair in document["comparisons"]]
    assert document["incomparable"] == [] and len(document["runs"]) > 1
    return [tuple(n.removeprefix("target-").removesuffix(ending) for n in pair) for pair in pairs]


def test_a_row_of_another_footing_has_a_table_of_its_own(folder):
    """space and its baseline are of another target, vanilla-compile of another runtime."""
    plan = json.dumps({"vanilla-compile": {"shared": {"runtime": "compile"}}})
    rows = ("space", "vanilla-compile", "pld")
    done = eval_sh.run(folder, "serve", *rows, NUM_PROMPTS="12", PLAN=plan)
    assert done.returncode == 0, done.stderr
    assert list(asked(folder)) == ["vanilla", "vanilla-space", "space", "vanilla-compile", "pld"]
    assert compared(folder, "serving.json") == [("pld", "vanilla")]
    assert compared(folder, "serving_runtimes.json") == [("vanilla-compile", "vanilla")]
    assert compared(folder, "serving_space.json") == [("space", "vanilla-space")]
    found = rows_of(done)
    assert len(found["run"]) == 3  # tables
    for name in ("pld", "vanilla-compile", "target-space", "target-vanilla-space"):
        (line,) = found[f"{name}-float32-temperature-0-clients-1"]
        assert line.split()[1] == "12"
    assert "differ" not in done.stdout and "not comparable" not in done.stdout
    assert "written:" not in found  # the suite's files hold one method
    details = (folder / REPORT / "details.txt").read_text()
    assert details.count("EQUAL: ") == 2 and "not comparable" not in details


def test_space_alone_is_held_to_its_own_baseline(folder):
    done = eval_sh.run(folder, "serve", "space", NUM_PROMPTS="12", ENABLE_TARGET="false")
    assert done.returncode == 0, done.stderr
    assert list(asked(folder)) == ["vanilla-space", "space"]
    assert compared(folder, "serving_space.json") == [("space", "vanilla-space")]
    parts = json.loads((folder / REPORT / "benchmark_results.json").read_text())
    assert parts["speculative"]["model_id"].startswith("target-space-float32")
    assert parts["target_ar"]["model_id"].startswith("target-vanilla-space-float32")


def test_a_row_that_cannot_be_compared_costs_no_other(folder):
    plan = json.dumps({"pld": {"shared": {"weights_sha256": "bb"}}})
    done = eval_sh.run(folder, "serve", "pld", "sps", NUM_PROMPTS="12", PLAN=plan)
    assert done.returncode == 2
    assert 'are not comparable: weights_sha256: "bb", baseline "aa"' in done.stdout
    assert "answers differ" not in done.stdout
    document = json.loads((folder / REPORT / "serving.json").read_text())
    assert len(document["runs"]) == 3 and len(document["comparisons"]) == 1
    (line,) = document["incomparable"]
    assert "target-pld-float32-temperature-0-clients-1.jsonl" in line
    assert "Traceback" not in done.stderr


def test_words_with_spaces_and_stars_reach_the_commands(folder):
    """As they are: nothing is split again, and no pattern is taken for files."""
    settings = {
        "NUM_PROMPTS": "12",
        "SHAREGPT_DIR": "my talks",
        "DRAFTER_MODEL": "my *",
        "ARGS": "--question-file '* of mine' --categories \\* --note 'it'\"'\"'s'",
        "FLAGS_sps": "--log \"a  b\" '' *",
    }
    done = eval_sh.run(folder, "serve", **settings)
    assert done.returncode == 0, done.stderr
    flags = asked(folder)
    for given in flags.values():
        after = dict(zip(given, given[1:]))
        assert after["--sharegpt-dir"] == "my talks" and after["--question-file"] == "* of mine"
        assert after["--categories"] == "*" and after["--note"] == "it's"
    assert flags["sps"][-6:] == ["--drafter-path", "my *", "--log", "a  b", "", "*"]
    done = eval_sh.run(folder, "pld", LOAD="--rate '1'", FLAGS_pld="--log 'a b'")
    assert done.returncode == 0, done.stderr
    assert has(asked(folder)["pld"], "--rate 1") and asked(folder)["pld"][-1] == "a b"


@pytest.mark.parametrize("name", ["ARGS", "LOAD", "FLAGS_vanilla"])
def test_an_open_quote_is_one_line(folder, name):
    done = eval_sh.run(folder, "pld", **{name: "--log 'a"})
    assert done.returncode == 2 and not (folder / "asked.jsonl").exists()
    assert f"eval.sh: {name}=--log 'a: No closing quotation" in done.stderr.splitlines()


@pytest.mark.parametrize(
    "settings, rows, ran",
    [
        ({"ENABLE_SPECULATIVE": "false"}, (), ["vanilla"]),
        ({"INFERENCE_METHOD": "target_ar"}, ("pld",), ["vanilla"]),
        ({"ENABLE_TARGET": "false"}, ("pld",), ["pld"]),
        ({"INFERENCE_METHOD": "speculative"}, (), ["sps"]),
        ({}, ("pld", "eagle2"), ["vanilla", "pld", "eagle2"]),
    ],
)
def test_which_methods_are_run(folder, settings, rows, ran):
    done = eval_sh.run(folder, "serve", *rows, NUM_PROMPTS="12", OUTPUT_FILE="out", **settings)
    flags = asked(folder)
    assert list(flags) == ran and all(has(given, "--num-prompts 12") for given in flags.values())
    assert all("--rate" not in given for given in flags.values())
    written = (folder / REPORT / "out").is_file()
    assert written == (len(ran) < 3) and done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"INFERENCE_METHOD": "both"}, "INFERENCE_METHOD=both: speculative or target_ar"),
        ({"ENABLE_TARGET": "FALSE", "ENABLE_SPECULATIVE": ""}, None),
        ({"ENABLE_TARGET": "false", "ENABLE_SPECULATIVE": "False"}, "nothing is run"),
        ({"ENABLE_BATCH": "yes"}, "ENABLE_BATCH=yes: true or false"),
        ({"NUM_PROMPTS": "", "AUTO_RATE": "1,inf"}, "AUTO_RATE=1,inf has no duration"),
    ],
)
def test_settings_that_are_refused(folder, settings, said):
    done = eval_sh.run(folder, "serve", **{"NUM_PROMPTS": "3", **settings})
    assert done.returncode == (2 if said else 0)
    assert said is None or said in done.stderr


@pytest.mark.slow
def test_a_load_for_real(tmp_path):
    """The mini target, its draft model and PLD, two rates, four slots."""
    project = eval_sh.make(tmp_path / "project", real=True)
    settings = {
        "ENABLE_BATCH": "true",
        "GENERATION_LENGTH": "16",
        "LOAD": "--rate 2,4 --num-prompts 5",
    }
    done = eval_sh.run(project, "serve", "pld", "sps", **settings)
    assert done.returncode == 0, done.stderr
    names = {line.split()[0] for line in filter(str.strip, done.stdout.splitlines())}
    kinds = [f"{method}-float32-temperature-0-rate" for method in ("vanilla", "pld", "sps")]
    assert {f"{kind}-{rate}" for kind in kinds for rate in (2, 4)} < names
    details = (project / REPORT / "details.txt").read_text()
    assert details.count("EQUAL: ") == 4 and details.count("5 of 5 questions") == 4


def engine(tmp_path, url, **settings):
    """The project's folder and ./eval.sh engine for real, of three questions."""
    project = eval_sh.make(tmp_path / "project", real=True)
    environment = {"DTYPE": "float32", "MAX_NEW_TOKENS": "24", "ENGINE_URL": url, **settings}
    environment["ARGS"] = "--warmup 0 --question-end 3"
    return project, eval_sh.run(project, "engine", **environment)


def test_a_server_that_is_there(tmp_path):
    with replaying("vllm") as server:
        project, done = engine(tmp_path, server.url)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in filter(str.strip, done.stdout.splitlines())}
    assert rows["engine"].split()[1] == "2.67"  # tokens a step: 16 in 6
    answers = project / ANSWERS / "target-engine-float32-temperature-0.jsonl"
    assert len(answers.read_text(encoding="utf-8").splitlines()) == 3


def test_a_server_that_is_not_there(tmp_path):
    project, done = engine(tmp_path, "http://127.0.0.1:9")
    assert done.returncode == 2 and "http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    done = eval_sh.run(project, "engine", "pld")
    assert done.returncode == 2 and "engine takes no methods" in done.stderr
