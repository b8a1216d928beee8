"""What holds for evaluation's source: its examples, and that reading files needs no model code."""

import doctest
import importlib
import subprocess
import sys

from answer_samples import ROOT, write_pair

SOURCES = sorted((ROOT / "evaluation").rglob("*.py"))
READERS = ("evaluation", "answers", "speedup", "audit")  # the other folders load a target


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_examples_in_docstrings_hold():
    shown = [path for path in SOURCES if ">>>" in path.read_text(encoding="utf-8")]
    assert len(shown) >= 7
    for path in shown:
        assert doctest.testmod(importlib.import_module(module_name(path))).failed == 0, path


def test_reading_files_needs_no_model_code(tmp_path):
    """Importing every part that reads files, and comparing two files, imports nothing heavy."""
    parts = [module_name(path) for path in SOURCES if path.parent.name in READERS]
    assert {"evaluation.equal", "evaluation.answers.reader", "evaluation.audit.recount"} < set(
        parts
    )
    code = (
        "import importlib, sys; [importlib.import_module(name) for name in sys.argv[3].split()];"
        "from evaluation import equal; status = equal.main(sys.argv[1:3]);"
        "schema = 'model.common.records.schema'.split('.');"  # it imports nothing
        "own = {'.'.join(schema[:n]) for n in range(1, 5)};"
        "own |= {'model.common.errors', 'model.common.visible'};"  # these neither
        "heavy = {m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers', 'model')};"
        "sys.exit(9 if heavy - own else status)"
    )
    command = [sys.executable, "-c", code, *map(str, write_pair(tmp_path)), " ".join(parts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
