"""What one answer file counts oddly, a Finding each with its places.

A Finding that `counts` changes the published numbers: it is decided by its kind, or, where what
counts is known token by token (`surplus`), by whether the overall speedup changes in its third
decimal. The others are for the reader to judge.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from statistics import median

from evaluation.audit.recount import FITS, fit, stale_turns, turns_of

STEP_LIMIT = 512  # max_steps of the published methods' loops; one that counts from 0 writes 511
LEAST_LIMIT = 100  # fewer steps or tokens that two turns share are no limit
ABSURD = 10  # times the file's median time per step
SLOW_START = 1.5  # times the median of its task
END_MARKS = (
    "</s>",
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<eos>",
)


@dataclass
class Finding:
    """One kind of asymmetry."""

    kind: str
    side: str  # "method", "baseline" or "both"
    counts: bool
    text: str  # how much of it there is
    places: list = field(default_factory=list)  # [(question_id, words)] in file order
    surplus: dict | None = None  # question_id -> the method's tokens that the baseline lacks
    effect: dict | None = None  # {"before", "after"}: overall speedup with it, and mended

    def document(self, num_places):
        """The Finding for JSON, its first places only."""
        places = [words for _, words in self.places[:num_places]]
        return {**asdict(self), "count": len(self.places), "places": places}


def at_turn(turn, words):
    """A place from a Turn."""
    return turn.question_id, f"{turn.place} ({words})"


def of_turns(kind, side, counts, text, places):
    """A Finding of the places, None without any."""
    return Finding(kind, side.name, counts, text, places) if places else None


def find_in(side, other):
    """Every Finding of one Side; the Side `other` says what is usual."""
    return [
        *(check(side) for check in (stale, end_marks, warm_up, zero_times, uncounted)),
        *(check(side) for check in (lengths, no_lengths)),
        *(check(side) for check in (steps, choices)),
        *(check(side, other) for check in (step_limit, absurd_times)),
    ]


def stale(side):
    """Turns whose numbers were carried over."""
    places = [at_turn(turn, reason) for turn, reason in stale_turns(side.questions)]
    text = f"{len(places)} turns have no numbers of their own; their questions are not recounted"
    return of_turns("stale rows", side, True, text, places)


def end_marks(side):
    """Text that goes on after an end-of-sequence token."""
    places = []
    for turn in turns_of(side.questions):
        for mark in END_MARKS:
            head, found, tail = turn.text.partition(mark)
            if found and tail.strip():
                places.append(at_turn(turn, f"{mark} after {len(head)} characters"))
                break
    text = f"{len(places)} texts go on after an end-of-sequence token"
    return of_turns("tokens after EOS", side, True, text, places)


def most_tokens(side):
    """The new_tokens at which a side stops: its largest, where two turns share it; else None."""
    counts = Counter(turn.tokens for turn in turns_of(side.questions))
    largest = max(counts, default=None)
    return largest if counts[largest] > 1 and largest >= LEAST_LIMIT else None


def step_limit(side, other):
    """Turns that end with the file's largest number of steps: 512, or a number that is shared.

    Turns with a token a step, or as many tokens as either file's limit of tokens, are ended by
    that.
    """
    turns = turns_of(side.questions)
    largest = max((turn.steps for turn in turns if turn.steps is not None), default=0)
    limit = min((n for n in map(most_tokens, (side, other)) if n is not None), default=None)
    ended = [
        turn
        for turn in turns
        if turn.steps == largest
        and turn.tokens > largest + 1
        and (limit is None or turn.tokens < limit)
    ]
    known = largest in (STEP_LIMIT, STEP_LIMIT - 1)
    if not known and (len(ended) < 2 or largest < LEAST_LIMIT):
        return None
    places = [at_turn(turn, f"{turn.tokens} tokens") for turn in ended]
    text = f"{len(places)} turns end at {largest} steps, the most in the file: cut by a step limit"
    return of_turns("step limit", side, True, text, places)


def zero_times(side):
    """Turns that took no time."""
    places = [at_turn(turn, "0 s") for turn in turns_of(side.questions) if turn.wall_s <= 0]
    text = f"{len(places)} turns took no time; their questions are not recounted"
    return of_turns("wall times", side, True, text, places)


def uncounted(side):
    """Turns whose tokens nobody counted."""
    places = [
        at_turn(turn, f"{len(turn.text)} characters")
        for turn in turns_of(side.questions)
        if turn.uncounted
    ]
    text = f"{len(places)} turns have a text and new_tokens of 0; only --tokenizer-path counts them"
    return of_turns("tokens not counted", side, True, text, places)


def absurd_times(side, other):
    """Turns whose time per step is far from the file's median, and not so on the other side."""

    def odd(turns):
        turns = {(t.question_id, t.index): t for t in turns if t.wall_s > 0}
        middle = median(t.step_s for t in turns.values()) if turns else 0
        return {
            key: (turn, turn.step_s / middle)
            for key, turn in turns.items()
            if not 1 / ABSURD <= turn.step_s / middle <= ABSURD
        }

    theirs = odd(turns_of(other.questions))
    places = [
        at_turn(turn, f"{turn.spent}: {times:.3g} times the median step")
        for key, (turn, times) in odd(turns_of(side.questions)).items()
        if key not in theirs
    ]
    text = f"{len(places)} turns are {ABSURD} times faster or slower a step than the file's median"
    return of_turns("wall times", side, True, text, places)


