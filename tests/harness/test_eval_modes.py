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
    assert written == (len(ran) < 3), done.stderr


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
