"""Runs that are killed at random moments and started again by the same command.

Each job runs once without interruption; then it is killed (SIGKILL, SIGTERM, SIGINT; of several
workers also one of them) and started again, until it has been killed as often as asked. A job that
reaches its end between two kills is compared with the uninterrupted one in everything but times,
and begins anew. What has to hold: no line that an answer file had at a kill is answered again or
lost; SIGINT ends in one line, exit status 130, within a second.

Run:    python tests/bench/reliability/kill_runs.py --kills 200
        python tests/bench/reliability/kill_runs.py --kills 20 --jobs answers,load
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")]
MINI = ROOT / "data" / "mini_models" / "target"
RAY = str(Path(sys.executable).with_name("ray"))
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
PAIRS = "-paired-baseline.jsonl"
PATIENCE_S, INTERRUPT_S = 30.0, 1.0
TIMED = ("seconds", "tokens_per_s", "build_s", "tstamp", "created")  # beside answers


@dataclass
class Job:
    """A command that can be repeated.

    flags    behind python -m
    files    patterns of the files that it makes, in its folder; answer files are NAME.jsonl
    again    a flag without which it is refused after a kill, and the words that say so
    done     words on which it is refused once it has been finished
    worker   a pattern of the command line of its workers, where there are several
    pairs    half a pair is made anew, so that a question is there if both files have it
    """

    flags: list
    files: tuple = ("*.jsonl",)
    again: tuple[str, str] | None = None
    done: str | None = None
    worker: str | None = None
    pairs: bool = False
    environment: dict = field(default_factory=dict)


def decoding(method: str, *flags) -> list:
    """A run of the mini bench: two questions a category."""
    own = ["--model-path", MINI, "--answer-file", "a.jsonl", "--limit-per-category", 2]
    own += ["--dtype", "float32", "--device", "cpu", "--num-threads", 1, "--max-new-tokens", 64]
    return [f"model.{method}.inference_{method}", *own, *flags]


def jobs(home: Path) -> dict[str, Job]:
    """By name."""
    load = decoding("pld", "--rate", 8, "--num-prompts", 24, "--batch-size", 2)
    two = ["--num-gpus-total", 2, "--num-gpus-per-model", 1, "--device", "auto"]
    sharded = decoding("pld", *two)
    making = ["model.common.training.answers", *decoding("vanilla")[1:], "--paired", 0]
    making += ["--output", "made.jsonl", "--batch-size", 2]
    found = {
        # pairs of a larger N that were lost stay lost
        "answers": Job(decoding("pld", "--temperature", 1, "--paired", 1), pairs=True),
        "batch": Job(decoding("sps", "--batch-size", 3)),
        "load": Job(load, again=("--overwrite", "cannot be resumed")),
        "shards": Job(sharded, worker="ray::run_shard", environment={"RAY_ADDRESS": "auto"}),
        "making": Job(making),
    }
    return found | building(home) | training(home)


def building(home: Path) -> dict[str, Job]:
    """Indices of a corpus."""
    corpus = home / "corpus.jsonl"
    asked = ["--model-path", MINI, "--input", corpus, "--output", "out"]
    return {
        "rest": Job(["model.rest.build_datastore", *asked, "--chunk-tokens", 20000], ("out/*",)),
        "samd": Job(["model.samd.build_sam", *asked], ("out/*",)),
    }


def training(home: Path) -> dict[str, Job]:
    """Every trainer, on a tiny target; checkpoints as often as there is time."""
    from trainers import FLAGS, METHODS

    found = {}
    for method, (own, weights, _) in METHODS.items():
        data = home / ("examples.jsonl" if method == "specdecpp" else "chats.jsonl")
        flags = {"model-path": home / "target", "data": data, "output": "out", **FLAGS, **own}
        flags |= {"num-tokens": 30000, "save-every-s": 0.2, "num-threads": 1}
        given = [f"--{name}={value}" for name, value in flags.items()]
        names = tuple(f"out/{name}" for name in {*weights, "log.jsonl"})
        command = [f"model.{method}.train", *given]
        found[f"train {method}"] = Job(command, names, done="holds a trained head")
    return found


def prepare(home: Path) -> None:
    """What the jobs read."""
    from trainers import new_files

    new_files(home)
    made = [ROOT / "data/mini_bench/generate.py", "corpus", "--num-conversations", 400]
    made += ["--seed", 2, "--output", home / "corpus.jsonl"]
    subprocess.run([sys.executable, *map(str, made)], check=True, cwd=ROOT)


def facts(job: Job, folder: Path) -> dict:
    """What its files hold, times left out."""
    from harness_runs import timeless, without

    found = {}
    for path in sorted(p for pattern in job.files for p in folder.glob(pattern)):
        name = str(path.relative_to(folder))
        if path.suffix == ".jsonl":
            records = [json.loads(line) for line in path.read_text().splitlines()]
            answers = records
            if "choices" in records[0]:  # which slot was free is a matter of times
                answers = without(timeless(records), "slot", "recompiled")
            drop = (*TIMED, "request")
            found[name] = [{k: v for k, v in one.items() if k not in drop} for one in answers]
        elif path.suffix == ".json":
            held = json.loads(path.read_text())
            found[name] = {k: v for k, v in held.items() if k not in TIMED}
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def stamps(folder: Path, pairs: bool = False) -> dict:
    """{(file, question): when its whole line was written}, of what is not to be made again.

    That is not half a pair, if pairs are whole or none, nor are it pairs of no answers at all.
    """
    found: dict = {}
    for path in folder.glob("*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            record = json.loads(line)
            if "tstamp" in record:
                found[path.name, record["question_id"]] = record["tstamp"]
    if all(name.endswith(PAIRS) for name, _ in found):
        return {}
    files = Counter(question for _, question in found)
    least = 2 if pairs else 1
    return {key: stamp for key, stamp in found.items() if files[key[1]] >= least}


def first_of(wanted, there) -> str:
    """Where two files' records differ first."""
    if not isinstance(wanted, list) or not isinstance(there, list):
        return ""
    for number, (one, other) in enumerate(zip(wanted, there)):
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key):
                return f": line {number + 1}: {key}: {one.get(key)!r} / {other.get(key)!r}"[:300]
    return f": {len(wanted)} / {len(there)} lines"


