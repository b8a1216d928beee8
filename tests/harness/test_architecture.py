"""The rules of the code's arrangement, checked on the source; a test a rule, which names files."""

import ast
import doctest
import functools
import importlib
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL, EVALUATION = ROOT / "model", ROOT / "evaluation"
COMMON = MODEL / "common"
SOURCES = sorted([*MODEL.rglob("*.py"), *EVALUATION.rglob("*.py")])
MODEL_SOURCES = set(MODEL.rglob("*.py"))
SCRIPTS = sorted(MODEL.glob("*/inference_*.py"))
TOOL_NAMES = ("speed", "serving", "equal", "state", "merge", "audit_sampling", "audit_answers")
TOOL_NAMES += ("summarise",)
TOOL_NAMES += ("leaderboard",)
TOOL_NAMES += ("report", "plot", "show")
TOOLS = [EVALUATION / f"{tool}.py" for tool in TOOL_NAMES]
TRAINERS = sorted(MODEL.glob("*/train.py"))
BUILDERS = [MODEL / "samd" / "build_sam.py", MODEL / "rest" / "build_datastore.py"]
METHODS = sorted({path.parent.name for path in SCRIPTS} - {"engine"})  # a server is no method
# the files of model/common that may know of CUDA
CUDA = {"args.py", "loop/clock.py", "records/meta.py", "records/energy/nvml.py"}
CUDA |= {"target/loading.py", "target/model.py", "target/runtime.py"}
# what a folder of model/common may not import
BELOW = {
    "contract": ("loop", "target", "heads", "records", "training", "prompts", "eval"),
    "loop": ("heads", "records", "training", "prompts", "eval", "args", "shards"),
    "target": ("heads", "records", "training", "eval", "shards"),
    "heads": ("records", "training", "eval", "shards"),
    "load": ("target", "heads", "records", "training", "eval", "shards"),
}
RUNTIMES = {"eager", "compile", "cudagraph"}
# methods that the paper builds on another one
BUILT_ON = {
    "samd": ("recycling", "eagle2"),
    "specexec": ("sps",),
    "hydra": ("medusa",),
    "specdecpp": ("sps",),
    "sd2": ("sps",),
    "eagle2": ("eagle",),
    "eagle3": ("eagle", "eagle2"),
    "peagle": ("eagle", "eagle3"),
    "dflash": ("eagle", "eagle3"),
    "dspark": ("dflash",),
    "mtp": ("eagle",),
}
MAX_LINES, MAX_FUNCTION, MAX_SCRIPT, MAX_HELP_S = 400, 50, 60, 2.0
CACHE_WRITTEN = re.compile(r"cache\.length(\[[^\]]*\])?\s*[-+*]?=(?!=)|cache\.length\.\w+_\(")


def name(path):
    return str(path.relative_to(ROOT))


@functools.cache
def text(path):
    return path.read_text(encoding="utf-8")


@functools.cache
def tree(path):
    return ast.parse(text(path))


def nodes(path, *kinds):
    return [node for node in ast.walk(tree(path)) if isinstance(node, kinds)]


def imports(path):
    """Modules that a file imports, at any depth."""
    found = [alias.name for node in nodes(path, ast.Import) for alias in node.names]
    for node in nodes(path, ast.ImportFrom):
        found.append(node.module or ".")
        found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def strings(path):
    return {node.value for node in nodes(path, ast.Constant) if isinstance(node.value, str)}


def offenders(rule, paths=SOURCES):
    """{file: what rule(path) finds in it}, where it finds something."""
    return {name(path): found for path in paths if (found := rule(path))}


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_there_is_something_to_check():
    assert {"vanilla", "pld", "sps"} <= set(METHODS)
    assert len(SOURCES) > 100 and all(tool.is_file() for tool in TOOLS)


def test_files_are_short():
    def long(path):
        return max(len(text(path).splitlines()) - MAX_LINES, 0)

    assert not offenders(long)


