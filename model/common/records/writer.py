"""Answer files and what stands beside them: written crash-safe, resumable, self-explaining.

schema.py says what stands in a line.

The meta file's run_s is of the last process that answered, or of one worker of several: `decode`
seconds within wall_times (of pairs too), `harness` all others between the first question and the
last. `pairs_of` stands in the meta of a method's pairs, NAME-paired-baseline.jsonl: the baseline's
answers to a share (--paired N) of the questions that the meta lists. A load run's run_s also has
`idle` seconds in which nothing had arrived and `client` seconds in load/queue.py, mostly while
others were decoded. runtime_ran is what --runtime came to: "eager" where a device has no graphs,
"eager in part" where a capture failed, of the target's step or of a drafter's function.
fitted_tree (fitting/fit.py) is the part of its tree that a method drafts where that was left to the
harness. bandwidth.py says what step_reads and environment.bandwidth are, energy/ what `energy` is.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from pathlib import Path

import shortuuid

from model.common import pairs
from model.common.args import ROOT
from model.common.errors import BadInput, Unwritable, parse_json
from model.common.records.lines import Lines, write_atomic

SCHEMA = 1
BY_QUESTION = ("questions_sha256", "prompts_sha256")  # of shared: they grow with the questions
TAKEN_OVER = {"environment": dict, "energy": list}  # parts of a meta that a resumed run reads
# of a meta, never compared
MEASURED = ("step_reads", "run_s", "runtime_ran", "placement", "method_facts", "fitted_tree")


def choice_record(
    index: int,
    texts: list[str],
    turns: list,
    prompts: list[int],
    energy_j: list[float] | None = None,
) -> dict:
    """One element of `choices`; turns are turns.Turn, prompts their lengths in tokens.

    energy_j: of each turn, None where it is not known.
    """
    phases = {
        f"{phase}_s": [[round(t, 7) for t in turn.phase_s[phase]] for turn in turns]
        for phase in ("draft", "verify", "commit")
        if all(turn.phase_s for turn in turns)
    }
    energy = {} if energy_j is None else {"energy_j": [round(joules, 6) for joules in energy_j]}
    return {
        "index": index,
        "turns": texts,
        "decoding_steps": [len(turn.accept_lengths) for turn in turns],
        "new_tokens": [len(turn.output_ids) for turn in turns],
        "wall_time": [round(turn.wall_s, 7) for turn in turns],
        "accept_lengths": [length for turn in turns for length in turn.accept_lengths],
        "output_ids": [turn.output_ids for turn in turns],
        "prompt_tokens": prompts,
        "finish_reason": [turn.finish_reason for turn in turns],
        "first_s": [round(turn.first_s, 7) for turn in turns],
        "prefill_s": [round(turn.prefill_s, 7) for turn in turns],
        "begin_s": [round(turn.begin_s, 6) for turn in turns],
        "slot": [turn.slot for turn in turns],
        "recompiled": [turn.recompiled for turn in turns],
        "drafted": [turn.drafted for turn in turns],
        "depth": [turn.depth for turn in turns],
        "step_end_s": [[round(s, 7) for s in turn.step_end_s] for turn in turns],
        **energy,
        **phases,
    }


def answer_record(question: dict, model_id: str, choices: list[dict], error: str | None) -> dict:
    """One line of an answer file."""
    record = {
        "question_id": question["question_id"],
        "category": question["category"],
        "answer_id": shortuuid.uuid(name=f"{model_id}/{question['question_id']}"),
        "model_id": model_id,
        "choices": choices,
        "tstamp": time.time(),
    }
    if error is not None:
        record["error"] = error
    return record


def beside(path: Path, ending: str) -> Path:
    """NAME.jsonl -> NAME + ending + .jsonl; other names keep their suffix: a.json is no a.jsonl."""
    return path.with_name(f"{path.name.removesuffix('.jsonl')}{ending}.jsonl")


def meta_path(path: Path) -> Path:
    """NAME.jsonl -> NAME.meta.json, NAME.json -> NAME.json.meta.json."""
    return beside(path, ".meta").with_suffix(".json")


def read_meta(path: Path) -> dict | None:
    """The meta beside an answer file, None where there is none."""
    where = meta_path(path)
    try:
        meta = parse_json(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:  # not JSON, or no UTF-8
        raise BadInput(f"{where}: not JSON: {error}; --overwrite starts anew") from error
    if not isinstance(meta, dict):
        raise BadInput(f"{where}: not a JSON object; --overwrite starts anew")
    for name, kind in TAKEN_OVER.items():
        if not isinstance(meta.get(name, kind()), kind):
            raise BadInput(f"{where}: {name} is no {kind.__name__}; --overwrite starts anew")
    return meta


SYNC_S = 1.0  # seconds between two waits for the disk


class AnswerFile:
    """Appends answers to a file; a killed run loses at most the questions in flight.

    A machine that goes down may take the answers of the last SYNC_S seconds with it: having every
    line on the disk would take as long as rendering its prompt.

    A file whose meta says the same run is resumed: whole lines stay, a half-written last one is
    dropped, failed questions are tried again. The same run may ask other questions than before, if
    it asks all that have an answer. Another run's file is refused unless overwrite is given. Of a
    load run, whose time is over, failed questions stay and a file that lacks some is refused.
    """

    def __init__(self, path: Path, meta: dict, overwrite: bool = False):
        self.path, self.meta = path, meta
        self.lines = Lines(path)
        self.synced = time.monotonic()
        bare = path.name.removesuffix(".jsonl")
        twin = path.with_name(bare if bare != path.name else f"{bare}.jsonl")
        if twin.is_file():
            raise BadInput(f"{path}: its meta file is that of {twin.name}; choose another name")
        if path.is_dir():
            raise BadInput(f"{path}: a directory; name one .jsonl answer file")
        records: dict[int | str, dict] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if overwrite:
                path.unlink(missing_ok=True)  # first: old answers never stand beside the new meta
            elif path.exists() and path.stat().st_size:
                old = self._check_same_run()
                records = (all_lines if "load" in meta else whole_lines)(path)
                check_questions(path, records, old, meta)
                self._check_resumable(len(records))
            self._write_meta()
            self.lines.write(records, records)
        except OSError as error:
            raise Unwritable(path, error) from error

    def _check_same_run(self) -> dict:
        old = read_meta(self.path)
        if old is None:
            where = meta_path(self.path).name
            raise BadInput(f"{self.path}: exists without {where}; --overwrite replaces it")
        field = first_difference(identity(old), identity(self.meta))
        if field:
            raise BadInput(
                f"{self.path}: answers of another run ({field}); --overwrite replaces them"
            )
        self.keep_measured(old)
        return old

    def keep_measured(self, old: dict) -> None:
        """Take over what an earlier process, or a worker, measured for answers of this file."""
        for name in MEASURED:
            if name in old:
                self.meta.setdefault(name, old[name])
        if "load" in old:  # with the moment when it began
            self.meta["load"] = old["load"]
        for name in ("bandwidth", "turned_rows"):
            value = old.get("environment", {}).get(name)
            if value is not None:
                self.meta["environment"].setdefault(name, value)
        self.add_energy(old.get("energy", []))

    def add_energy(self, entries: list[dict]) -> None:
        """Put a process' entries behind those of others in the meta's `energy`."""
        if entries:
            self.meta["energy"] = self.meta.get("energy", []) + entries

    def _write_meta(self) -> None:
        write_atomic(meta_path(self.path), [json.dumps(self.meta, indent=1).encode(), b"\n"])

    def _check_resumable(self, num_answers: int) -> None:
        """A warm method's state, or a load's time, is gone with its process."""
        asked = "--state warm" if self.meta["method_args"].get("state") == "warm" else None
        asked = "load" if "load" in self.meta else asked
        if asked and 0 < num_answers < self.meta["num_questions"]:
            raise BadInput(f"{self.path}: a {asked} run cannot be resumed; use --overwrite")

    def is_done(self, question_id: int | str) -> bool:
        return question_id in self.lines

    def drop(self, question_ids) -> None:
        """Take the answers to these questions out of the file."""
        dropped = set(question_ids)
        kept = [name for name in self.lines if name not in dropped]
        if len(kept) < len(self.lines):
            self.lines.write(kept)

    def replace(self, records: list[dict]) -> None:
        """Put these records in the place of those of the same questions."""
        new = {record["question_id"]: record for record in records}
        self.lines.write(dict.fromkeys([*self.lines, *new]), new)

    def add(self, record: dict) -> None:
        """Append one line, which the system has before this returns, and the disk soon."""
        self.lines.add(record)
        if "load" not in self.meta and time.monotonic() - self.synced >= SYNC_S:
            self._sync()  # of a load run, whose requests would wait for the disk, at the end

    def _sync(self) -> None:
        """Wait until the disk has what was written."""
        self.lines.sync()
        self.synced = time.monotonic()

    def note(self, facts: dict) -> None:
        """Write what was measured into the meta file."""
        self.meta.update(facts)
        self._write_meta()

    def finish(self, order: list[int | str], facts: dict | None = None) -> None:
        """Put the lines into the questions' order; note the method's facts in the meta."""
        if facts:
            self.note({"method_facts": facts})
        ordered = [name for name in order if name in self.lines]
        if list(self.lines) != ordered or not self.path.exists():
            self.lines.write(ordered)
        elif ordered:
            self._sync()


def whole_lines(path: Path) -> dict[int | str, dict]:
    """Answers by question id, without failed questions and a half-written last line."""
    return {i: record for i, record in all_lines(path).items() if "error" not in record}


def all_lines(path: Path) -> dict[int | str, dict]:
    """Lines by question id, failed questions among them, without a half-written last one."""
    records = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = parse_json(line)
            records[record["question_id"]] = record
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise BadInput(f"{path}:{number}: broken line; --overwrite starts anew") from error
    return records


def check_questions(path: Path, answered, old: dict, new: dict) -> None:
    """Refuse a resumed file with an answer to a question that the new meta asks otherwise, or not.

    answered: ids; old, new: metas.
    """
    before, asked = (meta.get("questions") or {} for meta in (old, new))
    for name in map(str, answered):
        if before.get(name) == asked.get(name):
            continue
        what = "is not among this run's questions" if name not in asked else "is another one now"
        raise BadInput(
            f"{path}: question {name}, which has an answer, {what}; --overwrite replaces the file"
        )


def identity(meta: dict) -> dict:
    """What makes two runs the same run: all but when, where and for which questions it was made.

    --paired is part of it, since pairs cannot be decoded beside answers that are there already.
    """
    keys = ("schema", "method", "model_id", "acceptance", "lossy", "shared", "method_args")
    found = {key: meta.get(key) for key in keys}
    if isinstance(found["shared"], dict):
        found["shared"] = {k: v for k, v in found["shared"].items() if k not in BY_QUESTION}
    return found | {"paired": pairs.recorded(meta)}


def first_difference(old: dict, new: dict, name: str = "") -> str:
    """The first field in which two nested dicts differ: "shared.dtype: 'a' / 'b'", or ""."""
    for key in sorted(set(old) | set(new), key=lambda key: (key.endswith("sha256"), key)):
        left, right = old.get(key), new.get(key)
        here = f"{name}.{key}" if name else key
        if isinstance(left, dict) and isinstance(right, dict):
            inner = first_difference(left, right, here)
            if inner:
                return inner
        elif left != right:
            return f"{here}: {left!r} / {right!r}"
    return ""


def sha256_text(text: str) -> str:
    """Of a text in UTF-8; a lone surrogate counts as what it is."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def sha256_file(path: Path) -> str:
    """Of the content; a hub cache's blob is named by it already and is not read again."""
    real = path.resolve()
    if real.parent.name == "blobs" and len(real.name) == 64:
        return real.name
    digest = hashlib.sha256()
    try:
        with path.open("rb") as data:
            while block := data.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


@functools.lru_cache(maxsize=32)
def sha256_weights(path: Path) -> str:
    """Of a file, or one hash over a directory's weight files and their names.

    A corpus' index may be one, of .bin or .npy files.
    """
    if path.is_file():
        return sha256_file(path)
    files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin", ".pt"))
    files = files or sorted(path.glob("*.gguf")) or sorted(path.glob("*.npy"))
    files = [p for p in files if p.is_file()]
    return sha256_text("".join(f"{p.name} {sha256_file(p)}\n" for p in files))


def sha256_config(path: Path) -> str:
    """Of a model directory's config.json; a GGUF file holds its own."""
    return sha256_weights(path) if path.is_file() else sha256_file(path / "config.json")


HARNESS = ("contract", "loop", "target", "heads")  # folders of model/common


def harness_sha256() -> str:
    """Of the code that decodes, so that two files are known to come from the same loop."""
    common = ROOT / "model" / "common"
    files = sorted(path for folder in HARNESS for path in (common / folder).rglob("*.py"))
    return sha256_text("".join(f"{p.relative_to(common)} {sha256_file(p)}\n" for p in files))
