"""One page of a whole run: speedups, why they are so, acceptance, drift, verdicts, the answers.

The page is a single HTML file without network access. Its numbers are those of speed.py and
equal.py, computed by the same code; a menu sets the baseline, the category, and the target and
settings where the files have several. Baselines are all vanilla rows of any runtime, transformers'
own generate, and the pairs of runs with --paired 1; their files (NAME-paired-baseline.jsonl) need
not be named. Of answers too many for --max-bytes those of some questions are left out; the page
says of how many, and show.py shows all. Load runs show their latencies against the rate.

Run:  python evaluation/report.py ANSWERS/*.jsonl --base-path ANSWERS/vanilla.jsonl \\
          --tokenizer-path TARGET --question-file data/BENCH/question.jsonl --output report.html
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from any folder

from evaluation.answers.meta import AnswerError  # noqa: E402
from evaluation.answers.reader import read_answers  # noqa: E402
from evaluation.cli import Parser, field_list, load_tokenizer, read_report, run, warn  # noqa: E402
from evaluation.pictures.answers import fit, order, packed, question_content  # noqa: E402
from evaluation.pictures.document import document  # noqa: E402
from evaluation.pictures.page import BEGIN, build  # noqa: E402
from evaluation.pictures.pieces import Pieces  # noqa: E402
from evaluation.pictures.published import read_published  # noqa: E402
from evaluation.pictures.views import Settings  # noqa: E402
from evaluation.serving import bounds  # noqa: E402
from evaluation.speedup.comparison import baseline_notes  # noqa: E402
from evaluation.speedup.drift import is_pairs  # noqa: E402
from evaluation.speedup.metrics import question_columns  # noqa: E402
from evaluation.summary.rows import verdicts_of  # noqa: E402
from model.common.errors import parse_json  # noqa: E402


def parse_args(argv=None):
    """The command line."""
    parser = Parser(__doc__)
    add_sources(parser)
    parser.add_argument("--tokenizer-path", help="the target's, for the words of each token")
    parser.add_argument("--question-file", help="jsonl of the questions, shown above the answers")
    parser.add_argument(
        "--published",
        metavar="JSONL",
        help="figures of others to compare with (data/leaderboard/published.jsonl), drawn grey",
    )
    parser.add_argument("--output", type=page_path, default=Path("report.html"), metavar="PAGE")
    parser.add_argument(
        "--max-bytes", type=int, default=1_950_000, help="size of the page, answers left out"
    )
    args = parser.parse_args(argv)
    check(parser, args)
    return args


def add_sources(parser):
    """Flags that plot.py has, too: what is read, and how it is compared."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="answer files, any number")
    parser.add_argument("--base-path", help="the baseline that the page opens with")
    parser.add_argument(
        "--reports",
        nargs="+",
        default=[],
        metavar="JSON",
        help="reports of equal.py and audit_sampling.py (--json), for their verdicts; others are"
        " passed over",
    )
    parser.add_argument(
        "--allow",
        type=field_list,
        default=[],
        metavar="FIELD[,FIELD]",
        help="shared settings (dotted names) that may differ; runtime always may",
    )
    parser.add_argument(
        "--common", action="store_true", help="compare the questions that two files have"
    )
    parser.add_argument(
        "--slo",
        type=bounds,
        metavar="ttft=S,tpot=S,e2e=S",
        help="bounds in seconds that a request of a load run has to meet: goodput and its knee",
    )
    parser.add_bootstrap()


def check(parser, args):
    """Refuse numbers that make no sense."""
    parser.check_bootstrap(args)
    if getattr(args, "max_bytes", 1) < 1:
        parser.error("--max-bytes must be 1 or more")


