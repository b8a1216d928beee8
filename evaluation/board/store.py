"""What the leaderboard keeps: rows, and the answer files and metas that they are recomputed from.

    data/leaderboard/BENCH/questions.json        which questions the bench has (questions.py)
    data/leaderboard/BENCH/TARGET/DEVICE/
        NAME.row.json                            a row: its numbers, verdict, files and their hashes
        NAME-DIGEST.meta.json                    the meta of a stored file, as the run wrote it
        NAME-DIGEST.zip, or NAME-DIGEST.K.zip    its answers (packing.py), in parts where it is long

NAME is the file's model_id. Rows of one baseline share its file. DIGEST is of answers and meta.
"""

import hashlib
import json
import re
from pathlib import Path

from evaluation.answers.meta import AnswerError, find_field, meta_path
from evaluation.board import packing
from model.common.errors import parse_json

FOLDER = Path(__file__).resolve().parents[2] / "data" / "leaderboard"
SCHEMA = 1
ROW = ".row.json"


def safe(text):
    """A label as part of a file's name: 'NVIDIA A100 (80 GB)' -> 'NVIDIA-A100-80-GB'."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", str(text)).strip("-.") or "unknown"


def folder_of(meta, root=FOLDER):
    """Where the rows of a run's bench, target and device stand."""
    target, size = find_field(meta, "target"), find_field(meta, "scale_to")
    target = f"{target}-twin-{size}" if size else target
    names = find_field(meta, "bench_name"), target, find_field(meta, "device")
    return Path(root).joinpath(*map(safe, names))


def row_path(meta, root=FOLDER):
    """Where the row of a method's run stands."""
    return folder_of(meta, root) / f"{safe(meta['model_id'])}{ROW}"


def sha256(content):
    """Hex digits."""
    return hashlib.sha256(content).hexdigest()


def read_bytes(path):
    """A file's content; raises AnswerError where it is not there."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise AnswerError(f"{path}: {error.strerror}") from None


def put(path, folder):
    """Store an answer file and its meta in a folder; returns its entry of a row."""
    content, meta = read_bytes(path), read_bytes(meta_path(path))
    try:
        archives = packing.pack(content)
    except AnswerError as error:
        raise AnswerError(f"{path}: {error}") from None
    entry = {"sha256": sha256(content), "meta_sha256": sha256(meta)}
    digest = sha256("".join(entry.values()).encode())[:12]
    name = f"{safe(Path(path).name.removesuffix('.jsonl'))}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{name}.{part}.zip" for part in range(1, len(archives) + 1)]
    names = names if len(names) > 1 else [f"{name}.zip"]
    for archive_name, archive in zip(names, archives):
        (folder / archive_name).write_bytes(archive)
    (folder / f"{name}.meta.json").write_bytes(meta)
    return {**entry, "meta": f"{name}.meta.json", "archives": names}


def model_id(entry, row):
    """The name of the run that a stored answer file of a row is of, as part of a file's name."""
    path = row.parent / safe(entry["meta"])
    try:
        return safe(parse_json(read_bytes(path))["model_id"])
    except (ValueError, KeyError, TypeError):
        raise AnswerError(f"{path}: no meta with a model_id") from None


def take(entry, folder, path):
    """Write a stored answer file and its meta at `path`; raises AnswerError if a byte differs."""
    content, meta = contents(entry, folder)
    path.write_bytes(content)
    meta_path(path).write_bytes(meta)


def give_back(entry, folder, path):
    """Whether a stored answer file and its meta were written at `path`: not if they are there.

    Raises AnswerError where a byte differs from the row's, or another file is there.
    """
    found = dict(zip((path, meta_path(path)), contents(entry, folder)))
    missing = [place for place in found if not place.exists()]
    for place, content in found.items():
        if place not in missing and place.read_bytes() != content:
            raise AnswerError(f"{place}: there is another file of that name")
    path.parent.mkdir(parents=True, exist_ok=True)
    for place in missing:
        place.write_bytes(found[place])
    return bool(missing)


def contents(entry, folder):
    """The bytes of a stored answer file and of its meta; AnswerError if one differs."""
    archives = [read_bytes(folder / safe(name)) for name in entry["archives"]]
    first = entry["archives"][0]
    if max(map(len, archives)) >= packing.MOST_BYTES:
        raise AnswerError(f"{first}: an archive of {packing.MOST_BYTES} bytes or more")
    try:
        content = packing.unpack(archives)
    except AnswerError as error:
        raise AnswerError(f"{first}: {error}") from None
    meta = read_bytes(folder / safe(entry["meta"]))
    for name, found, kind in ((first, content, "sha256"), (entry["meta"], meta, "meta_sha256")):
        if sha256(found) != entry[kind]:
            raise AnswerError(f"{name}: its {kind} is not the row's: edited, or another file")
    return content, meta


def read_row(path):
    """A row's document; raises AnswerError where it is none."""
    try:
        row = parse_json(read_bytes(path))
    except ValueError as error:
        raise AnswerError(f"broken JSON: {error}") from None
    if not isinstance(row, dict) or row.get("schema") != SCHEMA:
        raise AnswerError(f"no row of schema {SCHEMA}")
    kinds = {"added": str, "files": dict, "verdict": dict, "numbers": dict}
    for name, kind in kinds.items():
        if not isinstance(row.get(name), kind):
            raise AnswerError(f"{name} is missing or no {kind.__name__}")
    if not {"method", "baseline"} <= row["files"].keys() <= {"method", "baseline", "pairs"}:
        raise AnswerError("files are not method, baseline and, where there are, pairs")
    for side, entry in row["files"].items():
        if not isinstance(entry, dict):
            raise AnswerError(f"files.{side} is no object")
        texts = [entry.get(name) for name in ("sha256", "meta_sha256", "meta")]
        archives = entry.get("archives")
        named = isinstance(archives, list) and archives and set(map(type, archives)) == {str}
        if set(map(type, texts)) != {str} or not named:
            raise AnswerError(f"files.{side} does not name its archives, meta and hashes")
    return row


def write_json(path, document):
    """A document of the store, a key a line so that changes can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def row_paths(root=FOLDER):
    """All rows, sorted by place."""
    return sorted(Path(root).glob(f"*/*/*/*{ROW}"))


def files_of(rows):
    """Files that rows name. rows: {path: document, None if unreadable}."""
    entries = [
        (path.parent, entry)
        for path, row in rows.items()
        for entry in (row["files"].values() if row else ())
    ]
    return {folder / name for folder, e in entries for name in (e["meta"], *e["archives"])}


def strays(rows, root=FOLDER):
    """Files in the rows' folders that no row names, unless a row beside them is unreadable."""
    named, unread = files_of(rows), {path.parent for path, row in rows.items() if row is None}
    there = (path for path in Path(root).glob("*/*/*/*") if path not in rows)
    return sorted(path for path in there if path not in named and path.parent not in unread)