def test_functions_are_short():
    def long(path):
        functions = nodes(path, ast.FunctionDef, ast.AsyncFunctionDef)
        return [f.name for f in functions if f.end_lineno - f.lineno + 1 > MAX_FUNCTION]

    assert not offenders(long)


def test_modules_and_public_names_have_docstrings():
    def bare(path):
        body = tree(path).body
        kinds = (ast.FunctionDef, ast.ClassDef)
        public = [n for n in body if isinstance(n, kinds) and n.name[0] != "_"]
        module = [] if ast.get_docstring(tree(path)) or not body else ["the module"]
        return module + [node.name for node in public if not ast.get_docstring(node)]

    assert not offenders(bare)


def test_nothing_hides_errors_or_names():
    def hidden(path):
        bare = any(node.type is None for node in nodes(path, ast.ExceptHandler))
        star = any(a.name == "*" for node in nodes(path, ast.ImportFrom) for a in node.names)
        return ["bare except"] * bare + ["import *"] * star

    assert not offenders(hidden)


def test_no_code_of_a_checkpoint_is_trusted():
    def trusted(path):
        found = re.findall(r"trust_remote_code=(?!trusted\(\))\S*", text(path))
        for call in nodes(path, ast.Call):
            if ast.unparse(call.func) in ("torch.load", "load"):
                found += [ast.unparse(call)] * ("weights_only=True" not in ast.unparse(call))
        pickles = {"pickle", "dill", "cloudpickle", "joblib"} & set(imports(path))
        return found + ["pickle.load"] * bool(pickles and "pickle.load" in text(path))

    assert not offenders(trusted)


def test_no_private_paths():
    private = re.compile(r"[\"'](/home|/root|/work|/mnt|/data|/tmp|~)/")
    assert not offenders(lambda path: private.findall(text(path)))


def test_no_private_parts_of_pytorch():
    private = re.compile(r"torch\._(?:inductor|dynamo)")
    assert not offenders(lambda path: private.findall(text(path)))


def test_cuda_is_known_to_few():
    words = re.compile("cuda(?!graph)")  # the runtime's name is a flag's value
    knowing = {path for path in MODEL.rglob("*.py") if words.search(text(path).lower())}
    assert {name(path) for path in knowing} == {f"model/common/{place}" for place in CUDA}


def test_one_file_writes_a_caches_length():
    others = [path for path in SOURCES if path != COMMON / "target" / "cache.py"]
    assert not offenders(lambda path: CACHE_WRITTEN.findall(text(path)), others)
    for line in ("x.cache.length += 1", "cache.length[slots] = 0", "self.cache.length.copy_(a)"):
        assert CACHE_WRITTEN.search(line)
    assert not CACHE_WRITTEN.search(
        "if cache.length == 0 or cache.length[0] == 1: cache.length.sum()"
    )


def test_layers_are_not_mixed():
    """contract <- loop <- harness; target and heads below it."""

    def above(path):
        refused = BELOW[path.relative_to(COMMON).parts[0]]
        found = [
            module.split(".")[2] for module in imports(path) if module.startswith("model.common.")
        ]
        return {part for part in found if part in refused}

    paths = [path for folder in BELOW for path in (COMMON / folder).rglob("*.py")]
    assert not offenders(above, paths)


def test_drafters_know_nothing_of_runtimes():
    """They hand their functions to one; which it is, and what shapes it likes, is not asked."""

    def known(path):
        attributes = {ast.unparse(node) for node in nodes(path, ast.Attribute)}
        asked = re.compile(r"static_shapes$|runtime\.(static|name|recordings|num_nodes|width)$")
        return {name for name in attributes if asked.search(name)} | strings(path) & RUNTIMES

    assert not offenders(known, sorted(MODEL.glob("*/drafter.py")))