def warm_up(side):
    """A first question that is slower a step than all of its task and 1.5 times their median."""
    first = side.questions[0]
    task = [question for question in side.questions if question.task == first.task]
    step_s = [median(turn.step_s for turn in turns_of([q])) for q in task if q.choices]
    if not first.choices or len(step_s) < 4:
        return None
    times = step_s[0] / (median(step_s[1:]) or step_s[0] or 1)
    if times <= SLOW_START or step_s[0] <= max(step_s[1:]):
        return None
    words = f"question {first.question_id} ({times:.2f} times the median step of its task)"
    text = "the first question is the slowest of its task: it seems to be the warm-up"
    return of_turns("warm-up", side, True, text, [(first.question_id, words)])


def first_choices(side):
    """(Question, its first choice) of every answered line."""
    return [(q, q.choices[0]) for q in side.questions if q.choices]


def lengths(side):
    """Questions whose accept_lengths sum to neither new_tokens nor that less one a turn."""
    places = [
        (
            q.question_id,
            f"question {q.question_id} ({sum(c.new_tokens)} tokens, sum {sum(c.accept_lengths)})",
        )
        for q, c in first_choices(side)
        if fit(c) == FITS[2]
    ]
    text = f"{len(places)} questions have accept_lengths that do not sum to new_tokens by any rule"
    return of_turns("accept lengths", side, True, text, places)


def no_lengths(side):
    """Questions without accept_lengths."""
    places = [
        (q.question_id, f"question {q.question_id}")
        for q, c in first_choices(side)
        if c.accept_lengths is None
    ]
    text = f"{len(places)} questions have none: no mean accepted tokens"
    return of_turns("accept lengths", side, False, text, places)


def steps(side):
    """Questions with another number of decoding steps than accept lengths."""
    apart = [
        (q.question_id, sum(c.steps), len(c.accept_lengths), len(c.texts))
        for q, c in first_choices(side)
        if c.accept_lengths is not None and sum(c.steps) != len(c.accept_lengths)
    ]
    from_zero = sum(count == steps + turns for _, steps, count, turns in apart)
    places = [(i, f"question {i} ({steps} steps, {n} lengths)") for i, steps, n, _ in apart]
    text = f"{len(apart)} questions; {from_zero} of them one fewer a turn, as counted from 0"
    return of_turns("decoding steps", side, False, text, places)


def choices(side):
    """Lines with several choices, of which the published script reads the first."""
    places = [
        (q.question_id, f"question {q.question_id} ({len(q.choices)} choices)")
        for q in side.questions
        if len(q.choices) > 1
    ]
    text = f"{len(places)} questions have several; the first is counted, as published"
    return of_turns("choices", side, False, text, places)
