"""Two answer files as Spec-Bench's speed.py counts them, and recounted by one rule for both.

The published script reads every line of each file by itself, the first choice of a line, and counts
the method by new_tokens and the baseline by its texts, tokenised again, less one a turn. The
recount pairs the questions by id and counts both sides alike: by new_tokens, or, with a tokenizer,
by the texts. speedup/metrics.py defines every number of either.

Source: github.com/hemingkx/Spec-Bench, evaluation/speed.py and evaluation/eval.py
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evaluation.answers.checks import check_times
from evaluation.answers.meta import AnswerError
from evaluation.answers.reader import HALF, AnswerFile, one_model_id, read_lines
from evaluation.cli import warn
from evaluation.speedup import metrics
from evaluation.speedup.comparison import number, tasks_of
from evaluation.speedup.pairing import by_texts, same_category

ERROR_TEXT = "ERROR"  # what the published harness writes in the place of a turn that raised
FITS = ("new_tokens", "new_tokens - 1 a turn", "neither")


@dataclass
class Side:
    """An answer file as it stands: every line, in its order."""

    name: str  # "method" or "baseline"
    path: Path
    label: str
    sha256: str
    questions: list  # [Question] in file order; an id may come twice
    lines: list  # [int] their line numbers

    @property
    def firsts(self):
        """{question_id: (line number, Question)} of the first line of every id."""
        found = {}
        for line, question in zip(self.lines, self.questions):
            found.setdefault(question.question_id, (line, question))
        return found


@dataclass
class Turn:
    """One turn of a first choice."""

    question_id: object
    task: str
    index: int
    text: str
    tokens: int
    steps: int | None  # None where a server hides them
    wall_s: float

    @property
    def place(self):
        """Where it stands, in words."""
        return f"question {self.question_id} turn {self.index}"

    @property
    def uncounted(self):
        """Whether it has a text and new_tokens of 0."""
        return bool(self.text.strip()) and not self.tokens

    @property
    def spent(self):
        """Its time and its steps, or its tokens where a server hides those, in words."""
        number = f"{self.tokens} tokens" if self.steps is None else f"{self.steps} steps"
        return f"{self.wall_s:.3g} s, {number}"

    @property
    def step_s(self):
        """Seconds a step, prefill inside; a token of a server that hides its steps."""
        return self.wall_s / max(self.tokens if self.steps is None else self.steps, 1)


def read_side(name, path):
    """A Side from an answer file; refuses what is no answer file."""
    path = Path(path)
    content, rows, quirks = read_lines(path)
    if "half" in quirks:
        warn(f"{path}: {HALF}")
    label = one_model_id(path, [model_id for _, model_id, _ in rows], None)
    questions, lines = [row[2] for row in rows], [row[0] for row in rows]
    return Side(name, path, label, hashlib.sha256(content).hexdigest(), questions, lines)


def share_categories(side, other):
    """Give the Questions of a Side without a category that of the other Side's."""
    theirs = {question_id: question for question_id, (_, question) in other.firsts.items()}
    side.questions = [same_category(q, theirs.get(q.question_id, q)) for q in side.questions]


def turns_of(questions):
    """Every Turn of the first choices of Questions, in their order."""
    return [
        Turn(question.question_id, question.task, index, *facts)
        for question in questions
        for choice in question.choices[:1]
        for index, facts in enumerate(
            zip(
                choice.texts,
                choice.new_tokens,
                choice.steps or [None] * len(choice.texts),
                choice.wall_s,
            )
        )
    ]


def fit(choice):
    """What the sum of accept_lengths is: one of FITS; None without lengths or counted tokens."""
    if choice.accept_lengths is None or choice.uncounted:
        return None
    apart = sum(choice.new_tokens) - sum(choice.accept_lengths)
    return {0: FITS[0], len(choice.texts): FITS[1]}.get(apart, FITS[2])


def stale_turns(questions):
    """[(Turn, reason)] whose numbers are not their own.

    The published harness writes "ERROR" as the text of a turn that raised, and beside it the
    numbers of the turn before. A turn that repeats new_tokens, steps and wall_time of the turn
    before with another text is no measurement either.
    """
    found, before = [], None
    for turn in turns_of(questions):
        numbers = turn.tokens, turn.steps, turn.wall_s
        repeated = before is not None and numbers == before[0] and turn.text != before[1]
        if turn.text == ERROR_TEXT:
            found.append((turn, "ERROR, numbers of the turn before" if repeated else "ERROR"))
        elif repeated and turn.wall_s > 0:
            found.append((turn, "numbers of the turn before"))
        before = numbers, turn.text
    return found


