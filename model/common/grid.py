"""For tools that answer a bench several times, with other flags of a method each time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from model.common import args as arguments
from model.common.errors import BadInput

STDOUT = "-"  # as the PATH of --json


class Grid:
    """Runs of a bench on one loaded target, each an ordinary answer file.

    build   (args, target) -> Drafter, called for every run
    bench   of the first run on; failed: questions that failed in all runs so far
    """

    def __init__(self, method: str, build):
        self.method, self.build = method, build
        self.bench, self.failed = None, 0

    def run(self, args) -> tuple[list[dict], dict]:
        """(records that did not fail, the drafter's and the target's facts) of one run.

        args: of the method's command, with model_id and answer_file
        """
        from model.common.eval import Bench
        from model.common.records.files import open_answers

        path = Path(args.answer_file)
        if self.bench is None:
            self.bench = Bench(self.method, args, self.build, None, [path])
        else:
            self.bench.args = args
            self.bench.runs = [open_answers(self.method, args, self.bench.questions, path)]
            self.bench.drafter = self.build(args, self.bench.target)
        print(args.model_id, file=sys.stderr, flush=True)
        self.failed += self.bench.run()
        lines = self.bench.runs[0][0].lines
        records = map(lines.record, lines)
        facts = self.bench.drafter.facts() | self.bench.target.facts()
        return [record for record in records if "error" not in record], facts


def totals(records: list[dict]) -> dict:
    """Sums over all answers of records, by the names of their fields.

    turns, and of all steps: steps, accept_lengths (their sum), drafted, depth, draft_s ..; the
    prefill and its token are no step, but in new_tokens and wall_time. Times of phases that were
    not measured are 0.
    """
    choices = [choice for record in records for choice in record["choices"]]
    found = {
        "turns": sum(len(choice["new_tokens"]) for choice in choices),
        "steps": sum(len(choice["accept_lengths"]) for choice in choices),
    }
    for name in ("new_tokens", "wall_time", "accept_lengths"):
        found[name] = sum(sum(choice[name]) for choice in choices)
    for name in ("drafted", "depth"):
        found[name] = sum(sum(map(sum, choice[name])) for choice in choices)
    for name in ("draft_s", "verify_s", "commit_s"):
        found[name] = sum(sum(map(sum, choice.get(name, []))) for choice in choices)
    return found


def check(args, tool: str, *own: str) -> None:
    """Refuse flags of a single run, and those that the tool sets itself (own)."""
    arguments.check(args)
    for name in ("answer_file", "num_runs", "paired", *own):
        value = getattr(args, name)
        unset = value is None or value is False or (name == "paired" and value == 0)
        if not unset:
            raise BadInput(f"--{name.replace('_', '-')} cannot go with a {tool}")
    if args.num_gpus_total > args.num_gpus_per_model:
        raise BadInput(f"--num-gpus-total above --num-gpus-per-model cannot go with a {tool}")
    path = Path(getattr(args, "json", None) or STDOUT)
    if path.is_dir() or not path.parent.is_dir():
        raise BadInput(f"--json {path}: no file can be written there")


def add_json(parser) -> None:
    """The flag of finish()."""
    told = "write the rows there as one JSON document (-: to stdout, in place of the table)"
    parser.add_argument("--json", metavar="PATH", help=told)


def table(rows: list[dict], columns: dict[str, tuple[str, str]]) -> str:
    """Rows in Markdown; columns {key: (heading, format)}, what a row lacks is "-"."""
    lines = [[heading for heading, _ in columns.values()], ["---"] * len(columns)]
    for row in rows:
        values = ((row.get(key), style) for key, (_, style) in columns.items())
        lines.append(["-" if value is None else format(value, style) for value, style in values])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def finish(tool: str, rows: list[dict], columns: dict, failed: int, path: str | None) -> None:
    """Print the table, write the rows to --json's PATH, exit: 1 if questions failed, else 0."""
    document = json.dumps({"tool": tool, "failed": failed, "rows": rows})
    print(document if path == STDOUT else table(rows, columns))
    if path not in (None, STDOUT):
        Path(path).write_text(document + "\n", encoding="utf-8")
    sys.exit(1 if failed else 0)
