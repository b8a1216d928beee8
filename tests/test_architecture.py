"""The rules of the code's arrangement, checked on the source."""

import ast
import doctest
import importlib
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("model/**/*.py"), *ROOT.glob("evaluation/**/*.py")])
SCRIPTS = sorted(ROOT.glob("model/*/inference_*.py"))
TOOL_NAMES = ("speed", "equal", "state", "audit_sampling", "audit_answers")
TOOLS = [ROOT / "evaluation" / f"{tool}.py" for tool in TOOL_NAMES]
METHODS = sorted(path.parent.name for path in SCRIPTS)
# the files that may know of CUDA
CUDA = {"args", "clock", "environment", "host_copy", "loading", "runtime", "target"}
# methods that the paper builds on another one
BUILT_ON = {
    "samd": ("recycling", "eagle2"),
    "specexec": ("sps",),
    "hydra": ("medusa",),
    "specdecpp": ("sps",),
    "sd2": ("sps",),
    "eagle2": ("eagle",),
    "eagle3": ("eagle", "eagle2"),
}
MAX_LINES, MAX_FUNCTION, MAX_HELP_S = 300, 50, 2.0


def name(path):
    return str(path.relative_to(ROOT))


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree(path)) if isinstance(node, kinds)]


def imports(path):
    """Modules that a file imports, at any depth."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or ".")
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


every_source = pytest.mark.parametrize("path", SOURCES, ids=name)


def test_there_is_something_to_check():
    assert {"vanilla", "pld", "sps"} <= set(METHODS)
    assert len(SOURCES) > 25


@every_source
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@every_source
def test_functions_are_short(path):
    long = [f.name for f in functions(path) if f.end_lineno - f.lineno + 1 > MAX_FUNCTION]
    assert not long


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            id=name(path),
        )
        for path in SOURCES
    ],
)
def test_public_names_have_docstrings(path):
    kinds = (ast.FunctionDef, ast.ClassDef)
    public = [n for n in tree(path).body if isinstance(n, kinds) and n.name[0] != "_"]
    assert not [node.name for node in public if not ast.get_docstring(node)]


@every_source
def test_modules_have_docstrings(path):
    module = tree(path)
    assert ast.get_docstring(module) or not module.body


@every_source
def test_nothing_hides_errors_or_names(path):
    for node in ast.walk(tree(path)):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), "bare except"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), "import *"


@every_source
def test_no_code_of_a_checkpoint_is_trusted(path):
    text = path.read_text(encoding="utf-8")
    assert "trust_remote_code" not in text
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "load"):
            assert "weights_only=True" in ast.unparse(node)
    assert not {"pickle", "dill", "cloudpickle", "joblib"} & set(imports(path)) or (
        "pickle.load" not in text
    )


@every_source
def test_no_private_paths(path):
    assert not re.search(r"[\"'](/home|/root|/work|/mnt|/data|/tmp|~)/", path.read_text("utf-8"))


def test_cuda_is_known_to_few():
    folder = ROOT / "model"
    knowing = {p for p in folder.rglob("*.py") if "cuda" in p.read_text("utf-8").lower()}
    assert {name(path) for path in knowing} == {f"model/common/{stem}.py" for stem in CUDA}


@pytest.mark.parametrize("method", METHODS)
def test_methods_stand_on_the_common_part(method):
    allowed = {"common", method, *BUILT_ON.get(method, ())}
    for path in (ROOT / "model" / method).glob("*.py"):
        for module in imports(path):
            assert not module.startswith("."), "relative import"
            parts = module.split(".")
            assert parts[0] not in ("evaluation", "tests")
            if parts[0] == "model" and len(parts) > 1:
                assert parts[1] in allowed


def test_the_common_part_knows_no_method():
    for path in (ROOT / "model" / "common").glob("*.py"):
        assert all(
            module.split(".")[1:2] in ([], ["common"])
            for module in imports(path)
            if module.split(".")[0] == "model"
        )
        words = {
            node.value
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not words & (set(METHODS) - {"vanilla"})


def test_the_tools_need_no_model_code():
    """But for what asks the target itself (forcing.py) and warps as it does (token_law.py)."""
    for path in (ROOT / "evaluation").glob("*.py"):
        if path.stem not in ("forcing", "token_law"):
            assert not [module for module in imports(path) if module.split(".")[0] == "model"]


def test_scripts_are_alike():
    """The same parts in the same order: a diff of two shows only the methods' difference."""
    for path in SCRIPTS:
        defined = [f.name for f in functions(path)]
        assert defined[:2] == ["add_args", "build"]
        assert set(defined[2:]) <= {"engine"}
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
        assert "Run:" in ast.get_docstring(tree(path))


@pytest.mark.parametrize("path", [*SCRIPTS, *TOOLS], ids=name)
def test_help_is_quick(path):
    """In seconds of processor time, since other work on the machine does not count."""
    command = [sys.executable, str(path)]
    if path in SCRIPTS:
        command = [sys.executable, "-m", ".".join(path.relative_to(ROOT).with_suffix("").parts)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"COLUMNS": "100"}
    done = subprocess.run(
        [*command, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert done.stderr == ""
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MAX_HELP_S
    flags = re.findall(r"^  (--[a-z0-9-]+)", done.stdout, re.MULTILINE)
    assert len(flags) == len(set(flags)) >= 3


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_every_flag_is_explained(path):
    from model.common.args import make_parser

    script = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    parser = make_parser(path.parent.name, script.__doc__, script.add_args)
    for action in parser._actions:
        assert action.help
        assert "_" not in action.option_strings[-1]


def test_examples_in_docstrings_hold():
    sources = [path for path in SOURCES if path.is_relative_to(ROOT / "model")]
    shown = [path for path in sources if ">>>" in path.read_text(encoding="utf-8")]
    assert len(shown) >= 2
    for path in shown:
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        assert doctest.testmod(module).failed == 0, name(path)
