"""Put parts of one run, made by question ranges, together as one answer file with one meta.

The parts are files of one command that differs in nothing but --question-begin and --question-end,
made one after another or on several machines of one kind:

      python -m model.pld.inference_pld ... --question-end 240 --answer-file first.jsonl
      python -m model.pld.inference_pld ... --question-begin 240 --answer-file second.jsonl
Run:  python evaluation/merge.py first.jsonl second.jsonl --output pld.jsonl

The output is what one run over the whole range writes: other tools read it, and the command without
a range, or with a wider one, goes on from it. The pairs of a run (NAME-paired-baseline.jsonl) are
merged by a second call. Parts that differ in anything else, or ask a question twice, are refused.

Exit status: 0 whole, 1 written, but questions are missing (they are named), 2 refused.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from any folder

from evaluation.answers.meta import AnswerError, meta_path, read_meta  # noqa: E402
from evaluation.answers.reader import read_answers  # noqa: E402
from evaluation.cli import Parser, run, text_beside, warn, write_json  # noqa: E402
from evaluation.speedup.pairing import named  # noqa: E402

RANGE = ("question_begin", "question_end")
TREE = ("num_nodes", "depth", "paths")


def parse_args(argv=None):
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("parts", nargs="+", metavar="PART", help="answer files of the ranges")
    parser.add_argument("--output", required=True, metavar="FILE", help="the merged answer file")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_json()
    args = parser.parse_args(argv)
    if len(args.parts) < 2:
        parser.error("one part alone; name all parts of the run")
    args.parts, args.output = [Path(part) for part in args.parts], Path(args.output)
    if args.output.resolve() in {part.resolve() for part in args.parts}:
        parser.error(f"--output {args.output}: it is one of the parts")
    if args.output.exists() and not args.overwrite:
        parser.error(f"--output {args.output}: a file is there; --overwrite replaces it")
    return args


def read_parts(paths):
    """[(path, meta)] in the order of their ranges; refuses parts of different runs."""
    from model.common.records.writer import first_difference, identity

    parts = []
    for path in paths:
        read_answers(path)  # what no other tool could read is refused here
        meta = read_meta(path)
        if meta is None or not isinstance(meta.get("questions"), dict):
            raise AnswerError(f"{path}: no meta beside it says which questions it was asked")
        selection = meta.get("selection") or {}
        for name in RANGE:
            if name not in selection or not isinstance(selection[name], int | None):
                raise AnswerError(f"{meta_path(path)}: selection: {name} is missing or no number")
        if (meta.get("method_args") or {}).get("state") == "warm":
            raise AnswerError(f"{path}: of --state warm, whose speed depends on what came before")
        parts.append((path, meta))
    parts.sort(key=lambda part: part[1]["selection"]["question_begin"] or 0)
    (first, meta), *others = parts
    for path, other in others:
        field = first_difference(*(identity(m) | {"selection": chosen(m)} for m in (meta, other)))
        if field:
            raise AnswerError(f"{first} and {path} are not of one run ({field})")
    return parts


def chosen(meta):
    """What a meta says of the choice of questions beside their range, and of an automatic tree."""
    tree = meta.get("fitted_tree") or {}
    found = {name: value for name, value in meta["selection"].items() if name not in RANGE}
    return found | {f"fitted_tree.{name}": tree.get(name) for name in TREE}


def merged_meta(parts):
    """The meta of one run over all that the parts were asked."""
    from model.common.records.meta import question_totals

    questions, holder = {}, {}
    for path, meta in parts:
        twice = [name for name in meta["questions"] if name in questions]
        if twice:
            raise AnswerError(f"{holder[twice[0]]} and {path} both ask {named(twice)}")
        questions |= meta["questions"]
        holder |= dict.fromkeys(meta["questions"], path)
    metas = [meta for _, meta in parts]
    span = {name: metas[end]["selection"][name] for name, end in zip(RANGE, (0, -1))}
    found = {
        **metas[0],
        "shared": metas[0]["shared"] | question_totals(questions),
        "selection": metas[0]["selection"] | span,
        "arguments": (metas[0].get("arguments") or {}) | span,
        "num_questions": len(questions),
    }
    if all(meta.get("run_s") for meta in metas):
        names = dict.fromkeys(name for meta in metas for name in meta["run_s"])
        found["run_s"] = {name: sum(meta["run_s"].get(name, 0) for meta in metas) for name in names}
    energy = [entry for meta in metas for entry in meta.get("energy") or []]
    found |= {"energy": energy} if energy else {}
    return {**found, "questions": questions}  # the long part last


def gaps(parts):
    """Lines about places of the question file that lie between two ranges."""
    ranges = [[meta["selection"][name] for name in RANGE] for _, meta in parts]
    for (_, end), (begin, _) in zip(ranges, ranges[1:]):
        if end is not None and end < (begin or 0):
            yield f"no part has questions {end} to {begin - 1} of the question file, from 0"


def merge(parts, output, overwrite=False):
    """Write the merged file; returns what is missing in it, a line each."""
    from model.common.errors import BadInput
    from model.common.records.lock import written_alone
    from model.common.records.writer import AnswerFile, all_lines

    meta = merged_meta(parts)
    try:
        with written_alone(output):
            file = AnswerFile(output, meta, overwrite)
            for path, _ in parts:
                for record in all_lines(path).values():
                    file.add(record)
            file.finish(list(file.lines))
    except BadInput as error:
        raise AnswerError(str(error)) from error
    answered = {str(question_id) for question_id in file.lines}
    share = meta.get("pairs_of")  # pairs need not be all questions
    missing = [name for name in meta["questions"] if name not in answered and not share]
    return [*gaps(parts), *([f"without an answer: {named(missing)}"] if missing else [])]


def main():
    """Merge, print what was written, write the report, and return the exit status."""
    args = parse_args()
    parts = read_parts(args.parts)
    missing = merge(parts, args.output, args.overwrite)
    for line in missing:
        warn(f"{args.output}: {line}")
    answers = read_answers(args.output)
    document = {"tool": "merge", "schema": 1, "file": str(args.output), "sha256": answers.sha256}
    document |= {"parts": [str(path) for path, _ in parts], "questions": len(answers.questions)}
    with text_beside(args.json):
        print(f"{args.output}: {len(answers.questions)} questions of {len(parts)} parts")
    write_json(args.json, {**document, "missing": missing})
    return int(bool(missing))


if __name__ == "__main__":
    run(main)