def test_methods_stand_on_the_common_part():
    def foreign(path):
        own = path.relative_to(MODEL).parts[0]
        allowed = {"common", own, *BUILT_ON.get(own, ())}
        parts = [module.split(".") for module in imports(path)]
        found = [".".join(part) for part in parts if part[0] in ("evaluation", "tests", "")]
        named = [part for part in parts if part[0] == "model" and len(part) > 1]
        return found + [".".join(part) for part in named if part[1] not in allowed]

    paths = [p for m in (*METHODS, "engine") for p in (MODEL / m).rglob("*.py")]
    assert not offenders(foreign, paths)


def test_the_common_part_knows_no_method():
    def methods(path):
        parts = [module.split(".") for module in imports(path)]
        found = [part[1] for part in parts if part[0] == "model" and len(part) > 1]
        return set(found) - {"common"} | strings(path) & (set(METHODS) - {"vanilla"})

    assert not offenders(methods, sorted(COMMON.rglob("*.py")))


def test_the_tools_need_no_model_code():
    """But for what a file's fields mean (schema.py) and what messages are (errors.py, visible.py),
    for what asks the target itself (judging/, forcing.py) and warps as it does, and for what writes
    files or reads questions as the harness does."""
    free = [f"model.common.{name}" for name in ("records.schema", "errors", "visible")]

    def needed(path):
        found = [module for module in imports(path) if module.split(".")[0] == "model"]
        return [one for one in found if not any(f"{one}.".startswith(f"{name}.") for name in free)]

    asking = {EVALUATION / "sampling" / "forcing.py", EVALUATION / "sampling" / "token_law.py"}
    asking |= {*(EVALUATION / "judging").glob("*.py"), EVALUATION / "merge.py"}
    asking |= {EVALUATION / "state.py", EVALUATION / "board" / "questions.py"}
    assert not offenders(needed, [path for path in SOURCES if path not in asking | MODEL_SOURCES])


def test_scripts_are_alike():
    """The same parts in the same order: a diff of two shows only the methods' difference."""

    def other(path):
        defined = [node.name for node in nodes(path, ast.FunctionDef)]
        alike = defined[:2] == ["add_args", "build"] and set(defined[2:]) <= {"engine"}
        short = len(text(path).splitlines()) <= MAX_SCRIPT
        return not (alike and short and "Run:" in ast.get_docstring(tree(path)))

    assert not offenders(other, [path for path in SCRIPTS if path.parent.name in METHODS])


def test_help_is_quick():
    """In seconds of processor time, since other work on the machine does not count."""

    def wrong(path):
        command = [sys.executable, *([str(path)] if path in TOOLS else ["-m", module_of(path)])]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = os.environ | {"COLUMNS": "100"}
        options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
        done = subprocess.run([*command, "--help"], timeout=60, **options)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        flags = re.findall(r"^  (--[a-z0-9-]+)", done.stdout, re.MULTILINE)
        told = done.returncode == 0 and done.stderr == "" and len(flags) == len(set(flags)) >= 2
        return [] if told and seconds < MAX_HELP_S else [f"{seconds:.1f} s", done.stderr]

    assert not offenders(wrong, [*SCRIPTS, *TOOLS, *BUILDERS, *TRAINERS])


def test_scripts_load_nothing_heavy():
    modules = ", ".join(module_of(path) for path in SCRIPTS)
    heavy = "{'torch', 'numpy', 'numba', 'transformers'}"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_every_flag_is_explained():
    from model.common import args
    from model.common.training import flags

    def silent(path):
        script = importlib.import_module(module_of(path))
        given = path.parent.name, script.__doc__, script.add_args
        recipe = getattr(script, "RECIPE", None)  # of a trainer; its names are flags
        parser = flags.make_parser(*given, recipe) if recipe else args.make_parser(*given)
        return [a.dest for a in parser._actions if not a.help or "_" in a.option_strings[-1]]

    assert not offenders(silent, [*SCRIPTS, *TRAINERS])


def test_examples_in_docstrings_hold():
    shown = [path for path in SOURCES if path.is_relative_to(MODEL) and ">>>" in text(path)]
    assert len(shown) >= 2

    def failed(path):
        return doctest.testmod(importlib.import_module(module_of(path))).failed

    assert not offenders(failed, shown)
