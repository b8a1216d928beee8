"""Repeated runs: find them on disk, and average their comparisons (speed.py --mean-report)."""

import re
from pathlib import Path

import numpy as np

from evaluation.answers.meta import AnswerError, read_meta
from evaluation.speedup.drift import is_pairs
from evaluation.speedup.report import NO_VALUE, table

# Averaged number -> where it stands in a task row of a comparison
SPREAD_NUMBERS = {
    "tokens_per_s": ("tokens_per_s",),
    "base_tokens_per_s": ("base_tokens_per_s",),
    "speedup_mean_ratio": ("speedup", "mean_ratio", "value"),
    "decode_speedup_mean_ratio": ("decode_speedup", "mean_ratio", "value"),
    "mean_accepted_over_steps": ("mean_accepted", "over_steps"),
    "joules_per_token": ("energy", "joules_per_token"),
    "energy_total_ratio": ("energy", "ratio", "total_ratio", "value"),
}
SHOWN_ALWAYS = 5  # of these; energies where a run has them
RUN_FOLDER = re.compile(r"(.*run_)(\d+)")


def run_folders(folder):
    """{run number: path} of the folders ...run_1, ...run_2, ... in `folder`, by their common stem.

    model_answer with run_1 and run_2 in it gives
    {"run_": {1: Path("model_answer/run_1"), 2: Path("model_answer/run_2")}}.
    """
    stems = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = RUN_FOLDER.fullmatch(path.name)
        if match and path.is_dir():
            stems.setdefault(match[1], {})[int(match[2])] = path
    return stems


def answer_runs(path):
    """{run number: answer file} for an answer file in a run folder, or beside the run folders.

    Both `model_answer/run_2/pld.jsonl` and `model_answer/pld.jsonl` mean pld.jsonl of every run.
    """
    path = Path(path)
    match = RUN_FOLDER.fullmatch(path.absolute().parent.name)
    if match:
        folders = run_folders(path.absolute().parent.parent).get(match[1], {})
        relative = path.parent.parent if path.parent.name else Path("..")
        folders = {number: relative / folder.name for number, folder in folders.items()}
    else:
        stems = run_folders(path.parent)
        if len(stems) > 1:
            raise AnswerError(f"{path.parent}: several kinds of run folders: {', '.join(stems)}")
        folders = next(iter(stems.values()), {})
    if not folders:
        raise AnswerError(f"{path}: --mean-report finds no folders run_1 ... run_N for it")
    return {number: folders[number] / path.name for number in sorted(folders)}


def run_files(folder):
    """The first run's answer files, for a run folder or the folder that holds run_1 ... run_N.

    Pairs of other files are none: they hold a share of the questions.
    """
    if not RUN_FOLDER.fullmatch(folder.absolute().name):
        stems = run_folders(folder)
        if len(stems) != 1:
            raise AnswerError(f"{folder}: no folders run_1 ... run_N, or several kinds of them")
        (numbered,) = stems.values()
        folder = numbered[min(numbered)]
    files = [file for file in sorted(folder.glob("*.jsonl")) if not is_pairs(file)]
    if not files:
        raise AnswerError(f"{folder}: no answer files in it")
    return files


def baseline_file(path):
    """`path`, or the one file of its first run whose meta says that its method is vanilla."""
    path = Path(path)
    if not path.is_dir():
        return path
    found = [file for file in run_files(path) if (read_meta(file) or {}).get("method") == "vanilla"]
    if len(found) != 1:
        raise AnswerError(f"{path}: {len(found)} files of method vanilla; name the baseline's file")
    return found[0]


def expand(file_paths, base_path):
    """[(methods' files, baseline's file)] a run.

    A folder among `file_paths` means every answer file of its first run but the baseline's.
    """
    base_path = baseline_file(base_path)
    base_runs = answer_runs(base_path)
    files = []
    for path in map(Path, file_paths):
        found = run_files(path) if path.is_dir() else [path]
        files += [file for file in found if file == path or file.name != base_path.name]
    if not files:
        raise AnswerError(f"--file-path: no answer files beside the baseline's {base_path.name}")
    methods = [answer_runs(file) for file in files]
    for file, runs in zip(files, methods):
        if list(runs) != list(base_runs):
            raise AnswerError(
                f"{file}: runs {list(runs)}, but the baseline has runs {list(base_runs)}"
            )
    return [([runs[n] for runs in methods], base) for n, base in base_runs.items()]


def pick(row, path):
    """The number at a path of keys in a task row, None where there is none."""
    for key in path:
        row = row and row[key]
    return row


def spread(values):
    """{"mean", "std"} over runs: sample standard deviation (N - 1), None for one run.

    None where a run lacks the number.
    """
    if any(value is None for value in values):
        return None
    values = np.array(values, float)
    std = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "std": std}


def average(results):
    """Mean and standard deviation over the runs of one method, a row a task."""
    rows = []
    for runs in zip(*(result["tasks"] for result in results)):
        if len({(row["task"], row["questions"]) for row in runs}) > 1:
            raise AnswerError(
                f"{results[0]['method']['label']}: the runs answered different questions"
            )
        row = {name: runs[0][name] for name in ("task", "name", "questions")}
        for name, path in SPREAD_NUMBERS.items():
            row[name] = spread([pick(run, path) for run in runs])
        rows.append(row)
    marked = [number for number, one in enumerate(results, 1) if one["drift"]["marked"]]
    label = results[0]["method"]["label"]
    return {"method": label, "runs": len(results), "moved_runs": marked, "tasks": rows}


def spread_text(entry, digits=3):
    """'2.184 +- 0.012'."""
    if entry is None:
        return NO_VALUE
    std = NO_VALUE if entry["std"] is None else f"{entry['std']:.{digits}f}"
    return f"{entry['mean']:.{digits}f} +- {std}"


def average_lines(averaged):
    """The table of average()."""
    header = ["task", "questions", "tokens/s", "baseline", "speedup (mean ratio)"]
    header += ["decode (mean ratio)", "accepted/step"]
    names = list(SPREAD_NUMBERS)
    if any(row["joules_per_token"] for row in averaged["tasks"]):
        header += ["joules/token", "energy (total ratio)"]
    else:
        names = names[:SHOWN_ALWAYS]
    rows = [
        [
            row["name"],
            str(row["questions"]),
            *(spread_text(row[name], 1 if "per_s" in name else 3) for name in names),
        ]
        for row in averaged["tasks"]
    ]
    moved = ", ".join(f"run {number}" for number in averaged["moved_runs"])
    return [
        f"{averaged['method']}: mean +- sample standard deviation over {averaged['runs']} runs"
        + (f"; MOVED by more than 10 % in {moved}" if moved else ""),
        *table(header, rows),
    ]
