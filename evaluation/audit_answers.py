"""Do two answer files that others wrote count alike? Published numbers, recounted by one rule.

Reads Spec-Bench's own answer files (a line a question, without token ids or a .meta.json), lists
what the method's file and the baseline's do not count by the same rule, and prints the speedup as
Spec-Bench's speed.py computes it beside the speedup with one rule for both sides: new_tokens, or,
with --tokenizer-path, the texts tokenised again. --json PATH writes the findings as JSON.

Run:  python evaluation/audit_answers.py --file-path eagle.jsonl --base-path vanilla.jsonl

Exit status: 0 nothing was found that changes the numbers, 1 something was (marked "!"), 2 bad
input. These change the numbers: questions that one file lacks, repeats or has otherwise; stale rows
(ERROR, or numbers of the turn before); text after an end-of-sequence token; answers cut by a step
limit; wall times of zero, or ten times off the median on one side only; texts with new_tokens of 0;
a first question that is the warm-up; accept lengths that sum to neither new_tokens nor that less
one a turn. Tokens that one side counts beyond equal texts or beyond the other's limit, and the two
rules of the published formula, change them where the overall speedup changes in its third decimal.
Only reported: order, failed questions, several choices, decoding steps, missing lengths, the rule
of the prefill's token, differing texts.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from any folder

from evaluation.audit.asymmetries import find_all, fit_counts  # noqa: E402
from evaluation.audit.oddities import Finding  # noqa: E402
from evaluation.audit.recount import (  # noqa: E402
    by_task,
    published,
    published_speedup,
    read_side,
    recount,
    share_categories,
)
from evaluation.cli import Parser, TokenCounter, run, text_beside, write_json  # noqa: E402
from evaluation.speedup import metrics, report  # noqa: E402
from evaluation.speedup.comparison import AGGREGATES, compare, number  # noqa: E402
from evaluation.speedup.pairing import pair_questions  # noqa: E402

SEEN = 0.0005  # a difference that a speedup of three decimals shows
UNCHECKED = (
    "the published formula counts the method by new_tokens, the baseline by its texts tokenised"
    " again; --tokenizer-path shows by how much they differ"
)


def parse_args(argv=None):
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--file-path", nargs="+", required=True, help="answer files of the methods")
    parser.add_argument("--base-path", required=True, help="answer file of the baseline")
    parser.add_argument(
        "--tokenizer-path",
        help="the target's tokenizer: print the speedup as published, and recount by the texts",
    )
    parser.add_argument("--places", type=int, default=3, help="first places shown of each finding")
    parser.add_bootstrap()
    parser.add_json()
    args = parser.parse_args(argv)
    if args.resamples < 1 or args.places < 0 or args.seed < 0:
        parser.error("--resamples has to be 1 or more, --places and --seed 0 or more")
    return args


def audit(method, base, count_tokens=None, resamples=10000, seed=0):
    """Everything found about a method's Side against the baseline's, as a dict.

    count_tokens: text -> number of input ids, special tokens included.
    """
    for sides in ((method, base), (base, method)):
        share_categories(*sides)
    counted = [recount(*sides, count_tokens) for sides in ((method, base), (base, method))]
    recounted = compare(*counted, resamples, seed, common=True)
    findings = [*find_all(method, base), two_rules(method, base, count_tokens)]
    findings = [finding for finding in findings if finding is not None]
    uncounted = any(finding.kind == "tokens not counted" for finding in findings)
    rule = count_tokens if uncounted else None
    measure(findings, recount(method, base, rule), recount(base, method, rule))
    return {
        "rule": "new_tokens" if count_tokens is None else "texts tokenised again",
        "published": published(method, base, count_tokens),
        "recounted": recounted,
        "findings": findings,
        "accept_lengths_sum_to": {side.name: fit_counts(side) for side in (method, base)},
    }


def two_rules(method, base, count_tokens):
    """What the published formula's second rule does, on the lines as they are."""
    if count_tokens is None:
        return Finding("two token rules", "both", False, UNCHECKED)
    ours, theirs = by_task(method.questions)["overall"], by_task(base.questions)["overall"]
    if any(question.choices[0].uncounted for question in theirs):
        return None  # a Finding of its own
    columns, base_columns = metrics.question_columns(ours), metrics.question_columns(theirs)
    effect = {
        "before": published(method, base, count_tokens)["overall"]["speedup"],
        "after": published_speedup(columns, base_columns.tokens, base_columns),
    }
    places, apart = [], 0
    for question in theirs:
        choice = question.choices[0]
        lengths = [count_tokens(text) - 1 for text in choice.texts]
        if lengths != choice.new_tokens:
            words = f"question {question.question_id} (texts {lengths}, {choice.new_tokens})"
            places.append((question.question_id, words))
            apart += sum(choice.new_tokens) - sum(lengths)
    if not places:
        return None
    text = (
        f"in {len(places)} questions the baseline's texts and new_tokens differ, by {apart} tokens"
        " in all; the method is counted by new_tokens"
    )
    return Finding("two token rules", "both", changes(effect), text, places, effect=effect)


