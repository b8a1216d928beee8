"""Judge an answer file on the held-out questions: well-formed, and right.

Run:    python data/mini_bench/score.py ANSWERS.jsonl

well-formed  every turn ended by itself (finish_reason "stop", where that is recorded), is not
             empty, ends in . ! ? (a quote may follow), a closed code block, a list item or a
             table row, and repeats no phrase of 4 words and no long line three times
right        first turn only. math_reasoning: the last number equals the result. translation: equal
             to the reference but for case, punctuation and spaces. qa, rag: every fact of the
             reference occurs as a whole phrase.
F1           translation only, beside it: mean token-level F1 with the reference, not used for right
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

QUESTIONS = Path(__file__).resolve().parent / "question.jsonl"
JUDGED = ("translation", "qa", "math_reasoning", "rag")
SENTENCE_END = re.compile(r"[.!?][\"')]*$")
LIST_OR_TABLE = re.compile(r"^(- \S|\d+\. \S|\|.*\|$)")


def normalise(text):
    """Lower-case words and numbers, single spaces: "The  cat." -> "the cat"."""
    return " ".join(re.findall(r"\w+", text.lower()))


def ends_well(text):
    """Whether the text's last line is finished: sentence, closed block, list item or table row."""
    if text.count("```") % 2:
        return False
    last = text.rstrip().rsplit("\n", 1)[-1].strip()
    return bool(last == "```" or SENTENCE_END.search(last) or LIST_OR_TABLE.match(last))


def repeats(text, width=4):
    """Whether a phrase of width words comes three times in a row, or a long line three times."""
    words = text.split()
    for start in range(len(words) - 3 * width + 1):
        a, b, c = (words[start + i * width : start + (i + 1) * width] for i in range(3))
        if a == b == c:
            return True
    lines = Counter(line.strip() for line in text.split("\n") if len(line.split()) >= width)
    return any(count >= 3 for count in lines.values())


def well_formed(text, finish_reason):
    """Whether one turn's answer ended by itself and is complete."""
    if finish_reason not in (None, "stop") or not text.strip():
        return False
    return ends_well(text) and not repeats(text)


def f1(text, reference):
    """Token-level F1 of two texts, words counted with their multiplicity."""
    ours, theirs = Counter(normalise(text).split()), Counter(normalise(reference).split())
    common = (ours & theirs).total()
    return 2 * common / max(1, ours.total() + theirs.total())


def right(category, text, reference):
    """Whether a first answer is right; see the module's docstring for the rules."""
    if category == "math_reasoning":
        numbers = re.findall(r"-?\d+", text)
        return bool(numbers) and int(numbers[-1]) == int(reference[0])
    if category == "translation":
        return normalise(text) in [normalise(one) for one in reference]
    padded = f" {normalise(text)} "
    return all(f" {normalise(fact)} " in padded for fact in reference)


class BadInput(Exception):
    """A file that cannot be judged; the message names file and line."""


def read_lines(path):
    """Yield (place, object) for each line of a jsonl file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    for number, line in enumerate(lines, start=1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"{place}: not JSON ({error.msg})") from error
        if not isinstance(value, dict):
            raise BadInput(f"{place}: not a JSON object")
        yield place, value


def read_answers(path, questions):
    """Answers by question id -> {id: [(text, finish_reason or None) of each turn]}."""
    answers = {}
    for place, line in read_lines(path):
        number = line.get("question_id")
        if not isinstance(number, int) or number not in questions:
            raise BadInput(f"{place}: question_id {number!r} is not in {QUESTIONS.name}")
        if number in answers:
            raise BadInput(f"{place}: question_id {number} occurs twice")
        choices = line.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            if "error" in line:
                answers[number] = []
                continue
            raise BadInput(f"{place}: no choices")
        turns, reasons = choices[0].get("turns"), choices[0].get("finish_reason")
        if not isinstance(turns, list) or not all(isinstance(text, str) for text in turns):
            raise BadInput(f"{place}: choices[0].turns is not a list of texts")
        reasons = [None] * len(turns) if reasons is None else reasons
        if not isinstance(reasons, list) or len(reasons) != len(turns):
            raise BadInput(f"{place}: finish_reason does not have an entry for each turn")
        answers[number] = list(zip(turns, reasons))
    if not answers:
        raise BadInput(f"{path}: no answers")
    return answers


def judge(questions, answers):
    """Count by category -> {category: Counter(questions, turns, well, right, f1)}."""
    counts = {}
    for number, question in questions.items():
        if number not in answers:
            continue
        turns = answers[number]
        count = counts.setdefault(question["category"], Counter())
        count["questions"] += 1
        count["turns"] += len(question["turns"])
        count["well"] += sum(well_formed(*turn) for turn in turns[: len(question["turns"])])
        if question["category"] in JUDGED and turns:
            count["right"] += right(question["category"], turns[0][0], question["reference"])
            if question["category"] == "translation":
                count["f1"] += max(f1(turns[0][0], one) for one in question["reference"])
    return counts


def show(counts, num_questions):
    """Print a row for each category and one for all."""
    print(f"{'category':<16}{'questions':>10}{'turns':>7}{'well-formed':>13}{'right':>8}")
    total = Counter()
    for category, count in counts.items():
        total.update(count)
        judged = category in JUDGED
        share = f"{count['right'] / count['questions']:.0%}" if judged else "-"
        more = f"  F1 {count['f1'] / count['questions']:.2f}" if category == "translation" else ""
        print(
            f"{category:<16}{count['questions']:>10}{count['turns']:>7}"
            f"{count['well'] / count['turns']:>13.0%}{share:>8}{more}"
        )
    judged = sum(count["questions"] for category, count in counts.items() if category in JUDGED)
    share = f"{total['right'] / judged:.0%}" if judged else "-"
    print(
        f"{'all':<16}{total['questions']:>10}{total['turns']:>7}"
        f"{total['well'] / total['turns']:>13.1%}{share:>8}"
    )
    if total["questions"] < num_questions:
        print(f"{num_questions - total['questions']} of {num_questions} questions have no answer")


def main():
    """Read the answer file and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("answers", metavar="ANSWERS.jsonl", help="answer file to judge")
    args = parser.parse_args()
    try:
        questions = {line["question_id"]: line for _, line in read_lines(QUESTIONS)}
        show(judge(questions, read_answers(args.answers, questions)), len(questions))
    except BadInput as error:
        print(f"score.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
