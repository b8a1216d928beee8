"""Real short runs on the mini target as leaderboard rows, and forgeries of them."""

import json
import math
import shutil
from pathlib import Path

from harness_runs import read, read_meta, run, write

from evaluation import leaderboard
from evaluation.answers.meta import AnswerError
from evaluation.board import packing, store
from evaluation.speedup.drift import pairs_path

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "data" / "mini_models" / "target"
TIMES = ("wall_time", "first_s", "prefill_s")
STEP_TIMES = ("draft_s", "verify_s", "commit_s", "step_end_s")
SETTINGS = ["--bench-name", "mini_bench", "--categories", "mt_bench,translation"]
SETTINGS += ["--limit-per-category", 8, "--max-new-tokens", 32]
SETTINGS += ["--dtype", "float32", "--device", "cpu", "--num-threads", 1, "--paired", 1]
SETTINGS += ["--warmup", 1]
GAP_S = 0.001  # between two turns of baseline_of()


def answer(method, path, *flags):
    """Decode sixteen questions of the mini bench by a method, and by the baseline beside them."""
    where = ["--model-path", MINI, "--answer-file", path, "--model-id", f"mini-{path.stem}"]
    assert run(method, *where, *SETTINGS, *flags) == 0
    return path


def with_meta(path, records, meta):
    """Write an answer file and its meta; returns the path."""
    write(path, records)
    path.with_suffix(".meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return path


def baseline_of(path):
    """A run of the baseline of its own, as fast as the pairs of a method's run: those, in a row."""
    pairs = pairs_path(path)
    records, meta = read(pairs), read_meta(pairs)
    del meta["pairs_of"]
    meta["model_id"] = "mini-vanilla"
    choices = [choice for record in records for choice in record["choices"]]
    begin, harness = choices[0]["begin_s"][0], 0.0
    for choice in choices:
        for turn, wall_s in enumerate(choice["wall_time"]):
            choice["begin_s"][turn] = round(begin + harness, 6)
            begin, harness = begin + wall_s, harness + GAP_S
    meta["run_s"] = {"decode": round(total_s(records), 3), "harness": round(harness, 3)}
    records = [record | {"model_id": "mini-vanilla"} for record in records]
    return with_meta(path.with_name("vanilla.jsonl"), records, meta)


def total_s(records):
    """Seconds of all turns."""
    return math.fsum(s for r in records for c in r["choices"] for s in c["wall_time"])


def slower(records, factor):
    """Every time of these answers times a factor, on the harness' ticks."""
    for choice in (choice for record in records for choice in record["choices"]):
        for name in TIMES:
            choice[name] = [round(s * factor, 7) for s in choice[name]]
        for name in STEP_TIMES:
            choice[name] = [[round(s * factor, 7) for s in turn] for turn in choice[name]]


class Board:
    """A store of rows in a folder of its own."""

    def __init__(self, folder):
        self.store, self.page = folder / "leaderboard", folder / "Leaderboard.md"
        self.store.mkdir(exist_ok=True)

    def copied(self, folder):
        """A Board in another folder with the same rows, to be forged."""
        shutil.copytree(self.store, folder / "leaderboard")
        shutil.copy(self.page, folder)
        return Board(folder)

    def run(self, *argv):
        """Exit status of the command."""
        where = ["--store", str(self.store), "--page", str(self.page)]
        return leaderboard.main([*map(str, argv), *where])

    def row(self, name):
        """The path of the row of a run."""
        (path,) = self.store.glob(f"mini_bench/*/*/mini-{name}{store.ROW}")
        return path

    def failures(self, capsys):
        """The lines of a check that found something."""
        capsys.readouterr()
        status = self.run("check")
        *lines, summary = capsys.readouterr().out.splitlines()
        assert status == int(bool(lines)) and summary.endswith(f"{len(lines)} failures")
        return lines

    def forge(self, name, side, edit, careful):
        """Change a stored file of a row by edit(records, meta).

        careful: the row's hashes, numbers and verdict, and the page, are made to fit.
        """
        path = self.row(name)
        row, folder = json.loads(path.read_text()), path.parent
        entry = row["files"][side]
        archives = [(folder / part).read_bytes() for part in entry["archives"]]
        lines = packing.unpack(archives).decode().split("\n")
        records, meta = [json.loads(line) for line in lines if line], folder / entry["meta"]
        content = json.loads(meta.read_text())
        edit(records, content)
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()
        for part, archive in zip(entry["archives"], packing.pack(text), strict=True):
            (folder / part).write_bytes(archive)
        meta.write_text(json.dumps(content))
        if careful:
            fitted = {"sha256": store.sha256(text), "meta_sha256": store.sha256(meta.read_bytes())}
            for one in row["files"].values():  # pairs may be the baseline, too
                if one["archives"] == entry["archives"]:
                    one |= fitted
            self.fit(path, row)

    def fit(self, path, row):
        """Give a row the numbers and the verdict of its files, if they can be compared at all."""
        try:
            found = leaderboard.examine_stored(path, row, self.store)
            row |= {"numbers": found.numbers, "verdict": found.verdict}
        except AnswerError:
            pass
        path.write_text(json.dumps(row))
        self.run("write")
