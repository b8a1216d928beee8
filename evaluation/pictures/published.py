"""Speedups that others published (data/leaderboard/published.jsonl), to be set beside a run's own.

They are facts about other machines, and nothing here can recompute them; the page draws them grey.
"""

from pathlib import Path

from evaluation.answers.meta import AnswerError
from model.common.errors import parse_json

ASKED = ("target", "device", "bench", "settings")  # what figures of one source share


def read_published(path, methods):
    """[{"title", "source", "counted", "rows"}] of the figures of some methods, most rows first.

    A row is {"method", "name", "speedup": {category's name: ratio}}.
    """
    found = {}
    for where, record in records(path):
        if record.get("method") not in methods or not record.get("speedup"):
            continue
        source = source_text(record.get("source"))
        title = ", ".join(str(record[name]) for name in ASKED if record.get(name))
        entry = found.setdefault((title, source), {"title": title, "source": source, "rows": []})
        entry.setdefault("counted", str(record.get("counted") or "not said"))
        entry["rows"].append(row_of(record, where))
    return sorted(found.values(), key=lambda entry: -len(entry["rows"]))


def source_text(source):
    """'repository github.com/hemingkx/Spec-Bench, commit fd2c1cd': where a figure stands."""
    if not isinstance(source, dict):
        return str(source or "no source said")
    return ", ".join(f"{name} {value}" for name, value in source.items())


def records(path):
    """(where, object) of every line of the file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8"
        raise AnswerError(f"--published {path}: {reason}") from None
    for number, line in enumerate(lines, 1):
        where = f"--published {path}:{number}"
        try:
            record = parse_json(line) if line.strip() else None
        except ValueError:
            raise AnswerError(f"{where}: not JSON") from None
        if record is not None and not isinstance(record, dict):
            raise AnswerError(f"{where}: not a JSON object")
        if record is not None:
            yield where, record


def row_of(record, where):
    """What is drawn of one record."""
    speedup = record["speedup"]
    if not isinstance(speedup, dict) or not set(map(type, speedup.values())) <= {int, float}:
        raise AnswerError(f"{where}: speedup is no object of numbers")
    name = str(record.get("name") or record["method"])
    return {"method": record["method"], "name": name, "speedup": speedup}
