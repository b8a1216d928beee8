"""One compact table of a whole run, from what speed.py, equal.py and audit_sampling.py found.

Reads the files of their --json and prints a row a method: accepted tokens a step, speedup with its
interval, price of verification, the share of the bound that its baseline runs at, joules a token
where they were metered, verdict, drift; above the table what the methods said (--rows). Reports of
several targets give a table each.

Run:  python evaluation/speed.py --file-path pld.jsonl --base-path vanilla.jsonl --json speed.json
      python evaluation/equal.py vanilla.jsonl pld.jsonl --json equal.json
      python evaluation/summarise.py speed.json equal.json

Exit status: 0, 2 where no table can be made.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from any folder

from evaluation.answers.meta import AnswerError  # noqa: E402
from evaluation.cli import Parser, read_report, run  # noqa: E402
from evaluation.summary.layout import shared_lines, table_lines  # noqa: E402
from evaluation.summary.messages import message_lines  # noqa: E402
from evaluation.summary.rows import (  # noqa: E402
    Asked,
    Names,
    Row,
    not_compared_rows,
    table_rows,
    verdicts_of,
)

TOOLS = ("speed", "equal", "audit_sampling")


def parse_args(argv=None):
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("reports", nargs="*", metavar="REPORT", help="files of the tools' --json")
    parser.add_argument(
        "--rows",
        metavar="FILE",
        help="what was run, a line a row: name, exit status, answer file, log, with tabs between"
        " (eval.sh writes it); names the rows, lists those that did not run, repeats what all said",
    )
    parser.add_argument("--details", help="printed as the last line")
    args = parser.parse_args(argv)
    if not args.reports and not args.rows:
        parser.error("name reports of speed.py and equal.py")
    return args


def read_rows(path):
    """[Asked] of the file of --rows."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise AnswerError(f"--rows {path}: {error.strerror}") from None
    asked = []
    for number, line in enumerate(lines, 1):
        name, *cells = line.split("\t")
        if len(cells) != 3 or not cells[0].isdecimal():
            raise AnswerError(f"--rows {path}:{number}: not a name, a status and two files")
        asked.append(Asked(name, int(cells[0]), Path(cells[1]), Path(cells[2])))
    return asked


def read_reports(paths):
    """The documents by tool: {"speed": [...], "equal": [...], "audit_sampling": [...]}."""
    found = {tool: [] for tool in TOOLS}
    for path in paths:
        document = read_report(path)
        tool = document and document["tool"]
        if tool not in found or "results" not in document:
            raise AnswerError(f"{path}: no report of speed.py, equal.py or audit_sampling.py")
        found[tool].append(document)
    return found


def sides_of(speeds):
    """Methods, baselines and rungs of all reports of speed.py."""
    for speed in speeds:
        for result in speed["results"]:
            yield from (result["method"], result["baseline"])
        yield from (speed.get("ladder") or {"rungs": ()})["rungs"]


def main(argv=None):
    """Print messages, tables and the last line; the exit status."""
    args = parse_args(argv)
    asked = read_rows(args.rows) if args.rows else []
    found = read_reports(args.reports)
    names = Names(asked, sides_of(found["speed"]))
    verdicts = verdicts_of([*found["equal"], *found["audit_sampling"]])
    lines = message_lines(asked)
    missing = [Row(row.name) for row in asked if not row.ran]
    for number, speed in enumerate(found["speed"]):
        rows = table_rows(speed, verdicts, names) + (missing if number == 0 else [])
        rows += not_compared_rows(speed, names)
        lines += ["", *shared_lines(speed["results"], names), *table_lines(rows)]
    if not found["speed"]:
        lines += ["", "no table: no report of speed.py"]
    print("\n".join(lines).lstrip("\n"))
    if args.details:
        print(f"\n{args.details}")
    return 0 if found["speed"] else 2


if __name__ == "__main__":
    run(main)
