"""Whether two answers are the same, question by question: one record a question, no printing.

equal.py prints these records. A later step that asks why two answers differ (a near-tie of the
target's logits, a stop rule, a fault) adds its finding to the Difference records.
"""

from dataclasses import dataclass, field

CONTEXT = 24  # characters of text shown on either side of a difference


@dataclass
class Difference:
    """The first place where two answers to one turn differ, or why they cannot be laid together."""

    question_id: object
    category: str
    kind: str  # "tokens", "text", "missing", "extra", "choices", "turns" or "error"
    choice: int | None = None
    turn: int | None = None  # from 0
    position: int | None = None  # token (kind "tokens") or character (kind "text") of the turn
    base: object = None  # what the baseline has there: id, text or error; None past its end
    other: object = None
    base_text: str | None = None  # the text around that place
    other_text: str | None = None
    base_finish: object = None
    other_finish: object = None
    after_difference: bool = False  # an earlier turn differs, so this turn's prompt may too


@dataclass
class QuestionVerdict:
    """What the comparison of one question found."""

    question_id: object
    category: str
    equal: bool
    both_failed: bool = False
    turns: int = 0  # compared
    tokens: int = 0  # compared ids of equal turns, on the baseline's side
    by_text: int = 0  # turns compared by text, for want of ids
    differences: list = field(default_factory=list)


def first_difference(base, other):
    """The first index at which two sequences differ; None if they are equal.

    >>> first_difference([5, 6, 7], [5, 6]), first_difference("", "a"), first_difference("b", "b")
    (2, 0, None)
    """
    if base == other:
        return None
    for index, (left, right) in enumerate(zip(base, other)):
        if left != right:
            return index
    return min(len(base), len(other))


def at(sequence, index):
    """The entry at `index`, None past the end."""
    return sequence[index] if index < len(sequence) else None


def around(text, position):
    """The text around a character, cut to CONTEXT on either side."""
    start, end = max(0, position - CONTEXT), position + CONTEXT
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"


def question_verdict(base, other, decode=None):
    """Compare two Questions, either of which may be None where its file lacks it.

    decode: list of ids -> text, to show the tokens that differ.
    """
    present = base or other
    verdict = QuestionVerdict(present.question_id, present.category, equal=False)

    def differ(kind, **facts):
        verdict.differences.append(Difference(present.question_id, present.category, kind, **facts))

    if base is None or other is None:
        differ("missing" if other is None else "extra")
    elif base.error and other.error:
        verdict.equal = verdict.both_failed = True
    elif base.error or other.error:
        differ("error", base=base.error, other=other.error)
    else:
        choices = {choice.index: choice for choice in other.choices}
        indices = [choice.index for choice in base.choices]
        if sorted(indices) != sorted(choices):
            differ("choices", base=indices, other=list(choices))
        for choice in base.choices:
            if choice.index in choices:
                compare_choice(choice, choices[choice.index], verdict, differ, decode)
        verdict.equal = not verdict.differences
    return verdict


def compare_choice(base, other, verdict, differ, decode):
    """Compare two Choices turn by turn, and count into `verdict`."""
    if len(base.texts) != len(other.texts):
        differ("turns", choice=base.index, base=len(base.texts), other=len(other.texts))
    seen = False
    for turn in range(min(len(base.texts), len(other.texts))):
        facts = compare_turn(base, other, turn, decode)
        verdict.turns += 1
        verdict.by_text += not has_ids(base, other)
        if facts is None:
            verdict.tokens += base.new_tokens[turn]
            continue
        for side, choice in (("base_finish", base), ("other_finish", other)):
            facts[side] = choice.finish_reason and choice.finish_reason[turn]
        differ(choice=base.index, turn=turn, after_difference=seen, **facts)
        seen = True


def has_ids(base, other):
    """Whether both Choices have token ids, so that ids and not texts are compared."""
    return base.output_ids is not None and other.output_ids is not None


def compare_turn(base, other, turn, decode):
    """The facts of a turn's first difference as a dict, None if it is equal."""
    texts = base.texts[turn], other.texts[turn]
    place = first_difference(*texts)
    if not has_ids(base, other):
        if place is None:
            return None
        return {
            "kind": "text",
            "position": place,
            "base": at(texts[0], place),
            "other": at(texts[1], place),
            "base_text": around(texts[0], place),
            "other_text": around(texts[1], place),
        }
    ids = base.output_ids[turn], other.output_ids[turn]
    position = first_difference(*ids)
    if position is None:
        return None
    tokens = [at(side, position) for side in ids]
    if decode is not None:
        shown = [None if token is None else decode([token]) for token in tokens]
    elif place is not None:
        shown = [around(text, place) for text in texts]
    else:
        shown = [None, None]  # the same text from other tokens
    return {
        "kind": "tokens",
        "position": position,
        "base": tokens[0],
        "other": tokens[1],
        "base_text": shown[0],
        "other_text": shown[1],
    }


def file_verdicts(base, other, decode=None):
    """One QuestionVerdict for each question of either AnswerFile, the baseline's order first.

    Of pairs (--paired N), which hold a share of the questions, none but those.
    """
    ids = list(base.questions) + [i for i in other.questions if i not in base.questions]
    for share in (side for side in (base, other) if side.is_share):
        ids = [question_id for question_id in ids if question_id in share.questions]
    return [question_verdict(base.questions.get(i), other.questions.get(i), decode) for i in ids]


def other_texts(one, other):
    """Answers of an AnswerFile that have the ids of another's to the same question, and another
    text: one of the two is not what its ids say."""
    count = 0
    for question_id, question in one.questions.items():
        beside = other.questions.get(question_id)
        for mine, theirs in zip(question.choices, beside.choices if beside else ()):
            alike = mine.output_ids is not None and mine.output_ids == theirs.output_ids
            count += alike and mine.texts != theirs.texts
    return count
