"""Pair the questions of two answer files by question_id, and say what is left out and why."""

from dataclasses import dataclass, replace

from evaluation.answers.meta import AnswerError
from evaluation.answers.reader import UNCATEGORIZED, check_ids

MAX_NAMED = 10  # ids or errors named in a message; the rest are counted


@dataclass
class Pairing:
    """Questions that both sides answered, in the baseline's order, and what was left out."""

    pairs: list  # [(method's Question, baseline's Question)]
    notes: list  # lines to print beside the table
    left_out: dict  # reason -> question ids


def named(ids):
    """'3 questions: 1, 2, 3', cut after MAX_NAMED ids."""
    ids = list(ids)
    cut = ", ..." if len(ids) > MAX_NAMED else ""
    noun = "question" if len(ids) == 1 else "questions"
    return f"{len(ids)} {noun}: {', '.join(map(str, ids[:MAX_NAMED]))}{cut}"


def pair_questions(method, base, common=False, count_tokens=None):
    """Pair two AnswerFiles; order does not matter, a missing question does unless `common`.

    A question that failed on either side is left out of both; one without a category on one side
    has the other's. Where a side did not count the tokens of a text, those of all texts of both
    sides are counted with `count_tokens` (text -> number of input ids, special tokens included).
    """
    check_ids(method, base)
    missing = [i for i in base.questions if i not in method.questions]
    extra = [i for i in method.questions if i not in base.questions]
    if missing and len(missing) == len(base.questions):
        raise AnswerError(f"{method.path} and {base.path}: no question_id in common")
    notes, left_out = [], {"only_in_baseline": missing, "only_in_method": extra}
    for ids, holder, lacking in ((missing, base, method), (extra, method, base)):
        if ids and not common:
            raise AnswerError(
                f"{lacking.path} lacks {named(ids)} (in {holder.path.name});"
                " --common compares the questions that both files have"
            )
        if ids:
            notes.append(f"--common: left out, not in {lacking.path.name}: {named(ids)}")
    for answers, side in ((method, "method"), (base, "baseline")):
        failed = [q for q in answers.questions.values() if q.error]
        ids = left_out[f"failed_in_{side}"] = [q.question_id for q in failed]
        if failed:
            first = " ".join(failed[0].error.split())
            notes.append(
                f"failed in the {side}, left out on both sides: {named(ids)} (first error: {first})"
            )
    check_prompts = method.meta is None or base.meta is None
    pairs = []
    for question_id, theirs in base.questions.items():
        ours = method.questions.get(question_id)
        if ours is None or ours.error or theirs.error:
            continue
        ours, theirs = same_category(ours, theirs), same_category(theirs, ours)
        check_pair(ours, theirs, method, check_prompts)
        pairs.append((ours, theirs))
    if not pairs:
        reasons = "".join(f"; {note}" for note in notes)
        raise AnswerError(
            f"{method.path}: no question was answered in it and in {base.path}{reasons}"
        )
    uncounted = list(uncounted_lines((method, base), pairs))
    if uncounted and count_tokens is None:
        raise AnswerError(f"{uncounted[0]}; --tokenizer-path TARGET counts the texts")
    if uncounted:
        notes += [f"{line}: on both sides the tokens are those of the texts" for line in uncounted]
        pairs = [tuple(by_texts(question, count_tokens) for question in pair) for pair in pairs]
    return Pairing(pairs, [*notes, *empty_lines(pairs)], left_out)


def uncounted_lines(sides, pairs):
    """A line for each of two AnswerFiles with texts of the pairs whose tokens it did not count."""
    for answers, questions in zip(sides, zip(*pairs)):
        choices = [choice for question in questions for choice in question.choices]
        turns = sum(len(choice.uncounted) for choice in choices)
        if turns:
            yield f"{answers.path.name}: new_tokens is 0 in {turns} turns that have a text"


def empty_lines(pairs):
    """A line for each side with questions that it answered with nothing: 0 tokens/s in the mean."""
    for side, questions in zip(("method", "baseline"), zip(*pairs)):
        ids = [q.question_id for q in questions if not any(sum(c.new_tokens) for c in q.choices)]
        if ids:
            yield f"answered with no token in the {side}, in its means as 0 tokens/s: {named(ids)}"


def by_texts(question, count_tokens):
    """A Question whose new_tokens are the tokens of its texts, special ones not counted."""
    special = count_tokens("")

    def counted(choice):
        tokens = [max(0, count_tokens(text) - special) for text in choice.texts]
        return replace(choice, new_tokens=tokens)

    return replace(question, choices=[counted(choice) for choice in question.choices])


def same_category(question, other):
    """A Question with the category of the other, if it has none of its own."""
    known = question.category != UNCATEGORIZED
    return question if known else replace(question, category=other.category)


def check_pair(ours, theirs, method, check_prompts):
    """Refuse a pair that cannot be the same question: category, choices, turns, first prompt."""
    where = f"{method.path}: question {ours.question_id}"
    if ours.category != theirs.category:
        raise AnswerError(
            f"{where}: category {ours.category}, in the baseline {theirs.category}:"
            " another question file"
        )
    ours_shape = [(choice.index, len(choice.texts)) for choice in ours.choices]
    theirs_shape = [(choice.index, len(choice.texts)) for choice in theirs.choices]
    if sorted(ours_shape) != sorted(theirs_shape):
        raise AnswerError(
            f"{where}: (choice, turns) {ours_shape}, in the baseline {theirs_shape}:"
            " another question file or number of choices"
        )
    prompts = ours.choices[0].prompt_tokens, theirs.choices[0].prompt_tokens
    if check_prompts and all(prompts) and prompts[0][0] != prompts[1][0]:
        raise AnswerError(
            f"{where}: a prompt of {prompts[0][0]} tokens, in the baseline {prompts[1][0]}:"
            " another question, template or tokenizer"
        )