def changes(effect):
    """Whether a speedup of three decimals shows an effect; undefined numbers do."""
    before, after = effect["before"], effect["after"]
    return before is None or after is None or abs(before - after) >= SEEN


def measure(findings, method, base):
    """Write into each Finding what it does to the overall mean ratio by new_tokens.

    Known tokens are taken off the method; else the questions concerned are left out.
    """
    pairs = pair_questions(method, base, common=True).pairs
    whole = mean_ratio(pairs)
    for finding in findings:
        if finding.effect is not None or not finding.places:
            continue
        if finding.surplus is None:
            concerned = {question_id for question_id, _ in finding.places}
            after = mean_ratio([pair for pair in pairs if pair[0].question_id not in concerned])
            finding.effect = {"before": whole, "after": after}
        else:
            finding.effect = {"before": whole, "after": mean_ratio(pairs, finding.surplus)}
            finding.counts = changes(finding.effect)


def mean_ratio(pairs, surplus=None):
    """The headline speedup of pairs, less {question_id: tokens} of the method; None for no pair."""
    if not pairs:
        return None
    columns, base_columns = (metrics.question_columns(side) for side in zip(*pairs))
    less = [(surplus or {}).get(ours.question_id, 0) for ours, _ in pairs]
    columns = replace(columns, tokens=columns.tokens - less)
    return number(metrics.wall_ratios(columns, base_columns)["mean_ratio"])


def table_lines(result):
    """As published beside as recounted, a row a task."""
    header = ["task", "questions", "as published", "recounted (mean ratio)"]
    header += [f"{name} recounted" for key, name in AGGREGATES.items() if key != "mean_ratio"]
    header += ["time ratio", "accepted published", "recounted", "baseline's"]
    rows = []
    for row in result["recounted"]["tasks"]:
        printed = result["published"].get(row["task"]) or {}
        speedup = row["speedup"]
        others = [speedup[key]["value"] for key in AGGREGATES if key != "mean_ratio"]
        rows.append(
            [
                row["name"],
                str(row["questions"]),
                report.fixed(printed.get("speedup")),
                report.ratio_text(speedup["mean_ratio"]),
                *map(report.fixed, others),
                report.fixed(row["base_wall_s"] / row["wall_s"]),
                report.fixed(printed.get("mean_accepted")),
                report.accepted_text(row, "over_steps"),
                report.fixed(printed.get("base_mean_accepted")),
            ]
        )
    return report.table(header, rows)


def finding_lines(findings, num_places):
    """A line a Finding, "!" where it changes the numbers, and its first places."""
    lines = []
    for finding in sorted(findings, key=lambda f: not f.counts):
        mark = "!" if finding.counts else "-"
        line = f"{mark} {finding.kind} ({finding.side}): {finding.text}"
        if finding.effect is not None:
            before, after = (report.fixed(finding.effect[key]) for key in ("before", "after"))
            how = "without these questions" if finding.surplus is None else "without these tokens"
            how = "with new_tokens on both sides" if finding.kind == "two token rules" else how
            line += f"; overall {before}, {how} {after}"
        lines.append(line)
        shown = [words for _, words in finding.places[:num_places]]
        more = len(finding.places) - len(shown)
        if shown:
            lines.append(f"    {'; '.join(shown)}{f'; and {more} more' if more else ''}")
    return lines


def main():
    """Audit every file, print, write the report, and return the exit status."""
    args = parse_args()
    with text_beside(args.json):
        documents = audit_all(args)
    write_json(args.json, {"tool": "audit_answers", "schema": 1, "results": documents})
    return int(any(document["changed"] for document in documents))


def audit_all(args):
    """Audit every file and print what was found; a dict a file for JSON."""
    count_tokens = TokenCounter(args.tokenizer_path) if args.tokenizer_path else None
    base = read_side("baseline", args.base_path)
    documents = []
    for path in args.file_path:
        method = read_side("method", path)
        result = audit(method, base, count_tokens, args.resamples, args.seed)
        findings = result["findings"]
        print("\n".join(report.heading_lines(result["recounted"])))
        print(f"  tokens of the recount, on both sides: {result['rule']}")
        print("\n".join(table_lines(result)))
        print(report.identity_line(result["recounted"]))
        print("\n".join(finding_lines(findings, args.places)) + "\n")
        found = [finding.document(args.places) for finding in findings]
        changed = any(finding.counts for finding in findings)
        documents.append({**result, "findings": found, "changed": changed})
    return documents


if __name__ == "__main__":
    run(main)
