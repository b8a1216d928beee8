"""Thousands of files with something wrong in them: every reader ends in 0, 1, 2 or 3, in one line.

No traceback, no call of more than 10 s, no memory above 1 GB beyond what an idle process has. Edits
are made by hypothesis from sound files. Of each kind of fault the first file is kept in --output.

Run:    python tests/bench/reliability/fuzz_files.py --examples 10000 --output faults
        python tests/bench/reliability/fuzz_files.py --examples 200 --subjects "speed answers,gguf"
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")]
MOST_BYTES = 1 << 30


def parse_args(argv=None):
    """Flags."""
    from model.common.args import Parser, at_least

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--examples", type=at_least(1), default=10000, help="files, over all subjects")
    add("--subjects", help="comma list of names (default: all)")
    add("--seed", type=int, default=0, help="of the edits")
    add("--output", help="folder that takes a file of each fault, and what was said of it")
    return parser.parse_args(argv)


def contents(strategy, count: int, seed: int) -> list[bytes]:
    """So many that hypothesis draws."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    found: list[bytes] = []
    rules = {"deadline": None, "database": None, "phases": [Phase.generate]}

    @seeded(seed)
    @settings(max_examples=count, suppress_health_check=list(HealthCheck), **rules)
    @given(strategy)
    def draw(content):
        found.append(content)

    draw()
    return found


def fuzz(name: str, subject, count: int, args, place: Path) -> tuple[Counter, dict]:
    """({exit status: times}, {fault: times}) of a subject."""
    from child import ended
    from subjects import fresh

    statuses, faults = Counter(), Counter()
    fresh(subject, place, (subject.folder / subject.file).read_bytes())
    sound = ended(subject.call, place, 60)
    if sound.status:
        faults[f"the sound file: exit status {sound.status}: {' / '.join(sound.said())}"] += 1
    for content in contents(subject.strategy(), count, args.seed):
        fresh(subject, place, content)
        done = ended(subject.call, place)
        statuses[done.status] += 1
        fault = done.wrong(MOST_BYTES)
        if fault is None:
            continue
        faults[fault] += 1
        if args.output and faults[fault] == 1:
            folder = Path(args.output) / f"{name.replace(' ', '-').replace('/', '-')}-{len(faults)}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / Path(subject.file).name).write_bytes(content)
            (folder / "said.txt").write_text(f"{fault}\n\n{done.stderr}\n{done.stdout}")
    return statuses, faults


def main(argv=None) -> None:
    """Fuzz all subjects, print a table; exit 1 where a fault was found."""
    args = parse_args(argv)
    import torch
    from child import wanted
    from subjects import all_subjects, make_folders, preload

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    preload()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        make_folders(home)
        known = all_subjects(home)
        names = wanted("--subjects", args.subjects, known)
        all_faults = defaultdict(Counter)
        print(f"{'subject':30}{'files':>7}{'faults':>8}{'s':>7}  exit statuses", flush=True)
        for name in names:
            begin = time.monotonic()
            count = -(-args.examples // len(names))
            statuses, faults = fuzz(name, known[name], count, args, Path(folder) / "place")
            shown = ", ".join(f"{status}: {n}" for status, n in sorted(statuses.items()))
            tried, wrong = sum(statuses.values()), sum(faults.values())
            seconds = time.monotonic() - begin
            print(f"{name:30}{tried:>7}{wrong:>8}{seconds:>7.0f}  {shown}", flush=True)
            for fault, times in faults.most_common():
                print(f"    {times} x {fault}", flush=True)
                all_faults[fault][name] += times
    print(f"{len(all_faults)} kinds of fault")
    sys.exit(int(bool(all_faults)))


if __name__ == "__main__":
    main()
