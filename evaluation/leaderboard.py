"""Leaderboard rows that anybody can recompute: add them, check all of them, write Leaderboard.md.

Run:  python evaluation/leaderboard.py add ANSWERS/pld.jsonl ANSWERS/sps.jsonl ANSWERS/vanilla.jsonl
      python evaluation/leaderboard.py add --paired ANSWERS/pld.jsonl
      python evaluation/leaderboard.py check
      python evaluation/leaderboard.py write
      python evaluation/leaderboard.py unpack data/leaderboard/*/*/*/*.row.json --output FOLDER

add stores a method's answer file, its pairs and its baseline's (the last FILE) compressed under
data/leaderboard/BENCH/TARGET/DEVICE/, with a row of their numbers, and writes Leaderboard.md; a
comparison that is no row is refused with every reason. Where answers differ from the baseline's, a
judge's report on them (equal.py --model-path, audit_sampling.py) is needed: --judgement names it;
those of ./eval.sh, in a *-report folder beside the answers, are found.

check unpacks every row's files, holds them to their hashes, recomputes the row by the functions of
speed.py and equal.py, and refuses again what add refuses. evaluation/README.md lists what.

unpack writes rows' answer files, as the runs left them, to FOLDER/BENCH/TARGET/DEVICE/, for
speed.py, report.py, plot.py and show.py.

Exit status: 0; 1 a row (check: a line each) or a comparison (add: likewise) is none; 2 bad input.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from any folder

from evaluation.answers.meta import AnswerError, find_field, read_meta  # noqa: E402
from evaluation.answers.reader import read_answers  # noqa: E402
from evaluation.board import page, questions, rows, store, verdicts  # noqa: E402
from evaluation.cli import Parser, run  # noqa: E402
from evaluation.speedup import drift  # noqa: E402
from evaluation.summary.layout import speedup_text  # noqa: E402

METHOD, BASE = "answers.jsonl", "baseline.jsonl"  # names of a row's files where it is recomputed


def parse_args(argv=None):
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("command", choices=("add", "check", "write", "unpack"))
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="add: methods' answer files, then the baseline's; unpack: rows (default: all)",
    )
    parser.add_argument(
        "--paired",
        action="store_true",
        help="add: every FILE is a method's, its baseline the pairs beside it (--paired 1)",
    )
    parser.add_argument(
        "--judgement",
        action="append",
        default=[],
        metavar="REPORT",
        help="add: --json of equal.py --model-path, or of audit_sampling.py; may be given again",
    )
    parser.add_argument(
        "--replace", action="store_true", help="add: put a row in the place of one of its name"
    )
    parser.add_argument(
        "--store", type=Path, default=store.FOLDER, help="its folder (default: data/leaderboard)"
    )
    parser.add_argument(
        "--page", type=Path, help="default: Leaderboard.md of the project, or of another --store"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="of unpack")
    args = parser.parse_intermixed_args(argv)
    own = args.store.resolve() == store.FOLDER
    args.page = args.page or (store.FOLDER.parents[1] if own else args.store) / page.NAME
    flags = args.paired or args.judgement or args.replace
    if args.command != "add" and (flags or (args.files and args.command != "unpack")):
        parser.error(f"{args.command} takes all rows, no FILE and no flag of add")
    if (args.command == "unpack") != (args.output is not None):
        parser.error("unpack and --output FOLDER go together")
    for path in args.files if args.command == "unpack" else ():
        if not path.endswith(store.ROW) or not Path(path).is_file():
            parser.error(f"{path}: no row (NAME{store.ROW})")
    if args.command == "add" and len(args.files) < (1 if args.paired else 2):
        parser.error("add: name a method's answer file and the baseline's, or give --paired")
    if not args.store.is_dir():
        parser.error(f"--store {args.store}: no such folder")
    if problem := page.no_page(args.page):
        parser.error(f"--page {problem}")
    return args


def pairs_of_files(args):
    """[(method's file, baseline's file)] of add's arguments."""
    if args.paired:
        return [(Path(path), drift.pairs_path(path)) for path in args.files]
    *methods, base = map(Path, args.files)
    return [(method, base) for method in methods]


def add(args):
    """Store every row that is one; the exit status."""
    for report in args.judgement:
        verdicts.check_report(report)
    status, stored = 0, False
    for method, base in pairs_of_files(args):
        try:
            found = examine_run(args, method, base)
        except AnswerError as error:
            print(f"leaderboard.py: error: {error}", file=sys.stderr)
            status = 2
            continue
        path = store.row_path(found.meta, args.store)
        if path.exists() and not args.replace:
            found.reasons.append(f"{path}: a row of that name is there (--replace)")
        if found.reasons:
            print(f"leaderboard.py: error: {method}: {'; '.join(found.reasons)}", file=sys.stderr)
            status = status or 1
            continue
        write_row(path, method, base, found)
        stored = True
        speedup = found.numbers["speedup"]["Overall"]
        print(f"{path}: {speedup_text(speedup)}, {found.verdict['verdict']}")
    if stored:
        write(args)
    return status


