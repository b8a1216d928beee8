"""Do methods give the baseline's output? Compare answer files token by token, with a verdict each.

The first file is the baseline; each following file is compared with it. Ids are compared where both
files have them, texts otherwise. How the target was run (dtype, runtime, batch size, device,
versions) may differ and is printed; what it was asked (weights, questions, template, sampling) may
not. --json PATH writes the report as one JSON document.

Run:  python evaluation/equal.py ANSWERS/vanilla.jsonl ANSWERS/pld.jsonl ANSWERS/eagle2.jsonl
      python evaluation/equal.py --file-path ANSWERS --jsonfile1 vanilla.jsonl --jsonfile2 pld.jsonl

Exit status: 0 all equal, 1 a file differs, 2 a file could not be compared.

Beside the verdict on a server's answers (inference_engine) stands how often the server differs from
itself, where its baseline was answered twice.

With --model-path TARGET, why a file differs: every token of the differing questions is measured on
the target's own logits (one prefill a turn), and the gap to the target's best token is held to the
noise that this machine's readings of the same prefixes show. Verdicts: EXACT, TIES ONLY, SUSPECT,
CANNOT JUDGE (the readings differ by more than rounding), BUG, LOSSY BY DESIGN, per question and
file (evaluation/README.md). The exit status is then of the gravest file: 0 EXACT, TIES ONLY, LOSSY
BY DESIGN; 3 SUSPECT, CANNOT JUDGE; 1 BUG; 2 not compared.

      python evaluation/equal.py vanilla.jsonl pld.jsonl --model-path TARGET --proof
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from any folder

from evaluation.answers.differences import file_verdicts, other_texts  # noqa: E402
from evaluation.answers.foreign import read_any  # noqa: E402
from evaluation.answers.meta import (  # noqa: E402
    AnswerError,
    check_shared,
    describe,
    find_field,
    is_execution_field,
)
from evaluation.answers.reader import check_ids, read_answers  # noqa: E402
from evaluation.answers.repeats import self_difference, self_difference_line  # noqa: E402
from evaluation.cli import (  # noqa: E402
    Parser,
    field_list,
    load_tokenizer,
    run,
    text_beside,
    warn,
    write_json,
)
from evaluation.judging.flags import add_flags, check_flags  # noqa: E402
from evaluation.judging.lines import judgement_lines  # noqa: E402
from evaluation.judging.verdicts import STATUS, worst  # noqa: E402


def parse_args(argv=None):
    """The command line; `args.paths` holds the baseline's file and the others."""
    parser = Parser(__doc__)
    parser.add_argument("paths", nargs="*", metavar="FILE", help="baseline, then files to compare")
    parser.add_argument("--file-path", help="folder of --jsonfile1 and --jsonfile2")
    parser.add_argument("--jsonfile1", help="the baseline's file in that folder")
    parser.add_argument("--jsonfile2", help="the file to compare in that folder")
    parser.add_argument(
        "--aa",
        metavar="FILE",
        help="NAME-aa.jsonl: of a server, whose differences from itself stand beside its verdicts"
        " (default: the one beside the baseline, or beside the file)",
    )
    parser.add_argument("--tokenizer-path", help="show the differing tokens as this tokenizer does")
    parser.add_argument(
        "--allow",
        type=field_list,
        default=[],
        metavar="FIELD[,FIELD]",
        help="shared settings (dotted names) that may differ; the report says so",
    )
    parser.add_argument(
        "--max-print", type=int, default=20, help="differences printed for each file"
    )
    parser.add_json()
    add_flags(parser)
    args = parser.parse_args(argv)
    check_flags(args)
    named = (args.file_path, args.jsonfile1, args.jsonfile2)
    if args.paths and any(named):
        parser.error("name the files either as arguments or with --jsonfile1 and --jsonfile2")
    if not args.paths:
        if not (args.jsonfile1 and args.jsonfile2):
            parser.error("name two answer files, or give --jsonfile1 and --jsonfile2")
        folder = Path(args.file_path or ".")
        args.paths = [folder / args.jsonfile1, folder / args.jsonfile2]
    if len(args.paths) < 2:
        parser.error("one file alone; name the baseline and at least one file to compare")
    return args


def compare_files(base, other, allow, decode):
    """Everything found about one file, as a dict: verdict, counts, notes, records."""
    passed = check_shared(other, base, allow, is_execution_field)
    check_ids(other, base)
    verdicts = file_verdicts(base, other, decode)
    compared = [v for v in verdicts if not v.both_failed]
    if not compared:
        raise AnswerError(f"{other.path}: every question failed on both sides, nothing to compare")
    differences = [asdict(d) for verdict in verdicts for d in verdict.differences]
    return {
        "label": label_in_file(other),
        "file": str(other.path),
        "sha256": other.sha256,
        "meta_sha256": other.meta_sha256,
        "lossy": other.lossy,
        "equal": all(verdict.equal for verdict in compared),
        "questions": len(compared),
        "questions_equal": sum(verdict.equal for verdict in compared),
        "questions_failed_on_both_sides": len(verdicts) - len(compared),
        "turns": sum(verdict.turns for verdict in compared),
        "turns_equal": sum(v.turns for v in compared)
        - sum(d["turn"] is not None for d in differences),
        "turns_compared_by_text": sum(verdict.by_text for verdict in compared),
        "tokens_equal": sum(verdict.tokens for verdict in compared),
        "notes": notes(base, other, passed),
        "differences": differences,
    }


def label_in_file(answers):
    """The method's label; with the file's name where that is another, to tell two runs apart."""
    same = answers.path.stem == answers.model_id
    return answers.label if same else f"{answers.label} [{answers.path.name}]"


