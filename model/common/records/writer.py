"""Answer files and what stands beside them: written crash-safe, resumable, self-explaining.

A line of NAME.jsonl is one question in Spec-Bench's format with per-step facts added:

    question_id, category, answer_id, model_id, tstamp
    choices[{
        index, turns, decoding_steps, new_tokens, wall_time, accept_lengths,       Spec-Bench's
        output_ids, prompt_tokens, finish_reason, prefill_s, begin_s, slot, recompiled,  per turn
        drafted, depth, step_end_s, draft_s, verify_s, commit_s}]          per turn and step
    error   one line, where the question failed

A step is one target forward after the prefill. An accept length is what a step commits, the bonus
included and after the stop cut, so the baseline's is 1.00; the prefill's own token is in no accept
length, hence new_tokens = 1 + sum(accept lengths of the turn), EOS included. wall_time = prefill +
steps in seconds, the device synchronised at both ends, tokenising and detokenising outside. begin_s
is the Unix time when the prefill began, step_end_s when every step ended, in seconds from there.
With --batch-size B there are B slots, each of which takes the next question when its answer has
ended: a wall_time then holds the other slots' prefills and the harness' work for them. `recompiled`
counts the graphs that were compiled or captured within wall_time: 0 where the warm-up met every
shape.

The meta file's run_s is of the last process that answered, or of one worker of several: `decode`
seconds within wall_times (--paired: of both files), `harness` all others between the first question
and the last. runtime_ran is what --runtime came to: eager, where graphs could not be captured.
bandwidth.py says what step_reads and environment.bandwidth are.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from pathlib import Path

from model.common.args import ROOT
from model.common.errors import BadInput

SCHEMA = 1
MEASURED = ("step_reads", "run_s", "runtime_ran", "method_facts")  # of a meta, never compared


def choice_record(index: int, texts: list[str], turns: list, prompts: list[int]) -> dict:
    """One element of `choices`; turns are turns.Turn, prompts their lengths in tokens."""
    phases = {
        f"{phase}_s": [[round(t, 7) for t in turn.phase_s[phase]] for turn in turns]
        for phase in ("draft", "verify", "commit")
        if all(turn.phase_s for turn in turns)
    }
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
        "prefill_s": [round(turn.prefill_s, 7) for turn in turns],
        "begin_s": [round(turn.begin_s, 6) for turn in turns],
        "slot": [turn.slot for turn in turns],
        "recompiled": [turn.recompiled for turn in turns],
        "drafted": [turn.drafted for turn in turns],
        "depth": [turn.depth for turn in turns],
        "step_end_s": [[round(s, 7) for s in turn.step_end_s] for turn in turns],
        **phases,
    }


def answer_record(question: dict, model_id: str, choices: list[dict], error: str | None) -> dict:
    """One line of an answer file."""
    import shortuuid

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


def meta_path(path: Path) -> Path:
    """NAME.jsonl -> NAME.meta.json."""
    return path.with_name(path.stem + ".meta.json")


SYNC_S = 1.0  # seconds between two waits for the disk


class AnswerFile:
    """Appends answers to a file; a killed run loses at most the questions in flight.

    A machine that goes down may take the answers of the last SYNC_S seconds with it: having every
    line on the disk would take as long as rendering its prompt.

    A file whose meta says the same run is resumed: whole lines stay, a half-written last one is
    dropped, failed questions are tried again. Another run's file is refused unless overwrite is
    given.
    """

    def __init__(self, path: Path, meta: dict, overwrite: bool = False):
        self.path, self.meta = path, meta
        self.records: dict[int, dict] = {}
        self.synced = time.monotonic()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if overwrite:
                path.unlink(missing_ok=True)  # first: old answers never stand beside the new meta
            elif path.exists() and path.stat().st_size:
                self._check_same_run()
                self.records = whole_lines(path)
                self._check_resumable()
            _write_atomic(meta_path(path), json.dumps(meta, indent=1) + "\n")
            self._rewrite()
        except OSError as error:
            raise BadInput(f"{path}: cannot be written: {error.strerror or error}") from error

    def _check_same_run(self) -> None:
        beside = meta_path(self.path)
        try:
            old = json.loads(beside.read_text(encoding="utf-8"))
        except FileNotFoundError:
            old = None
        except ValueError as error:  # not JSON, or no UTF-8
            raise BadInput(f"{beside}: not JSON: {error}; --overwrite starts anew") from error
        if old is None:
            raise BadInput(f"{self.path}: exists without {beside.name}; --overwrite replaces it")
        if not isinstance(old, dict):
            raise BadInput(f"{beside}: not a JSON object; --overwrite starts anew")
        field = first_difference(identity(old), identity(self.meta))
        if field:
            raise BadInput(
                f"{self.path}: answers of another run ({field}); --overwrite replaces them"
            )
        self.keep_measured(old)

    def keep_measured(self, old: dict) -> None:
        """Take over what an earlier process, or a worker, measured for answers of this file."""
        for name in MEASURED:
            if name in old:
                self.meta.setdefault(name, old[name])
        bandwidth = old.get("environment", {}).get("bandwidth")
        if bandwidth is not None:
            self.meta["environment"].setdefault("bandwidth", bandwidth)

    def _check_resumable(self) -> None:
        """A warm method's state is gone with its process, so its run cannot go on."""
        asked = self.meta["method_args"].get("state") == "warm"
        if asked and 0 < len(self.records) < self.meta["num_questions"]:
            raise BadInput(f"{self.path}: a --state warm run cannot be resumed; use --overwrite")

    def _rewrite(self) -> None:
        lines = [json.dumps(record, ensure_ascii=False) for record in self.records.values()]
        _write_atomic(self.path, "".join(line + "\n" for line in lines))

    def is_done(self, question_id: int) -> bool:
        return question_id in self.records

    def add(self, record: dict) -> None:
        """Append one line, which the system has before this returns, and the disk soon."""
        self.records[record["question_id"]] = record
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
        if time.monotonic() - self.synced >= SYNC_S:
            self._sync()

    def _sync(self) -> None:
        """Wait until the disk has what was written."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.synced = time.monotonic()

    def note(self, facts: dict) -> None:
        """Write what was measured into the meta file."""
        self.meta.update(facts)
        _write_atomic(meta_path(self.path), json.dumps(self.meta, indent=1) + "\n")

    def finish(self, order: list[int], facts: dict | None = None) -> None:
        """Put the lines into the questions' order; note the method's facts in the meta."""
        if facts:
            self.note({"method_facts": facts})
        if list(self.records) != [i for i in order if i in self.records]:
            self.records = {i: self.records[i] for i in order if i in self.records}
            self._rewrite()
        elif self.records:
            self._sync()


def whole_lines(path: Path) -> dict[int, dict]:
    """Answers by question id, without failed questions and a half-written last line."""
    records = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = json.loads(line)
            records[record["question_id"]] = record
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise BadInput(f"{path}:{number}: broken line; --overwrite starts anew") from error
    return {i: record for i, record in records.items() if "error" not in record}


def _write_atomic(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(part, path)


def identity(meta: dict) -> dict:
    """What makes two runs the same run: everything but when and where it was written."""
    keys = ("schema", "method", "model_id", "acceptance", "lossy", "shared", "method_args")
    return {key: meta.get(key) for key in keys}


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
    with path.open("rb") as data:
        while block := data.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@functools.lru_cache(maxsize=32)
def sha256_weights(path: Path) -> str:
    """Of a file, or one hash over a model directory's weight files and their names."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin", ".pt"))
    return sha256_text("".join(f"{p.name} {sha256_file(p)}\n" for p in files))


HARNESS = ("contract", "loop", "target", "heads")  # folders of model/common


def harness_sha256() -> str:
    """Of the code that decodes, so that two files are known to come from the same loop."""
    common = ROOT / "model" / "common"
    files = sorted(path for folder in HARNESS for path in (common / folder).rglob("*.py"))
    return sha256_text("".join(f"{p.relative_to(common)} {sha256_file(p)}\n" for p in files))