def examine_run(args, method, base):
    """Examined of files as a run left them; keeps the bench's question set."""
    answers = read_answers(method)
    meta = answers.meta
    reports = [*args.judgement, *sorted(method.parent.glob("*-report/*.json"))]
    evidence = verdicts.find_evidence(reports, answers)
    kept = meta and questions.read_set(meta, args.store)
    if meta and kept is None:
        made = questions.make_set(find_field(meta, "bench_name"))
        store.write_json(questions.set_path(meta, args.store), made)
        kept = questions.read_set(meta, args.store)
    return rows.examine(method, base, kept and kept["questions"], evidence)


def write_row(path, method, base, found):
    """Store the files of a row and the row itself; those of the row that it replaces go."""
    folder, pairs, old = path.parent, drift.pairs_path(method), path.is_file()
    before = store.files_of({path: store.read_row(path)}) if old else set()
    files = {"method": store.put(method, folder), "baseline": store.put(base, folder)}
    if pairs.is_file():
        files["pairs"] = store.put(pairs, folder)
    added = time.strftime("%Y-%m-%d", time.gmtime())
    row = {"schema": store.SCHEMA, "added": added, "files": files}
    store.write_json(path, {**row, "numbers": found.numbers, "verdict": found.verdict})
    known = {one: store.read_row(one) for one in folder.glob(f"*{store.ROW}")}
    for stray in before - store.files_of(known):
        stray.unlink()


def check(args):
    """Recompute every row; a line for each that is none, and for what belongs to no row."""
    documents, failures, prompts = {}, [], {}
    for path in store.row_paths(args.store):
        documents[path] = None
        try:
            row = documents[path] = store.read_row(path)
            reasons = recompute(path, row, args, prompts)
        except AnswerError as error:
            reasons = [str(error)]
        if reasons:
            failures.append(f"{path}: {'; '.join(reasons)}")
    failures += [f"{path}: no row names it" for path in store.strays(documents, args.store)]
    failures += questions.set_problems(args.store)
    failures += page_problems(args.page, [row for row in documents.values() if row is not None])
    for line in failures:
        print(f"FAILED {line}")
    print(f"{len(documents)} rows checked, {len(failures)} failures")
    return int(bool(failures))


def page_problems(path, known):
    """A line where the page is not what the rows give."""
    try:
        written = page.text(known)
    except AnswerError as error:
        return [str(error)]
    if path.is_file() and path.read_text(encoding="utf-8") == written:
        return []
    return [f"{path}: not what the rows give; leaderboard.py write writes it"]


def recompute(path, row, args, prompts):
    """Why a stored row is none, a line each. prompts: what questions.prompt_problems() has seen."""
    found = examine_stored(path, row, args.store)
    place = store.row_path(found.meta, args.store)
    reasons = found.reasons + [f"its place is {place}"] * (place != path)
    reasons += rows.differences(row["numbers"], found.numbers)
    reasons += rows.differences(row["verdict"], found.verdict, "verdict")
    return reasons + questions.prompt_problems(found.meta, prompts)


def examine_stored(path, row, root):
    """Examined of a row's files as they come out of the store; its reasons name no folder."""
    files = row["files"]
    paired = files.get("pairs") == files["baseline"]
    with tempfile.TemporaryDirectory() as folder:
        method, base = Path(folder, METHOD), Path(folder, BASE)
        pairs = drift.pairs_path(method)
        try:
            store.take(files["method"], path.parent, method)
            if "pairs" in files:
                store.take(files["pairs"], path.parent, pairs)
            if not paired:
                store.take(files["baseline"], path.parent, base)
            meta = read_meta(method)
            kept = meta and questions.read_set(meta, root)
            sides = method, pairs if paired else base
            evidence = row["verdict"].get("evidence")
            found = rows.examine(*sides, kept and kept["questions"], evidence)
        except AnswerError as error:
            raise AnswerError(str(error).replace(f"{folder}/", "")) from None
    found.reasons = [reason.replace(f"{folder}/", "") for reason in found.reasons]
    return found


def unpack(args):
    """Write the answer files of rows, of all where none is named; the exit status."""
    for path in map(Path, args.files or store.row_paths(args.store)):
        try:
            files = store.read_row(path)["files"]
            folder = args.output.joinpath(*path.resolve().parts[-4:-1])
            method = folder / f"{path.name.removesuffix(store.ROW)}.jsonl"
            places = {"method": method, "pairs": drift.pairs_path(method)}
            if files["baseline"] != files.get("pairs"):
                places["baseline"] = folder / f"{store.model_id(files['baseline'], path)}.jsonl"
            for side, place in places.items():
                if side in files and store.give_back(files[side], path.parent, place):
                    print(place)
        except AnswerError as error:
            raise AnswerError(f"{path}: {error}") from None
        except OSError as error:
            if error.filename is None:
                raise
            raise AnswerError(f"{error.filename}: {error.strerror}") from None
    return 0


def write(args):
    """Write Leaderboard.md; the exit status."""
    known = []
    for path in store.row_paths(args.store):
        try:
            known.append(store.read_row(path))
            page.text(known[-1:])
        except AnswerError as error:
            raise AnswerError(f"{path}: {error}") from None
    args.page.write_text(page.text(known), encoding="utf-8")
    return 0


def main(argv=None):
    """Run one of the commands."""
    args = parse_args(argv)
    commands = {"add": add, "check": check, "write": write, "unpack": unpack}
    return commands[args.command](args)


if __name__ == "__main__":
    run(main)