def of_both(first: list[dict], second: list[dict]) -> tuple[list, list]:
    """Their records of questions that both have."""
    common = {one["question_id"] for one in first} & {one["question_id"] for one in second}
    return tuple([one for one in file if one["question_id"] in common] for file in (first, second))


class Runner:
    """Starts a job in its folder, again and again, and kills it."""

    def __init__(self, name: str, job: Job, folder: Path, chance: random.Random):
        self.name, self.job, self.folder, self.chance = name, job, folder, chance
        self.faults, self.counts, self.kills = [], Counter(), 0

    def start(self, *more) -> subprocess.Popen:
        """The command, its stderr in a file beside its folder."""
        command = [sys.executable, "-m", *map(str, self.job.flags), *more]
        own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **self.job.environment}
        with self.said.open("w") as out:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=os.environ | own,
                stdout=subprocess.DEVNULL,
                stderr=out,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    @property
    def said(self) -> Path:
        return self.folder.with_suffix(".stderr")

    def lines(self) -> list[str]:
        """Of stderr, without progress and warnings."""
        from child import said

        return said(self.said.read_text(errors="replace"))

    def empty(self) -> None:
        """Begin anew."""
        subprocess.run(["rm", "-rf", str(self.folder)], check=True)
        self.folder.mkdir(parents=True)

    def whole(self) -> float:
        """The uninterrupted run: keeps its facts, returns its seconds."""
        self.empty()
        begin = time.monotonic()
        if code := self.start().wait():
            sys.exit(f"kill_runs.py: {self.name}: exit status {code}: {self.said.read_text()}")
        self.wanted = facts(self.job, self.folder)
        return time.monotonic() - begin

    def fault(self, text: str) -> None:
        self.faults.append(text)
        print(f"    {self.name}: {text}", flush=True)

    def survive(self, kills: int, seconds: float) -> None:
        """Kill it so often, within the time that a whole run takes."""
        self.empty()
        kept, refused = {}, False
        while self.kills < kills:
            again = [self.job.again[0]] if refused else []
            process = self.start(*again)
            try:
                code = process.wait(self.chance.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                there = self.killed(process)
                refused = bool(self.job.again) and bool(stamps(self.folder)) and self.refuses()
                kept = {} if refused else there  # else it begins anew, with --overwrite
                continue
            if code and not self.is_done(code):
                self.fault(f"exit status {code} after a kill: {' / '.join(self.lines())[-300:]}")
            self.check_end(kept)
            kept, refused = {}, False
            self.empty()
        code = self.start(*[self.job.again[0]] if refused else []).wait()
        if code and not self.is_done(code):
            self.fault(f"exit status {code} at the end: {' / '.join(self.lines())[-300:]}")
        self.check_end(kept)

    def is_done(self, code: int) -> bool:
        """Whether it is refused because it was killed behind its end."""
        return code == 2 and bool(self.job.done) and self.job.done in " ".join(self.lines())

    def refuses(self) -> bool:
        """Whether the same command says that it cannot go on, as it should of such a job."""
        code = self.start().wait()
        if code == 0:
            return False  # killed behind its last answer
        if code != 2 or self.job.again[1] not in " ".join(self.lines()):
            self.fault(f"not refused: exit status {code}: {self.lines()[-1:]}{self.holders()}")
        return True

    def holders(self) -> str:
        """Processes that have a file of its folder open."""
        import psutil

        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            with contextlib.suppress(psutil.Error, OSError):
                names = [os.readlink(fd) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
                if any(name.startswith(str(self.folder)) for name in names):
                    found.append(f" {process.pid} {' '.join(process.info['cmdline'])[:200]}")
        return "; open there:" + ",".join(found) if found else ""

    def killed(self, process) -> dict:
        """Send a signal; the whole lines that are there when the process is gone."""
        names = [*SIGNALS, "worker"] if self.job.worker else SIGNALS
        name = self.chance.choice(names)
        if name == "worker" and not self.kill_worker():
            name = "SIGKILL"
        begin = time.monotonic()
        if name != "worker":
            process.send_signal(getattr(signal, name))
        try:
            code = process.wait(PATIENCE_S if name != "worker" else 600)
        except subprocess.TimeoutExpired:
            self.fault(f"{name}: still there after {PATIENCE_S:.0f} s")
            process.kill()
            code = process.wait()
        self.kills += 1
        self.counts[name] += 1
        if name == "SIGINT" and code != 0:
            self.check_interrupted(code, time.monotonic() - begin)
        elif name == "worker" and code not in (0, 2):
            self.fault(f"a worker killed: exit status {code}: {self.lines()[-1:]}")
        return stamps(self.folder, self.job.pairs)

    def check_interrupted(self, code: int, seconds: float) -> None:
        lines = self.lines()
        if code == -signal.SIGINT and len(lines) < 2:  # before Python's first line, or while it
            return  # executes a text, it ends by the signal itself, which shells call 130, too
        if code != 130 or len(lines) != 1:
            self.fault(
                f"SIGINT: exit status {code}, {len(lines)} lines: {' / '.join(lines)[-200:]}"
            )
        elif seconds > INTERRUPT_S:
            self.fault(f"SIGINT: ended after {seconds:.1f} s")

    def kill_worker(self) -> bool:
        """Kill one of the job's workers, if one is there."""
        import psutil

        titles = ((p, " ".join(p.info["cmdline"] or [])) for p in psutil.process_iter(["cmdline"]))
        found = [process for process, title in titles if self.job.worker in title]
        if found:
            self.chance.choice(found).kill()
        return bool(found)

    def check_end(self, kept: dict) -> None:
        """Of a finished job: its files, and that no answer was made twice."""
        self.counts["compared"] += 1
        found = facts(self.job, self.folder)
        for name in sorted(self.wanted.keys() | found.keys()):
            wanted, there = self.wanted.get(name), found.get(name)
            if name.endswith(PAIRS) and not self.job.pairs:  # what is left has a share of its own
                wanted, there = of_both(wanted or [], there or [])
            if wanted != there:
                self.fault(f"{name} differs from the uninterrupted run's{first_of(wanted, there)}")
        after = stamps(self.folder)
        if twice := [key for key, stamp in kept.items() if after.get(key) != stamp]:
            self.fault(f"{len(twice)} of {len(kept)} answers were made again: {twice[:3]}")


def parse_args(argv=None):
    """Flags."""
    from model.common.args import Parser, at_least

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--kills", type=at_least(1), default=200, help="over all jobs")
    add("--jobs", help="comma list (default: all)")
    add("--seed", type=int, default=0, help="of moments and signals")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    """Kill every job, print a table; exit 1 where something was lost."""
    from child import wanted

    args = parse_args(argv)
    chance, faults = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        prepare(home)
        known = jobs(home)
        names = wanted("--jobs", args.jobs, known)
        if "shards" in names:
            start_ray()
        print(f"{'job':18}{'kills':>6}{'whole, s':>10}{'faults':>8}  signals", flush=True)
        for name in names:
            runner = Runner(name, known[name], home / name.replace(" ", "-"), chance)
            seconds = runner.whole()
            runner.survive(-(-args.kills // len(names)), seconds)
            said = ", ".join(f"{kind} {count}" for kind, count in sorted(runner.counts.items()))
            shown = f"{seconds:>10.1f}{len(runner.faults):>8}  {said}"
            print(f"{name:18}{runner.kills:>6}{shown}", flush=True)
            faults += runner.faults
    if "shards" in names:
        subprocess.run([RAY, "stop", "--force"], capture_output=True)
    sys.exit(int(bool(faults)))


def start_ray() -> None:
    """A cluster of this machine that pretends to have two GPUs."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [RAY, "start", "--head", "--num-gpus", "2"]
    subprocess.run(command, check=True, env=os.environ | own, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