def even(total, count):
    """A list of `count` whole numbers that sum to `total` and differ by one at most.

    >>> even(7, 3)
    [3, 2, 2]
    """
    return [total // count + (i < total % count) for i in range(count)]


def recounted_choice(choice, usual_fit):
    """A choice whose accept lengths, where they fit no rule, are counted anew."""
    lengths = choice.accept_lengths
    if fit(choice) == FITS[2]:
        prefills = len(choice.texts) if usual_fit == FITS[1] else 0
        lengths = even(max(0, sum(choice.new_tokens) - prefills), sum(choice.steps))
    return replace(choice, accept_lengths=lengths)


def recount(side, other, count_tokens=None):
    """An AnswerFile of the Side's first lines and first choices, counted by the one rule.

    A question has an `error` in place of numbers where they are not its own, where a turn took no
    time, where nobody counted the tokens of its text, and where the Side `other` has another
    category or number of turns under its id.
    count_tokens: text -> number of input ids, to count texts; without it, new_tokens.
    """
    stale = {turn.question_id: reason for turn, reason in stale_turns(side.questions)}
    fits = Counter(fit(choice) for q in side.questions for choice in q.choices[:1])
    usual = max(FITS[:2], key=lambda name: fits[name])
    theirs, questions = other.firsts, {}
    for question_id, (line, question) in side.firsts.items():
        error = question.error or stale.get(question_id)
        if not error and question_id in theirs:
            error = mismatch(question, theirs[question_id][1])
        try:
            check_times(question, f"line {line}")
        except AnswerError as refusal:
            error = error or str(refusal)
        choices = question.choices[:1]
        if count_tokens is None and any(choice.uncounted for choice in choices):
            error = error or "new_tokens is 0 beside a text: --tokenizer-path counts the texts"
        choices = [] if error else [recounted_choice(choice, usual) for choice in choices]
        choices = [replace(choice, index=0) for choice in choices]
        counted = replace(question, error=error, choices=choices)
        questions[question_id] = by_texts(counted, count_tokens) if count_tokens else counted
    return AnswerFile(side.path, side.sha256, side.label, questions, None)


def mismatch(ours, theirs):
    """Why two Questions of one id cannot be the same question, or None."""
    if ours.category != theirs.category:
        return f"category {ours.category} here, {theirs.category} there"
    shapes = [len(q.choices[0].texts) for q in (ours, theirs) if q.choices]
    return f"{shapes[0]} turns here, {shapes[1]} there" if len(set(shapes)) > 1 else None


def by_task(questions):
    """{task: its answered Questions}, the last one "overall"."""
    answered = [replace(q, choices=q.choices[:1]) for q in questions if q.choices]
    rows = tasks_of([(question, question) for question in answered])
    return {task: [question for question, _ in pairs] for task, _, pairs in rows}


def published(method, base, count_tokens=None):
    """{task: {"speedup", "mean_accepted", "base_mean_accepted"}} as the published script prints.

    Every line counts, and the two files' lines are not paired. count_tokens: text -> number of
    input ids, special tokens included; without it the speedups are None.
    """
    ours, theirs = by_task(method.questions), by_task(base.questions)
    table = {}
    for task in theirs:
        if task not in ours or not theirs[task]:
            continue
        columns, base_columns = (
            metrics.question_columns(questions) for questions in (ours[task], theirs[task])
        )
        speedup = None
        if count_tokens is not None:
            texts = [question.choices[0].texts for question in theirs[task]]
            lengths = np.array([sum(count_tokens(text) - 1 for text in turns) for turns in texts])
            speedup = published_speedup(columns, lengths, base_columns)
        accepted = (metrics.mean_accepted(side) for side in (columns, base_columns))
        means = [entry and float(entry["over_steps"]) for entry in accepted]
        table[task] = {
            "speedup": speedup,
            "mean_accepted": means[0],
            "base_mean_accepted": means[1],
        }
    return table


def published_speedup(columns, base_tokens, base_columns):
    """The published ratio of two sides' Columns; None where a question took no time."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = metrics.published_ratio(
            columns.tokens, columns.wall_s, base_tokens, base_columns.wall_s
        )
    return number(ratio)