def page_path(text):
    """The PAGE of --output; refuses one that cannot be written, or holds what is no such page."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no file can be written there")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as old:
            if old.read(len(BEGIN)) != BEGIN.encode():
                raise argparse.ArgumentTypeError(f"{text}: a file that is no such page is there")
    return path


def read_files(args):
    """(AnswerFiles without pairs and doubles, the one of --base-path or None)."""
    paths = [path for path in args.files if not is_pairs(path)]
    if args.base_path:
        paths.insert(0, args.base_path)
    by_place = {}
    for path in paths:
        where = Path(path).resolve()
        if where not in by_place:
            by_place[where] = read_answers(path)
            for message in by_place[where].warnings:
                warn(message)
    if not by_place:
        raise AnswerError("only pairs (NAME-paired-baseline.jsonl) are named: name answer files")
    base = by_place[Path(args.base_path).resolve()] if args.base_path else None
    return list(by_place.values()), base


def read_verdicts(paths):
    """{resolved answer file: words} of the reports that hold verdicts."""
    documents = []
    for path in paths:
        found = read_report(path)
        if found is None:
            raise AnswerError(f"--reports {path}: no report of a tool's --json")
        if found["tool"] in ("equal", "audit_sampling"):
            documents.append(found)
    return verdicts_of(documents)


def make_document(args):
    """(document, groups) of the files that the command line names."""
    files, base = read_files(args)
    settings = Settings(args.resamples, args.seed, args.allow, args.common)
    found, groups = document(files, settings, base, read_verdicts(args.reports), args.slo)
    for note in notes_of_baselines(groups):
        warn(note)
    return found, groups


def notes_of_baselines(groups):
    """speed.py's line about each baseline that drafts, as one of --base-path may."""
    for answers in (one.files[number] for one in groups for number in one.baselines):
        answered = [question for question in answers.questions.values() if not question.error]
        yield from baseline_notes(answers, question_columns(answered))


def read_questions(path):
    """{question_id: its turns} of a question file."""
    asked = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8"
        raise AnswerError(f"--question-file {path}: {reason}") from None
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line) if line.strip() else None
        except ValueError:
            raise AnswerError(f"--question-file {path}:{number}: not JSON") from None
        turns = record.get("turns") if isinstance(record, dict) else None
        if isinstance(turns, list) and all(isinstance(turn, str) for turn in turns):
            asked[record.get("question_id")] = turns
    return asked


def viewer_parts(document_, groups, args, room):
    """(packed answers a group, lines about what was left out) within `room` bytes."""
    asked = read_questions(args.question_file) if args.question_file else {}
    pieces = Pieces(load_tokenizer(args.tokenizer_path)) if args.tokenizer_path else None
    parts = []
    for number, (one, shown) in enumerate(zip(groups, document_["groups"])):
        numbered = dict(enumerate(one.files))
        wanted = order(one.files, differing_ids(shown))
        contents = (
            (i, packed(question_content(i, numbered, asked.get(i), pieces))) for i in wanted
        )
        kept, used = fit(contents, room // (len(groups) - number))
        room -= used
        parts.append(entries(one, wanted, dict(kept)))
        shown["viewer"] = {"questions": len(kept), "of": len(wanted)}
    return parts


def entries(one, wanted, kept):
    """[[id, category, packed]] of the kept questions in the files' order."""
    ids = dict.fromkeys(i for answers in one.files for i in answers.questions)
    category = {i: q.category for answers in one.files for i, q in answers.questions.items()}
    return [[i, category[i], kept[i]] for i in ids if i in kept]


def differing_ids(shown):
    """Ids of the questions whose differences a group's part of the document lists."""
    rows = (row for view in shown["views"].values() for row in view["rows"])
    return dict.fromkeys(
        one["question_id"] for row in rows for one in (row["verdict"] or {}).get("differences", ())
    )


def title_of(groups):
    """'SpecGauge: vicuna-7b-v1.3 on spec_bench'."""
    names = dict.fromkeys(
        f"{one.settings['target'] or 'answers'} on {one.settings['bench_name'] or 'questions'}"
        for one in groups
    )
    return f"SpecGauge: {', '.join(names)}"


def main(argv=None):
    """Write the page; its name is the last line."""
    args = parse_args(argv)
    found, groups = make_document(args)
    if args.published:
        methods = {file["method"] for group in found["groups"] for file in group["files"]}
        found["published"] = read_published(args.published, methods)
    title = title_of(groups)
    bare = len(build(title, found, []).encode("utf-8"))
    answers = viewer_parts(found, groups, args, max(0, args.max_bytes - bare))
    text = build(title, found, answers)
    try:
        args.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise AnswerError(f"--output {args.output}: {error.strerror}") from None
    print(f"page: {args.output} ({len(text.encode('utf-8')) / 1e6:.2f} MB)")


if __name__ == "__main__":
    run(main)