def notes(base, other, passed):
    """What a reader of the verdict should know."""
    lines = [f"differs in {describe(field)}" for field in passed]
    lines += [
        f"{side.path.name}: pairs of {side.meta['pairs_of']} (--paired): their questions alone"
        for side in (base, other)
        if side.is_share
    ]
    temperature = find_field(other.meta, "temperature") or 0
    if isinstance(temperature, (int, float)) and temperature > 0:
        lines.append(
            f"temperature {temperature:g}: answers are sampled, so equal ids are not expected even"
            " of a method that keeps the target's distribution"
        )
    if other.lossy:
        lines.append(f"acceptance {other.meta['acceptance']}: equality is not claimed (lossy)")
    if count := other_texts(other, base):
        lines.append(f"{count} answers have the baseline's ids and another text")
    if base.lossy:
        lines.append(f"the baseline {base.label} is lossy itself")
    return lines


def verdict_line(result):
    """'EQUAL: mini-pld-float32: 76 of 76 questions, 92 of 92 turns, 9120 tokens (token ids)'."""
    by_text, turns = result["turns_compared_by_text"], result["turns"]
    basis = "token ids"
    if by_text:
        basis = "texts, no token ids" if by_text == turns else f"texts in {by_text} turns, else ids"
    failed = result["questions_failed_on_both_sides"]
    return (
        f"{'EQUAL' if result['equal'] else 'NOT EQUAL'}: {result['label']}:"
        f" {result['questions_equal']} of {result['questions']} questions,"
        f" {result['turns_equal']} of {turns} turns, {result['tokens_equal']} tokens ({basis})"
        + (f"; {failed} failed on both sides, not compared" if failed else "")
    )


def shown(value, text):
    """A token, character or end of an answer, with its text."""
    value = "end of answer" if value is None else repr(value)
    return value if text is None else f"{value} {json.dumps(text, ensure_ascii=False)}"


def difference_line(record):
    """One difference in one line."""
    where = f"question {record['question_id']} ({record['category']})"
    kind = record["kind"]
    if kind == "missing":
        return f"{where}: missing in this file"
    if kind == "extra":
        return f"{where}: not in the baseline"
    if kind == "error":
        side = "the baseline" if record["base"] else "this file"
        error = " ".join((record["base"] or record["other"]).split())
        return f"{where}: failed in {side} only: {error}"
    if kind == "choices":
        return f"{where}: choices {record['other']}, baseline {record['base']}"
    where += f" choice {record['choice']}"
    if kind == "turns":
        return f"{where}: {record['other']} turns, baseline {record['base']}"
    unit = "token" if kind == "tokens" else "character"
    finish = record["other_finish"], record["base_finish"]
    return (
        f"{where} turn {record['turn']} {unit} {record['position']}:"
        f" {shown(record['other'], record['other_text'])},"
        f" baseline {shown(record['base'], record['base_text'])}"
        + (f"; finish {finish[0]}, baseline {finish[1]}" if any(finish) else "")
        + ("; an earlier turn differs" if record["after_difference"] else "")
    )


def print_result(result, max_print):
    """The verdict line, the notes and the first differences of one file."""
    print(verdict_line(result))
    if result["aa"]:
        print(f"  {self_difference_line(result['aa'])}")
    for note in result["notes"]:
        print(f"  note: {note}")
    for record in result["differences"][:max_print]:
        print(f"  {difference_line(record)}")
    if len(result["differences"]) > max_print:
        print(f"  ... and {len(result['differences']) - max_print} more differences")


def read_other(path, args):
    """An AnswerFile and its warnings on stderr; with a target, any jsonl with ids or texts."""
    answers = read_any(path) if args.model_path else read_answers(path)
    for message in answers.warnings:
        warn(message)
    return answers


def compare_all(args, base, decode):
    """(results, refusals): every file compared and, with --model-path, judged; printed as it is."""
    judge, results, refused = None, [], []
    if args.model_path:
        from evaluation.judging.judge import Judge

        judge = Judge(args, base)
    for path in args.paths[1:]:
        try:
            other = read_other(path, args)
            results.append(compare_files(base, other, args.allow, decode))
            results[-1]["aa"] = self_difference(base, other, args.aa)
            print_result(results[-1], args.max_print)
            if judge:
                found = results[-1]["judgement"] = judge.judge(other)
                print(*judgement_lines(results[-1]["label"], found, args.max_print), sep="\n")
                if found["proof_refused"]:
                    raise AnswerError(found["proof_refused"])
        except AnswerError as error:
            print(f"equal.py: error: {error}", file=sys.stderr)
            refused.append(str(error))
    return results, refused


def exit_status(results, refused, judged):
    """2 where a file was refused; else of the gravest file."""
    if refused:
        return 2
    if not judged:
        return 0 if all(result["equal"] for result in results) else 1
    return STATUS[worst(result["judgement"]["verdict"] for result in results)]


def main(argv=None):
    """Compare, print, write the report, and return the exit status."""
    args = parse_args(argv)
    decode = load_tokenizer(args.tokenizer_path).decode if args.tokenizer_path else None
    base = read_other(args.paths[0], args)
    with text_beside(args.json):
        results, refused = compare_all(args, base, decode)
    schema = 2 if args.model_path else 1
    document = {"tool": "equal", "schema": schema, "baseline": base.label, "file": str(base.path)}
    write_json(args.json, {**document, "results": results, "not_compared": refused})
    return exit_status(results, refused, bool(args.model_path))


if __name__ == "__main__":
    run(main)
