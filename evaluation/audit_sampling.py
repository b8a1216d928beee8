"""Do sampled answers follow the target's own distribution? Audit answer files, no reference needed.

Every recorded token is scored by the target itself, teacher-forced, penalised and warped as the run
was (temperature, top-k, top-p, min-p). A token that the warped distribution cannot give is
impossible: it is named, and its file is rejected. The others stand three tests
(sampling/evidence.py): the surprisal against its entropy, and the randomised probability integral
transform against uniform, with the vocabulary ordered by probability and by id. Holm's correction
over files x tests holds the chance of any false alarm below --alpha, however the files depend on
each other. Methods that match tokens give the baseline's very answers: the same draws, tested once,
which is said where it is so.

CONSISTENT means: no bias was found. "finds" is what would have been: from which share of tokens on
the target's best token in place of a draw, as a greedy bonus puts it, is found in 80 % of files.
LOSSY BY DESIGN (typical acceptance) is reported and fails nothing, nor is it in the correction.

Tokens of the prefill are counted. Half precision: a prefill's logits differ from a step's by
rounding (float32 2e-5, float16 0.016, bfloat16 0.13 at most on the mini target), which the tests
cannot see below 100,000 tokens; a token outside top-k, top-p or min-p that rounding could have let
in is not impossible. How far rounding goes is measured on the target, as equal.py does (noise.py;
never below 0.05 of a logit in float16, 0.5 in bfloat16, 0.001 in float32); a target whose readings
differ by more than rounding is not audited. Settings come from the .meta.json beside a file; for
files of other writers, from flags.

Run:  python evaluation/audit_sampling.py ANSWERS/vanilla.jsonl ANSWERS/sps.jsonl
      python evaluation/audit_sampling.py theirs.jsonl --model-path lmsys/vicuna-7b-v1.3 \\
          --bench-name spec_bench --template vicuna_v1.1 --dtype float16 --temperature 1

Exit status: 0 no file is rejected, 1 one is, 2 a file could not be audited. --json PATH writes the
report as one JSON document.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from any folder

from evaluation.answers.meta import AnswerError, find_field  # noqa: E402
from evaluation.answers.reader import read_answers  # noqa: E402
from evaluation.cli import Parser, run, text_beside, warn, write_json  # noqa: E402
from evaluation.judging.flags import DTYPES  # noqa: E402
from evaluation.speedup import report  # noqa: E402

NEUTRAL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
NEUTRAL |= {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
VERDICTS = ("CONSISTENT", "REJECTED", "LOSSY BY DESIGN")
RANGES = {  # of other settings than penalties that are added: any number
    "temperature": (lambda value: value >= 0, "a number of at least 0"),
    "top_k": (lambda value: value >= 0 and value == int(value), "a whole number of at least 0"),
    "top_p": (lambda value: 0 < value <= 1, "a number above 0, at most 1"),
    "min_p": (lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    "repetition_penalty": (lambda value: value > 0, "a number above 0"),
}


def parse_args(argv=None):
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("paths", nargs="+", metavar="FILE", help="answer files to audit")
    parser.add_argument("--alpha", type=float, default=0.01, help="family-wise error")
    parser.add_argument("--seed", type=int, default=0, help="of the transform's random numbers")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--num-threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_json()
    asked = parser.add_argument_group("what the metas do not say, or say of another machine")
    asked.add_argument("--model-path", help="target: model directory or hub id")
    asked.add_argument("--dtype", choices=DTYPES, help="its precision")
    asked.add_argument("--template", help="FastChat template, or plain")
    asked.add_argument("--bench-name", help="folder under data/ with the questions")
    asked.add_argument("--question-file", help="questions elsewhere")
    asked.add_argument("--temperature", type=float, help="of files without a meta")
    asked.add_argument("--top-k", type=int, help="of files without a meta (default: 0, all)")
    asked.add_argument("--top-p", type=float, help="of files without a meta (default: 1)")
    asked.add_argument("--min-p", type=float, help="of files without a meta (default: 0)")
    for kind, neutral in (("repetition", 1), ("presence", 0), ("frequency", 0)):
        told = f"of files without a meta (default: {neutral})"
        asked.add_argument(f"--{kind}-penalty", type=float, help=told)
    asked.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run code that comes with the checkpoint on this machine",
    )
    args = parser.parse_args(argv)
    if not 0 < args.alpha < 1:
        parser.error(f"--alpha {args.alpha:g}: a number between 0 and 1 is needed")
    for name in ("temperature", *NEUTRAL):
        if wrong := wrong_setting(name, getattr(args, name)):
            parser.error(f"--{name.replace('_', '-')} {wrong}")
    if args.num_threads is not None and args.num_threads < 1:
        parser.error("--num-threads: at least 1 is needed")
    return args


def wrong_setting(name, value):
    """'2: a number from 0 to 1 is needed' of a setting, None where it is one or is not given.

    >>> wrong_setting("min_p", 2), wrong_setting("min_p", 0.5)
    ('2: a number from 0 to 1 is needed', None)
    """
    holds, words = RANGES.get(name, (lambda value: True, "a number"))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is None or (number and abs(value) < math.inf and holds(value)):
        return None
    return f"{value!r}: {words} is needed"


def find_settings(answers, args):
    """{temperature and the names of NEUTRAL} of a file; greedy and unknown ones are refused."""
    settings = {}
    for name in ("temperature", *NEUTRAL):
        said, given = find_field(answers.meta, name), getattr(args, name)
        if wrong := wrong_setting(name, said):
            raise AnswerError(f"{answers.path}: its meta says {name} {wrong}")
        if said is None and answers.meta is not None:
            said = NEUTRAL.get(name)  # so a meta records it, or is older than the flag
        flag = f"--{name.replace('_', '-')}"
        if said is not None and given is not None and said != given:
            raise AnswerError(f"{answers.path}: its meta says {name} {said:g}, {flag} {given:g}")
        settings[name] = said if said is not None else given
    if settings["temperature"] is None:
        raise AnswerError(f"{answers.path}: no meta says how it was sampled; give --temperature")
    if settings["temperature"] == 0:
        raise AnswerError(
            f"{answers.path}: temperature 0, nothing was drawn; evaluation/equal.py compares greedy"
            " answers"
        )
    told = {name: value for name, value in settings.items() if value is not None}
    return {**NEUTRAL, **told}


def judge_all(results, alpha):
    """Correct over all files that claim to be exact, and give each file its verdict.

    Files of the same answers have the same p-values, and are one file to the correction.
    """
    from evaluation.sampling.evidence import TESTS, detectable_argmax, holm

    exact = {r["draws_sha256"]: r for r in results if not r["lossy"]}
    places = [(key, test) for key in exact for test in TESTS]
    p_values = [exact[key]["tests"][test]["p"] for key, test in places]
    adjusted = dict(zip(places, holm(p_values)))
    for result in results:
        for test, entry in result["tests"].items():
            own = None if result["lossy"] else adjusted[result["draws_sha256"], test]
            entry["p_holm"] = own
        result["p_holm"] = (
            None if result["lossy"] else min(entry["p_holm"] for entry in result["tests"].values())
        )
        level = alpha / max(1, len(places))
        result["detectable_argmax_share"] = detectable_argmax(result.pop("evidence"), level)
        result["verdict"] = verdict(result, alpha)


def verdict(result, alpha):
    """One of VERDICTS, for a file whose p-values are corrected."""
    if result["lossy"]:
        return VERDICTS[2]
    rejected = result["impossible"]["tokens"] or result["p_holm"] <= alpha
    return VERDICTS[1 if rejected else 0]


def p_text(p):
    """'0.42', '3.1e-07' or '-'."""
    return report.NO_VALUE if p is None else f"{p:.1e}" if p < 0.001 else f"{p:.3f}"


def share_text(share):
    """'3.1 %', '-' where not even a share of one would be found."""
    return report.NO_VALUE if share is None else f"{100 * share:.1f} %"


def table_lines(results):
    """The table, a row a file."""
    header = ["answers", "tokens", "free", "z", "p", "D mass", "p", "D id", "p", "Holm p", "finds"]
    rows = []
    for result in results:
        tests = result["tests"].values()
        digits = (2, 4, 4)
        cells = [
            text
            for test, num in zip(tests, digits)
            for text in (f"{test['statistic']:.{num}f}", p_text(test["p"]))
        ]
        rows.append(
            [result["label"], str(result["tokens"]), str(result["free_tokens"]), *cells]
            + [p_text(result["p_holm"]), share_text(result["detectable_argmax_share"])]
            + [result["verdict"]]
        )
    return report.table([*header, "verdict"], rows)


def explanation_lines(results, alpha):
    """What the columns mean, and what each file's sample could have found, in words."""
    lines = [
        "",
        "free    tokens that had a choice: none had 99 % of the warped distribution",
        "z       sum of -log p(token) - entropy over its standard deviation; two-sided p",
        "D       Kolmogorov-Smirnov distance from uniform of the transformed free tokens",
        f"Holm p  the file's smallest, corrected over files and tests; up to {alpha:g}: REJECTED",
    ]
    for result in results:
        share = result["detectable_argmax_share"]
        power = (
            "its sample is too small to find even a sampler that always takes the best token"
            if share is None
            else f"{share_text(share)} of best tokens in place of draws would have been found"
            " (power at least 80 %)"
        )
        lines.append(f"{result['label']}: {power}")
        lines += [f"  note: {note}" for note in result["notes"]]
        if result["impossible"]["tokens"]:
            first = result["impossible"]["first"]
            lines.append(
                f"  impossible tokens: {result['impossible']['tokens']}, the first: question"
                f" {first['question_id']} choice {first['choice']} turn {first['turn']} token"
                f" {first['position']}: id {first['id']}"
            )
    return lines


def main(argv=None):
    """Audit every file, print the table, write the report, and return the exit status."""
    args = parse_args(argv)
    from evaluation.sampling.scoring import Scorer  # imports torch

    scorer, results, refused = Scorer(args), [], []
    for path in args.paths:
        try:
            answers = read_answers(path)
            for message in answers.warnings:
                warn(message)
            results.append(scorer.audit(answers, find_settings(answers, args)))
        except AnswerError as error:
            print(f"audit_sampling.py: error: {error}", file=sys.stderr)
            refused.append(str(error))
    if results:
        judge_all(results, args.alpha)
        with text_beside(args.json):
            print("\n".join(table_lines(results) + explanation_lines(results, args.alpha)))
    document = {"tool": "audit_sampling", "schema": 1, "alpha": args.alpha, "seed": args.seed}
    write_json(args.json, {**document, "results": results, "not_audited": refused})
    if refused:
        return 2
    return int(any(result["verdict"] == VERDICTS[1] for result in results))


if __name__ == "__main__":
    run(main)
