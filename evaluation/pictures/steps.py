"""The steps of answers: a turn's tokens step by step, and what was accepted at which place.

position   share of the drafts at least k tokens deep of which the k-th token was accepted: steps
           that committed more than k tokens / steps whose draft was k deep. The last step of a turn
           is left out, since the answer's end may have cut it.
output     mean accept length of the steps that began behind so many tokens of a turn
"""

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass

EDGES = (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Tokens of a turn at which the columns of `output` begin; the last has no end."""
PLACES = 1024
"""Of `position`, at most."""


@dataclass
class Turn:
    """One turn of an answer; what the file does not say is None."""

    choice: int
    turn: int
    text: str
    ids: list | None
    lengths: list | None  # [steps] committed tokens
    drafted: list | None  # [steps] candidates of the draft
    depth: list | None  # [steps] tokens of its longest path
    finish: object = None

    @property
    def spans(self):
        """[(begin, end)] of the tokens of the prefill and of every step; None without steps.

        Accept lengths 3 and 1 behind the prefill's token are (0, 1), (1, 4), (4, 5).
        """
        if self.lengths is None:
            return None
        ends = [1]
        for length in self.lengths:
            ends.append(ends[-1] + length)
        return list(zip([0, *ends], ends))


def turns_of(question):
    """The Turns of a Question, choice after choice."""
    found = []
    for choice in question.choices:
        lengths = choice.accept_lengths
        if lengths is not None and (choice.steps is None or len(lengths) != sum(choice.steps)):
            lengths = None  # of another writer, who counts steps otherwise
        first = 0
        for turn, text in enumerate(choice.texts):
            steps = choice.steps[turn] if lengths is not None else 0
            found.append(
                Turn(
                    choice.index,
                    turn,
                    text,
                    entry(choice.output_ids, turn),
                    lengths and lengths[first : first + steps],
                    entry(choice.drafted, turn),
                    entry(choice.depth, turn),
                    entry(choice.finish_reason, turn),
                )
            )
            first += steps
    return found


def entry(turns, number):
    """The entry of a turn, None where the field is absent."""
    return None if turns is None else turns[number]


def acceptance(questions):
    """Counts by task: {task: {"position": [[accepted, deep enough]], "output": [[tokens, steps]]}}.

    The list of `position` begins at the draft's first token, that of `output` follows EDGES; the
    task "overall" has the sums. A list is empty where no file says what it needs.
    """
    found = defaultdict(lambda: {"position": [], "output": []})
    for question in questions:
        counts = found[question.task], found["overall"]
        for turn in turns_of(question):
            for into in counts:
                count_turn(turn, into)
    return dict(found)


def count_turn(turn, into):
    """Add a Turn to the counts of one task."""
    if turn.lengths is None:
        return
    behind = 1
    for step, length in enumerate(turn.lengths):
        add(into["output"], bisect_right(EDGES, behind) - 1, length, 1)
        behind += length
        if turn.depth is None or step == len(turn.lengths) - 1:
            continue
        for place in range(min(turn.depth[step], PLACES)):
            add(into["position"], place, int(length > place + 1), 1)


def add(pairs, place, value, count):
    """Add to the pair at a place of a list, which grows up to it."""
    while len(pairs) <= place:
        pairs.append([0, 0])
    pairs[place][0] += value
    pairs[place][1] += count
